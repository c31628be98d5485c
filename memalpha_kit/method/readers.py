r"""Readers answer questions from a memory: by a rule, or by asking a chat model.

Here are the rules, which need no model; `model_readers.py` has those that ask one. `best_entry`
answers with a whole entry, which metrics that look for a substring are kind to: read its scores as
"the right entry was found". `label_vote` is nearest-neighbour classification; it answers as the
paper's classifiers do.

    answers = reader("model", client, retrieval=Retrieval(top_k=20)).read(questions)

A reader of your own is a class with a `name` and `read(questions, done=None)`, registered by
`@READERS.register("mine")`; what its constructor takes are its settings.

>>> memory = Memory(semantic=(Entry("1", "Nora keeps bees."), Entry("2", "Tom paints boats.")))
>>> reader("best_entry").read([Question("q0", "Who paints?", memory=memory)])[0].prediction
'Tom paints boats.'
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memalpha_kit.chats import ChatModel
from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.ranking import Bm25
from memalpha_kit.records import Answer, Entry, Memory, Question
from memalpha_kit.registry import Registry
from memalpha_kit.tasks import metric_of

Done = Callable[[int, Answer], None]
"""Called in the caller's thread with a question's place and its answer, as soon as it is known; not
by readers whose answers are all known at once."""


class Reader(Protocol):
    """Answers questions."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def read(self, questions: Sequence[Question], done: Done | None = None) -> list[Answer]:
        """One answer per question, in order, not scored yet."""
        ...


READERS: Registry[Callable[..., Reader]] = Registry("reader", "memalpha_kit.method.model_readers")


def reader(name: str, model: ChatModel | None = None, **settings: Any) -> Reader:
    """The reader of this name; `settings` are what its constructor takes.

    Raises InputError for an unknown name or setting, naming the closest, and for a missing model.
    """
    known = inspect.signature(READERS[name]).parameters
    for key in settings:
        if key not in known:
            raise InputError(f"reader {name}: setting {key!r} is unknown{closest(key, known)}")
    if not needs_model(name):
        return READERS[name](**settings)
    if model is None:
        raise InputError(f"reader {name}: expected a chat model, found none")
    return READERS[name](model, **settings)


def sentence(question: str) -> str:
    """The sentence that a classification question is about, or the whole question, undated."""
    match = re.match(r"(?:Sentence|Sample): (.+)", question)
    return match[1] if match else undated(question)


def undated(question: str) -> str:
    """The question without the line that says on which day it is asked: no text is sought by it.

    >>> undated("Current date: 2023/05/30\\nWhen did I buy apples?")
    'When did I buy apples?'
    """
    return re.sub(r"\ACurrent date: [^\n]*\n", "", question)


def needs_model(name: str) -> bool:
    """Whether the reader of this name asks a chat model."""
    return "model" in inspect.signature(READERS[name]).parameters


def memory_of(question: Question, name: str) -> Memory:
    """The memory that the reader `name` is to look into. Raises InputError if there is none."""
    if question.memory is None:
        raise InputError(f"reader {name}: expected a memory of three parts, found none")
    return question.memory


# ---- by a rule --------------------------------------------------------------------------------


class _Rules(Reader):
    """Answers one question after the other by the rule for it."""

    def rule(self, question: Question) -> _Rule:
        """The rule that answers this question."""
        raise NotImplementedError

    def opened(self, memory: Memory) -> Opened:
        """The memory, ready to be asked."""
        return Opened(self.rule, memory)

    def read(self, questions: Sequence[Question], done: Done | None = None) -> list[Answer]:
        """The answers; `retrieved` are the ids of the entries behind each, best first."""
        opened: dict[int, Opened] = {}
        for question in questions:
            if id(question.memory) not in opened:
                opened[id(question.memory)] = self.opened(memory_of(question, self.name))
        return [opened[id(question.memory)].answer(question) for question in questions]


class Opened:
    """A memory as rules see it: indexed once, and asked again while single entries are hidden.

    A hidden entry is not there: answers are those of a memory made without it.
    """

    def __init__(self, rule: Callable[[Question], _Rule], memory: Memory) -> None:
        self._rule, self._memory, self._hidden = rule, memory, ""
        self._indexes: dict[_Rule, tuple[list[Entry], Bm25, dict[str, int]]] = {}

    def answer(self, question: Question) -> Answer:
        """The answer of the question's rule."""
        rule = self._rule(question)
        if rule not in self._indexes:
            entries, index = rule.index(self._memory)
            places = {entry.id: place for place, entry in enumerate(entries)}
            self._indexes[rule] = (entries, index, places)
            self._put(self._hidden, rule, hidden=True)
        entries, index, _ = self._indexes[rule]
        ranked = index.best(rule.query(question.text), rule.k)
        best = [(entries[i], score) for i, score in ranked if score > 0]
        text, ids = rule.answer(best, self._memory), tuple(e.id for e, _ in best)
        return Answer(question.id, text, retrieved=ids, instance=question.instance)

    def hide(self, entry_id: str) -> None:
        """Hides the entry with that id and shows the one that was hidden before.

        An index takes both changes, instead of being made again.
        """
        for rule in self._indexes:
            self._put(self._hidden, rule, hidden=False)
            self._put(entry_id, rule, hidden=True)
        self._hidden = entry_id

    def _put(self, entry_id: str, rule: _Rule, hidden: bool) -> None:
        entries, index, places = self._indexes[rule]
        if (place := places.get(entry_id)) is not None:
            index.put(place, None if hidden else rule.indexed(entries[place]))


class _Rule(_Rules):
    """One rule: what it seeks, in what, and what it makes of the entries that it finds."""

    k: int

    def rule(self, question: Question) -> _Rule:
        """Itself."""
        return self

    def index(self, memory: Memory) -> tuple[list[Entry], Bm25]:
        """The entries in the order of their making and their BM25, whose idf stays positive."""
        entries = sorted((e for _, e in memory.entries()), key=lambda entry: int(entry.id))
        found = [(entry, text) for entry in entries if (text := self.indexed(entry)) is not None]
        return [entry for entry, _ in found], Bm25([text for _, text in found], idf="positive")

    def indexed(self, entry: Entry) -> str | None:
        """What of an entry is searched; None: it is left out."""
        return entry.text

    def query(self, question: str) -> str:
        """What of a question is searched for."""
        return undated(question)

    def answer(self, best: list[tuple[Entry, float]], memory: Memory) -> str:
        """The answer from the entries that were found, each with its score, best first."""
        raise NotImplementedError


@READERS.register("best_entry")
@dataclass(frozen=True)
class BestEntry(_Rule):
    """Answers with the k entries that fit best, over both stores, a line break between them.

    Ties go to the oldest entry, so storing a correction beside what it corrects does not pay.
    Without a single shared word the answer is the core memory, "" if that is empty.
    """

    k: int = 1

    @property
    def name(self) -> str:
        """`best_entry`, with k if it is not 1."""
        return "best_entry" if self.k == 1 else f"best_entry(k={self.k})"

    def answer(self, best: list[tuple[Entry, float]], memory: Memory) -> str:
        """Their texts."""
        return "\n".join(entry.text for entry, _ in best) or memory.core or ""


LABELLED = re.compile(r"(?:Sentence|Sample): (?P<text>.+)\nLabels?: (?P<label>.+)")


@READERS.register("label_vote")
@dataclass(frozen=True)
class LabelVote(_Rule):
    r"""Answers with the label that the k nearest labelled samples vote for, as `\boxed{n}`.

    A vote weighs as much as its sample's BM25 score; ties go to the best sample's label. Only the
    sentence of a question is the query. Without a sample that shares a word the answer is "".
    """

    k: int = 5
    name: str = "label_vote"

    def indexed(self, entry: Entry) -> str | None:
        """The sentence of a labelled sample."""
        sample = LABELLED.search(entry.text)
        return sample["text"] if sample else None

    def query(self, question: str) -> str:
        """The sentence to be labelled."""
        return sentence(question)

    def answer(self, best: list[tuple[Entry, float]], memory: Memory) -> str:
        """The label with most votes."""
        votes: dict[str, float] = {}  # in order of rank, so that the best sample breaks a tie
        for entry, weight in best:
            if sample := LABELLED.search(entry.text):  # all that `indexed` lets in are one
                votes[sample["label"]] = votes.get(sample["label"], 0.0) + weight
        return f"\\boxed{{{max(votes, key=votes.__getitem__)}}}" if votes else ""


@READERS.register("read_nothing")
@dataclass(frozen=True)
class ReadNothing:
    """Answers "" to everything: the floor of every metric."""

    name: str = "read_nothing"

    def read(self, questions: Sequence[Question], done: Done | None = None) -> list[Answer]:
        """Empty answers."""
        return [Answer(question.id, "", instance=question.instance) for question in questions]


@READERS.register("by_source")
@dataclass(frozen=True)
class BySource(_Rules):
    """Answers as the question's source is scored: with a label where classes are asked for."""

    name: str = "by_source"

    def rule(self, question: Question) -> _Rule:
        """`label_vote` or `best_entry`."""
        return LabelVote() if metric_of(question.source, judged=False) == "label" else BestEntry()
