"""Numbers that describe the episodes of one GRPO step: a row of `metrics.csv`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from memalpha_kit.memory import DELETE, INSERT, UPDATE, tokens
from memalpha_kit.records import Episode, Rewards, TrainingRow
from memalpha_kit.text import counter
from memalpha_kit.training.batch import trained

KINDS = {INSERT: "inserts", UPDATE: "updates", DELETE: "deletes"}
STATUSES = ("ok", "skipped", "rejected", "malformed")


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
    steps = [step for episode in episodes for step in episode.steps]
    calls = [call for step in steps for call in step.calls]
    kinds = Counter(KINDS.get(call.name, "other_calls") for call in calls)
    statuses = Counter(call.status for call in calls)
    known = [row.reward for row in rows if row.reward is not None]
    real = trained(rows)
    counts = counter(counter_name)
    done = list(parts.values())
    return {
        "reward": _mean(known),
        "reward_std": stdev(known) if len(known) > 1 else math.nan,
        "accuracy": _mean(part.accuracy for part in done),
        "format": _mean(value for part in done for value in part.format),
        "compression": _mean(part.compression for part in done),
        "content": _mean(value for part in done for value in part.content),
        "calls": len(calls) / len(steps),
        **{kind: kinds[kind] / len(steps) for kind in (*KINDS.values(), "other_calls")},
        **{f"calls_{status}": statuses[status] / len(steps) for status in STATUSES},
        "memory_tokens": _mean(tokens(episode.memory, counts) for episode in episodes),
        "prompt_tokens": _mean(len(step.completion.prompt_ids) for step in steps),
        "reply_tokens": _mean(len(step.completion.completion_ids) for step in steps),
        "cut_replies": _mean(step.completion.finish == "length" for step in steps),
        "rows": len(rows),
        "rows_missing": len(rows) - len(known),
        "rows_trained": len(real),
        "loss_tokens": sum(sum(row.loss_mask) for row in real),
        "flat_rows": _mean(row.advantage == 0 for row in real),
    }


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan
