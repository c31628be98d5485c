"""Figures of data sets, of one episode, and of evaluated methods, from saved tables."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from memalpha_kit.figures.style import BAR, POINT, finished, panels, whiskers

SHOWN = (
    *("metric", "questions", "missing", "score", "low", "high"),
    *("memory_tokens", "compression", "calls"),
)
"""Columns of `evaluation.tables.table_sources` that a reader looks at first."""

WATERFALL = {
    "correct": "#55a868",
    "never_written": "#c44e52",
    "overwritten_or_deleted": "#dd8452",
    "not_retrieved": "#e8b94c",
    "not_used": "#8172b3",
    "unknown": "0.8",
}
"""Colours of the stages, in the order in which evidence can be lost."""


def plot_chunks(table: pd.DataFrame) -> Figure:
    """Distribution of chunk lengths in tokens, one panel per source (its own scale)."""
    sources = list(dict.fromkeys(table["source"]))
    rows = -(-len(sources) // 4)
    figure, axes = panels(11, 2.6 * rows, 4, rows, squeeze=False)
    for axis in axes.flat[len(sources) :]:
        axis.set_visible(False)
    for axis, source in zip(axes.flat, sources, strict=False):
        tokens = table.loc[table.source == source, "tokens"]
        axis.hist(tokens, bins=min(20, max(1, tokens.nunique())), color=BAR, edgecolor="0.4")
        axis.set(title=f"{source} ({len(tokens)} chunks)", xlabel="tokens per chunk")
    return finished(figure)


def plot_sizes(statistics: pd.DataFrame) -> Figure:
    """Tokens per chunk and chunks per instance of every source: mean, smallest and largest."""
    rows = statistics.drop_duplicates(["dataset", "source"]).iloc[::-1]
    names = [d if d == s else f"{d}: {s}" for d, s in zip(rows.dataset, rows.source, strict=True)]
    figure, axes = panels(10, 0.27 * len(rows) + 1.2, 2, sharey=True)
    for axis, name in zip(axes, ("tokens_per_chunk", "chunks_per_instance"), strict=True):
        reach = whiskers(rows, name, f"{name}_min", f"{name}_max")
        axis.errorbar(rows[name], names, xerr=reach, fmt="o", color=POINT, markersize=4)
        axis.set(title=name.replace("_", " "), xscale="log")
        axis.tick_params(axis="y", labelsize=7)
    return finished(figure)


def plot_categories(statistics: pd.DataFrame) -> Figure:
    """Share of each category (AR, TTL, LRU, CR) in instances and in tokens, by part."""
    table = statistics.assign(tokens=statistics.instances * statistics.tokens_per_instance)
    sums = table.groupby(["part", "category"])[["instances", "tokens"]].sum()
    shares = sums / sums.groupby("part").transform("sum")
    figure, axes = panels(8, 3, 2, sharey=True)
    for axis, name in zip(axes, ("instances", "tokens"), strict=True):
        shares[name].unstack("category").plot.bar(stacked=True, ax=axis, legend=False, rot=0)
        axis.set(title=f"share of {name}", xlabel="", ylim=(0, 1))
    axes[1].legend(bbox_to_anchor=(1, 1), loc="upper left", frameon=False)
    return finished(figure)


def plot_leaks(leaks: pd.DataFrame) -> Figure:
    """Share of each test set's questions that training gives away, as a matrix.

    That is: training asks it with a common answer, or shows its sentence with a label.
    """
    given = leaks[["repeated", "shown"]].max(axis=1) / leaks["questions"].clip(lower=1)
    matrix = leaks.assign(share=given).pivot(index="train", columns="test", values="share")
    figure, axis = panels(0.42 * matrix.shape[1] + 3.4, 0.34 * len(matrix) + 3.0)
    style = {"cmap": "OrRd", "annot": True, "fmt": ".2f", "annot_kws": {"size": 6}, "cbar": False}
    sns.heatmap(matrix.astype(float), ax=axis, vmin=0, vmax=1, linewidths=0.4, **style)
    axis.set(title="Test questions that training gives away (share)")
    axis.set(xlabel="test set", ylabel="training")
    axis.tick_params(labelsize=7)
    return finished(figure)


def plot_memory(table: pd.DataFrame) -> Figure:
    """Tokens read and tokens kept after each chunk of one episode."""
    figure, axis = panels(6.4, 3.4)
    axis.step(table["chunk"], table["read_tokens"], where="mid", color="0.55", label="tokens read")
    axis.step(table["chunk"], table["memory_tokens"], where="mid", label="tokens in memory")
    axis.set(xlabel="chunk", ylabel="tokens", title="Tokens read and tokens kept")
    axis.legend(frameon=True)
    return finished(figure)


def plot_sources(table: pd.DataFrame) -> Figure:
    """Scores of methods with 95 % intervals, one panel per source, from `table_sources`."""
    sources = list(dict.fromkeys(table["source"]))
    methods = list(dict.fromkeys(table["method"]))[::-1]
    size = 2.6 * len(sources) + 2.2, 0.34 * len(methods) + 1.5
    figure, axes = panels(*size, len(sources), sharey=True, squeeze=False)
    for axis, source in zip(axes.flat, sources, strict=True):
        rows = table[table.source == source]
        places = [methods.index(method) for method in rows["method"]]
        errors = whiskers(rows, "score", "low", "high")
        axis.barh(places, rows["score"].astype(float), xerr=errors, capsize=3, color=BAR)
        axis.set_title(f"{source}\n(n = {int(rows['questions'].iloc[0])})", fontsize=10)
        axis.set(xlim=(0, 1), xlabel="score", yticks=range(len(methods)), yticklabels=methods)
        axis.tick_params(axis="y", labelsize=8)
    return finished(figure)


def plot_waterfall(table: pd.DataFrame) -> Figure:
    """Share of answers by the stage at which they failed, from `waterfall.table_waterfall`."""
    one_source = table["source"].nunique() == 1
    columns = ["writer", "reader"] if one_source else ["source", "writer", "reader"]
    names = table[columns].agg(lambda row: "\n".join(filter(None, row)), axis=1)
    wide = table.assign(name=names, stage=table["stage"].astype(str))
    wide = wide.pivot(index="name", columns="stage", values="share").loc[names.unique()[::-1]]
    figure, axis = panels(8.4, 0.62 * len(wide) + 1.8)
    left = pd.Series(0.0, wide.index)
    for stage, colour in WATERFALL.items():
        axis.barh(wide.index, wide[stage], left=left, color=colour, label=stage.replace("_", " "))
        left += wide[stage]
    title = f"Where answers are lost{f': {table.source.iloc[0]}' if one_source else ''}"
    axis.set(xlim=(0, 1), xlabel="share of answers", title=title)
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(bbox_to_anchor=(1, 1), loc="upper left", frameon=False, fontsize=8)
    return finished(figure)
