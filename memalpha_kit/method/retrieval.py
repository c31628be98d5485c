"""What of a memory is shown with a question: ranked, counted, cut to the budget.

A `View` is one memory under one `Retrieval`; readers make one per memory and ask it for every
question, so that an entry is ranked by one index and counted once. The rules of the published
memory server are another view, "release", registered by `memalpha_kit.release`.

>>> memory = Memory(semantic=(Entry("1", "Nora keeps bees."), Entry("2", "Tom paints boats.")))
>>> view(memory, Retrieval(top_k=1)).show("Who paints?").ids
('2',)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.prompts import TEXTS, Retrieved, asked, system_prompt
from memalpha_kit.method.protocol import one_row
from memalpha_kit.method.ranking import search
from memalpha_kit.method.readers import sentence
from memalpha_kit.records import PAPER_PARTS, Entry, Memory
from memalpha_kit.registry import Registry
from memalpha_kit.tokens import counter

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Texts to vectors, one each. Failing is raising."""

TEMPLATE_TOKENS = 20
"""Allowance for what a chat template puts around two messages; Qwen3's is 17."""

Ranked = list[tuple[str, Entry]]
"""Entries of all lists, each after its list's name, best first."""


class Unanswerable(InputError):
    """This question cannot be put to the model: it is blank, or does not fit, even alone."""


@dataclass(frozen=True)
class Retrieval:
    """Which entries a question brings with it, and how much room they have."""

    method: str = "bm25"  # or embedding: by the cosine of two vectors
    top_k: int = 20  # entries of each store
    budget_tokens: int = 30_000  # of the whole prompt (release: of the system message)
    behaviour: str = "fixed"  # name of a view
    counter: str = "wordpunct"  # name of the token counter of the budget

    def __post_init__(self) -> None:
        if self.method not in (known := VIEWS[self.behaviour].methods):
            tail = closest(str(self.method), known)
            expected = f"expected {' or '.join(known)} under {self.behaviour}"
            raise InputError(f"retrieval.method: {expected}, found {self.method!r}{tail}")


class View:
    """What can be shown of one memory: the right behaviour, "fixed".

    The query is the sentence that is asked about, without the instruction around it. A store of at
    most `top_k` entries is shown whole, in its order; of a larger one the best are shown, best
    first, and entries without a common word fill up, oldest first; episodic entries always stand in
    the order of time. While the prompt (system, question, template) is over the budget, the entry
    with the lowest rank is left out, at equal rank the episodic one; the last one left is cut.
    """

    methods: tuple[str, ...] = ("bm25", "embedding")
    answers_thinking = True  # the last request of a search thinks as the others do

    def __init__(
        self, memory: Memory, retrieval: Retrieval, vectors: Vectors | None = None
    ) -> None:
        self.memory, self.retrieval, self.vectors = memory, retrieval, vectors
        self.lists = memory.lists()
        self.counter = counter(retrieval.counter)
        self._rows: dict[str, int] = {}  # text of an entry -> tokens of its row
        self._matrices: dict[str, np.ndarray] = {}  # list -> vectors of its entries

    @staticmethod
    def search_budget(retrieval: Retrieval) -> float:
        """Tokens that all messages of a search may have."""
        return retrieval.budget_tokens

    def show(self, question: str, source: str = "") -> Retrieved:
        """What is shown with the question. Raises Unanswerable, and InputError for bad vectors."""
        user = asked(question, source)
        query = self.query(question, user)
        best = {name: self.rank(name, query, self.retrieval.top_k) for name in self.lists}
        return self.fit(best, user)

    def query(self, question: str, user: str) -> str:
        """What is searched for; `user` is the question as the model is shown it."""
        if not question.strip():
            raise Unanswerable("question: expected a text, found a blank one")
        return sentence(question)

    def rank(self, store: str, query: str, k: int) -> list[Entry]:
        """The k entries of a store that fit the query best, best first, ties oldest first."""
        entries = self.lists[store]
        if self.retrieval.method == "bm25":
            best = [e for e, _ in search(self.memory, store, query, k, "positive")]
            return best or list(entries[:k])
        if not entries:
            return []
        if self.vectors is None:
            raise InputError("retrieval: expected a function that embeds, found none")
        if store not in self._matrices:
            self._matrices[store] = self.vectors([entry.text for entry in entries])
        fit = self._matrices[store] @ self.vectors([query], like=self._matrices[store])[0]
        return [entries[i] for i in np.argsort(-fit, kind="stable")[:k]]

    # ---- the budget ---------------------------------------------------------------------------

    def fit(self, best: dict[str, list[Entry]], user: str) -> Retrieved:
        """As many of the best entries as fit beside system text, question and template."""
        ranked = by_rank(best)
        around = TEMPLATE_TOKENS + self.counter.count(user)
        room = self.retrieval.budget_tokens - around
        n = most(len(ranked), lambda n: self.fits(ranked[:n], room))
        if n < 0:
            expected = f"expected at most {self.retrieval.budget_tokens} tokens"
            raise Unanswerable(f"prompt: {expected}, found {around + self._bare} without an entry")
        return self.arranged(ranked[:n] if n or not ranked else self._cut(*ranked[0], room))

    def fits(self, ranked: Ranked, room: int) -> bool:
        """Whether the system text with these entries has at most `room` tokens.

        Rows are counted once and added up. Where the sum cannot tell, because a tokenizer of
        subwords counts a joint otherwise than its parts, the whole text is counted.
        """
        size = self.size(ranked)
        slack = 0 if self.counter.adds_up else 8 + 4 * len(ranked)
        if abs(size - room) > slack or not slack:
            return size <= room
        return self.counter.count(self.text(ranked)) <= room

    def text(self, ranked: Ranked) -> str:
        """The system text with these entries."""
        return system_prompt(self.arranged(ranked))

    def size(self, ranked: Ranked) -> int:
        """Tokens of the system text with these entries, added up."""
        filled = len({store for store, _ in ranked})
        return self._bare - filled * self._empty + sum(self._row(e.text) for _, e in ranked)

    def _row(self, text: str) -> int:
        """Tokens of an entry's row, with its number."""
        if text not in self._rows:
            self._rows[text] = self.counter.count("1.") + self.counter.count(one_row(text))
        return self._rows[text]

    @cached_property
    def _bare(self) -> int:
        return self.counter.count(self.text([]))

    @cached_property
    def _empty(self) -> int:
        return self.counter.count(TEXTS["empty store"])

    def _cut(self, store: str, entry: Entry, room: int) -> Ranked:
        """The only entry left, cut so that the system text fits: it must not cost the answer."""
        left = room - self.size([(store, replace(entry, text=""))])
        for n in range(left + (0 if self.counter.adds_up else 12), 0, -1):
            cut = [(store, replace(entry, text=self.counter.cut(entry.text, n)))]
            if self.fits(cut, room):
                return cut
        return []

    def arranged(self, ranked: Ranked) -> Retrieved:
        """These entries, best first; but a whole list, and episodic always, in its own order."""
        shown = by_list(ranked)
        for name, entries in shown.items():
            if name == "episodic" or len(entries) == len(self.lists[name]):
                entries.sort(key=lambda entry: self._places[name, entry.id])
        return self.retrieved(shown, ranked)

    def retrieved(self, shown: Mapping[str, Sequence[Entry]], ranked: Ranked) -> Retrieved:
        """The record of what is shown; what is switched off stays off."""
        parts: dict[str, str | tuple[Entry, ...]] = {}
        for name in (*PAPER_PARTS, *self.memory.others):
            part = self.memory.part(name)
            if part is not None:
                parts[name] = part if isinstance(part, str) else tuple(shown.get(name, ()))
        return Retrieved(parts, tuple(entry.id for _, entry in ranked))

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {(n, e.id): i for n, entries in self.lists.items() for i, e in enumerate(entries)}


def by_list(ranked: Ranked) -> dict[str, list[Entry]]:
    """The entries of each list that has any, best first."""
    lists: dict[str, list[Entry]] = {}
    for name, entry in ranked:
        lists.setdefault(name, []).append(entry)
    return lists


def by_rank(best: dict[str, list[Entry]]) -> Ranked:
    """(list, entry) of all lists, best first, at equal rank semantic before episodic."""
    placed = [(rank, name, entry) for name in best for rank, entry in enumerate(best[name])]
    return [(name, entry) for _, name, entry in sorted(placed, key=lambda row: row[0])]


def most(highest: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 0..highest that fits, as all smaller ones then do; -1 for none."""
    if fits(highest):
        return highest
    return bisect_right(range(highest), False, key=lambda n: not fits(n)) - 1


VIEWS: Registry[type[View]] = Registry("retrieval.behaviour")
VIEWS.add("fixed", View)


def view(memory: Memory, retrieval: Retrieval, vectors: Vectors | None = None) -> View:
    """The memory as `retrieval.behaviour` shows it."""
    return VIEWS[retrieval.behaviour](memory, retrieval, vectors)


# ---- embeddings -------------------------------------------------------------------------------


class Vectors:
    """Unit vectors of texts from `embed`, which is asked for every text once.

    `before` are others of the same `embed`, from which those of the same texts are taken.
    A failure is never taken for a vector: not a number, without a direction or of another width
    is an InputError.
    """

    def __init__(
        self, embed: Embed, texts: Sequence[str] = (), before: Vectors | None = None
    ) -> None:
        known = before._known if before else {}
        self._embed = embed
        self._known: dict[str, np.ndarray] = {text: known[text] for text in texts if text in known}
        if texts:
            self(texts)

    def __call__(self, texts: Sequence[str], like: np.ndarray | None = None) -> np.ndarray:
        """(texts, width); `like`: rows that they are compared with."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = self._embed(new) if new else []
        self._known |= {text: _unit(v, text) for text, v in zip(new, found, strict=True)}
        rows = [self._known[text] for text in texts]
        widths = {row.shape for row in rows} | ({like[0].shape} if like is not None else set())
        if len(widths) > 1:
            raise InputError(f"embedding: expected vectors of one width, found {sorted(widths)}")
        return np.stack(rows)


def _unit(vector: Sequence[float], text: str) -> np.ndarray:
    row = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(row))
    if row.ndim != 1 or not math.isfinite(length) or length == 0:
        raise InputError(f"embedding of {text[:40]!r}: expected a direction, found {vector!r:.60}")
    return row / length
