"""Tidy tables of answered episodes: one row per source, writer and reader, with an interval.

The one law: one metric per source for every row of a table, named in the row; what is missing is
counted, never scored. A score is the mean over instances of their mean over questions (spec
evaluation.md 5); its interval draws whole instances, or questions where there is only one instance,
and the column `interval` says which.

LongMemEval is scored by `substring` here; its published scores come from an LLM judge and cannot be
compared with these (evaluation.md 3.4).

Two floors stand beside the methods: `read_nothing`, an empty answer, and for classification
`majority_label`, the best that one constant label per instance can do on its questions.

| column | meaning |
| --- | --- |
| `instances`, `rollouts`, `questions`, `missing` | counts; `missing` answers have no score |
| `score`, `low`, `high`, `interval` | mean, ends of its interval, what was drawn for it |
| `memory_tokens`, `chunk_tokens` | mean over episodes, final memory and all its chunks |
| `compression` | mean of 1 - memory / chunks, negative if the memory is longer than the text |
| `calls`, `call_success` | call attempts in all, share of them with status ok |
| `duration_s` | seconds to write and to ask, where known |
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError
from memalpha_kit.method import memory as memories
from memalpha_kit.method import metrics
from memalpha_kit.method.rewards import reward_compression
from memalpha_kit.records import Answer, Episode, Instance
from memalpha_kit.stats import mean_interval
from memalpha_kit.tasks import metric_of
from memalpha_kit.tokens import Counter, counter

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("source", "metric", "writer", "reader", "instances", "rollouts", "questions", "missing"),
    *("score", "low", "high", "interval", "memory_tokens", "chunk_tokens", "compression"),
    *("calls", "call_success", "duration_s"),
)


@dataclass(frozen=True)
class Run:
    """Answered episodes and who answered them; `metric` None is each source's own."""

    episodes: Sequence[Episode]
    reader: str
    metric: str | None = None
    duration_s: float | None = None  # of writing and asking, all episodes together


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    seed: int = 0
    resamples: int = 2000
    level: float = 0.95


Row = dict[str, Any]


def evaluate(
    instances: Sequence[Instance],
    runs: Sequence[Run],
    counter_name: str = "wordpunct",
    bootstrap: Bootstrap = Bootstrap(),
    floors: bool = True,
) -> pd.DataFrame:
    """The table of all runs, with the columns of `COLUMNS`, floors first within each source.

    Tokens of memory and chunks are counted with the same counter. Raises InputError if an
    episode's instance is not among `instances` or an episode was not asked.
    """
    import pandas as pd

    by_id = {instance.id: instance for instance in instances}
    rows = [
        _method_row(run, part, by_id, counter(counter_name), bootstrap)
        for run in runs
        for part in _parts(run, by_id)
    ]
    shown = list(dict.fromkeys((row["source"], row["metric"]) for row in rows))
    kept = dict.fromkeys(episode.instance for run in runs for episode in run.episodes)
    rows = [
        row
        for name, metric in shown
        for row in (
            *(_floors(name, metric, [by_id[i] for i in kept], bootstrap) if floors else ()),
            *(row for row in rows if (row["source"], row["metric"]) == (name, metric)),
        )
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _parts(run: Run, instances: Mapping[str, Instance]) -> Iterator[list[Episode]]:
    """The run's episodes by source and writer, each checked."""
    parts: dict[tuple[str, str], list[Episode]] = {}
    for episode in run.episodes:
        if episode.instance not in instances:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
        expected, found = len(instances[episode.instance].questions), len(episode.answers)
        if expected != found:
            raise InputError(f"episode {episode.id}: expected {expected} answers, found {found}")
        parts.setdefault((episode.source, episode.writer), []).append(episode)
    yield from parts.values()


def _method_row(
    run: Run,
    episodes: Sequence[Episode],
    instances: Mapping[str, Instance],
    measure: Counter,
    bootstrap: Bootstrap,
) -> Row:
    """One row: these episodes are of one source and one writer."""
    first = episodes[0]
    metric = run.metric or metric_of(first.source, judged=False)
    pairs = [(episode.instance, answer) for episode in episodes for answer in episode.answers]
    whole = len(episodes) == len(run.episodes)
    return {
        "source": first.source,
        "metric": metric,
        "writer": first.writer,
        "reader": run.reader,
        "rollouts": len({episode.rollout for episode in episodes}),
        **_scores(pairs, bootstrap),
        **_sizes(episodes, instances, measure),
        "duration_s": run.duration_s if whole else None,
    }


def _scores(pairs: Sequence[tuple[str, Answer]], bootstrap: Bootstrap) -> Row:
    """Counts, mean and interval of scored answers, given as (instance, answer)."""
    ids = {instance for instance, _ in pairs}
    several = len(ids) > 1
    found = mean_interval(
        [answer.score for _, answer in pairs],
        bootstrap.seed,
        bootstrap.resamples,
        bootstrap.level,
        [instance if several else answer.qa for instance, answer in pairs],
    )
    return {
        "instances": len(ids),
        "questions": len(pairs),
        "missing": found.missing,
        "score": found.mean,
        "low": found.low,
        "high": found.high,
        "interval": "instances" if several else "questions",
    }


def _sizes(episodes: Sequence[Episode], instances: Mapping[str, Instance], measure: Counter) -> Row:
    """Token and call columns."""
    read = {i: _tokens(instances[i], measure) for i in {e.instance for e in episodes}}
    kept = [memories.tokens(episode.memory, measure) for episode in episodes]
    texts = [read[episode.instance] for episode in episodes]
    calls = [call for episode in episodes for call in episode.calls]
    saved = [reward_compression(m, c) for m, c in zip(kept, texts, strict=True)]
    return {
        "memory_tokens": sum(kept) / len(kept),
        "chunk_tokens": sum(texts) / len(texts),
        "compression": sum(saved) / len(saved),
        "calls": len(calls),
        "call_success": sum(c.status == "ok" for c in calls) / len(calls) if calls else None,
    }


def _tokens(instance: Instance, measure: Counter) -> int:
    return sum(map(measure.count, instance.chunks))


# ---- floors -----------------------------------------------------------------------------------


def _floors(
    name: str, metric: str, instances: Sequence[Instance], bootstrap: Bootstrap
) -> Iterator[Row]:
    """The floors of one source and metric on these instances."""
    asked = sorted((i for i in instances if i.source == name), key=lambda instance: instance.id)
    constants = {"read_nothing": lambda instance: ""}
    if metric.partition("@")[0] == "label":
        constants["majority_label"] = lambda instance: f"\\boxed{{{majority_label(instance)}}}"
    for reader, answer in constants.items():
        pairs = [
            pair for instance in asked for pair in _constant(instance, answer(instance), metric)
        ]
        row = {"source": name, "metric": metric, "writer": "(none)", "reader": reader}
        yield row | {"rollouts": 1} | _scores(pairs, bootstrap)


def _constant(instance: Instance, text: str, metric: str) -> Iterator[tuple[str, Answer]]:
    """(instance id, scored answer) of every question when the answer is always `text`."""
    for qa in instance.questions:
        try:
            value = metrics.score(metric, text, qa.answers)
        except InputError:  # this question has no score for anybody: `episode.ask` logs why
            value = None
        yield instance.id, Answer(qa.id, text, value)


def majority_label(instance: Instance) -> str:
    """The commonest gold answer of an instance's questions, the smallest of equals.

    It looks at the gold, so no constant answer can score better.
    """
    tally = Tally(qa.answers[0] for qa in instance.questions)
    return min(tally, key=lambda answer: (-tally[answer], answer))
