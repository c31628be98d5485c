"""One style for all figures, and how a figure is begun, finished and saved."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from memalpha_kit import files

BAR, POINT = "#8fb8de", "#2b6ca3"
COLOURS = sns.color_palette("colorblind")


def panels(width: float, height: float, n: int = 1, rows: int = 1, **options: Any) -> tuple:
    """A figure of so many inches and its axes: one `Axes`, or an array of `n` per row."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook", font_scale=0.9)
    return plt.subplots(rows, n, figsize=(width, height), **options)


def whiskers(table: pd.DataFrame, mean: str, low: str = "", high: str = "") -> list[pd.Series]:
    """Distances from the column `mean` to both ends of its interval; 0 where there is none.

    The ends are the columns `low` and `high`, by default `mean_low` and `mean_high`.
    """
    below = table[mean] - table[low or f"{mean}_low"]
    above = table[high or f"{mean}_high"] - table[mean]
    return [part.astype(float).fillna(0).clip(lower=0) for part in (below, above)]


def finished(figure: Figure) -> Figure:
    """The figure, laid out and closed: who gets it shows or saves it, once."""
    figure.tight_layout()
    plt.close(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, whole or not at all; the path is returned."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    files.write_bytes(path, image.getvalue())
    return path
