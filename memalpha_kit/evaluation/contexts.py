"""Methods that answer from a text: all chunks, the best chunks, the right chunk, or none.

All of them put the same question in the same way (system message, task, text, what the source asks
for, question), with the same settings of the answering model, so that they differ in the text
alone. The cut "context" keeps the system message, the task and the question, whatever the length,
and drops the oldest text of the context. Beside them stand the two floors that ask no model.

>>> Tail("one two three", counter("words")).last(2)
'two three'
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal

from memalpha_kit.chats import ChatRequest, request
from memalpha_kit.evaluation.methods import METHODS, Backends, Method, Put, Settings
from memalpha_kit.method.prompts import VERSION, asked, system_prompt_baseline
from memalpha_kit.method.ranking import Bm25
from memalpha_kit.method.readers import LABELLED, undated
from memalpha_kit.method.retrieval import Unanswerable
from memalpha_kit.records import Answer, Instance
from memalpha_kit.registry import Registry
from memalpha_kit.sections import Count, NonNegative, Share, about, section
from memalpha_kit.tokens import Counter, counter

Texts = tuple[str, str]  # system text ("" for none) and user text
HEADER_TOKENS, FOOTER_TOKENS = 3, 2
"""Of each message in Qwen's chat template: `<|im_start|>`, role, line break; `<|im_end|>`, ..."""
GENERATION_TOKENS = 7  # the header that asks for a reply, with the empty thinking block


class Tail:
    """A text that is tokenised once and then cut from the front as often as needed."""

    def __init__(self, text: str, counter: Counter) -> None:
        self.text, self._ends = text, counter.ends(text)

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole text."""
        return len(self._ends)

    def last(self, n_tokens: int) -> str:
        """The last `n_tokens` tokens as they stand, "" for none."""
        if n_tokens >= len(self._ends):
            return self.text
        return self.text[self._ends[-n_tokens - 1] :].lstrip() if n_tokens > 0 else ""


def prompt_tokens(texts: Texts, counter: Counter) -> int:
    """Tokens of a prompt, chat template included."""
    frame = HEADER_TOKENS + FOOTER_TOKENS
    return sum(frame + counter.count(text) for text in texts if text) + GENERATION_TOKENS


Cut = Callable[[Callable[[str], Texts], Tail, int, Counter], tuple[Texts, bool]]
"""(prompt around a context, context, window, counter) -> the prompt, whether a part was left out"""
CUTS: Registry[Cut] = Registry("cut")


@CUTS.register("context")
def cut_context(
    render: Callable[[str], Texts], context: Tail, window: int, counter: Counter
) -> tuple[Texts, bool]:
    """The prompt around as much of the context's end as fits, and whether some was left out.

    Raises Unanswerable if the prompt is too long without any context.
    """
    room = window - prompt_tokens(render(""), counter)
    if room < 0:
        expected = f"expected at most {window} tokens without context"
        raise Unanswerable(f"prompt: {expected}, found {window - room}")
    n_tokens = min(room, context.n_tokens)
    while True:  # tokens are not additive: the join may cost a few more
        texts = render(context.last(n_tokens))
        over = prompt_tokens(texts, counter) - window
        if over <= 0 or n_tokens <= 0:
            return texts, n_tokens < context.n_tokens
        n_tokens -= over


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
    needs_model = True
    prompts: ClassVar[Any] = VERSION
    framed: ClassVar[bool] = True  # with a system message and the task, which speak of a text
    options: ContextSettings

    def __init__(self, name: str, settings: ContextSettings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        self.cut = CUTS[settings.cut]

    def context(self, put: Put) -> tuple[str, Sequence[str]] | None:
        """The text for a question and the names of its parts; None without an evidence label."""
        raise NotImplementedError

    def request(self, put: Put) -> tuple[ChatRequest | None, Answer]:
        """The question with as much of its text as fits."""
        context = self.context(put)
        if context is None:
            return None, put.draft(skipped="the data does not say which chunk holds the evidence")
        source, tail = put.instance.source, _tail(context[0], self.options.counter)
        system = system_prompt_baseline(source) if self.framed else ""
        task = put.instance.prompt if self.framed else ""
        ask = asked(put.question.text, source, self.options.wording)

        def render(text: str) -> Texts:
            return system, "\n\n".join(part for part in (task, text, ask) if part)

        try:
            texts, truncated = self.cut(render, tail, self.options.window, self.counter)
        except Unanswerable as error:
            return None, put.draft(finish="unanswerable", error=str(error))
        said = put.draft(retrieved=tuple(context[1]), truncated=truncated)
        return request(*texts, version=VERSION, **self.options.request_fields()), said


@lru_cache(maxsize=4)
def _tail(text: str, name: str) -> Tail:
    """The questions of one instance are put one after the other, so its text is tokenised once."""
    return Tail(text, counter(name))


@METHODS.register("long-context")
class LongContext(ContextMethod):
    """All chunks, or as many of the last tokens as the window holds. Memory: as many tokens."""

    summary = "all chunks in the prompt, the last tokens of them if there are too many"

    def held_tokens(self, instance: Instance, input_tokens: int) -> int:
        """The size of what can be held."""
        return min(input_tokens, self.options.window)

    def context(self, put: Put) -> tuple[str, Sequence[str]]:
        """All chunks in order."""
        return "\n\n".join(put.instance.chunks), ()


@METHODS.register("closed-book")
class ClosedBook(ContextMethod):
    """The question alone: what the model knows by itself."""

    summary = "the question alone"
    framed = False

    def context(self, put: Put) -> tuple[str, Sequence[str]]:
        """No text."""
        return "", ()


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
    summary = "the k chunks that fit the question best, by BM25"
    options: Bm25Settings

    def held_tokens(self, instance: Instance, input_tokens: int) -> int:
        """All chunks are kept."""
        return input_tokens

    def context(self, put: Put) -> tuple[str, Sequence[str]]:
        """The best chunks; the first ones for a question without a word."""
        places = self.best(undated(put.question.text), put.instance.chunks)
        return shown_chunks(put.instance, places)

    def best(self, question: str, chunks: tuple[str, ...]) -> Sequence[int]:
        """Places of the chunks to show."""
        if len(chunks) <= self.options.top_k:
            return range(len(chunks))
        return bm25(chunks, "positive").top(question, self.options.top_k)


bm25 = lru_cache(maxsize=8)(Bm25)
"""The index of an instance's chunks."""


@METHODS.register("gold-chunk")
class GoldChunk(ContextMethod):
    """The chunk that holds the evidence: what a perfect memory of whole chunks would give.

    Questions without an evidence label are skipped with that reason, and no mean counts them.
    Memory: all chunks that hold evidence of some question.
    """

    summary = "the chunk with the evidence, where the data says which; a ceiling"

    def held_tokens(self, instance: Instance, input_tokens: int) -> int:
        """The size of all evidence."""
        gold = {qa.chunk for qa in instance.questions if qa.chunk is not None}
        return sum(self.counter.count(instance.chunks[chunk]) for chunk in gold)

    def context(self, put: Put) -> tuple[str, Sequence[str]] | None:
        """The chunk of its evidence."""
        [chunk] = [qa.chunk for qa in put.instance.questions if qa.id == put.question.id]
        return None if chunk is None else shown_chunks(put.instance, [chunk])


def shown_chunks(instance: Instance, places: Sequence[int]) -> tuple[str, Sequence[str]]:
    """The text of some chunks, and their names."""
    text = "\n\n".join(instance.chunks[place] for place in places)
    return text, [f"chunk:{place}" for place in places]


@METHODS.register("nothing")
class Nothing(Method):
    """Answers "" to everything. Memory: none."""

    summary = "an empty answer to everything; the floor of every metric"

    def request(self, put: Put) -> tuple[None, Answer]:
        """No request."""
        return None, put.draft(prediction="")


@METHODS.register("majority-label")
class MajorityLabel(Method):
    r"""Answers with the commonest label of the chunks' samples, as `\boxed{n}`; "" without any.

    Ties go to the label seen first. Memory: none worth counting.
    """

    summary = "the commonest label of the samples; a floor for classification"

    def request(self, put: Put) -> tuple[None, Answer]:
        """No request."""
        label = commonest_label(put.instance.chunks)
        return None, put.draft(prediction=f"\\boxed{{{label}}}" if label else "")


@cache
def commonest_label(chunks: tuple[str, ...]) -> str:
    """The commonest label of labelled samples, the first of equals; "" without any."""
    labels = Tally(match["label"] for chunk in chunks for match in LABELLED.finditer(chunk))
    return labels.most_common(1)[0][0] if labels else ""
