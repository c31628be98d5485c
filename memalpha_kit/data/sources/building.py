"""What every builder is given: raw files, settings, seed, generators, and what is left out.

The one law: a build depends on the raw bytes, the settings and the seed alone. Each (source,
instance, purpose) has a generator of its own, so that drawing one more lead-in does not change
which questions are asked.

>>> job = Job("squad", Path("raw"))
>>> job.rng(3, "frames").random() == job.rng(3, "frames").random() != job.rng(3, "days").random()
True
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.data import stages
from memalpha_kit.data.raw import matches, rows
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import frames
from memalpha_kit.data.stages import Stage
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.registry import fresh_processes
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import Counter, counter

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Job:
    """One build of one source: the raw files, the settings, the seed, and what was left out."""

    source: str  # what the instances are named after, and their random generators
    raw: Path
    config: BuildConfig = field(default_factory=BuildConfig)
    seed: int = 0
    skips: Skips = field(default_factory=Skips)

    @property
    def counter(self) -> Counter:
        """The counter of tokens that the settings name."""
        return counter(self.config.counter)

    def but(self, source: str = "", **settings: Any) -> Job:
        """The same job for another source, or with other settings."""
        return replace(self, source=source or self.source, config=replace(self.config, **settings))

    def rng(self, instance: int | str, purpose: str) -> random.Random:
        """The generator of this purpose in this instance; "all" is what instances share."""
        return random.Random(f"{self.seed}/{self.source}/{instance}/{purpose}")

    def targets(self, instance: int | str) -> Callable[[], int]:
        """Draws the size of each next chunk of documents."""
        rng, config = self.rng(instance, "targets"), self.config
        return lambda: rng.randint(config.chunk_min_tokens, config.chunk_max_tokens)

    def read(
        self,
        read: Callable[[Any, str], T],
        pattern: str,
        columns: Sequence[str] = (),
        single: bool = False,
    ) -> Iterator[T]:
        """What `read(row, where)` gives for every row of a raw file; bad ones are skipped."""
        return self.skips.each(read, rows(self.raw, pattern, columns, self.skips, single))

    def sampled(self, questions: Sequence[T], instance: int | str) -> list[T]:
        """At most `max_questions` of the questions, in order; those not drawn are counted."""
        drawn = draw(questions, self.config.max_questions, self.rng(instance, "questions"))
        self.skips.drop("questions above the limit, sampled away", len(questions) - len(drawn))
        return drawn

    def framed(
        self, contents: Iterable[str], instance: int | str, lead_ins: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The contents as what the user said, one a day; by default as documents."""
        rng = self.rng(instance, "frames")
        return frames.frame_all(contents, lead_ins or frames.DOCUMENT_LEAD_INS, rng)

    def instance(self, chunks: Iterable[str], questions: Iterable[QA], **metadata: Any) -> Instance:
        """An instance of the source."""
        return make_instance(self.source, chunks, questions, metadata=metadata)

    def not_none(
        self, built: Sequence[Instance], pattern: str, expected: str, found: str = "none"
    ) -> list[Instance]:
        """The instances. Raises InputError, naming the raw file, if there are none."""
        if not built:
            path = matches(self.raw, pattern)[0]
            raise InputError(f"{path}: expected {expected}, found {found}{self.skips.reasons()}")
        return list(built)


def only(chunks: Iterable[int]) -> int | None:
    """The one chunk with the evidence; None if there are several, or none that is known."""
    found = set(chunks)
    return found.pop() if len(found) == 1 else None


def draw(items: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """`n` of the items in their old order, or all of them if there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in sorted(rng.sample(range(len(items)), n))]


def spread(
    work: Callable[[list[T]], Sequence[R]], items: Iterable[T], workers: int, batch: int
) -> Iterator[R]:
    """What `work` gives for batches of the items, in order, done by so many processes.

    Reads the items a few batches ahead. `work` is a function that a process can be sent.
    """
    left, waiting = iter(items), deque[Future[Sequence[R]]]()
    batches = iter(lambda: list(islice(left, batch)), [])
    if workers == 1:
        for held in batches:
            yield from work(held)
        return
    with fresh_processes(workers) as pool:
        for held in batches:
            waiting.append(pool.submit(work, held))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def sizes(texts: Iterable[str], config: BuildConfig) -> Iterator[int]:
    """Tokens of each text, in order, counted by `config.workers` processes."""
    return spread(partial(_counts, config.counter), texts, config.workers, 1000)


def _counts(name: str, texts: Sequence[str]) -> list[int]:
    return [counter(name).count(text) for text in texts]


# Sources of documents. The order of the steps is a law: enough questions, then the stage, then a
# sample, then enough questions again. Each step that drops something says so to `Skips`.


@dataclass(frozen=True)
class Draft:
    """An instance before its questions are filtered and its chunks are framed."""

    contents: Sequence[str]
    questions: Sequence[QA]
    groups: Sequence[str]  # names that may not be on both sides of a split
    details: Mapping[str, str] = field(default_factory=dict)  # evidence as text, by question id


def finish(job: Job, drafts: Iterable[Draft], pattern: str) -> list[Instance]:
    """At most `config.instances` instances of the drafts with enough questions.

    Later drafts are not looked at, so that no model is asked in vain. Raises InputError, naming the
    raw file, if no instance is left.
    """
    built: list[Instance] = []
    config, stage = job.config, stages.chosen(job.config)
    for index, draft in enumerate(drafts):
        if len(built) == config.instances:
            break
        asked: Sequence[QA] = list({qa.id: qa for qa in draft.questions}.values())
        job.skips.drop("questions whose id occurs twice", len(draft.questions) - len(asked))
        if len(asked) < config.min_questions or not asked:
            job.skips.drop("instances with too few questions")
            continue
        asked = job.sampled(_unknown(job, stage, asked) if stage else asked, index)
        if len(asked) < config.min_kept_questions or not asked:
            job.skips.drop("instances with too few questions after the closed-book filter")
            continue
        groups = [f"{job.source}:{name}" for name in draft.groups]
        about: dict[str, Any] = {"groups": groups, "titles": list(draft.groups)}
        if draft.details:
            about["evidence"] = [draft.details[qa.id] for qa in asked]
        built.append(job.instance(job.framed(draft.contents, index), asked, **about))
    return job.not_none(built, pattern, f"an instance with {config.min_questions} questions")


def _unknown(job: Job, stage: Stage, asked: Sequence[QA]) -> list[QA]:
    """The questions with a short answer that nobody knows without the text."""
    verdicts = stage.closed_book([(qa.question, qa.answers[0]) for qa in asked], job.counter.count)
    drop = job.skips.drop
    drop("questions with a long answer, or answered without the text", verdicts.count(False))
    drop("questions whose closed-book check failed", verdicts.count(None))
    return [qa for qa, keep in zip(asked, verdicts, strict=True) if keep]
