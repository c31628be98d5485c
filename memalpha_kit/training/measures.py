"""Numbers that describe the episodes of one GRPO step: a row of `metrics.csv`.

    observe -> joined (over processes) -> summarise

The one law: means are taken over everybody's episodes, never over processes' means. So several
processes report what one would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, tokens
from memalpha_kit.records import Episode, Rewards, TrainingRow
from memalpha_kit.tokens import counter
from memalpha_kit.training.batch import trained

KINDS = {INSERT: "inserts", UPDATE: "updates", DELETE: "deletes"}
STATUSES = ("ok", "skipped", "rejected", "malformed")

LAST = ("loss_tokens", "flat_rows")
"""Measures of the rows that are trained on; they stand at the end."""

Observed = dict[str, list[float | None]]
"""What was seen, by name of the measure; one number per episode, per step or per row."""


def measure(
    episodes: Sequence[Episode],
    parts: Mapping[str, Rewards],
    rows: Sequence[TrainingRow],
    counter_name: str,
) -> dict[str, float]:
    """What the episodes of one step were like; means leave out what is missing, NaN if all is.

    accuracy and compression are means over episodes, format, content and reward over rows; calls
    by kind and by status are per chunk; missing counts rows without a reward.
    """
    return summarise(observe(episodes, parts, rows, counter_name))


def observe(
    episodes: Sequence[Episode],
    parts: Mapping[str, Rewards],
    rows: Sequence[TrainingRow],
    counter_name: str,
) -> Observed:
    """The numbers behind `measure`, which other processes' can be put beside."""
    steps = [step for episode in episodes for step in episode.steps]
    kinds = [Counter(KINDS.get(call.name, "other_calls") for call in s.calls) for s in steps]
    statuses = [Counter(call.status for call in step.calls) for step in steps]
    real, counts, done = trained(rows), counter(counter_name), list(parts.values())
    return {
        "reward": [row.reward for row in rows],
        "accuracy": [part.accuracy for part in done],
        "format": [value for part in done for value in part.format],
        "compression": [part.compression for part in done],
        "content": [value for part in done for value in part.content],
        "calls": [len(step.calls) for step in steps],
        **{kind: [seen[kind] for seen in kinds] for kind in (*KINDS.values(), "other_calls")},
        **{f"calls_{status}": [seen[status] for seen in statuses] for status in STATUSES},
        "memory_tokens": [tokens(episode.memory, counts) for episode in episodes],
        "prompt_tokens": [len(step.completion.prompt_ids) for step in steps],
        "reply_tokens": [len(step.completion.completion_ids) for step in steps],
        "cut_replies": [step.completion.finish == "length" for step in steps],
        "loss_tokens": [sum(row.loss_mask) for row in real],
        "flat_rows": [row.advantage == 0 for row in real],
    }


def joined(parts: Iterable[Observed]) -> Observed:
    """What several processes saw, as if one had."""
    every = list(parts)
    return {name: [value for part in every for value in part[name]] for name in every[0]}


def summarise(observed: Observed) -> dict[str, float]:
    """The measures of what was seen, as `measure` describes them."""
    rewards, real = observed["reward"], observed["loss_tokens"]
    known = [reward for reward in rewards if reward is not None]
    spread = stdev(known) if len(known) > 1 else math.nan
    means = {name: _mean(values) for name, values in observed.items() if name not in LAST}
    return {
        "reward": means.pop("reward"),
        "reward_std": spread,
        **means,
        "rows": len(rewards),
        "rows_missing": len(rewards) - len(known),
        "rows_trained": len(real),
        "loss_tokens": sum(real),
        "flat_rows": _mean(observed["flat_rows"]),
    }


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan
