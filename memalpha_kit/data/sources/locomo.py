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
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import Field, model_validator

from memalpha_kit.data.raw import Row, Text, checked
from memalpha_kit.data.sources import dialogues
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.dialogues import AnswerText, Session
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.tasks import NOT_MENTIONED

FILES = ("locomo10.json|locomo*.json",)
CATEGORIES = {
    **{1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"},
    5: "adversarial",
}
SESSION = re.compile(r"session_(\d+)")
TURN = re.compile(r"D:?(\d+):(\d+)")


class RawTurn(Row):
    """A turn of a session; what a picture shows is its caption."""

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
        if self.category == 5:
            return NOT_MENTIONED
        return (self.answer.partition(";")[0].strip() if self.category == 3 else self.answer,)


class RawSample(Row):
    """A conversation with its questions."""

    sample_id: Text
    conversation: dict[str, Any]
    qa: list[RawQuestion]


class RawSession(Row):
    """A session with its date."""

    date: Text
    turns: list[RawTurn]


Place = tuple[int, int]
"""(session, turn), by position in the conversation."""


def build(job: Job) -> list[Instance]:
    """One instance per conversation, at most `config.instances`. No seed is used.

    Raises InputError, naming sample and field, for one that is missing or has another type.
    """
    read = job.read(lambda raw, where: _instance(job, raw, where), *FILES, single=True)
    return job.not_none(list(islice(read, job.config.instances)), *FILES, "a list of conversations")


def _instance(job: Job, raw: Any, where: str) -> Instance:
    sample = checked(RawSample, raw, where)
    history, places = _sessions(sample.conversation, where)
    chunks: list[str] = []
    held: list[set[Place]] = []  # the turns in each chunk
    for number, session in enumerate(history):
        for chunk in dialogues.pack(job, [session]):
            chunks.append(chunk.text)
            held.append({(number, turn) for _, turn in chunk.turns})
    questions = [
        QA(
            f"{sample.sample_id}-{i}{'_abs' if qa.category == 5 else ''}",
            qa.question,
            qa.answers(),
            _chunk(qa.evidence, places, held),
        )
        for i, qa in enumerate(sample.qa)
    ]
    kinds = [CATEGORIES[qa.category] for qa in sample.qa]
    groups = [f"locomo:{sample.sample_id}"]
    return job.instance(chunks, questions, question_types=kinds, groups=groups)


def _sessions(
    conversation: Mapping[str, Any], where: str
) -> tuple[list[Session], dict[tuple[int, ...], Place]]:
    """The sessions in order, and where the turn of each id stands; empty sessions are left out."""
    numbers = sorted(int(m[1]) for name in conversation if (m := SESSION.fullmatch(name)))
    history: list[Session] = []
    places: dict[tuple[int, ...], Place] = {}
    for number in numbers:
        name = f"session_{number}"
        both = {"date": conversation.get(f"{name}_date_time"), "turns": conversation[name]}
        session = checked(RawSession, both, f"{where}: conversation: {name}")
        said = [turn for turn in session.turns if turn.content()]
        if not said:
            continue
        for place, turn in enumerate(said):
            places[_numbers(turn.dia_id)] = (len(history), place)
        turns = tuple((turn.speaker, turn.content(), False) for turn in said)
        history.append(Session(session.date, turns))
    if not history:
        raise InputError(f"{where}: conversation: expected sessions with turns, found none")
    return history, places


def _numbers(dia_id: str) -> tuple[int, ...]:
    found = TURN.search(dia_id)
    return (int(found[1]), int(found[2])) if found else ()


def _chunk(
    evidence: Sequence[str], places: Mapping[tuple[int, ...], Place], held: Sequence[set[Place]]
) -> int | None:
    """The one chunk with all evidence; None if there are several, or the labels name no turn.

    The public file has labels such as "D8:6; D9:17", "D:11:26" and "D30:05".
    """
    named = {(int(m[1]), int(m[2])) for label in evidence for m in TURN.finditer(label)}
    turns = {places[numbers] for numbers in named if numbers in places}
    hits = [index for index, inside in enumerate(held) if inside & turns]
    return hits[0] if len(hits) == 1 else None
