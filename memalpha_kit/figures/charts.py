"""Figures of data sets, of one episode, and of evaluated methods, from saved tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from memalpha_kit.figures import style

SHOWN = (
    *("metric", "questions", "missing", "score", "low", "high"),
    *("memory_tokens", "compression", "calls"),
)
"""Columns of `evaluation.tables.table_sources` that a reader looks at first."""

WATERFALL = {
    "correct": "#0072B2",
    "never_written": "#D55E00",
    "overwritten_or_deleted": "#E69F00",
    "not_retrieved": "#F0E442",
    "not_used": "#CC79A7",
    "unknown": "#cccccc",
}
"""Colours of the stages, in the order in which evidence can be lost."""

CATEGORIES = {
    "AR": "accurate retrieval",
    "TTL": "test-time learning",
    "LRU": "long-range understanding",
    "CR": "conflict resolution",
}
CATEGORY_COLOURS = dict(zip(CATEGORIES, style.COLOURS, strict=False))


def plot_chunks(table: pd.DataFrame) -> Figure:
    """Distribution of chunk lengths in tokens, one panel per source (its own scale)."""
    sources = list(dict.fromkeys(table["source"]))
    figure, axes = style.grid(sources, 4, style.DOUBLE, 34)
    for axis, source in zip(axes, sources, strict=True):
        tokens = table.loc[table.source == source, "tokens"]
        axis.hist(tokens, bins=min(20, max(1, tokens.nunique())), color=style.AFTER)
        axis.set(title=f"{source} (n = {len(tokens)})", xlabel="tokens per chunk")
        axis.yaxis.get_major_locator().set_params(integer=True)
    for axis in axes[::4]:
        axis.set_ylabel("chunks")
    return style.finished(figure, "n: chunks. Every panel has its own scales.")


def plot_sizes(statistics: pd.DataFrame, made_up: bool = False) -> Figure:
    """Tokens per chunk and chunks per instance of every source: mean, smallest and largest."""
    rows = statistics.drop_duplicates(["dataset", "source"]).iloc[::-1]
    names = [d if d == s else f"{d}: {s}" for d, s in zip(rows.dataset, rows.source, strict=True)]
    figure, axes = style.panels(style.DOUBLE, 3.6 * len(rows) + 12, 2, sharey=True)
    for axis, name in zip(axes, ("tokens_per_chunk", "chunks_per_instance"), strict=True):
        low, high = rows[f"{name}_min"], rows[f"{name}_max"]
        axis.hlines(names, low.where(low < high), high, color=style.QUIET, linewidth=1)
        axis.plot(rows[name], names, "o", color=style.AFTER)
        axis.set(xlabel=f"{name.replace('_', ' ')} (log scale)", xscale="log")
        axis.margins(y=0.02)
    caption = "Dots: means. Lines: from the smallest to the largest, where they differ."
    return style.finished(figure, caption, made_up)


def plot_categories(statistics: pd.DataFrame, made_up: bool = False) -> Figure:
    """Share of each category (AR, TTL, LRU, CR) in instances and in tokens, by part."""
    table = statistics.assign(tokens=statistics.instances * statistics.tokens_per_instance)
    sums = table.groupby(["part", "category"])[["instances", "tokens"]].sum()
    shares = sums / sums.groupby("part").transform("sum")
    figure, axes = style.panels(style.DOUBLE, 34, 2, sharey=True)
    for axis, name in zip(axes, ("instances", "tokens"), strict=True):
        wide = shares[name].unstack("category").fillna(0.0)
        left = pd.Series(0.0, wide.index)
        for category in filter(wide.columns.__contains__, CATEGORIES):
            look = {"color": CATEGORY_COLOURS[category], "label": CATEGORIES[category]}
            axis.barh(wide.index, wide[category], left=left, **look)
            left += wide[category]
        axis.set(xlabel=f"share of {name}", xlim=(0, 1))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    counts = table.groupby("part")["instances"].sum()
    n = ", ".join(f"{part} {count}" for part, count in counts.items())
    return style.finished(figure, f"Instances: {n}.", made_up)


def table_leaks(leaks: pd.DataFrame) -> pd.DataFrame:
    """What training gives away of a test set: a row per pair of sets that share something.

    A question is given away if training asks it with a common answer (`repeated`) or shows its
    sentence with a label (`shown`). Pairs that share nothing are left out.
    """
    given = leaks[["repeated", "shown"]].max(axis=1)
    table = leaks.assign(share=given / leaks["questions"].clip(lower=1))
    columns = ["train", "test", "questions", "repeated", "shown", "share"]
    return table.loc[given > 0, columns].sort_values("share", ascending=False, ignore_index=True)


def plot_memory(table: pd.DataFrame) -> Figure:
    """Tokens read and tokens kept after each chunk of one episode."""
    figure, axis = style.panels(style.SINGLE, 50)
    marker = "o" if len(table) == 1 else ""
    ends = []
    for name, colour in (("read", style.QUIET), ("memory", style.AFTER)):
        tokens = table[f"{name}_tokens"]
        axis.step(table["chunk"], tokens, marker=marker, where="mid", color=colour)
        label = {"read": "read so far", "memory": "in memory"}[name]
        ends.append((label, table["chunk"].iloc[-1], tokens.iloc[-1], colour))
    axis.set(xlabel="chunk", ylabel="tokens", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    style.label_ends(axis, ends)
    return style.finished(figure, f"One episode of {len(table)} chunks.")


def plot_memories(memories: Mapping[str, Sequence[tuple[str, bool]]], caption: str) -> Figure:
    """Memories side by side, entry by entry: blue if it holds an answer that is asked for.

    `memories` are, by title, the entries in order, each with whether it holds an answer.
    """
    width = 120 // len(memories)  # letters in a line
    columns = {
        title: [(textwrap.wrap(f"• {text}", width), wanted) for text, wanted in entries]
        for title, entries in memories.items()
    }
    n_lines = max(1, *(sum(len(lines) for lines, _ in column) for column in columns.values()))
    figure, axes = style.panels(style.DOUBLE, max(16, 3.2 * n_lines + 8), len(columns))
    for axis, (title, column) in zip(axes, columns.items(), strict=True):
        axis.set(xlim=(0, 1), ylim=(n_lines, 0), title=title)
        axis.axis("off")
        line = 0
        for lines, wanted in column or [(["(nothing is stored)"], False)]:
            look = {"color": style.AFTER if wanted else style.QUIET, "va": "top"}
            axis.text(0, line, "\n".join(lines), linespacing=1.25, **look)
            line += len(lines)
    return style.finished(figure, f"{caption} Blue: holds an answer that is asked for.")


def plot_sources(table: pd.DataFrame, level: float = 0.95) -> Figure:
    """Scores of methods with their intervals, one panel per source, from `table_sources`."""
    sources = list(dict.fromkeys(table["source"]))
    methods = list(dict.fromkeys(table["method"]))[::-1]
    width, height = style.DOUBLE if len(sources) > 1 else style.SINGLE, 4.5 * len(methods) + 16
    figure, axes = style.grid(sources, 3, width, height, sharey=True)
    for axis, source in zip(axes, sources, strict=True):
        part = table[table.source == source].dropna(subset=["score"])
        axis.set(xlim=(0, 1), yticks=range(len(methods)), yticklabels=methods)
        axis.set_title(f"{source} (n = {int(table[table.source == source].questions.iloc[0])})")
        if part.empty:
            axis.text(0.5, 0, "no score", ha="center", color=style.QUIET)
            continue
        places = [methods.index(method) for method in part["method"]]
        errors = style.whiskers(part, "score", "low", "high")
        axis.barh(places, part["score"].astype(float), xerr=errors, color=style.COLOURS[2])
        axis.set_xlabel("score")
    caption = f"n: questions. Whiskers: {100 * level:g} % bootstrap over instances (of one: its "
    return style.finished(figure, f"{caption}questions). No bar: no score.")


def plot_waterfall(table: pd.DataFrame) -> Figure:
    """Share of answers by the stage at which they failed, from `waterfall.table_waterfall`."""
    one_source = table["source"].nunique() == 1
    columns = ["writer", "reader"] if one_source else ["source", "writer", "reader"]
    names = table[columns].apply(lambda row: "\n".join(filter(None, row)), axis=1)
    wide = table.assign(name=names, stage=table["stage"].astype(str))
    wide = wide.pivot(index="name", columns="stage", values="share").loc[names.unique()[::-1]]
    lines = 1 + max(name.count("\n") for name in wide.index)
    figure, axis = style.panels(style.DOUBLE, (4 + 2.5 * lines) * len(wide) + 16)
    left = pd.Series(0.0, wide.index)
    for stage in [stage for stage in WATERFALL if wide[stage].sum()]:
        label = stage.replace("_", " ")
        axis.barh(wide.index, wide[stage], 0.7, left=left, color=WATERFALL[stage], label=label)
        left += wide[stage]
    axis.set(xlim=(0, 1), xlabel="share of answers")
    figure.legend(loc="outside upper left", ncols=6)
    n = table.groupby(names, sort=False)["n"].sum().unique()
    source = f"Source: {table.source.iloc[0]}. " if one_source else ""
    caption = f"{source}n = {', '.join(map(str, n))} answers. Stages without an answer are left out"
    return style.finished(figure, f"{caption}.")
