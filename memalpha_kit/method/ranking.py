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
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, repeat
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
_SHIFT, _LOW = 32, (1 << 32) - 1  # bits: no text has 2 ** 32 words
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
    """An index over texts at places 0, 1, 2, ...; a place may be emptied and filled again.

    A change touches little memory, so that a search after it is quick: a text gets the next slot,
    the slot of one that is taken out becomes infinitely long (and scores 0), and the words of slots
    that are newer than the sorted ones lie in lists beside them.
    """

    def __init__(self, texts: Iterable[str] = (), idf: Idf = "release") -> None:
        self.idf, self._words = idf, published_words if idf == "release" else words
        self._texts: dict[int, str] = {}
        self.fill(enumerate(texts))

    def fill(self, texts: Iterable[tuple[int, str]] = ()) -> None:
        """Puts texts at empty places and sorts all there are."""
        self._texts.update(texts)
        numbers: dict[str, int] = {}
        found = [self._words(text) for text in self._texts.values()]
        all_words = [numbers.setdefault(word, len(numbers)) for each in found for word in each]
        slots = np.repeat(np.arange(len(found)), sizes := [len(each) for each in found])
        pairs = np.array(all_words, np.int64) << _SHIFT | slots
        pairs, times = np.unique(pairs, return_counts=True)
        held = np.bincount(pairs >> _SHIFT)
        self._sorted = (pairs & _LOW) << _SHIFT | times  # slots that have a word, word by word
        self._numbers, self._starts = numbers, [0, *np.cumsum(held).tolist()]
        self._newest: dict[str, list[int]] = {}  # the same of slots since then
        self._slots = {place: slot for slot, place in enumerate(self._texts)}
        self._places, self._lengths = array("q", self._texts), array("d", sizes)
        self._n_words, self._limit = len(all_words), len(found) * 9 // 8 + 64
        self._held = dict(zip(numbers, held.tolist(), strict=True))  # texts with a word
        self._spread = array("q", np.bincount(held, minlength=self._limit + 3).tobytes())
        self._moved: list[tuple[str, int]] = []  # texts that these two lack, or have too many
        self._logs = np.log(np.arange(self._limit + 3) + 0.5)
        self._mean_idf: float | None = None

    def put(self, place: int, text: str | None) -> None:
        """Exchanges the text at a place; None leaves it empty."""
        self._mean_idf = None
        if (before := self._texts.pop(place, None)) is not None:
            slot = self._slots[place]
            self._n_words -= int(self._lengths[slot])
            self._lengths[slot] = math.inf
            self._moved.append((before, -1))
        if text is None:
            return
        found, slot = self._words(text), len(self._places)
        counts: dict[str, int] = {}
        for word in found:  # a `Counter` takes longer to start than to count
            counts[word] = counts.get(word, 0) + 1
        for word, times in counts.items():
            self._newest.setdefault(word, []).append(slot << _SHIFT | times)
        self._texts[place], self._slots[place] = text, slot
        self._places.append(place)
        self._lengths.append(len(found))
        self._n_words += len(found)
        self._moved.append((text, 1))
        if slot > self._limit:
            self.fill()

    def top(self, query: str, k: int, ties: Ties = "oldest") -> list[int]:
        """Places of the k best texts, best first. `ties`: which of equal ones comes first."""
        return [place for place, _ in self.best(query, k, ties)]

    def best(self, query: str, k: int, ties: Ties = "oldest") -> list[tuple[int, float]]:
        """The k best texts as (place, score), best first."""
        k = min(k, len(self._texts))
        if k <= 0:
            return []
        scores = self.scores(query)
        slots = (scores >= np.partition(scores, -k)[-k]).nonzero()[0]
        places, scores = np.frombuffer(self._places, np.int64)[slots], scores[slots]
        order = np.lexsort((places if ties == "oldest" else -places, -scores))[:k]
        return list(zip(places[order].tolist(), scores[order].tolist(), strict=True))

    def scores(self, query: str) -> np.ndarray:
        """The score of every slot, minus infinity if its text was taken out; of an index that was
        not changed, the score at every place. Repeated words count again.

        The sums' order is that of `rank_bm25`, so that equal texts have equal scores.
        """
        lengths = np.frombuffer(self._lengths)
        times, sizes, parts = self._asked(query)
        scores: np.ndarray = np.zeros(len(lengths))
        if parts:
            found = np.concatenate(parts)
            slots, counts = found >> _SHIFT, (found & _LOW).astype(float)
            below = lengths.take(slots)
            held = np.add.reduceat(below < math.inf, [0, *accumulate(sizes[:-1])], dtype=int)
            weights = [m * self._weight(n) for m, n in zip(times, held.tolist(), strict=True)]
            below = counts + 1.5 * (0.25 + 0.75 * below / (self._n_words / len(self._texts)))
            each = np.repeat(weights, sizes) * (counts * 2.5 / below)
            scores = np.bincount(slots, each, len(lengths))
        if len(lengths) > len(self._texts):
            scores[lengths == math.inf] = -math.inf
        return scores

    def _asked(self, query: str) -> tuple[list[int], list[int], list]:
        """How often each word of the query counts, how many slots have it, and which."""
        asked, times, sizes = self._words(query), [], []
        parts: list = []  # arrays, and lists of new slots
        for word, n in Counter(asked).items() if self.idf == "positive" else zip(asked, repeat(1)):
            number, newest = self._numbers.get(word), self._newest.get(word, ())
            start, end = (0, 0) if number is None else self._starts[number : number + 2]
            if end - start + len(newest):
                times.append(n)
                sizes.append(end - start + len(newest))
                parts += (self._sorted[start:end], newest) if newest else (self._sorted[start:end],)
        return times, sizes, parts

    def _weight(self, n: int) -> float:
        """The idf of a word that n texts hold."""
        total = len(self._texts)
        if self.idf == "positive":
            return math.log(1 + (total - n + 0.5) / (n + 0.5))
        raw = math.log(total - n + 0.5) - math.log(n + 0.5)
        if raw >= 0:
            return raw
        if self._mean_idf is None:  # of all words
            held, spread, logs = self._held, self._spread, self._logs
            for text, by in self._moved:
                for word in set(self._words(text)):
                    before = held.get(word, 0)
                    held[word] = before + by
                    spread[before] -= 1
                    spread[before + by] += 1
            self._moved.clear()
            many = np.frombuffer(spread, np.int64)[1 : total + 1]
            all_raw = (logs[total - 1 :: -1] - logs[1 : total + 1]) * many
            self._mean_idf = float(all_raw.sum()) / (len(self._numbers) - spread[0])
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
            self.fill((place, entry.text) for place, entry in store.places())
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
        best = [entry for entry, _ in rank(entries, chunk, config.shown, "positive", "newest")]
        return tuple(sorted(best, key=entries.place))

    parts = {name: memory.part(name) for name in (*STORES, *config.components)}
    return {name: of(part) for name, part in parts.items() if isinstance(part, Store)}
