"""Methods that answer from a text: all chunks, the best chunks, the right chunk, or none.

The one law: all of them put the same question in the same way (system message, task, text, what the
source asks for, question), with the same settings of the answering model, so that they differ in
the text alone (spec evaluation.md 4.3, B-5, B-7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from memalpha_kit.evaluation.methods.base import (
    AnsweredDone,
    Method,
    Prepared,
    Question,
    Settings,
)
from memalpha_kit.evaluation.methods.windows import (
    Cut,
    DoesNotFit,
    Tail,
    Texts,
    cut_context,
    cut_prompt,
    cut_user,
)
from memalpha_kit.method.prompts import VERSION, asked, system_prompt_baseline
from memalpha_kit.method.ranking import Bm25, Idf
from memalpha_kit.records import ChatReply, ChatRequest, Instance, request
from memalpha_kit.settings import Behaviour, Count, NonNegative, Share
from memalpha_kit.tokens import counter


@dataclass(frozen=True)
class ChatSettings(Settings):
    """How the answering model is asked, the same for every method that asks one."""

    max_tokens: Count = 2048  # of a reply, its reasoning included
    temperature: NonNegative = 0.0  # release: 0.1
    top_p: Share = 1.0
    thinking: bool | None = False  # None: as the server does by itself; release: on
    seed: int | None = None  # of the draws

    def request_fields(self) -> dict[str, Any]:
        """As fields of a chat request."""
        names = ("max_tokens", "temperature", "top_p", "thinking", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ContextSettings(ChatSettings):
    """A text in the prompt, and what is done when it is too long."""

    window: Count = 30_000  # tokens of a prompt; release for gpt-4o-mini: 126,000
    cut: Cut = "context"  # oldest text; release: prompt (Qwen), user (gpt-4o-mini)
    wording: Literal["context", "memory"] = "context"  # release: as for a memory of three parts


@dataclass(frozen=True)
class Context:
    """The text that one question is put to; `skipped` says why there can be none."""

    text: str
    retrieved: tuple[str, ...] = ()
    skipped: str = ""


class ContextMethod(Method):
    """Puts every question to a text; subclasses say which (`context`)."""

    Settings = ContextSettings
    needs_model: ClassVar[bool] = True
    options: ContextSettings

    def settings(self) -> dict[str, Any]:
        """With the version of the wording."""
        return super().settings() | {"prompts": VERSION}

    def context(self, question: Question) -> Context:
        """The text for this question."""
        raise NotImplementedError

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """One request per question, all at once."""
        asked_of: list[tuple[Question, ChatRequest, dict[str, Any]]] = []
        for question in questions:
            context = self.context(question)
            if context.skipped:
                done(question.answered(None, skipped=context.skipped))
                continue
            try:
                texts, cut = self.texts(question, context.text)
            except DoesNotFit as error:
                done(question.failed(str(error)))
                continue
            said = {"retrieved": context.retrieved, "truncated": question.prepared.truncated or cut}
            sent = request(*texts, version=VERSION, **self.options.request_fields())
            asked_of.append((question, sent, said))

        def take(place: int, reply: ChatReply) -> None:
            question, _, said = asked_of[place]
            done(question.replied(reply, **said))

        if asked_of:
            self.model.chat([sent for _, sent, _ in asked_of], take)

    def texts(self, question: Question, context: str) -> tuple[Texts, bool]:
        """System and user text within the window, and whether something was cut.

        Raises DoesNotFit if there is no room for the question alone.
        """
        instance, options = question.instance, self.options
        ask = asked(question.qa.question, instance.source, options.wording)
        system = self.system(instance)

        def render(text: str) -> Texts:
            parts = (self.task(instance), text, ask)
            return system, "\n\n".join(part for part in parts if part)

        if options.cut == "context":
            tail = _tail(context, options.counter)
            return cut_context(render, tail, options.window, self.counter)
        cut = cut_prompt if options.cut == "prompt" else cut_user
        return cut(render(context), options.window, self.counter)

    def system(self, instance: Instance) -> str:
        """The system message."""
        return system_prompt_baseline(instance.source)

    def task(self, instance: Instance) -> str:
        """What stands above the text."""
        return instance.prompt


@lru_cache(maxsize=4)
def _tail(text: str, name: str) -> Tail:
    """The questions of one instance are put one after the other, so its text is tokenised once."""
    return Tail(text, counter(name))


class LongContext(ContextMethod):
    """All chunks, or as many of the last tokens as the window holds.

    Memory: all chunks, capped at the window. Source: evaluation.md 4.3, 4.9.
    """

    summary = "all chunks in the prompt, the last tokens of them if there are too many"

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """The size of what can be held."""
        made = super().measured(instance)
        return replace(made, memory_tokens=min(made.input_tokens, self.options.window))

    def context(self, question: Question) -> Context:
        """All chunks in order."""
        return Context("\n\n".join(question.instance.chunks))


class ClosedBook(ContextMethod):
    """The question alone: what the model knows by itself. Source: evaluation.md 4.1."""

    summary = "the question alone"

    def context(self, question: Question) -> Context:
        """No text."""
        return Context("")

    def system(self, instance: Instance) -> str:
        """None: it would speak of a text."""
        return ""

    def task(self, instance: Instance) -> str:
        """None: it would speak of chunks."""
        return ""


@dataclass(frozen=True)
class Bm25Settings(ContextSettings):
    """Which chunks are looked at."""

    top_k: Count = 2
    behaviour: Behaviour = "fixed"  # release: idf of rank_bm25, and ranking however few chunks


class Bm25Chunks(ContextMethod):
    """The chunks that fit the question best, best first.

    The query is the bare question. Fixed: an idf that is never negative, and all chunks in their
    own order if there are no more than k (S-6). Memory: all chunks. Source: evaluation.md 4.4, 4.9.
    """

    Settings = Bm25Settings
    summary = "the k chunks that fit the question best, by BM25"
    options: Bm25Settings

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """All chunks are kept."""
        made = super().measured(instance)
        return replace(made, memory_tokens=made.input_tokens)

    def context(self, question: Question) -> Context:
        """The best chunks; the first ones for a question without a word."""
        chunks, k = question.instance.chunks, self.options.top_k
        fixed = self.options.behaviour == "fixed"
        best = list(range(len(chunks)))
        if not fixed or len(chunks) > k:
            best = _index(chunks, "positive" if fixed else "release").top(question.qa.question, k)
        return _chunks(question.instance, best)


@lru_cache(maxsize=8)
def _index(chunks: tuple[str, ...], idf: Idf) -> Bm25:
    return Bm25(chunks, idf)


class GoldChunk(ContextMethod):
    """The chunk that holds the evidence: what a perfect memory of whole chunks would give.

    Questions without an evidence label are skipped with that reason, and no mean counts them.
    Memory: all chunks that hold evidence of some question.
    """

    summary = "the chunk with the evidence, where the data says which; a ceiling"

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """The size of all evidence."""
        made = super().measured(instance)
        gold = {qa.chunk for qa in instance.questions if qa.chunk is not None}
        size = sum(self.counter.count(instance.chunks[chunk]) for chunk in gold)
        return replace(made, memory_tokens=size)

    def context(self, question: Question) -> Context:
        """The chunk of its evidence."""
        if question.qa.chunk is None:
            return Context("", skipped="the data does not say which chunk holds the evidence")
        return _chunks(question.instance, [question.qa.chunk])


def _chunks(instance: Instance, places: Sequence[int]) -> Context:
    text = "\n\n".join(instance.chunks[place] for place in places)
    return Context(text, tuple(f"chunk:{place}" for place in places))
