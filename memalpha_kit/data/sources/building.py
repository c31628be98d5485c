"""What every builder shares: its random generators, counting tokens, what is left out.

The one law: a build depends on the raw bytes, the settings and the seed alone. Each (source,
instance, purpose) has a generator of its own, so that drawing one more lead-in does not change
which questions are asked.

>>> generator(0, "squad", 3, "frames").random() == generator(0, "squad", 3, "frames").random()
True
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig, OnError
from memalpha_kit.tokens import counter

T = TypeVar("T")
R = TypeVar("R")


def generator(seed: int, source: str, instance: int | str, purpose: str) -> random.Random:
    """A random generator of its own for this purpose, the same in every process."""
    return random.Random(f"{seed}/{source}/{instance}/{purpose}")


def draw(items: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """`n` of the items in their old order, or all of them if there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in sorted(rng.sample(range(len(items)), n))]


def sampled(items: Sequence[T], n: int, rng: random.Random, skips: Skips) -> list[T]:
    """`draw` of questions, those that are not drawn counted."""
    drawn = draw(items, n, rng)
    skips.drop("questions above the limit, sampled away", len(items) - len(drawn))
    return drawn


def spread(
    work: Callable[[list[T]], Sequence[R]], items: Iterable[T], config: BuildConfig, batch: int
) -> Iterator[R]:
    """What `work` gives for batches of the items, in order, done by `config.workers` processes.

    Reads the items a few batches ahead. `work` is a function that a process can be sent.
    """
    items, waiting = iter(items), deque()
    if config.workers == 1:
        while held := list(islice(items, batch)):
            yield from work(held)
        return
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        while held := list(islice(items, batch)):
            waiting.append(pool.submit(work, held))
            if len(waiting) > 2 * config.workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def sizes(texts: Iterable[str], config: BuildConfig) -> Iterator[int]:
    """Tokens of each text, in order."""
    return spread(partial(_counts, config.counter), texts, config, 1000)


def _counts(name: str, texts: Sequence[str]) -> list[int]:
    return [counter(name).count(text) for text in texts]


# --- What is left out ----------------------------------------------------------------------------


class Skips:
    """What a build left out, for its card: bad records, and good ones that a rule drops.

    A bad record raises at once under `on_error` "stop" and is listed under "skip". What a rule
    drops (too few questions, say) is counted under both.

    >>> skips = Skips("skip")
    >>> skips.add("squad.json: article 3", "context: expected text, found nothing")
    >>> skips.drop("instances with too few questions")
    >>> skips.card()["skipped"]
    ['squad.json: article 3: context: expected text, found nothing']
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        self.on_error = on_error
        self.skipped: list[str] = []  # one line each: where and why
        self.dropped: dict[str, int] = {}  # how many, by rule

    def add(self, where: str, reason: str) -> None:
        """Lists a bad record. Raises InputError under "stop"."""
        self.failed(InputError(f"{where}: {reason}"))

    def failed(self, error: InputError) -> None:
        """Lists the record whose reading raised `error`, or raises it again under "stop"."""
        if self.on_error == "stop":
            raise error
        self.skipped.append(str(error))

    def drop(self, rule: str, n: int = 1) -> None:
        """Counts `n` good records that a rule drops."""
        if n:
            self.dropped[rule] = self.dropped.get(rule, 0) + n

    def each(self, read: Callable[[Any, str], T], items: Iterable[tuple[Any, str]]) -> Iterator[T]:
        """What `read(item, where)` gives for each (item, where); those that fail are listed."""
        for item, where in items:
            try:
                value = read(item, where)
            except InputError as error:
                self.failed(error)
                continue
            yield value

    def card(self) -> dict[str, Any]:
        """Plain values for JSON: lines of what was skipped, counts of what was dropped."""
        return {"skipped": list(self.skipped), "dropped": dict(sorted(self.dropped.items()))}


@dataclass(frozen=True)
class HubFile:
    """Raw data on the Hugging Face hub: a data set and the files of it that a source reads."""

    repo: str  # "rajpurkar/squad"
    paths: tuple[str, ...]  # name patterns inside the data set
    revision: str = "main"  # a commit where it is pinned
