"""Tables and figures of one episode: its calls, its memory before and after, its advantages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from memalpha_kit.figures import style
from memalpha_kit.records import Memory, Step, ToolCall


def readable(rows: Any, digits: int = 3) -> Styler:
    """A table to be read: text on the left with its line breaks, numbers to so many digits.

    `rows` is whatever pandas makes a table of; an index that only counts is left out.
    """
    table = pd.DataFrame(rows)
    left: list[Any] = [{"selector": "th, td", "props": "text-align: left; white-space: pre-wrap"}]
    plain = table.style.hide() if isinstance(table.index, pd.RangeIndex) else table.style
    return plain.set_table_styles(left).format(precision=digits, na_rep="", escape="html")


def table_calls(calls: Iterable[ToolCall]) -> pd.DataFrame:
    """A row per call: its name (or the text that is no call), status, why, and arguments."""
    rows = [
        {"call": c.name or c.raw, "status": c.status, "why": c.detail} | dict(c.arguments)
        for c in calls
    ]
    return pd.DataFrame(rows or [{"call": "no call"}]).fillna("")


def table_steps(steps: Iterable[Step]) -> pd.DataFrame:
    """`table_calls` of several steps, with the chunk in front."""
    tables = {step.chunk: table_calls(step.calls) for step in steps}
    together = pd.concat(tables, names=["chunk", ""]).reset_index("chunk")
    return together.reset_index(drop=True).fillna("")


def table_change(before: Memory, after: Memory) -> pd.DataFrame:
    """A row per place of the memory (core, or an entry): its text before and after."""

    def texts(memory: Memory) -> dict[str, str]:
        entries = {f"{name} {entry.id}": entry.text for name, entry in memory.entries()}
        return ({"core": memory.core} if memory.core else {}) | entries

    return pd.DataFrame({"before": texts(before), "after": texts(after)}, dtype=object).fillna("")


def plot_advantages(
    groupings: Mapping[str, Sequence[Sequence[float]]], rollouts: Sequence[str]
) -> Figure:
    """Advantages of each rollout by chunk, a panel for each way of grouping.

    `groupings` holds a table of rollouts by chunks, in standard deviations of the group, by title.
    """
    figure, axes = style.panels(style.DOUBLE, 52, len(groupings), sharey=True)
    lines = ("o-", "s-", "D-", "^--")  # so that colour is not the only difference
    for axis, (title, table) in zip(axes, groupings.items(), strict=True):
        last, ends = len(table[0]) - 1, []
        for name, row, line, colour in zip(rollouts, table, lines, style.COLOURS, strict=False):
            axis.plot(row, line, color=colour)
            ends.append((name, last, row[-1], colour))
        axis.axhline(0, color=style.QUIET, linewidth=0.8)
        axis.set(title=title, xlabel="chunk", xticks=range(last + 1))
    style.label_ends(axes[-1], ends)
    axes[0].set_ylabel("advantage (standard deviations)")
    return style.finished(figure, f"{len(rollouts)} rollouts of one instance of {last + 1} chunks.")
