"""One style for all figures: sizes in millimetres, colours, captions, direct labels, saving.

    figure, axis = style.panels(style.SINGLE, 60)
    axis.plot(steps, reward, color=style.COLOURS[0])
    style.label_ends(axis, [("reward", steps[-1], reward[-1], style.COLOURS[0])])
    style.finished(figure, "Mean over 5 seeds.")
    style.save_figure(figure, folder / "reward.png")  # and reward.pdf

The law: a figure says in itself what a reader needs to judge it. The caption (n, kind of interval,
what is not shown) is drawn below, made-up data is marked, and what was not measured is not drawn.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memalpha_kit import files

SINGLE, DOUBLE = 89, 183
"""Widths in millimetres: one column and two columns of a journal."""

COLOURS = ("#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#8A6D3B")
"""Told apart with any colour vision (after Okabe and Ito, 2008); no red stands against a green."""
BEFORE, AFTER, QUIET = "#E69F00", "#0072B2", "#8c8c8c"
HEAT, DIVERGING = "Blues", "PuOr"
"""Colour maps: from nothing to much, and from minus to plus."""

SETTINGS: Any = {
    **{"font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7, "figure.titlesize": 7},
    **{"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5},
    **{"axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 4},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.5},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5},
    **{"ytick.major.size": 2.5, "lines.linewidth": 1.2, "lines.markersize": 4},
    **{"errorbar.capsize": 2, "legend.frameon": False, "pdf.fonttype": 42, "figure.dpi": 200},
    **{"axes.edgecolor": "#4d4d4d", "xtick.color": "#4d4d4d", "ytick.color": "#4d4d4d"},
    **{"xtick.labelcolor": "#000000", "ytick.labelcolor": "#000000"},
}


def panels(width: float, height: float, n: int = 1, rows: int = 1, **options: Any) -> tuple:
    """A figure of so many millimetres and its axes: one `Axes`, or an array of `n` per row.

    Its caption is added below, so a finished figure is a little higher.
    """
    plt.rcParams.update(SETTINGS)
    size = width / 25.4, height / 25.4
    return plt.subplots(rows, n, figsize=size, layout="constrained", **options)


def grid(
    names: Sequence[Any], n: int, width: float, height: float, **options: Any
) -> tuple[Figure, list[Any]]:
    """A figure with an axis for each name, at most `n` a row, rows so many millimetres high."""
    rows = -(-len(names) // n)
    figure, axes = panels(width, height * rows, min(n, len(names)), rows, squeeze=False, **options)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    return figure, list(axes.flat[: len(names)])


def whiskers(table: pd.DataFrame, mean: str, low: str = "", high: str = "") -> list[pd.Series]:
    """Distances from the column `mean` to both ends of its interval; missing where there is none.

    The ends are the columns `low` and `high`, by default `mean_low` and `mean_high`. Nothing is
    drawn where an end is missing.
    """
    ends = table[[mean, low or f"{mean}_low", high or f"{mean}_high"]].astype(float)
    middle, below, above = (ends[name] for name in ends)
    return [(middle - below).clip(lower=0), (above - middle).clip(lower=0)]


def dots(place: int) -> dict[str, Any]:
    """The look of the dots of one of several series; no two of 36 look the same."""
    row, colour = divmod(place, len(COLOURS))
    return {"fmt": "osD^vP"[row % 6], "color": COLOURS[colour]}


def label_ends(axis: Axes, ends: Sequence[tuple[str, float, float, str]], gap: float = 8) -> None:
    """Writes each (text, x, y, colour) to the right of its point: the labels instead of a legend.

    Labels stand at least `gap` points apart. Call it when all is drawn and limits are set.
    """
    figure: Any = axis.figure
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    last = max((x for _, x, y, _ in ends if y == y), default=0.0)
    placed = sorted(
        (float(axis.transData.transform((last, y))[1]) * points, text, y, colour)
        for text, _, y, colour in ends
        if y == y
    )
    spots = [spot for spot, *_ in placed]
    for _ in range(20):  # neighbours that are too close push each other away
        for i in range(len(spots) - 1):
            short = (gap - (spots[i + 1] - spots[i])) / 2
            if short > 0.01:
                spots[i], spots[i + 1] = spots[i] - short, spots[i + 1] + short
    for spot, (from_, text, y, colour) in zip(spots, placed, strict=True):
        note = axis.annotate(text, (last, y), (5, spot - from_), textcoords="offset points")
        note.set(color=colour, va="center", annotation_clip=False, fontsize=6.5)


def nothing(why: str) -> Figure:
    """A figure that says that there is nothing to show, and why."""
    figure, axis = panels(SINGLE, 20)
    axis.axis("off")
    axis.text(0.5, 0.5, f"nothing to show: {why}", ha="center", va="center", color=QUIET)
    return finished(figure)


def heat(axis: Axes, table: pd.DataFrame, text: str = ".2f", wrap: int = 16, **options: Any) -> Any:
    """Draws a table as coloured cells with their numbers; missing cells stay white and blank.

    `text` is the format of the numbers, `wrap` the length at which names of columns are broken.
    `options` go to `imshow`; the default colours run from 0 to 1. The image is returned.
    """
    values = table.to_numpy(dtype=float)
    look: dict[str, Any] = {"cmap": HEAT, "aspect": "auto", "vmin": 0, "vmax": 1}
    image = axis.imshow(values, **look | options)
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        colour = "w" if dark else "k"
        axis.text(
            column, row, f"{value:{text}}", ha="center", va="center", fontsize=6, color=colour
        )
    names = [textwrap.fill(str(name), wrap) for name in table]
    axis.set(xticks=range(table.shape[1]), xticklabels=names)
    axis.set(yticks=range(len(table)), yticklabels=table.index)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return image


WORDS = {
    "grouping=instance": "one group per instance",
    "grouping=chunk": "one group per chunk",
    "grouping=rollout": "whole rollouts compared",
    "grouping=leave_one_out": "against the other rollouts",
    "scale=std": "scaled",
    "scale=none": "not scaled",
}
GREEK = {"beta": "β", "gamma": "γ"}


def in_words(point: str) -> str:
    """Settings as a person says them.

    >>> in_words("grouping=instance scale=std"), in_words("beta=0.05 gamma=0")
    ('one group per instance, scaled', 'β 0.05, γ 0')
    >>> in_words("grouping=leave_one_out scale=none"), in_words("semantic only")
    ('against the other rollouts, not scaled', 'semantic only')
    """
    if "=" not in point:
        return point
    said = []
    for part in re.split(r" (?=[^ ]+=)", point):
        name, value = part.split("=", 1)
        said.append(WORDS.get(part) or f"{GREEK.get(name, name.replace('_', ' '))} {value}")
    return ", ".join(said)


def seeds(n: int) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n} {'seed' if n == 1 else 'seeds'}"


def finished(figure: Figure, caption: str = "", made_up: bool = False) -> Figure:
    """The figure with its caption below, closed: who gets it shows or saves it, once.

    The caption says n, the kind of interval, and what is missing or cut. `made_up` marks a figure
    whose data was invented.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, int(width * 25.4 * 0.82))
    if lines:
        figure.set_size_inches(width, height + (len(lines) * 7.4 + 2) / 72)
        style = {"x": 0.01, "ha": "left", "fontsize": 6, "color": "#404040"}
        figure.supxlabel("\n".join(lines), **style)
    if made_up:
        box = {"boxstyle": "round,pad=0.3", "facecolor": "#fff3d6", "edgecolor": "#E69F00"}
        figure.suptitle("made-up data", x=0.99, ha="right", fontsize=6.5, bbox=box)
    plt.close(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG (300 dpi) and as PDF beside it, each whole or not at all.

    The same figure gives the same bytes: no date is written. The path of the PNG is returned.
    """
    for ending, options in ((".pdf", {"metadata": {"CreationDate": None}}), (".png", {"dpi": 300})):
        image = io.BytesIO()
        figure.savefig(image, format=ending[1:], **options)
        files.write_bytes(path.with_suffix(ending), image.getvalue())
    return path.with_suffix(".png")
