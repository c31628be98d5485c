"""The figure of the grouping laboratory: what each setting makes of the same rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memalpha_kit.figures import style


def plot_grouping(advantages: pd.DataFrame, cosine: pd.DataFrame) -> Figure:
    """What groupings do to the same rollouts, from the tables of `lab.grouping`.

    Top left: what each setting's advantages are made of (first stage). Top right: cosine of one
    batch's gradient with the unbiased direction, estimated from other rollouts, by stage. Below:
    cosines between the settings' gradients on the same rollouts, as Adam sees them (first stage).
    """
    figure, axes = style.panels(style.DOUBLE, 150, 2, 2, height_ratios=(1.2, 1))
    first = advantages["stage"].iloc[0]
    seen = cosine[cosine["view"] == "as Adam sees it"]
    order = list(dict.fromkeys(_setting(advantages)))
    whole = axes[1, 0].get_gridspec()[1, :]
    axes[1, 0].remove()
    axes[1, 1].remove()
    below = figure.add_subplot(whole)
    _draw_advantages(axes[0, 0], advantages[advantages.stage == first])
    _draw_direction(axes[0, 1], seen[seen.kind == "unbiased direction"], order)
    same = seen[(seen.stage == first) & (seen.kind == "same rollouts")]
    pairs = pd.DataFrame({"a": _setting(same), "b": _setting(same, "other_"), "c": same["mean"]})
    matrix = pairs.pivot(index="a", columns="b", values="c").reindex(index=list(order[1:]))
    style.heat(below, matrix[list(order[:-1])])
    axes[0, 0].set_title(f"Advantages, {first}")
    axes[0, 1].set_title("Cosine with the unbiased gradient")
    below.set_title(f"Cosine of two settings' gradients, same rollouts, {first}")
    n = int(advantages["batches"].iloc[0])
    caption = f"Miniature, {n} batches. Top left, advantages divided by their spread: share of "
    caption += "their variance that the place of the chunk and the rollout explain, of steps with "
    caption += "another sign than as released, and with exactly 0. "
    return style.finished(figure, f"{caption}Whiskers: 95 % bootstrap over batches.")


def _setting(table: pd.DataFrame, prefix: str = "") -> pd.Series:
    """Names such as `one group per chunk, scaled`, in two lines."""
    names = "grouping=" + table[f"{prefix}grouping"] + " scale=" + table[f"{prefix}scale"]
    return names.map(style.in_words).str.replace(", ", ",\n")


def _draw_advantages(axis: Axes, table: pd.DataFrame) -> None:
    labels = {
        "by_chunk": "variance by place",
        "by_rollout": "variance by rollout",
        "sign_flips": "other sign",
        "zero_rows": "zero",
    }
    rows = table[(table.scale == "std") & table.measure.isin(labels)]
    wide = rows.pivot(index="grouping", columns="measure", values="mean").astype(float)
    wide = wide.loc[list(dict.fromkeys(rows.grouping)), list(labels)].rename(columns=labels)
    names = {name: style.in_words(f"grouping={name}") for name in wide.index}
    style.heat(axis, wide.rename(index={n: fill(said, 14) for n, said in names.items()}), wrap=11)


def _draw_direction(axis: Axes, table: pd.DataFrame, order: Sequence[str]) -> None:
    table = table.astype(dict.fromkeys(("mean", "low", "high"), float))
    for place, (stage, part) in enumerate(table.groupby("stage", sort=False)):
        spots = [order.index(name) + 0.2 * place for name in _setting(part)]
        look: dict[str, Any] = {"fmt": "o", "color": style.COLOURS[place], "label": stage}
        axis.errorbar(part["mean"], spots, xerr=style.whiskers(part, "mean", "low", "high"), **look)
    axis.set(yticks=range(len(order)), yticklabels=order, xlabel="cosine, one step's gradient")
    axis.set_ylim(len(order) - 0.4, -1.6)
    axis.legend(loc="upper center", ncols=2, borderpad=0)
