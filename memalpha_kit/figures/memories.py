"""Figures of what a memory is worth: credit of entries, longer inputs, accuracy against tokens."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from memalpha_kit.figures import style

LISTED = 12
"""Entries that are listed by their text; the others are counted."""
HAYSTACKS = {
    "score": "Score",
    "memory_tokens": "Tokens in memory",
    "prompt_tokens": "Tokens of a prompt, per chunk",
    "seconds": "Seconds per instance",
}
"""The panels of `plot_haystacks`."""


def plot_credit(table: pd.DataFrame, title: str = "") -> Figure:
    """The memory as a heat map, a tile per entry in its order, and the entries nobody needs.

    `table` is from `method.credit.credits`. At most 12 of the entries that no question needs are
    listed, the longest first.
    """
    width = max(6, math.isqrt(len(table)))
    n_rows = -(-len(table) // width) or 1
    size = style.DOUBLE, min(140, max(48, 6 * n_rows + 12))
    figure, axes = style.panels(*size, 2, width_ratios=(1.1, 1))
    credit = table["credit"].astype(float)
    _draw_tiles(axes[0], table["id"], credit, (n_rows, width))
    axes[0].set_title(title or f"Credit of {len(table)} entries")
    idle = table[table["needed_by"].map(len).eq(0) & credit.eq(0)]
    idle = idle.sort_values("tokens", ascending=False, kind="stable")
    lines = [
        textwrap.shorten(f"{entry.id}: {entry.text}", 56, placeholder=" ...").replace("$", r"\$")
        for entry in idle[:LISTED].itertuples()
    ]
    lines += [f"and {len(idle) - LISTED} more"] if len(idle) > LISTED else []
    axes[1].axis("off")
    share = idle["tokens"].sum() / max(1, table["tokens"].sum())
    axes[1].set_title(f"No question needs {len(idle)} entries ({share:.0%} of tokens)")
    axes[1].text(0, 0.98, "\n".join(lines), va="top", transform=axes[1].transAxes)
    caption = "A tile per entry, with its id: how much the mean score falls when it is left out. "
    caption += "Purple: answers need it; orange: they are better without it."
    return style.finished(figure, caption)


def _draw_tiles(
    axis: plt.Axes, names: pd.Series, credit: pd.Series, shape: tuple[int, int]
) -> None:
    grid = pd.Series(credit.to_numpy()).reindex(range(shape[0] * shape[1])).to_numpy()
    reach = float(credit.abs().max() or 0) or 1.0
    cells = grid.reshape(shape)
    image = axis.imshow(cells, style.DIVERGING, aspect="auto", vmin=-reach, vmax=reach)
    for place, name in enumerate(names if len(names) <= 400 else ()):  # or ids have no room
        strong = abs(credit.iloc[place]) > 0.6 * reach
        row, column = divmod(place, shape[1])
        colour = "w" if strong else "0.3"
        axis.text(column, row, name, ha="center", va="center", fontsize=5, color=colour)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.figure.colorbar(image, ax=axis, pad=0.02, aspect=30, label="fall of the score")


def plot_haystacks(table: pd.DataFrame) -> Figure:
    """Score, memory, prompts and seconds against the length of the input, with 95 % intervals.

    `table` is from `evaluation.lengths.table_haystacks`; a column `writer`, if there is one, gives
    a line each. The dashed line is the score from the hay alone.
    """
    named = table if "writer" in table else table.assign(writer="")
    figure, axes = style.panels(style.DOUBLE, 100, 2, 2, sharex=True)
    for axis, (measure, title) in zip(axes.flat, HAYSTACKS.items(), strict=True):
        part = named[named["measure"] == measure].dropna(subset=["mean"])
        _draw_lengths(axis, part, sorted(table["length"].unique()))
        axis.set_title(title)
        if part.empty:
            axis.text(0.5, 0.5, "not counted", ha="center", transform=axis.transAxes)
    hay = table[table["measure"] == "score_of_hay"].dropna(subset=["mean"])
    floor = hay.groupby("length")["mean"].mean()
    axes[0, 0].plot(floor.index, floor, "--", color=style.QUIET)
    axes[0, 0].set_ylim(0, 1.05)
    if len(floor):
        end = "hay alone", floor.index[-1], floor.iloc[-1], style.QUIET
        style.label_ends(axes[0, 0], [end])
    for axis in axes[1]:
        axis.set_xlabel("input length (1x: the instance alone)")
    caption = f"n = {int(table['n'].max())} instances; bars: 95 % bootstrap intervals over them. "
    caption += "The same questions at every length. Dashed: every sentence of the hay is kept and "
    caption += "nothing else."
    return style.finished(figure, caption)


def _draw_lengths(axis: plt.Axes, table: pd.DataFrame, lengths: list[int]) -> None:
    """A line per writer, labelled at its end."""
    ends: list[Any] = []
    writers = table.groupby("writer", sort=False)
    for colour, (writer, rows) in zip(style.COLOURS, writers, strict=False):
        errors = style.whiskers(rows, "mean", "low", "high")
        axis.errorbar(rows["length"], rows["mean"], errors, marker="o", color=colour)
        ends.append((writer, rows["length"].iloc[-1], rows["mean"].iloc[-1], colour))
    axis.set(xscale="log", ylim=(0, None))
    axis.set_xticks(lengths, [f"{n}x" for n in lengths])
    axis.minorticks_off()
    if any(writer for writer, *_ in ends):
        style.label_ends(axis, ends)


def on_front(sizes: pd.Series, scores: pd.Series) -> pd.Series:
    """Whether no other point is at least as good and at least as small, and better in one of both.

    A point without a size or a score is not on the front.
    """
    points = list(zip(sizes.astype(float), scores.astype(float), strict=True))

    def beaten(size: float, score: float) -> bool:
        return any(s <= size and q >= score and (s, q) != (size, score) for s, q in points)

    known = sizes.notna() & scores.notna()
    return known & ~pd.Series([beaten(*point) for point in points], sizes.index, dtype=bool)


def plot_pareto(table: pd.DataFrame, name: str = "method", caption: str = "") -> Figure:
    """Score against tokens in memory, one labelled point per row; the front is drawn.

    `table` has columns `name`, memory_tokens, score, low, high, such as a sweep's points. Points
    that another one beats are grey.
    """
    figure, axis = style.panels(120, 76)
    _draw_front(axis, table, name)
    axis.set(xlabel="tokens in memory", title="Accuracy against memory")
    return style.finished(figure, f"{caption} {FRONT}".strip())


FRONT = "Line: what no other point beats. Grey: another one is as small and as good, or better."


def plot_fronts(table: pd.DataFrame) -> Figure:
    """The same for methods, a panel per source, from `evaluation.tables.table_sources`."""
    sources = list(dict.fromkeys(table["source"]))
    if len(sources) == 2:  # one source, whose average is itself
        sources = sources[:1]
    figure, axes = style.grid(sources, 2, style.DOUBLE if len(sources) > 1 else 120, 70)
    for axis, source in zip(axes, sources, strict=True):
        _draw_front(axis, table[table["source"] == source], "method")
        axis.set(xlabel="tokens in memory", title=source)
    return style.finished(figure, f"Bars: 95 %, over instances (of one: its questions). {FRONT}")


def _draw_front(axis: plt.Axes, table: pd.DataFrame, name: str) -> None:
    size = "memory_tokens"
    numbers = dict.fromkeys((size, "score", "low", "high"), float)
    known = table.astype(numbers).dropna(subset=[size, "score"]).sort_values(size)
    best = on_front(known[size], known["score"])
    colour = style.COLOURS[0]
    axis.step(known.loc[best, size], known.loc[best, "score"], where="post", color=colour)
    for part, shade in ((known[~best], style.QUIET), (known[best], colour)):
        errors = style.whiskers(part, "score", "low", "high")
        axis.errorbar(part[size], part["score"], errors, fmt="o", color=shade, elinewidth=0.7)
    ordered = known.assign(best=best).sort_values(["score", size])
    for place, row in enumerate(ordered.to_dict("records")):
        spot, shade = (1.04, (place + 0.5) / len(ordered)), colour if row["best"] else style.QUIET
        line = {"arrowstyle": "-", "color": shade, "linewidth": 0.4, "relpos": (0, 0.5)}
        look: dict[str, Any] = {"textcoords": "axes fraction", "va": "center", "color": shade}
        label, point = style.in_words(str(row[name])), (row[size], row["score"])
        axis.annotate(label, point, spot, arrowprops=line, **look)
    axis.set_ylabel("score")
