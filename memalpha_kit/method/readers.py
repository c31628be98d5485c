"""Readers: what answers a question from a finished memory. Those here need no model, those in
`answering.py` ask one.

The one law: a reader sees the memory and the bare question, never the gold answers, and retrieves
with the bare question (the source's prompt prefix would pollute the ranking, D41). A reader that
failed says None, never a text.

They are honest floors for real data. `best_entry` answers with a whole entry, which metrics that
look for a substring are kind to: read its scores as "the right entry was found". `label_vote` is
nearest-neighbour classification; it answers as the paper's classifiers do.

>>> memory = Memory(semantic=(Entry("1", "Nora keeps bees."), Entry("2", "Tom paints boats.")))
>>> BestEntry().read([ReadRequest(memory, "q0", "Who paints?")])[0].prediction
'Tom paints boats.'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.ranking import Bm25
from memalpha_kit.records import Answer, Entry, Memory


@dataclass(frozen=True)
class ReadRequest:
    """One question to one memory: the question's id and text, and its source's name."""

    memory: Memory
    qa: str
    question: str
    source: str = ""


Done = Callable[[int, Answer], None]
"""Called in the caller's thread with a request's place and its answer, as soon as it is known."""


class Reader(Protocol):
    """Answers read requests; `name` goes into the tables."""

    name: str

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """One answer per request, in order, not scored yet."""
        ...


def _told(answers: Iterable[Answer], done: Done | None) -> list[Answer]:
    """The answers as a list, each handed to `done` when it is made."""
    found = []
    for place, answer in enumerate(answers):
        found.append(answer)
        if done:
            done(place, answer)
    return found


@dataclass(frozen=True)
class BestEntry:
    """Answers with the k entries that fit best, over both stores, a line break between them.

    BM25 with an idf that stays positive; ties go to the oldest entry, so storing a correction
    beside what it corrects does not pay. Without a single shared word the answer is the core
    memory, "" if that is empty.
    """

    k: int = 1

    @property
    def name(self) -> str:
        """`best_entry`, with k if it is not 1."""
        return "best_entry" if self.k == 1 else f"best_entry(k={self.k})"

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """The texts of the best entries; `retrieved` are their ids."""
        return _told(map(self._answer, requests), done)

    def _answer(self, request: ReadRequest) -> Answer:
        found = _ranked(request.memory, request.question, self.k)
        text = "\n".join(entry.text for entry, _ in found) or request.memory.core or ""
        return Answer(request.qa, text, retrieved=tuple(entry.id for entry, _ in found))


@dataclass(frozen=True)
class LabelVote:
    r"""Answers with the label that the k nearest labelled samples vote for, as `\boxed{n}`.

    A vote weighs as much as its sample's BM25 score; ties go to the best sample's label. Only the
    sentence of a question is the query, not the instruction around it. Without a sample that
    shares a word the answer is "".
    """

    k: int = 5
    name: str = "label_vote"

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """The winning label; `retrieved` are the ids of the samples that voted."""
        return _told(map(self._answer, requests), done)

    def _answer(self, request: ReadRequest) -> Answer:
        found = _ranked(request.memory, sentence(request.question), self.k, labelled=True)
        votes: dict[str, float] = {}  # in order of rank, so that the best sample breaks a tie
        for entry, weight in found:
            label = LABELLED.search(entry.text)["label"]
            votes[label] = votes.get(label, 0.0) + weight
        text = f"\\boxed{{{max(votes, key=votes.__getitem__)}}}" if votes else ""
        return Answer(request.qa, text, retrieved=tuple(entry.id for entry, _ in found))


@dataclass(frozen=True)
class ReadNothing:
    """Answers "" to everything: the floor of every metric."""

    name: str = "read_nothing"

    def read(self, requests: Sequence[ReadRequest], done: Done | None = None) -> list[Answer]:
        """Empty answers."""
        return _told((Answer(request.qa, "") for request in requests), done)


READERS: dict[str, Callable[..., Reader]] = {
    "best_entry": BestEntry,
    "label_vote": LabelVote,
    "read_nothing": ReadNothing,
}


def reader(name: str, k: int | None = None) -> Reader:
    """The reader of this name, looking at `k` entries (None: its own default).

    Raises InputError for an unknown name, naming the closest, and for a k that it cannot have.
    """
    if name not in READERS:
        raise InputError(f"reader {name!r} is unknown{closest(name, READERS)}")
    if k is None:
        return READERS[name]()
    if k < 1 or name == "read_nothing":
        raise InputError(f"reader {name}: k: expected entries to look at, found {k}")
    return READERS[name](k)


# ---- ranking ----------------------------------------------------------------------------------

LABELLED = re.compile(r"(?:Sentence|Sample): (?P<text>.+)\nLabels?: (?P<label>.+)")


def sentence(question: str) -> str:
    """The sentence that a classification question is about, or the whole question."""
    match = re.match(r"(?:Sentence|Sample): (.+)", question)
    return match[1] if match else question


def _ranked(
    memory: Memory, query: str, k: int, labelled: bool = False
) -> list[tuple[Entry, float]]:
    """The k entries with the highest scores above 0, best first, ties oldest first."""
    entries, index = _index(memory, labelled)
    scores = index.scores(query)
    return [(entries[i], scores[i]) for i in index.top(query, k) if scores[i] > 0]


@lru_cache(maxsize=8)
def _index(memory: Memory, labelled: bool) -> tuple[list[Entry], Bm25]:
    """All entries in the order of their making, or the labelled ones, and their index (D14)."""
    entries = sorted((entry for _, entry in memory.entries()), key=lambda entry: int(entry.id))
    if not labelled:
        return entries, Bm25([entry.text for entry in entries], idf="positive")
    kept = [(entry, LABELLED.search(entry.text)) for entry in entries]
    texts = [match["text"] for _, match in kept if match]
    return [entry for entry, match in kept if match], Bm25(texts, idf="positive")
