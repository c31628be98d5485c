"""Methods that answer from a text: all chunks, the best chunks, the right chunk, or none.

All of them put the same question in the same way (system message, task, text, what the source asks
for, question), with the same settings of the answering model, so that they differ in the text
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from memalpha_kit.evaluation.base import METHODS, Backends, Method, Prepared, Settings, draft
from memalpha_kit.evaluation.windows import CUTS, DoesNotFit, Tail, Texts
from memalpha_kit.method.prompts import VERSION, asked, system_prompt_baseline
from memalpha_kit.method.ranking import Bm25
from memalpha_kit.records import Answer, ChatRequest, Instance, Question, request
from memalpha_kit.sections import Count, NonNegative, Share, about, section
from memalpha_kit.tokens import counter


@section
class ChatSettings(Settings):
    """How the answering model is asked, the same for every method that asks one."""

    max_tokens: Count = about(2048, "of a reply, its reasoning included")
    temperature: NonNegative = about(0.0, "of the draws; 0 takes the likeliest")
    top_p: Share = about(1.0, "share of the likeliest tokens that are drawn from")
    thinking: bool | None = about(False, "None: as the server does by itself")
    seed: int | None = about(None, "of the draws")

    def request_fields(self) -> dict[str, Any]:
        """As fields of a chat request."""
        names = ("max_tokens", "temperature", "top_p", "thinking", "seed")
        return {name: getattr(self, name) for name in names}


@section
class ContextSettings(ChatSettings):
    """A text in the prompt, and what is done when it is too long."""

    window: Count = about(30_000, "tokens of a prompt")
    cut: str = about("context", "what is cut from a prompt that is too long: the oldest text")
    wording: Literal["context", "memory"] = about("context", "memory: as for three parts")


class ContextMethod(Method):
    """Puts every question to a text; subclasses say which (`context`)."""

    Settings = ContextSettings
    needs_model: ClassVar[bool] = True
    options: ContextSettings

    def __init__(self, name: str, settings: ContextSettings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        self.cut = CUTS[settings.cut]

    def settings(self) -> dict[str, Any]:
        """With the version of the wording."""
        return super().settings() | {"prompts": VERSION}

    def context(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[str, Sequence[str]] | None:
        """The text for this question and what it was made of; None if there can be none."""
        raise NotImplementedError

    def request(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[ChatRequest | None, Answer]:
        """The question with as much of its text as fits."""
        context = self.context(question, instance, held)
        if context is None:
            why = "the data does not say which chunk holds the evidence"
            return None, draft(question, held, skipped=why)
        text, retrieved = context
        try:
            texts, truncated = self._texts(question, instance, text)
        except DoesNotFit as error:
            return None, draft(question, held, finish="unanswerable", error=str(error))
        said = draft(question, held, retrieved=tuple(retrieved), truncated=truncated)
        return request(*texts, version=VERSION, **self.options.request_fields()), said

    def _texts(self, question: Question, instance: Instance, text: str) -> tuple[Texts, bool]:
        """System and user text within the window, and whether something was cut."""
        ask = asked(question.text, instance.source, self.options.wording)
        system, task = self.system(instance), self.task(instance)

        def render(shown: str) -> Texts:
            return system, "\n\n".join(part for part in (task, shown, ask) if part)

        tail = _tail(text, self.options.counter)
        return self.cut(render, tail, self.options.window, self.counter)

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


@METHODS.register("long-context")
class LongContext(ContextMethod):
    """All chunks, or as many of the last tokens as the window holds. Memory: as many tokens."""

    base = "long-context"
    summary = "all chunks in the prompt, the last tokens of them if there are too many"

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """The size of what can be held."""
        made = super().measured(instance)
        return replace(made, memory_tokens=min(made.input_tokens, self.options.window))

    def context(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[str, Sequence[str]]:
        """All chunks in order."""
        return "\n\n".join(instance.chunks), ()


@METHODS.register("closed-book")
class ClosedBook(ContextMethod):
    """The question alone: what the model knows by itself."""

    base = "closed-book"
    summary = "the question alone"

    def context(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[str, Sequence[str]]:
        """No text."""
        return "", ()

    def system(self, instance: Instance) -> str:
        """None: it would speak of a text."""
        return ""

    def task(self, instance: Instance) -> str:
        """None: it would speak of chunks."""
        return ""


@section
class Bm25Settings(ContextSettings):
    """Which chunks are looked at."""

    top_k: Count = about(2, "chunks that are shown")


@METHODS.register("bm25")
class Bm25Chunks(ContextMethod):
    """The chunks that fit the bare question best, best first. Memory: all chunks.

    The idf is never negative, and all chunks stand in their own order if there are no more than k.
    """

    Settings = Bm25Settings
    base = "bm25"
    summary = "the k chunks that fit the question best, by BM25"
    options: Bm25Settings

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """All chunks are kept."""
        made = super().measured(instance)
        return replace(made, memory_tokens=made.input_tokens)

    def context(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[str, Sequence[str]]:
        """The best chunks; the first ones for a question without a word."""
        return shown_chunks(instance, self.best(question.text, instance.chunks))

    def best(self, question: str, chunks: tuple[str, ...]) -> Sequence[int]:
        """Places of the chunks to show."""
        if len(chunks) <= self.options.top_k:
            return range(len(chunks))
        return bm25(chunks, "positive").top(question, self.options.top_k)


@lru_cache(maxsize=8)
def bm25(chunks: tuple[str, ...], idf: str) -> Bm25:
    """The index of an instance's chunks."""
    return Bm25(chunks, idf)


@METHODS.register("gold-chunk")
class GoldChunk(ContextMethod):
    """The chunk that holds the evidence: what a perfect memory of whole chunks would give.

    Questions without an evidence label are skipped with that reason, and no mean counts them.
    Memory: all chunks that hold evidence of some question.
    """

    base = "gold-chunk"
    summary = "the chunk with the evidence, where the data says which; a ceiling"

    def measured(self, instance: Instance, **values: Any) -> Prepared:
        """The size of all evidence."""
        gold = {qa.chunk for qa in instance.questions if qa.chunk is not None}
        size = sum(self.counter.count(instance.chunks[chunk]) for chunk in gold)
        return replace(super().measured(instance), memory_tokens=size)

    def context(
        self, question: Question, instance: Instance, held: Prepared
    ) -> tuple[str, Sequence[str]] | None:
        """The chunk of its evidence."""
        chunk = next(qa.chunk for qa in instance.questions if qa.id == question.id)
        return None if chunk is None else shown_chunks(instance, [chunk])


def shown_chunks(instance: Instance, places: Sequence[int]) -> tuple[str, Sequence[str]]:
    """The text of some chunks, and their names."""
    text = "\n\n".join(instance.chunks[place] for place in places)
    return text, [f"chunk:{place}" for place in places]
