"""LongMemEval (Wu et al., 2025): a long dated history of chats and a question about it.

    {"question_id": "e47becba", "question": "What degree did I graduate with?",
     "answer": "Business Administration", "question_date": "2023/05/30 (Tue) 23:40",
     "haystack_dates": ["2023/05/20 (Sat) 02:21", ...], "haystack_sessions": [...], ...}

One record is one instance with one question; three more sources have such dialogues.
`haystack_sessions`, parallel to the dates, are lists of turns with `role` and `content`;
`haystack_session_ids` and `answer_session_ids` say which sessions hold the evidence and
`has_answer` marks turns. `question_type` and `question_date` go into the instance's metadata: a
judge may ask for the type, and a quarter of the questions cannot be answered without the day on
which they are asked ("How many weeks ago did I ...").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from memalpha_kit.data.chunks import DialogueChunk, pack_dialogues
from memalpha_kit.data.raw import Row, Text, checked
from memalpha_kit.data.sources.building import Job, only
from memalpha_kit.data.sources.contexts import parse_list
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.settings import BuildConfig

FILES = ("longmemeval_s*.json|longmemeval*.json|longmemeval_s|longmemeval_m|longmemeval_oracle",)
DATED = re.compile(r"\d{4}[/-]\d\d[/-]\d\d\b")
"""Dates that are in time order when they are in the order of their letters."""


AnswerText = Annotated[Text, BeforeValidator(lambda v: str(v) if type(v) is int else v)]
"""An accepted answer; the raw files also have whole numbers."""


class RawTurn(Row):
    """One turn of a dialogue."""

    role: Text
    content: str
    has_answer: Any = None


class RawHistory(Row):
    """Dialogues with their dates."""

    haystack_dates: list[Text]
    haystack_sessions: list[list[RawTurn]]

    @model_validator(mode="after")
    def _one_date_each(self) -> RawHistory:
        if len(self.haystack_dates) != len(self.haystack_sessions):
            found = f"{len(self.haystack_dates)} dates for {len(self.haystack_sessions)} sessions"
            raise ValueError(f"haystack_dates: expected one per session, found {found}")
        return self

    def sessions(self, evidence: Iterable[int] = ()) -> list[Session]:
        """The dialogues in the order of the file, without turns that say nothing.

        `evidence` are the positions of those that hold the answer.
        """
        found = []
        pairs = zip(self.haystack_dates, self.haystack_sessions, strict=True)
        for i, (date, turns) in enumerate(pairs):
            said = ((t.role, t.content, t.has_answer is True) for t in turns if t.content.strip())
            found.append(Session(date, tuple(said), i in evidence))
        return found


class RawRecord(RawHistory):
    """A record of LongMemEval."""

    question: Text
    question_id: Text
    answer: AnswerText
    question_date: Any = None
    question_type: Any = None
    haystack_session_ids: Any = None
    answer_session_ids: Any = None


@dataclass(frozen=True)
class Session:
    """One dated dialogue: (role, content, has the answer) of each turn."""

    date: str
    turns: tuple[tuple[str, str, bool], ...]
    evidence: bool = False  # of the question of its record

    @cached_property
    def key(self) -> str:
        """A hash of its words: the same for the same dialogue in another record."""
        words = " ".join(word for _, content, _ in self.turns for word in content.split())
        return hashlib.sha256(words.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """One question with its history."""

    id: str
    question: str
    answer: str
    date: str  # when it is asked, "" if the record does not say
    kind: Any  # its type
    sessions: tuple[Session, ...]


def build(job: Job) -> list[Instance]:
    """One instance per record, at most `config.instances`. Nothing is drawn: no seed is used.

    Raises InputError, naming record and field, for one that is missing or has another type.
    """

    def read(raw: Any, where: str) -> Instance:
        record = read_record(raw, where)
        return instance(job, record.sessions, [record])

    built = islice(job.read(read, *FILES, single=True), job.config.instances)
    return job.not_none(list(built), *FILES, "a list of records")


def read_record(raw: Any, where: str) -> Record:
    """The checked record; `where` opens the message of every error."""
    row = checked(RawRecord, raw, where)
    named, ids = row.answer_session_ids, row.haystack_session_ids
    known = isinstance(named, list) and isinstance(ids, list)  # else nobody says what is evidence
    evidence = {i for i, name in enumerate(ids) if name in named} if known else set()
    date = row.question_date if isinstance(row.question_date, str) else ""
    sessions = tuple(in_time_order(row.sessions(evidence)))
    return Record(row.question_id, row.question, row.answer, date, row.question_type, sessions)


def in_time_order(sessions: Sequence[Session]) -> list[Session]:
    """The dialogues by their dates; as they are, if there is a date that cannot be ordered."""
    known = all(DATED.match(session.date) for session in sessions)
    return sorted(sessions, key=lambda session: session.date) if known else list(sessions)


def read_dialogues(context: Any, where: str) -> list[Session]:
    """The dialogues of a list, or the text of one, in which a date and its turns alternate."""
    items = parse_list(context, f"{where}: context") if isinstance(context, str) else context
    if not items or len(items) % 2:
        raise InputError(f"{where}: context: expected pairs of date and turns, found {len(items)}")
    history = {"haystack_dates": items[::2], "haystack_sessions": items[1::2]}
    return checked(RawHistory, history, f"{where}: context").sessions()


def pack(job: Job, sessions: Sequence[Session]) -> list[DialogueChunk]:
    """The dialogues in chunks of at most `config.chunk_max_tokens`, every word kept."""
    return pack_dialogues(
        [[(role, content) for role, content, _ in session.turns] for session in sessions],
        [session.date for session in sessions],
        job.counter,
        limit=job.config.chunk_max_tokens,
        close=job.config.dialogue_close_tokens,
        reserve=job.config.dialogue_reserve_tokens,
    )


def instance(
    job: Job, history: Sequence[Session], records: Sequence[Record], **metadata: Any
) -> Instance:
    """The instance that shows the history, which has the records' evidence, and asks for it."""
    chunks = pack(job, history)
    questions = []
    for record in records:
        keys = {session.key for session in record.sessions if session.evidence}
        place = evidence_chunk(chunks, history, keys)
        asked = dated(record.question, record.date, job.config)
        questions.append(QA(record.id, asked, (record.answer,), place))
    metadata |= about_questions([r.kind for r in records], [r.date for r in records])
    return job.instance([chunk.text for chunk in chunks], questions, **metadata)


def evidence_chunk(
    chunks: Sequence[DialogueChunk], sessions: Sequence[Session], keys: set[str]
) -> int | None:
    """The one chunk with the sessions of these keys, None if there are several, or none is named.

    Turns that are marked decide where there are some, whole sessions otherwise.
    """
    evidence = {place for place, session in enumerate(sessions) if session.key in keys}
    marked = {(s, t) for s in evidence for t, turn in enumerate(sessions[s].turns) if turn[2]}
    return only(
        index
        for index, chunk in enumerate(chunks)
        if (marked & set(chunk.turns) if marked else evidence & {s for s, _ in chunk.turns})
    )


def dated(question: str, date: Any, config: BuildConfig) -> str:
    """The question as it is asked: under its date, unless `config.question_dates` is "kept"."""
    shown = config.question_dates == "shown" and isinstance(date, str) and date.strip()
    return f"Current date: {date}\n{question}" if shown else question


def about_questions(types: Sequence[Any], dates: Sequence[Any]) -> dict[str, list[str]]:
    """What an instance's metadata says of its questions, one each; nothing that one is without.

    That a question cannot be answered from the history is in its id, which ends in `_abs`.
    """
    found = {"question_types": list(types), "question_dates": list(dates)}
    return {
        name: values
        for name, values in found.items()
        if values and all(isinstance(value, str) and value.strip() for value in values)
    }
