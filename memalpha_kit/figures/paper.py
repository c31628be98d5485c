"""The paper's printed tables and its figures, with the miniature beside them where it can stand.

`rows` and `averages` are from `evaluation.paper.paper_results` and `paper_averages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from memalpha_kit.figures import style
from memalpha_kit.figures.charts import CATEGORIES, CATEGORY_COLOURS
from memalpha_kit.figures.curves import STAGE_COLOURS, STAGES

MAIN = (0.05, 0.1)
"""Beta and gamma of the paper's main setting."""

ABLATED = {4: "paper, validation (table 4)", 9: "paper, MemoryAgentBench (table 9)"}
PRINTED = "Printed in arXiv 2509.25911"


def table_printed(rows: pd.DataFrame, averages: pd.DataFrame) -> pd.DataFrame:
    """One table of the paper as printed, its averages beside those of its columns.

    A row per method, a column per data set, then both averages of the scores, by how much the
    recomputed one is off (blank if it is rounding only), and both averages of the memory in
    thousands of tokens.
    """
    rows = rows.assign(method=_printed_name(rows))
    order, columns = rows["method"].unique(), [n for n in rows["dataset"].unique() if n != "Avg."]
    wide = rows.pivot(index="method", columns="dataset", values="score").loc[order, columns]
    mine = averages[averages["table"].isin(rows["table"])]
    mine = mine.set_index(_printed_name(mine)).loc[order]
    wide["Avg. printed"] = mine["score_printed"]
    wide["Avg. recomputed"] = mine["score_recomputed"]
    wide["off by"] = (mine["score_recomputed"] - mine["score_printed"]).where(mine["differs"])
    wide["k tokens printed"] = mine["memory_ktok_printed"]
    wide["k tokens recomputed"] = mine["memory_ktok_recomputed"]
    return wide.rename_axis(columns=None).reset_index()


def table_margins(averages: pd.DataFrame) -> pd.DataFrame:
    """The lead of the paper's main setting over the best other row, table by table.

    `best_other` is the best by the recomputed average.
    """
    rows = []
    for number, part in averages.assign(name=_printed_name(averages)).groupby("table"):
        main = (part["beta"] == MAIN[0]) & (part["gamma"] == MAIN[1])
        other = part[~main]
        row: dict[str, Any] = {"table": number}
        row["best_other"] = other["name"].iloc[other["score_recomputed"].argmax()]
        for name in ("printed", "recomputed"):
            lead = part.loc[main, f"score_{name}"].iloc[0] - other[f"score_{name}"].max()
            row[f"lead_{name}"] = round(lead, 3)
        rows.append(row)
    return pd.DataFrame(rows)


def _printed_name(rows: pd.DataFrame) -> pd.Series:
    """`Mem-alpha (0.05, 0.1)` with beta and gamma where the paper's row has them."""
    pairs = " (" + rows["beta"].map("{:g}".format) + ", " + rows["gamma"].map("{:g}".format) + ")"
    return rows["method"] + pairs.where(rows["beta"].notna(), "")


def plot_printed(table: pd.DataFrame) -> Figure:
    """One table of the paper: its scores as cells, and its average printed and recomputed.

    `table` is from `table_printed`. Right: filled dots are the mean of the columns, hollow ones
    the printed average; they are apart where the print is off.
    """
    names = list(table["method"])
    scores = table.loc[:, :"Avg. printed"].iloc[:, 1:-1].set_axis(names)
    size = style.DOUBLE, 6 * len(names) + 16
    figure, (left, right) = style.panels(*size, 2, width_ratios=(3.6, 1))
    style.heat(left, scores, wrap=10)
    left.set_title("Score by data set")
    rows = range(len(names))
    right.plot(table["Avg. printed"], rows, "o", color="k", markerfacecolor="w", zorder=2)
    right.plot(table["Avg. recomputed"], rows, "o", color=style.AFTER, markersize=3, zorder=3)
    edges = table[["Avg. printed", "Avg. recomputed"]].astype(float).max(axis=1)
    for row, (off, edge) in enumerate(zip(table["off by"], edges, strict=True)):
        if pd.notna(off):
            right.annotate(
                f"{off:+.3f}", (edge, row), (5, -2), textcoords="offset points", fontsize=6
            )
    right.set(yticks=rows, yticklabels=[], xlabel="average", xlim=(0, 1), title="Average")
    right.set_ylim(left.get_ylim())
    caption = f"{PRINTED}, without intervals; in brackets β and γ. Right: circle, printed average; "
    caption += "dot, mean of the columns; their difference is written where it is not rounding."
    return style.finished(figure, caption)


def plot_memory_sizes(rows: pd.DataFrame) -> Figure:
    """Thousands of tokens that each method keeps of each data set, tables 1 and 2 of the paper.

    `rows` are from `evaluation.paper.paper_results`.
    """
    figure, axes = style.panels(style.DOUBLE, 72, 1, 2)
    for axis, number in zip(axes, (1, 2), strict=True):
        part = rows[(rows["table"] == number) & (rows["dataset"] != "Avg.")]
        wide = part.assign(name=_printed_name(part))
        wide = wide.pivot(index="name", columns="dataset", values="memory_ktok")
        wide = wide.loc[_printed_name(part).unique(), part["dataset"].unique()]
        style.heat(axis, wide, ".3g", norm=LogNorm(0.3, 500), vmin=None, vmax=None)
        axis.set_title(f"Thousands of tokens kept, table {number}")
    caption = f"{PRINTED}. Colours are logarithmic. Long-Context keeps all it may read."
    return style.finished(figure, caption)


def plot_statistics(statistics: pd.DataFrame) -> Figure:
    """Tokens and questions per instance of the paper's data sets, from its tables 7 and 8."""
    training = (statistics["table"] == 7) & (statistics["split"] == "train")
    parts = {"Training (table 7)": statistics[training]}
    parts["Evaluation (table 8)"] = statistics[statistics["table"] == 8]
    sizes = [len(part) for part in parts.values()]
    size = style.DOUBLE, 3.6 * sum(sizes) + 24
    figure, axes = style.panels(*size, 2, 2, height_ratios=sizes, sharex="col")
    for pair, (label, part) in zip(axes, parts.items(), strict=True):
        part = part.iloc[::-1].assign(tokens=part.chunks_per_instance * part.tokens_per_chunk)
        names = part["dataset"] + "  (n = " + part["instances"].astype(str) + ")"
        for axis, column in zip(pair, ("tokens", "questions_per_instance"), strict=True):
            axis.scatter(part[column], names, color=part["category"].map(CATEGORY_COLOURS))
            axis.set(xscale="log")
        pair[1].set_yticklabels([])
        pair[0].set_title(label)
    axes[1, 0].set_xlabel("tokens per instance (log scale)")
    axes[1, 1].set_xlabel("questions per instance (log scale)")
    used = [c for c in CATEGORIES if c in set(statistics["category"])]
    marks = [axes[0, 0].scatter([], [], color=CATEGORY_COLOURS[c]) for c in used]
    figure.legend(marks, [CATEGORIES[c] for c in used], loc="outside upper left", ncols=4)
    caption = f"{PRINTED}; n: instances; tokens per instance: chunks times tokens per chunk."
    return style.finished(figure, caption)


def plot_paper_memory(averages: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Score against tokens in memory: tables 1 and 2 of the paper, and the miniature beside them.

    Recomputed averages are filled, printed ones hollow where they differ. `results` are the
    recorded seeds: a dot per stage and length.
    """
    figure, axes = style.panels(style.DOUBLE, 60, 3)
    for axis, number in zip(axes, (1, 2), strict=False):
        _draw_memory(axis, averages[averages["table"] == number])
        axis.set(xlabel="memory, thousands of tokens (log)", title=f"Paper, table {number}")
    means = results.groupby(["stage", "length"])[["memory_tokens", "qa"]].mean()
    for stage, label in STAGES.items():
        part, colour = means.loc[stage], STAGE_COLOURS[stage]
        axes[2].plot(part["memory_tokens"], part["qa"], "o-", color=colour)
        for length, (tokens, qa) in part.iterrows():
            look = {"textcoords": "offset points", "fontsize": 6, "ha": "center"}
            axes[2].annotate(f"{length}x", (tokens, qa), (0, 4), **look)
        look = {"textcoords": "offset points", "ha": "center", "color": colour}
        axes[2].annotate(label, part.iloc[len(part) // 2], (0, -11), **look)
    axes[2].set(xlabel="memory, tokens (log)", title="Miniature", ylim=(0, 1))
    for axis in axes:
        axis.set(xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[2].xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes[0].set_ylabel("score")
    seeds = results["seed"].nunique()
    caption = "Up and to the left is better. Paper: averages of the columns (dots) and as printed "
    caption += "(circles, where they differ), no intervals. Miniature: mean over recorded seeds "
    return style.finished(figure, f"{caption}(n = {seeds}) at each input length.")


def _draw_memory(axis: Axes, table: pd.DataFrame) -> None:
    ends = []
    for colour, (_, row) in zip(style.COLOURS, table.iterrows(), strict=False):
        spot, score = row["memory_ktok_recomputed"], row["score_recomputed"]
        axis.plot(spot, score, "o", color=colour)
        ends.append((row["method"], spot, score, colour))
        if row["differs"]:
            axis.plot(spot, row["score_printed"], "o", color=colour, markerfacecolor="none")
    axis.set(ylim=(0, 1), xscale="log")
    style.label_ends(axis, ends)


def plot_paper_ablation(averages: pd.DataFrame, ours: pd.DataFrame | None = None) -> Figure:
    """Score and memory against beta at gamma 0.1, and what gamma 0 costs at beta 0.05.

    `ours` has columns beta, gamma, qa (with its interval) and memory, all as shares: the miniature
    under the same weights, if it was recorded.
    """
    figure, axes = style.panels(style.DOUBLE, 62, 3, width_ratios=(1.2, 1.2, 0.8))
    for colour, (number, label) in zip(style.COLOURS, ABLATED.items(), strict=False):
        part = averages[averages["table"] == number].sort_values("beta")
        line, low = part[part.gamma == MAIN[1]], part[part.gamma == 0.0]
        axes[0].plot(line["beta"], line["score_recomputed"], "o-", color=colour, label=label)
        off = line[line["differs"]]
        axes[0].plot(off["beta"], off["score_printed"], "o", color=colour, markerfacecolor="none")
        base = line[line.beta == MAIN[0]].iloc[0]
        share = line["memory_ktok_recomputed"] / base["memory_ktok_recomputed"]
        axes[1].plot(line["beta"], share, "o-", color=colour)
        pair = [low["score_recomputed"].iloc[0], base["score_recomputed"]]
        axes[2].plot([0, 0.1], pair, "o-", color=colour)
    if ours is not None:
        _draw_ours(axes, ours, style.COLOURS[3])
    axes[0].set(xlabel="β, at γ 0.1", ylabel="score", ylim=(0, 1), title="Score")
    axes[1].set(xlabel="β, at γ 0.1", ylabel="share of that at β 0.05", ylim=(0, 1.4))
    axes[1].set_title("Memory")
    for axis in axes[:2]:
        axis.set_xticks(sorted(averages["beta"].dropna().unique()))
    axes[2].set(xlabel="γ, at β 0.05", ylim=(0, 1), xlim=(-0.03, 0.13), title="Score")
    axes[2].set(xticks=(0, 0.1), ylabel="score")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    caption = "Paper: one run a point, averages of the columns (dots) and as printed (circles, "
    caption += "where they differ)."
    if ours is not None:
        caption += f" Miniature: {style.seeds(int(ours.seeds.iloc[0]))}, n = {ours.n.iloc[0]}, "
        caption += "whiskers: 95 % bootstrap over seeds, then instances."
    return style.finished(figure, caption)


def _draw_ours(axes: Sequence[Axes], ours: pd.DataFrame, colour: str) -> None:
    line = ours[ours.gamma == 0.1].sort_values("beta")
    pair = ours[(ours.beta == 0.05) & ours.gamma.isin((0.0, 0.1))].sort_values("gamma")
    look: dict[str, Any] = {"fmt": "s-", "color": colour, "label": "miniature, 1x"}
    axes[0].errorbar(line["beta"], line["qa"], style.whiskers(line, "qa"), **look)
    share = line["memory"] / line.loc[line.beta == 0.05, "memory"].iloc[0]
    axes[1].plot(line["beta"], share, "s-", color=colour)
    axes[2].errorbar(pair["gamma"], pair["qa"], style.whiskers(pair, "qa"), **look)
