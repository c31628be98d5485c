"""The paper's printed tables and its figures, with the miniature beside them where it can stand.

`rows` and `averages` are from `evaluation.tables.paper_results` and `paper_averages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from memalpha_kit.figures.curves import STAGES
from memalpha_kit.figures.style import COLOURS, finished, panels, whiskers

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

MAIN = (0.05, 0.1)
"""Beta and gamma of the paper's main setting."""

ABLATED = {4: "paper, validation (table 4)", 9: "paper, MemoryAgentBench (table 9)"}


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


def show_printed(table: pd.DataFrame) -> Styler:
    """`table_printed` for people: few digits, averages that are off in colour."""
    colour = table["off by"].notna().map({True: "background-color: #fde2c8", False: ""})
    tokens = [name for name in table if name.startswith("k tokens")]
    shown = table.style.hide(axis="index").format(precision=3, na_rep="")
    shown = shown.format("{:+.3f}", subset=["off by"], na_rep="")
    shown = shown.format("{:.2f}", subset=tokens, na_rep="")
    shown = shown.set_properties(subset=["method"], **{"white-space": "nowrap"})
    shown = shown.set_table_attributes('style="font-size: 85%"')
    return shown.apply(lambda _: colour, subset=["Avg. printed", "Avg. recomputed", "off by"])


def table_margins(averages: pd.DataFrame) -> pd.DataFrame:
    """The lead of the paper's main setting over the best other row, table by table.

    `best_other` is the best by the recomputed average.
    """
    rows = []
    for number, part in averages.assign(name=_printed_name(averages)).groupby("table"):
        main = (part["beta"] == MAIN[0]) & (part["gamma"] == MAIN[1])
        other, row = part[~main], {"table": number}
        row["best_other"] = other.loc[other["score_recomputed"].idxmax(), "name"]
        for name in ("printed", "recomputed"):
            lead = part.loc[main, f"score_{name}"].iloc[0] - other[f"score_{name}"].max()
            row[f"lead_{name}"] = round(lead, 3)
        rows.append(row)
    return pd.DataFrame(rows)


def _printed_name(rows: pd.DataFrame) -> pd.Series:
    """`Mem-alpha (0.05, 0.1)` with beta and gamma where the paper's row has them."""
    pairs = " (" + rows["beta"].map("{:g}".format) + ", " + rows["gamma"].map("{:g}".format) + ")"
    return rows["method"] + pairs.where(rows["beta"].notna(), "")


def plot_paper_memory(averages: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Score against tokens in memory: tables 1 and 2 of the paper, and the miniature beside them.

    Recomputed averages are filled, printed ones hollow where they differ. `results` are the
    recorded seeds: a dot per stage and length.
    """
    figure, axes = panels(13.5, 4.0, 3)
    for axis, number in zip(axes, (1, 2), strict=False):
        _draw_memory(axis, averages[averages["table"] == number])
        axis.set(xlabel="memory, thousands of tokens", title=f"Paper, table {number}")
    means = results.groupby(["stage", "length"])[["memory_tokens", "qa"]].mean()
    for (stage, label), colour in zip(STAGES.items(), COLOURS, strict=False):
        part = means.loc[stage]
        axes[2].plot(part["memory_tokens"], part["qa"], "o-", color=colour, label=label)
        for length, (tokens, qa) in part.iterrows():
            axes[2].annotate(f"{length}x", (tokens, qa), (4, 5), textcoords="offset points")
    axes[2].set(xlabel="memory, tokens", title="Miniature, recorded seeds", ylim=(0, 1))
    axes[2].legend(frameon=True, loc="lower right")
    for axis in axes:
        axis.set(xscale="log", ylabel="score")
        axis.margins(x=0.2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[2].set_xticks([20, 50, 100, 200])
    return finished(figure)


def _draw_memory(axis: plt.Axes, table: pd.DataFrame) -> None:
    for colour, (_, row) in zip(COLOURS, table.iterrows(), strict=False):
        spot = row["memory_ktok_recomputed"]
        axis.plot(spot, row["score_recomputed"], "o", color=colour, label=row["method"])
        if row["differs"]:
            axis.plot(spot, row["score_printed"], "o", color=colour, markerfacecolor="none")
    axis.set(ylim=(0, 0.75))
    axis.legend(frameon=True, fontsize=8, loc="upper left")


def plot_paper_ablation(averages: pd.DataFrame, ours: pd.DataFrame | None = None) -> Figure:
    """Score and memory against beta at gamma 0.1, and what gamma 0 costs at beta 0.05.

    `ours` has columns beta, gamma, qa (with its interval) and memory, all as shares: the miniature
    under the same weights, if it was recorded.
    """
    figure, axes = panels(13.5, 4.0, 3, width_ratios=(1.2, 1.2, 0.8))
    for colour, (number, label) in zip(COLOURS, ABLATED.items(), strict=False):
        part = averages[averages["table"] == number].sort_values("beta")
        line, low = part[part.gamma == MAIN[1]], part[part.gamma == 0.0]
        style = {"color": colour, "label": label}
        axes[0].plot(line["beta"], line["score_recomputed"], "o-", **style)
        off = line[line["differs"]]
        axes[0].plot(off["beta"], off["score_printed"], "o", color=colour, markerfacecolor="none")
        base = line[line.beta == MAIN[0]].iloc[0]
        share = line["memory_ktok_recomputed"] / base["memory_ktok_recomputed"]
        axes[1].plot(line["beta"], share, "o-", **style)
        pair = [low["score_recomputed"].iloc[0], base["score_recomputed"]]
        axes[2].plot([0, 0.1], pair, "o-", **style)
    if ours is not None:
        _draw_ours(axes, ours, COLOURS[2])
    axes[0].set(xlabel="beta (gamma 0.1)", ylabel="score", ylim=(0, 1))
    axes[0].legend(frameon=True, fontsize=8, loc="lower left")
    axes[1].set(xlabel="beta (gamma 0.1)", ylabel="memory / that at beta 0.05", ylim=(0, 1.4))
    for axis in axes[:2]:
        axis.set_xticks(sorted(averages["beta"].dropna().unique()))
    axes[2].set(xlabel="gamma (beta 0.05)", ylabel="score", ylim=(0, 1), xlim=(-0.03, 0.13))
    axes[2].set(xticks=(0, 0.1))
    return finished(figure)


def _draw_ours(axes: Sequence[plt.Axes], ours: pd.DataFrame, colour: Any) -> None:
    line = ours[ours.gamma == 0.1].sort_values("beta")
    pair = ours[(ours.beta == 0.05) & ours.gamma.isin((0.0, 0.1))].sort_values("gamma")
    style = {"fmt": "s-", "color": colour, "capsize": 3, "label": "miniature, 1x"}
    axes[0].errorbar(line["beta"], line["qa"], whiskers(line, "qa"), **style)
    share = line["memory"] / line.loc[line.beta == 0.05, "memory"].iloc[0]
    axes[1].plot(line["beta"], share, "s-", color=colour)
    axes[2].errorbar(pair["gamma"], pair["qa"], whiskers(pair, "qa"), **style)
