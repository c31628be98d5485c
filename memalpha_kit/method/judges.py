"""Judges: a chat model says whether a memory write is valid, or whether an answer is right.

| judge | rates | reply it must give |
| --- | --- | --- |
| `content_judge.ContentJudge` | a text for one memory type | JSON: VALID, ISSUES, EXPLANATION |
| `LongMemEvalJudge` | an answer against a rubric, one for all or by question type | yes or no |
| `CorrectWrongJudge` | an answer against gold answers | one CORRECT or WRONG label |

The one law: a judgement that failed or cannot be read is asked again and, if that does not help, is
missing: `valid` None, never False. How replies are read is a `Manner`, by name; the published
code's, under which failures are False, is "release". A model that is gone stops a judge with
`ModelGone`; the client's cache keeps what was said.

All prompts are our own words (`texts/judges.yaml`). A text that is rated stands between tags, which
it cannot close, and is said to be no instruction: a policy that is paid for verdicts would learn to
give some.

>>> read_yes_no("Yes, it acknowledges the preference."), read_yes_no("It is correct.")
(True, None)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, message, request
from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.memory import load_texts
from memalpha_kit.registry import Registry
from memalpha_kit.text import complete_object, value_end, without_thinking

Rubric = Literal["published", "by_type"]
VERSION = "judge-1"
"""Of the instructions; part of the name of cached replies, so that another one asks anew."""
TEXTS = load_texts("judges")
RUBRICS = TEXTS["rubrics"]
"""When a response is right: one rubric for all ("published"), or by question type."""
QUESTION_TYPES = tuple(name for name in RUBRICS if name not in ("published", "abstention"))


@dataclass(frozen=True)
class Verdict:
    """One judgement. `valid` is None if there is none; `error` says why.

    `reply` is what the model wrote last. `asked` counts the requests for it: 0 if nobody had to be
    asked, above 1 if it was asked again.
    """

    valid: bool | None
    issues: tuple[str, ...] = ()
    explanation: str = ""
    reply: str = ""
    error: str = ""
    asked: int = 1


# ---- reading replies -----------------------------------------------------------------------------


def read_content(reply: str) -> Verdict | None:
    """The verdict in a reply, its reasoning cut off; None if it has none, or two that differ.

    A verdict is a complete JSON object, with a code fence or without, that has VALID (true or
    false), ISSUES (a list) and EXPLANATION (text); other objects are ignored.
    """
    text = without_thinking(reply) or ""
    verdicts, end = [], 0
    starts = [brace.start() for brace in re.finditer(r"\{", text)]
    for start in starts[:64]:  # a reply with more objects is no verdict
        if start >= end and (stop := value_end(text, start)):
            end = stop
            if verdict := content_verdict(text[start:stop]):
                verdicts.append(verdict)
    return verdicts[-1] if len({verdict.valid for verdict in verdicts}) == 1 else None


def content_verdict(source: str) -> Verdict | None:
    """The verdict that a JSON object is; None if it is none."""
    value = complete_object(source) or {}
    valid, issues, explanation = (value.get(k) for k in ("VALID", "ISSUES", "EXPLANATION"))
    if isinstance(valid, bool) and isinstance(issues, list) and isinstance(explanation, str):
        return Verdict(valid, tuple(map(str, issues)), explanation)
    return None


def read_yes_no(reply: str) -> bool | None:
    """What the first word says, the reasoning cut off; None if that is neither yes nor no."""
    first = re.search(r"[A-Za-z]+", without_thinking(reply) or "")
    return {"yes": True, "no": False}.get(first[0].lower()) if first else None


_LABELS = re.compile(r"<label>\s*(CORRECT|WRONG)\s*</label>", re.IGNORECASE)


def read_label(reply: str) -> bool | None:
    """Which label the reply has, its reasoning cut off; None for no label or both."""
    labels = {label.upper() for label in _LABELS.findall(without_thinking(reply) or "")}
    return "CORRECT" in labels if len(labels) == 1 else None


@dataclass(frozen=True)
class Manner:
    """How strictly judges are read: the right behaviour by default.

    `lenient`: a failure is asked again and then missing; else it is False at once, calls that are
    not to be judged count 0, and whether they succeeded is not looked at. `golds` joins accepted
    answers; `own_abstention`: questions without an answer are always judged by their own rubric.
    """

    content: Callable[[str], Verdict | None] = read_content
    yes_no: Callable[[str], bool | None] = read_yes_no
    label: Callable[[str], bool | None] = read_label
    lenient: bool = True
    golds: Callable[[Sequence[str]], str] = " | ".join
    own_abstention: bool = True
    content_temperature: float = 0.0
    rubric_tokens: int = 8  # of a yes or no; with thinking 512


MANNERS: Registry[Manner] = Registry("behaviour")
MANNERS.add("fixed", Manner())


# ---- asking, and asking again --------------------------------------------------------------------


@dataclass(frozen=True)
class ChatJudge:
    """What all judges are told. None is the judge's own default."""

    model: ChatModel
    behaviour: str = "fixed"  # name of a manner
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    thinking: bool = False

    @property
    def manner(self) -> Manner:
        """How its replies are read. Raises InputError for an unknown behaviour."""
        return MANNERS[self.behaviour]

    def _request(self, system: str, user: str, kind: str, tokens: int, heat: float) -> ChatRequest:
        return request(
            system,
            user,
            max_tokens=self.max_tokens or tokens,
            temperature=heat if self.temperature is None else self.temperature,
            thinking=self.thinking,
            seed=self.seed,
            version=f"{VERSION} {kind}",
        )

    def _ask(
        self,
        requests: Sequence[ChatRequest],
        read: Callable[[str], Verdict | bool | None],
        reminders: Sequence[str],
    ) -> list[Verdict]:
        """One verdict per request, in order; equal requests are asked once.

        A reply that cannot be read is asked for again with the next reminder behind the prompt, a
        call that failed as it was; in a manner that is not lenient neither is.
        """
        lenient = self.manner.lenient
        verdicts: dict[ChatRequest, Verdict] = {}
        waiting = {asked: asked for asked in requests}  # as first asked -> as asked now
        for attempt, reminder in enumerate((*(reminders if lenient else ()), ""), start=1):
            if not waiting:
                break
            replies = self.model.chat(list(waiting.values()))
            for first, reply in zip(list(waiting), replies, strict=True):
                verdicts[first] = replace(self._verdict(reply, read), asked=attempt)
                if verdicts[first].valid is not None:
                    del waiting[first]
                elif reply.text is not None:
                    waiting[first] = _reminded(first, reminder, attempt)
        if not lenient:
            verdicts |= {asked: replace(verdicts[asked], valid=False) for asked in waiting}
        return [verdicts[asked] for asked in requests]

    def _verdict(self, reply: ChatReply, read: Callable[[str], Verdict | bool | None]) -> Verdict:
        """What a reply says; a thought that the limit cut off says nothing."""
        if reply.text is None:
            return Verdict(None, error=reply.error or "the call failed")
        cut = ", cut off by its token limit" if reply.finish == "length" else ""
        said = None if cut and self.thinking and "</think>" not in reply.text else read(reply.text)
        verdict = said if isinstance(said, Verdict) else Verdict(said)
        error = f"invalid format{cut}" if said is None else ""
        return replace(verdict, reply=reply.text, error=error)


def _reminded(asked: ChatRequest, reminder: str, attempt: int) -> ChatRequest:
    """The request with a reminder at the end of its last message, under a version of its own."""
    *head, last = asked.messages
    text = f"{last['content']}\n\n{reminder}"
    version = f"{asked.version}, reminder {attempt}"
    return replace(asked, messages=(*head, message(last["role"], text)), version=version)


def tagged(**texts: str) -> str:
    """Each text between tags of its name; a text cannot close its own tag."""
    held = ((name, text.replace(f"</{name}>", f"</ {name}>")) for name, text in texts.items())
    return "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in held)


# ---- whether an answer is right ------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeItem:
    """An answer to rate, its reasoning cut off. `gold` is the rubric, or the accepted answers.

    `question_type` is one of `QUESTION_TYPES`, "" if unknown; `abstention` marks a question that
    cannot be answered from the history.
    """

    question: str
    gold: tuple[str, ...]
    answer: str
    question_type: str = ""
    abstention: bool = False

    def shown(self, manner: Manner, answer: str) -> str:
        """Question, accepted answers and, called `answer`, what was answered, between tags."""
        accepted = self.gold[0] if len(self.gold) == 1 else manner.golds(list(self.gold))
        return tagged(question=self.question, accepted=accepted, **{answer: self.answer})


@dataclass(frozen=True)
class LongMemEvalJudge(ChatJudge):
    """Says whether answers satisfy their rubric.

    `rubric` is `published` (one prompt for all questions that have an answer, as Mem-alpha scores)
    or `by_type` (as MemoryAgentBench does).
    """

    rubric: Rubric = "published"

    def judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in one batch.

        Raises InputError, before anything is asked, if a question type is needed and not known.
        """
        tokens = 512 if self.thinking else self.manner.rubric_tokens
        requests = []
        for item in items:
            rubric, held = RUBRICS[self._rubric(item)], item.shown(self.manner, "response")
            user = TEXTS["rubric"]["user"].format(rubric=rubric, held=held)
            requests.append(self._request("", user, "longmemeval", tokens, 0.0))
        return self._ask(requests, self.manner.yes_no, (TEXTS["rubric"]["reminder"],))

    def _rubric(self, item: JudgeItem) -> str:
        """The key of `RUBRICS` for an item."""
        by_type, kind = self.rubric == "by_type", item.question_type
        if item.abstention and (by_type or self.manner.own_abstention):
            return "abstention"
        if not by_type or kind in QUESTION_TYPES:
            return kind if by_type else "published"
        if not kind:
            raise InputError(
                f"question {item.question[:60]!r}: expected a question type, found none; data "
                "built by `memalpha data build` has them, published files need the rubric "
                "'published'"
            )
        raise InputError(f"question type {kind!r} is unknown{closest(kind, QUESTION_TYPES)}")


@dataclass(frozen=True)
class CorrectWrongJudge(ChatJudge):
    """Says whether answers state the same as an accepted answer (squad and hotpotqa)."""

    def judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in one batch."""
        told, users = TEXTS["label"], [item.shown(self.manner, "answer") for item in items]
        how = ("correct_wrong", 1024, 0.0)
        requests = [self._request(told["system"], user, *how) for user in users]
        return self._ask(requests, self.manner.label, (told["reminder"],))
