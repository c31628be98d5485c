"""Figures of what a memory is worth: credit of entries, longer inputs, accuracy against tokens."""

from __future__ import annotations

import math
import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from memalpha_kit.figures.style import COLOURS, POINT, finished, panels, whiskers

NUMBERED = 400
"""Entries up to which tiles of the heat map bear their ids."""
LISTED = 12
"""Entries that are listed by their text; the others are counted."""
HAYSTACKS = {
    "score": "score",
    "memory_tokens": "tokens in memory",
    "prompt_tokens": "tokens of a prompt, per chunk",
    "seconds": "seconds per instance",
}
"""The panels of `plot_haystacks`."""


# --- Credit of entries ----------------------------------------------------------------------------


def plot_credit(table: pd.DataFrame, title: str = "") -> Figure:
    """The memory as a heat map, a tile per entry in its order, and the entries nobody needs.

    `table` is from `method.credit.credits`. Blue: answers get worse without the entry; red: better;
    white: no question needs it. At most 12 of these are listed, the longest first.
    """
    width = max(6, math.isqrt(len(table)))
    n_rows = -(-len(table) // width) or 1
    figure, axes = panels(11, min(8, max(3.4, 0.3 * n_rows + 1.4)), 2, width_ratios=(1.3, 1))
    credit = table["credit"].astype(float)
    _draw_tiles(axes[0], table["id"], credit, (n_rows, width))
    axes[0].set_title(title or f"Credit of {len(table)} entries")
    idle = table[table["needed_by"].map(len).eq(0) & credit.eq(0)]
    idle = idle.sort_values("tokens", ascending=False, kind="stable")
    share = idle["tokens"].sum() / max(1, table["tokens"].sum())
    lines = [
        textwrap.shorten(f"{entry.id}: {entry.text}", 64, placeholder=" ...").replace("$", r"\$")
        for entry in idle[:LISTED].itertuples()
    ]
    lines += [f"and {len(idle) - LISTED} more"] if len(idle) > LISTED else []
    axes[1].axis("off")
    axes[1].set_title(
        f"No question needs {len(idle)} entries, {share:.0%} of the tokens", loc="left"
    )
    axes[1].text(0, 0.97, "\n".join(lines), va="top", fontsize=8, transform=axes[1].transAxes)
    return finished(figure)


def _draw_tiles(
    axis: plt.Axes, names: pd.Series, credit: pd.Series, shape: tuple[int, int]
) -> None:
    grid = pd.Series(credit.to_numpy()).reindex(range(shape[0] * shape[1])).to_numpy()
    reach = float(credit.abs().max() or 0) or 1.0
    style = {"cmap": "RdBu", "vmin": -reach, "vmax": reach, "aspect": "auto"}
    image = axis.imshow(grid.reshape(shape), **style)
    for place, name in enumerate(names if len(names) <= NUMBERED else ()):
        strong = abs(credit.iloc[place]) > 0.6 * reach
        style = {"ha": "center", "va": "center", "fontsize": 7, "color": "w" if strong else "0.3"}
        axis.text(place % shape[1], place // shape[1], name, **style)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    bar = axis.figure.colorbar(image, ax=axis, pad=0.02, aspect=30)
    bar.set_label("score lost without the entry", fontsize=8)
    bar.ax.tick_params(labelsize=7)


# --- Longer inputs --------------------------------------------------------------------------------


def plot_haystacks(table: pd.DataFrame) -> Figure:
    """Score, memory, prompts and seconds against the length of the input, with 95 % intervals.

    `table` is from `evaluation.lengths.table_haystacks`; a column `writer`, if there is one, gives
    a line each. The dashed line is the score from the hay alone.
    """
    named = table if "writer" in table else table.assign(writer="")
    lengths = sorted(table["length"].unique())
    figure, axes = panels(9.6, 6.2, 2, 2, sharex=True)
    for axis, (measure, label) in zip(axes.flat, HAYSTACKS.items(), strict=True):
        for place, (writer, part) in enumerate(named.groupby("writer", sort=False)):
            rows = part[part["measure"] == measure].dropna(subset=["mean"])
            style = {"marker": "o", "capsize": 3, "color": COLOURS[place], "label": writer or None}
            axis.errorbar(
                rows["length"], rows["mean"], whiskers(rows, "mean", "low", "high"), **style
            )
            if measure == "score":
                hay = part[part["measure"] == "score_of_hay"].dropna(subset=["mean"])
                axis.plot(hay["length"], hay["mean"], "--", color=COLOURS[place], linewidth=1)
        axis.set(title=label, xscale="log", ylim=(0, 1.05 if measure == "score" else None))
        axis.set_xticks(lengths, [f"{n}x" for n in lengths])
        axis.minorticks_off()
        if not axis.lines:
            axis.text(0.5, 0.5, "nobody counts them", ha="center", transform=axis.transAxes)
    for axis in axes[1]:
        axis.set_xlabel("input length (1x: the instance alone)")
    axes[0, 0].annotate("dashed: hay alone", (0.02, 0.02), xycoords="axes fraction", fontsize=8)
    if named["writer"].iloc[0]:
        axes[0, 1].legend(fontsize=8, frameon=True)
    return finished(figure)


# --- Accuracy against tokens ----------------------------------------------------------------------


def on_front(sizes: pd.Series, scores: pd.Series) -> pd.Series:
    """Whether no other point is at least as good and at least as small, and better in one of both.

    A point without a size or a score is not on the front.
    """
    points = list(zip(sizes.astype(float), scores.astype(float), strict=True))
    return pd.Series(
        [
            size == size
            and score == score
            and not any(s <= size and q >= score and (s, q) != (size, score) for s, q in points)
            for size, score in points
        ],
        index=sizes.index,
        dtype=bool,
    )


def plot_pareto(
    table: pd.DataFrame, name: str = "method", size: str = "memory_tokens", title: str = ""
) -> Figure:
    """Score against tokens in memory, one labelled point per row; the front is drawn.

    `table` has columns `name`, `size`, `score`, `low`, `high`, such as a sweep's points. Points
    that another one beats are grey.
    """
    figure, axis = panels(7.6, 4.6)
    _draw_front(axis, table, name, size)
    axis.set(xlabel=size.replace("_", " "), title=title or "Accuracy against memory")
    return finished(figure)


def plot_fronts(table: pd.DataFrame) -> Figure:
    """The same for methods, a panel per source, from `evaluation.tables.table_sources`."""
    sources = list(dict.fromkeys(table["source"]))
    if len(sources) == 2:  # one source, whose average is itself
        sources = sources[:1]
    n_rows = -(-len(sources) // 3)
    n = min(3, len(sources))
    figure, axes = panels(5.6 * n, 4.2 * n_rows, n, n_rows, squeeze=False)
    for axis in axes.flat[len(sources) :]:
        axis.set_visible(False)
    for axis, source in zip(axes.flat, sources, strict=False):
        _draw_front(axis, table[table["source"] == source], "method", "memory_tokens")
        axis.set(xlabel="tokens in memory", title=source)
    return finished(figure)


def _draw_front(axis: plt.Axes, table: pd.DataFrame, name: str, size: str) -> None:
    numbers = dict.fromkeys((size, "score", "low", "high"), float)
    known = table.astype(numbers).dropna(subset=[size, "score"]).sort_values(size)
    best = on_front(known[size], known["score"])
    for part, colour in ((known[~best], "0.6"), (known[best], POINT)):
        errors = whiskers(part, "score", "low", "high")
        style = {"fmt": "o", "color": colour, "capsize": 3, "elinewidth": 1}
        axis.errorbar(part[size], part["score"], errors, **style)
        for row in part.to_dict("records"):
            left = row[size] > known[size].mean()
            near = {"xytext": (-7 if left else 7, 6), "ha": "right" if left else "left"}
            near |= {"textcoords": "offset points", "fontsize": 8, "color": colour}
            axis.annotate(str(row[name]), (row[size], row["score"]), **near)
    axis.step(known.loc[best, size], known.loc[best, "score"], where="post", color=POINT)
    axis.set_ylabel("score")
    axis.margins(x=0.2)
