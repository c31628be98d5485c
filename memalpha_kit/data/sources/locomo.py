"""LoCoMo (Maharana et al., 2024): months of dated talks of two people, and questions about them.

    {"sample_id": "conv-1",
     "conversation": {"speaker_a": "Ila", "speaker_b": "Gus",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [{"speaker": "Ila", "dia_id": "D1:1", "text": "I sold the van."}, ...], ...},
     "qa": [{"question": "What did Ila sell?", "answer": "the van", "evidence": ["D1:1"],
             "category": 4}, ...]}

A conversation is an instance, and a session a chunk (several, if it is above the limit) that opens
with its date. A picture is shown by its caption. All questions are kept. Those that ask for
something that was never said (category 5) end in `_abs` and are right if the reply says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Annotated, Any

from pydantic import Field, model_validator

from memalpha_kit.data.raw import Row, Text, checked
from memalpha_kit.data.sources import longmemeval
from memalpha_kit.data.sources.building import Job, only
from memalpha_kit.data.sources.longmemeval import AnswerText, Session
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.tasks import NOT_MENTIONED

FILES = ("locomo10.json|locomo*.json",)
CATEGORIES = ("", "multi-hop", "temporal", "open-domain", "single-hop", "adversarial")
SESSION = re.compile(r"session_(\d+)")
TURN = re.compile(r"D:?(\d+):(\d+)")
Turn = tuple[int, int]
"""Session and turn, by their numbers in the file."""


class RawTurn(Row):
    """A turn of a session."""

    speaker: Text
    dia_id: Text
    text: str
    blip_caption: str | None = None

    def content(self) -> str:
        """What was said, and the caption of a picture that was shown."""
        picture = f"[shows a picture: {self.blip_caption}]" if self.blip_caption else ""
        return " ".join(filter(None, (self.text.strip(), picture)))


class RawQuestion(Row):
    """A question; only those of category 5 may be without an answer."""

    question: Text
    answer: AnswerText | None = None
    evidence: list[str] = []
    category: Annotated[int, Field(ge=1, le=5)]

    @model_validator(mode="after")
    def _answered(self) -> RawQuestion:
        if self.answer is None and self.category != 5:
            raise ValueError("answer: expected a text, found none")
        return self

    def answers(self) -> tuple[str, ...]:
        """What is accepted; of an opinion (category 3) without the reasons after a semicolon."""
        if self.category == 5 or self.answer is None:
            return NOT_MENTIONED
        return (self.answer.partition(";")[0].strip() if self.category == 3 else self.answer,)


class _RawSample(Row):
    sample_id: Text
    conversation: dict[str, Any]
    qa: list[RawQuestion]


class _RawSession(Row):
    date: Text
    turns: list[RawTurn]


def build(job: Job) -> list[Instance]:
    """One instance per conversation, at most `config.instances`. No seed is used.

    Raises InputError, naming sample and field, for one that is missing or has another type.
    """
    read = job.read(partial(_instance, job), *FILES, single=True)
    return job.not_none(list(islice(read, job.config.instances)), *FILES, "a list of conversations")


def _instance(job: Job, raw: Any, where: str) -> Instance:
    sample = checked(_RawSample, raw, where)
    chunks: list[str] = []
    held: list[set[Turn]] = []  # what stands in each chunk
    for session in _sessions(sample.conversation, where):
        said = tuple((turn.speaker, turn.content(), False) for turn in session.turns)
        for chunk in longmemeval.pack(job, [Session(session.date, said)]):
            chunks.append(chunk.text)
            held.append({n for _, i in chunk.turns for n in _named(session.turns[i].dia_id)[:1]})
    questions = []
    for i, qa in enumerate(sample.qa):
        needed = {turn for label in qa.evidence for turn in _named(label)}
        place = only(index for index, inside in enumerate(held) if inside & needed)
        name = f"{sample.sample_id}-{i}{'_abs' if qa.category == 5 else ''}"
        questions.append(QA(name, qa.question, qa.answers(), place))
    kinds = [CATEGORIES[qa.category] for qa in sample.qa]
    groups = [f"locomo:{sample.sample_id}"]
    return job.instance(chunks, questions, question_types=kinds, groups=groups)


def _sessions(conversation: Mapping[str, Any], where: str) -> list[_RawSession]:
    """The sessions in order, without turns that say nothing; empty sessions are left out."""
    found = []
    for number in sorted(int(m[1]) for name in conversation if (m := SESSION.fullmatch(name))):
        name = f"session_{number}"
        both = {"date": conversation.get(f"{name}_date_time"), "turns": conversation[name]}
        session = checked(_RawSession, both, f"{where}: conversation: {name}")
        said = [turn for turn in session.turns if turn.content()]
        found += [_RawSession(date=session.date, turns=said)] if said else []
    if not found:
        raise InputError(f"{where}: conversation: expected sessions with turns, found none")
    return found


def _named(label: str) -> list[Turn]:
    """The turns that a label names: the public file has "D8:6; D9:17", "D:11:26" and "D30:05"."""
    return [(int(session), int(turn)) for session, turn in TURN.findall(label)]
