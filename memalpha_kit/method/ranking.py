"""Which texts fit a query best: Okapi BM25 (k1 1.5, b 0.75), kept up to date change by change.

`rank` searches a `Store`. Its index is made once; for a store that grew out of one that was
searched before, the few entries that changed are exchanged in it.

Two ways to weigh a word that n of N texts hold. "positive" is ln(1 + (N - n + 0.5) / (n + 0.5)),
which ranks small stores sensibly. "release" is what `rank_bm25.BM25Okapi` does with its defaults
and so the published code (`memory.py`): ln(N - n + 0.5) - ln(n + 0.5), and where that is negative a
quarter of its mean over all words, so that words in half of the texts weigh nothing and, in a store
of one entry, less than nothing. Texts without a word score 0 (`rank_bm25` divides by zero).

>>> Bm25(["Nora keeps bees", "Tom paints boats"], "positive").top("Who paints?", 1)
[1]
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np

from memalpha_kit.entries import Change, Entry, Store, essence
from memalpha_kit.episode_settings import MemoryConfig
from memalpha_kit.method.memory import MEMORY_COMPONENTS
from memalpha_kit.records import STORES, Memory
from memalpha_kit.text import MARKS, NO_SPACES

Idf = Literal["release", "positive"]
Ties = Literal["oldest", "newest"]
_SHIFT = 32  # bits: no text has 2 ** 32 words
_WORD = re.compile(r"\w+")
_PAIRED = rf"{NO_SPACES}\uac00-\ud7a3"  # a Korean word ends in particles
_RUN = re.compile(rf"([{_PAIRED}]+)|(?:[^\W{_PAIRED}]|[{MARKS}])+")


def words(text: str) -> list[str]:
    """The lower-cased runs of letters, digits and underscores; everything else separates.

    Scripts that write without spaces, and Korean, give every pair of neighbouring characters.

    >>> words("Nora-san 蜂を飼う")
    ['nora', 'san', '蜂を', 'を飼', '飼う']
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    found = []
    for match in _RUN.finditer(essence(text.lower())):
        run, pairs = match[0], match[1] and len(match[0]) > 1
        found += [run[i : i + 2] for i in range(len(run) - 1)] if pairs else [run]
    return found


def published_words(text: str) -> list[str]:
    """The same, but a run of any script is one word, as in the published `memory.py`."""
    return _WORD.findall(text.lower())


class Bm25:
    """An index over texts at places 0, 1, 2, ...; a place may be emptied and filled again."""

    def __init__(self, texts: Iterable[str] = (), idf: Idf = "release") -> None:
        self.idf, self._words = idf, published_words if idf == "release" else words
        self._texts: dict[int, str] = {}
        self._lengths = array("q")  # words of the text at each place; -1: no text
        self._found: dict[str, array] = {}  # word -> place << _SHIFT | times, in order
        self._spread = array("q", [0])  # n -> words that n texts hold
        self._n_words = 0
        self._mean_idf: float | None = None
        for place, text in enumerate(texts):
            self.put(place, text)

    def put(self, place: int, text: str | None) -> None:
        """Exchanges the text at a place; None leaves it empty."""
        self._mean_idf = None
        before = self._texts.pop(place, None)
        old, new = (self._words(t) if t is not None else [] for t in (before, text))
        was, now = Counter(old), Counter(new)
        while len(self._spread) < len(self._texts) + 2:
            self._spread.append(0)
        found, spread, start = self._found, self._spread, place << _SHIFT
        for word in was.keys() | now.keys():
            times = now.get(word, 0)
            if (before_times := was.get(word, 0)) == times:
                continue
            if (places := found.get(word)) is None:
                places = found[word] = array("q")
            at = bisect_left(places, start)
            if before_times and times:
                places[at] = start | times
                continue
            spread[len(places)] -= 1
            if times:
                places.insert(at, start | times)
            else:
                del places[at]
            spread[len(places)] += 1
            if not places:
                del found[word]
        self._n_words += len(new) - len(old)
        self._lengths.extend([-1] * (place + 1 - len(self._lengths)))
        self._lengths[place] = -1 if text is None else len(new)
        if text is not None:
            self._texts[place] = text

    def top(self, query: str, k: int, ties: Ties = "oldest") -> list[int]:
        """Places of the k best texts, best first. `ties`: which of equal ones comes first."""
        return [place for place, _ in self.best(query, k, ties)]

    def best(self, query: str, k: int, ties: Ties = "oldest") -> list[tuple[int, float]]:
        """The k best texts as (place, score), best first."""
        k = min(k, len(self._texts))
        if k <= 0:
            return []
        scores = self.scores(query)
        limit = np.partition(scores, -k)[-k]
        places = np.flatnonzero(scores >= limit)
        if ties == "newest":
            places = places[::-1]
        places = places[np.argsort(-scores[places], kind="stable")[:k]]
        return list(zip(places.tolist(), scores[places].tolist(), strict=True))

    def scores(self, query: str) -> np.ndarray:
        """The score at every place, minus infinity where no text is; repeated words count again.

        The sums' order is that of `rank_bm25`, so that equal texts have equal scores.
        """
        lengths = np.frombuffer(self._lengths, np.int64)
        scores = np.zeros(len(lengths))
        if len(lengths) > len(self._texts):
            scores[lengths < 0] = -np.inf
        if not self._n_words:
            return scores
        norms = 1.5 * (0.25 + 0.75 * lengths / (self._n_words / len(self._texts)))
        positive, asked = self.idf == "positive", self._words(query)
        for word, times in Counter(asked).items() if positive else ((w, 1) for w in asked):
            if word in self._found:
                found = np.frombuffer(self._found[word], np.int64)
                places, counts = found >> _SHIFT, found & ((1 << _SHIFT) - 1)
                weight, below = self._weight(len(places)), counts + norms.take(places)
                if positive:
                    scores[places] += times * (weight * counts * 2.5 / below)
                else:
                    scores[places] += weight * (counts * 2.5 / below)
        return scores

    def _weight(self, n: int) -> float:
        """The idf of a word that n texts hold."""
        total = len(self._texts)
        if self.idf == "positive":
            return math.log(1 + (total - n + 0.5) / (n + 0.5))
        raw = math.log(total - n + 0.5) - math.log(n + 0.5)
        if raw >= 0:
            return raw
        if self._mean_idf is None:  # of all words
            spread = np.array(self._spread)
            held = np.flatnonzero(spread[1:]) + 1
            all_raw = np.log(total - held + 0.5) - np.log(held + 0.5)
            self._mean_idf = float((all_raw * spread[held]).sum()) / len(self._found)
        return 0.25 * self._mean_idf


# ---- indexes of stores --------------------------------------------------------------------------


class _StoreIndex(Bm25):
    """The index of whichever store of one family was searched last."""

    def __init__(self, idf: Idf) -> None:
        super().__init__(idf=idf)
        self.lock = Lock()
        self.now: Change | None = None

    def move(self, store: Store) -> None:
        """Brings the index to this store: back to the last common change, then forward."""
        if self.now is None:
            for place, entry in store.places():
                self.put(place, entry.text)
        ahead, now, change = [], self.now or store.change, store.change
        while now is not change:
            if now.depth > change.depth:
                self.put(now.place, now.before)
                now = now.parent
            else:
                ahead.append(change)
                change = change.parent
        for change in reversed(ahead):
            self.put(change.place, change.after)
        self.now = store.change


@lru_cache(maxsize=64)
def _index(root: Change, idf: Idf) -> _StoreIndex:
    """One index for all stores that grew out of the same one."""
    return _StoreIndex(idf)


def rank(
    store: Store, query: str, k: int, idf: Idf = "release", ties: Ties = "oldest"
) -> list[tuple[Entry, float]]:
    """The k entries that fit the query best, with their scores, best first."""
    index = _index(store.change.root, idf)
    with index.lock:
        index.move(store)
        return [(store.at(place), score) for place, score in index.best(query, k, ties)]


# ---- searching a memory -------------------------------------------------------------------------


def search(
    memory: Memory, store: str, query: str, k: int, idf: Idf = "release"
) -> list[tuple[Entry, float]]:
    """The k entries of a list ("semantic", say) that fit the query best, with their scores.

    Best first, ties oldest first. Empty for an empty or switched-off list and for a query without
    a word. Ranking only, without a minimum score (the published `Memory` drops scores below 0, so
    that a list of one entry has no results).
    """
    part = memory.part(store) if store in MEMORY_COMPONENTS else ""
    if isinstance(part, str):
        raise ValueError(f"store: expected a list of the memory, found {store!r}")
    return rank(part, query, k, idf) if part and words(query) else []


def shown(memory: Memory, chunk: str, config: MemoryConfig) -> dict[str, tuple[Entry, ...]]:
    """The entries that the writer sees with `chunk`, by list.

    At most `config.shown` of each, always in insertion order. "recent" shows the last ones, as the
    published code does; "relevant" those that fit the chunk best (positive idf, ties: the newest),
    so that older entries can be revised too.
    """

    def of(entries: Store) -> tuple[Entry, ...]:
        if config.display == "recent" or len(entries) <= config.shown:
            return entries.newest(config.shown)
        best = {entry.id for entry, _ in rank(entries, chunk, config.shown, "positive", "newest")}
        return tuple(entry for entry in entries if entry.id in best)

    parts = {name: memory.part(name) for name in (*STORES, *config.components)}
    return {name: of(part) for name, part in parts.items() if isinstance(part, Store)}
