"""Credit: how much the answers need each entry of a memory, and with it each call and each step.

The credit of an entry is its leave-one-out difference: the mean score of the questions answered
from the whole memory, minus the mean score from the memory without this entry. 0: no question needs
it. Below 0: it misleads. Two copies of a needed fact have credit 0 each, as either may go; that is
what the difference says, and Shapley values, which would share the credit, need the reader to be
asked about many memories per entry. The credit of a call or step is the sum over the entries whose
final text it wrote, so credits of calls add up to those of the entries.

A memory of n entries with m questions takes n * m readings. A reader by rule takes microseconds for
one, as its index exchanges one text at a time. Where there are more than `readings`, the questions
that used an entry are all asked again, and of the others, which can change only because an entry
weighs on how others are ranked, a random sample: then `low` and `high` are a conservative interval
for the same difference.

    credits(episode, instance.questions, reader("best_entry"))      a row per entry
    RewardConfig(others={"credit": 1.0})                            as a reward of each step
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb

import pandas as pd

from memalpha_kit.method.blame import touches
from memalpha_kit.method.episode import scored_answer
from memalpha_kit.method.readers import Reader
from memalpha_kit.method.rewards import TERMS, Scene
from memalpha_kit.records import QA, Answer, Episode, Memory, Question
from memalpha_kit.tasks import metric_of
from memalpha_kit.tokens import counter

READINGS = 100_000
"""Answers by rule that `credits` takes before it samples: some seconds."""


@dataclass(frozen=True)
class Credit:
    """What is known of one entry: its leave-one-out difference and the questions that need it.

    `low` and `high` are equal to `credit` if every question was asked again. All three are None if
    no question could be scored on both sides.
    """

    credit: float | None
    low: float | None
    high: float | None
    needed_by: tuple[str, ...]  # ids of questions whose score falls without the entry


def parts(memory: Memory) -> list[tuple[str, str, str]]:
    """Everything that can be left out, as (type, id, text); a paragraph's id is its name."""
    named = {"core": memory.core, **memory.others}
    texts = [(name, name, text) for name, text in named.items() if text and isinstance(text, str)]
    return texts + [(name, entry.id, entry.text) for name, entry in memory.entries()]


def without(memory: Memory, part: str) -> Memory:
    """The memory without the entry of that id, or with that paragraph emptied."""
    for name, entries in memory.lists().items():
        if entries.get(part):
            return memory.with_part(name, entries.removing(part))
    return memory.with_part(part, "")


def credits(
    memory: Episode | Memory,
    questions: Sequence[QA],
    reader: Reader,
    metric: str | None = None,
    source: str = "",
    *,
    readings: int = READINGS,
    seed: int = 0,
) -> pd.DataFrame:
    """A row per entry: id, type, text, tokens, credit, low, high, needed_by (ids of questions).

    An episode brings its source, whose metric is the default, and its token counter.
    """
    count = "wordpunct"
    if isinstance(memory, Episode):
        count, source, memory = memory.memory_config.counter, memory.source, memory.memory
    found = measure(memory, questions, reader, metric, source, readings, seed)
    rows = [
        {"id": part, "type": name, "text": text, "tokens": counter(count).count(text)}
        | vars(found[part])
        for name, part, text in parts(memory)
    ]
    columns = ["id", "type", "text", "tokens", "credit", "low", "high", "needed_by"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[4:7], float))


def measure(
    memory: Memory,
    questions: Sequence[QA],
    reader: Reader,
    metric: str | None = None,
    source: str = "",
    readings: int = READINGS,
    seed: int = 0,
) -> dict[str, Credit]:
    """The credit of every part of the memory, by its id."""
    asking = _Asking(reader, memory, questions, metric or metric_of(source, judged=False), source)
    before = reader.read(asking.put)
    whole = {i: was for i, one in enumerate(before) if (was := asking.score(i, one)) is not None}
    listed = parts(memory)
    exact = len(listed) * len(whole) <= readings
    n_drawn = max(1, readings // max(1, len(listed)))
    rng, found = random.Random(seed), {}
    for _, part, _ in listed:
        used = [i for i in whole if exact or part in before[i].retrieved]
        others = [] if exact else [i for i in whole if part not in before[i].retrieved]
        drawn = rng.sample(others, min(n_drawn, len(others)))
        asked = used + drawn
        after = zip(asked, asking.without(part, asked), strict=True)
        falls = {i: whole[i] - score for i, score in after if score is not None}
        needed = tuple(questions[i].id for i in sorted(falls) if falls[i] > 0)
        surely, seen = ([falls[i] for i in group if i in falls] for group in (used, drawn))
        n_others = len(others) - (len(drawn) - len(seen))
        found[part] = Credit(*_estimate(surely, seen, n_others), needed)
    return found


class _Asking:
    """Scores of the questions, asked about a memory or about what is left of it."""

    def __init__(
        self, reader: Reader, memory: Memory, questions: Sequence[QA], metric: str, source: str
    ) -> None:
        self.reader, self.memory, self.questions, self.metric = reader, memory, questions, metric
        self.put = [Question(qa.id, qa.question, source, "", memory) for qa in questions]
        self.opened = reader.opened(memory) if hasattr(reader, "opened") else None
        self._known: dict[tuple[int, str | None], float | None] = {}  # equal answers are many

    def score(self, place: int, answer: Answer) -> float | None:
        """The score of an answer to the question at this place."""
        key = (place, answer.prediction)
        if key not in self._known:
            gold = self.questions[place].answers
            self._known[key] = scored_answer(answer, gold, self.metric, "credits").score
        return self._known[key]

    def without(self, part: str, asked: Sequence[int]) -> list[float | None]:
        """The scores of the questions at these places from the memory without that part.

        Rules exchange the entry in their index; any other reader is given another memory.
        """
        if self.opened and any(entries.get(part) for entries in self.memory.lists().values()):
            self.opened.hide(part)
            answers = [self.opened.answer(self.put[i]) for i in asked]
        else:
            left = without(self.memory, part)
            answers = self.reader.read([replace(self.put[i], memory=left) for i in asked])
        return [self.score(i, answer) for i, answer in zip(asked, answers, strict=True)]


def _estimate(
    surely: Sequence[float], drawn: Sequence[float], n_others: int
) -> tuple[float | None, float | None, float | None]:
    """The mean fall of the score over all questions, and a 95 % interval for it.

    `surely` are the falls of all questions of one kind, `drawn` those of a random sample of the
    `n_others` others. One that was not drawn may change by as much as 1; how many do, up and down,
    is bounded from the sample (`most_changed`), each side at half of the tail.
    """
    n, m = len(surely) + n_others, len(drawn)
    if not n or (n_others and not m):
        return None, None, None
    rest = sum(drawn) * n_others / m if m else 0.0
    tail, known = (1 - 0.95) / 2, sum(surely) + sum(drawn)
    downs, ups = (sum(sign * fall > 0 for fall in drawn) for sign in (1, -1))
    high = known + most_changed(downs, m, n_others, tail) - downs
    low = known - most_changed(ups, m, n_others, tail) + ups
    return (sum(surely) + rest) / n, low / n, high / n


@lru_cache(maxsize=4096)
def most_changed(seen: int, drawn: int, total: int, tail: float) -> int:
    """The most of `total` things that can be changed ones if `seen` of `drawn` were.

    The largest number under which so few changed ones are drawn, without replacement, with a
    probability above `tail` (hypergeometric; Clopper and Pearson's argument).

    >>> most_changed(0, 50, 100, 0.025)
    5
    """

    def too_many(changed: int) -> bool:
        ways = sum(comb(changed, k) * comb(total - changed, drawn - k) for k in range(seen + 1))
        return ways <= tail * comb(total, drawn)

    possible = range(seen, total - (drawn - seen) + 1)
    return possible[bisect_left(possible, True, key=too_many) - 1]


def authors(episode: Episode) -> dict[str, tuple[int, int]]:
    """Who wrote the final text of each entry: (place of the step, place of the call in it)."""
    wrote = {touch.entry: (touch.step, touch.call) for touch in touches(episode)}
    return {part: wrote[part] for _, part, _ in parts(episode.memory)}


def call_credits(episode: Episode, entries: pd.DataFrame) -> pd.DataFrame:
    """A row per call: step, call (its place in the step), name, status, entries, credit.

    `entries` is the table of `credits`. `entries` and `credit` of a row are the ids of the entries
    whose final text the call wrote and the sum of their credits; a deletion has none.
    """
    wrote = authors(episode)
    known = dict(zip(entries["id"], entries["credit"], strict=True))
    written: dict[tuple[int, int], list[str]] = {}
    for part in known:
        written.setdefault(wrote[part], []).append(part)
    rows = []
    for step, turn in enumerate(episode.steps):
        for place, call in enumerate(turn.calls):
            mine = tuple(written.get((step, place), ()))
            row = {"step": step, "call": place, "name": call.name, "status": call.status}
            rows.append(row | {"entries": mine, "credit": sum(known[part] for part in mine)})
    return pd.DataFrame(rows, columns=["step", "call", "name", "status", "entries", "credit"])


@TERMS.register("credit")
def reward_credit(scene: Scene) -> tuple[float | None, ...]:
    """The credit of the entries whose final text a step wrote.

    What an answer needs of two steps counts for both, so their sum may be above r1. None without
    the reader that answered; a model as a reader is asked about every entry again.
    """
    episode = scene.episode
    if scene.reader is None:
        return (None,) * len(episode.steps)
    questions, source = scene.instance.questions, scene.instance.source
    found = measure(episode.memory, questions, scene.reader, scene.metric, source)
    sums: list[float | None] = [0.0] * len(episode.steps)
    for part, (step, _) in authors(episode).items():
        known, before = found[part].credit, sums[step]
        sums[step] = None if known is None or before is None else before + known
    return tuple(sums)
