"""Numbers that describe the episodes of one GRPO step: a row of `metrics.csv`.

    summarise(joined(processes.gathered(observe(...))))

The one law: means are taken over everybody's episodes, never over processes' means. So several
processes report what one would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, tokens
from memalpha_kit.method.rewards import reward_terms
from memalpha_kit.records import Episode, Rewards, TrainingRow
from memalpha_kit.tokens import counter
from memalpha_kit.training.batch import trained

KINDS = {INSERT: "inserts", UPDATE: "updates", DELETE: "deletes"}
STATUSES = ("ok", "skipped", "rejected", "malformed")

Observed = dict[str, list[float | None]]
"""What was seen, by name of the measure; one number per episode, per step or per row."""


def observe(
    episodes: Sequence[Episode],
    parts: Mapping[str, Rewards],
    rows: Sequence[TrainingRow],
    counter_name: str,
) -> Observed:
    """Accuracy and compression by episode, format, content and reward by row, calls by chunk."""
    steps = [step for episode in episodes for step in episode.steps]
    kinds = [Counter(KINDS.get(call.name, "other_calls") for call in s.calls) for s in steps]
    statuses = [Counter(call.status for call in step.calls) for step in steps]
    real, counts, done = trained(rows), counter(counter_name), list(parts.values())
    return {
        "reward": [row.reward for row in rows],
        **_terms(done),
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


def _terms(parts: Sequence[Rewards]) -> Observed:
    """The values of every reward term; r1 and r3 are an episode's, the others a step's."""
    terms = [reward_terms(part) for part in parts or [Rewards(None, None, (), ())]]
    return {name: [value for part in terms for value in part[name]] for name in terms[0]}


def joined(parts: Iterable[Observed]) -> Observed:
    """What several processes saw, as if one had."""
    every = list(parts)
    return {name: [value for part in every for value in part[name]] for name in every[0]}


def summarise(observed: Observed) -> dict[str, float]:
    """Means of what is known, NaN where nothing is, and counts of rows.

    rows_missing have no reward, flat_rows is the share of trained rows whose advantage is 0.
    """
    known = {name: [v for v in values if v is not None] for name, values in observed.items()}
    means = {name: fmean(values) if values else math.nan for name, values in known.items()}
    n_rows, n_rewarded = len(observed["reward"]), len(known["reward"])
    return {
        "reward": means.pop("reward"),
        "reward_std": stdev(known["reward"]) if n_rewarded > 1 else math.nan,
        **{name: mean for name, mean in means.items() if name not in ("loss_tokens", "flat_rows")},
        "rows": n_rows,
        "rows_missing": n_rows - n_rewarded,
        "rows_trained": len(observed["loss_tokens"]),
        "loss_tokens": sum(observed["loss_tokens"]),
        "flat_rows": means["flat_rows"],
    }
