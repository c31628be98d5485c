"""MemAgent: a model walks over the text and rewrites one memory of at most 1,024 tokens.

Two modes (spec evaluation.md 4.5, B-12). "agnostic" is how it was run beside Mem-alpha: one walk
per instance over the chunks of the data, with the task description in place of a question.
"per_question" is its own protocol: one walk per question, over the text cut anew into pieces of
5,000 tokens. The model that walks is also the one that answers. All wording is our own.

Differs: the same question with the same output format as for every other method; a failed request
is an error and not an empty memory (B-11); think text is cut off the memory (`behaviour` release:
kept); the last answer may be boxed anywhere in the reply, as the metric reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from memalpha_kit.evaluation.methods.base import (
    AnsweredDone,
    Backends,
    Method,
    Prepared,
    PreparedDone,
    Question,
    groups,
)
from memalpha_kit.evaluation.methods.chains import Chain, walk
from memalpha_kit.evaluation.methods.contexts import ChatSettings
from memalpha_kit.evaluation.methods.journal import Spent
from memalpha_kit.evaluation.methods.windows import pieces, without_middle
from memalpha_kit.method.prompts import VERSION, asked
from memalpha_kit.records import ChatReply, ChatRequest, Instance, request
from memalpha_kit.settings import Behaviour, Count
from memalpha_kit.text import without_thinking
from memalpha_kit.tokens import counter

NOTHING = "Nothing has been kept yet."
WORDING = "memagent-1"
"""Version of the instructions below."""

_READ = (
    "Below are a problem, a section of a long text, and the memory of what was read before. Read "
    "the section with care and write the memory anew: keep every detail of the old one that may "
    "matter for the problem, and add what is new and useful. Reply with the new memory only."
)
_ANSWER = (
    "Below are a problem and the memory of a long text. Solve the problem with the memory and "
    "write the answer in \\boxed{}."
)


@dataclass(frozen=True)
class MemAgentSettings(ChatSettings):
    """Budgets of the walk. As it was run: temperature 0.1 (own protocol: 0.7), top_p 0.95."""

    max_tokens: Count = 1024  # of the answer
    memory_tokens: Count = 1024  # of the memory
    mode: Literal["agnostic", "per_question"] = "agnostic"
    piece_tokens: Count = 5000  # per_question: of a piece
    text_tokens: Count = 120_000  # per_question: a longer text loses its middle
    behaviour: Behaviour = "fixed"  # release: think text stays in the memory


class MemAgent(Method):
    """One memory text, rewritten piece by piece. Memory: the last text (evaluation.md 4.9)."""

    Settings = MemAgentSettings
    summary = "a model rewrites one short memory, chunk by chunk, and answers from it"
    needs_model: ClassVar[bool] = True
    options: MemAgentSettings

    def __init__(self, name: str, settings: MemAgentSettings, backends: Backends) -> None:
        super().__init__(name, settings, backends)
        if settings.mode == "agnostic":
            self.check_unused(("piece_tokens", "text_tokens"), "the chunks are those of the data")

    def settings(self) -> dict[str, Any]:
        """With the versions of the wording."""
        return super().settings() | {"prompts": [WORDING, VERSION]}

    def prepare(self, instances: Sequence[Instance], done: PreparedDone) -> None:
        """Agnostic: one walk per instance. Per question there is nothing to do before one."""
        if self.options.mode == "per_question":
            for instance in instances:
                done(replace(self.measured(instance), memory_tokens=None))
            return
        model = self.kept(self.model)
        for group in groups(instances, self.backends.group):
            chains = [self._chain(i, i.prompt, i.chunks) for i in group]
            walk(chains, model, self._read, lambda chain: done(self._prepared(chain)))

    def _prepared(self, chain: Chain[Instance]) -> Prepared:
        size = self.counter.count(chain.state) if chain.states else 0
        return self.measured(
            chain.of,
            text=chain.state,
            memory_tokens=size,
            errors=chain.kept,
            error=chain.error,
            steps=tuple(chain.states),
            **chain.spent.fields(),
        )

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """Per question: the walks; then one request per question."""
        if self.options.mode == "agnostic":
            self._ask([_Ready(q, q.prepared.text or NOTHING) for q in questions], done)
            return
        ready: list[_Ready] = []

        def take(chain: Chain[tuple[Question, bool]]) -> None:
            question, cut = chain.of
            said = {
                "memory": chain.state,
                "memory_tokens": self.counter.count(chain.state),
                "truncated": cut,
            }
            if chain.error:
                done(question.failed(chain.error, **said, **chain.spent.fields()))
            else:
                ready.append(_Ready(question, chain.state, chain.spent, said))

        model = self.kept(self.model)
        walk([self._own_chain(question) for question in questions], model, self._read, take)
        self._ask(ready, done)

    def _own_chain(self, question: Question) -> Chain[tuple[Question, bool]]:
        problem = asked(question.qa.question, question.instance.source, "context")
        parts, cut = _cut_anew(question.instance.chunks, self.options)
        return self._chain((question, cut), problem, parts)

    def _chain(self, of: Any, problem: str, parts: Sequence[str]) -> Chain:
        fields = self.options.request_fields() | {"max_tokens": self.options.memory_tokens}

        def ask(memory: str, section: str) -> ChatRequest:
            text = f"{_READ}\n\n{_tagged(problem=problem, memory=memory, section=section)}"
            return request("", text, version=WORDING, **fields)

        return Chain(of, parts, ask, NOTHING)

    def _read(self, reply: str) -> str | None:
        """The new memory: the reply, in "fixed" after its thoughts; None if these did not end."""
        return reply if self.options.behaviour == "release" else without_thinking(reply)

    def _ask(self, ready: Sequence[_Ready], done: AnsweredDone) -> None:
        """The final request of each question."""
        requests = []
        for one in ready:
            problem = asked(one.question.qa.question, one.question.instance.source, "context")
            text = f"{_ANSWER}\n\n{_tagged(problem=problem, memory=one.memory)}"
            fields = self.options.request_fields()
            requests.append(request("", text, version=f"{WORDING} {VERSION}", **fields))

        def take(place: int, reply: ChatReply) -> None:
            one = ready[place]
            one.spent.add(reply.prompt_tokens, reply.completion_tokens)
            done(one.question.replied(reply, **one.said | one.spent.fields()))

        if requests:
            self.model.chat(requests, take)


@lru_cache(maxsize=8)
def _cut_anew(chunks: tuple[str, ...], options: MemAgentSettings) -> tuple[list[str], bool]:
    """The pieces of an instance's text, and whether its middle was left out."""
    counts = counter(options.counter)
    text, cut = without_middle("\n\n".join(chunks), options.text_tokens, counts)
    return pieces(text, options.piece_tokens, counts), cut


@dataclass(frozen=True)
class _Ready:
    """A question with the memory it is put to, and what was spent on that memory for it alone."""

    question: Question
    memory: str
    spent: Spent = field(default_factory=Spent)
    said: dict[str, Any] = field(default_factory=dict)


def _tagged(**parts: str) -> str:
    return "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items())
