"""LongMemEval (Wu et al., 2025): a long dated history of chats and a question about it.

A raw record has `question_id`, `question`, `answer`, `haystack_dates` and, parallel to them,
`haystack_sessions` (lists of turns with `role` and `content`); `haystack_session_ids` and
`answer_session_ids` say which sessions hold the evidence, `has_answer` marks turns; the
`question_type` goes into the instance's `question_types`, which a judge may ask for:

    {"question_id": "e47becba", "question": "What degree did I graduate with?",
     "answer": "Business Administration", "haystack_dates": ["2023/05/20 (Sat) 02:21", ...], ...}

One record is one instance with one question, dialogues in the order of the file. The question is
asked as it stands; its `question_date` is not shown, as in the published evaluation (data.md 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.data.chunks import DialogueChunk, pack_dialogues
from memalpha_kit.data.sources.building import Skips, raw_file, read_json, take
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

FILES = ("longmemeval*.json",)


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """One instance per record, at most `config.instances`. Nothing is drawn: `seed` is not used.

    Raises InputError, naming record and field, for one that is missing or has another type.
    Source: data.md 2.7. Differs: public records take the place of the unpublished training file.
    """
    path = raw_file(raw, *FILES)
    content = read_json(path)
    records = content if isinstance(content, list) else [content]
    if not records:
        raise InputError(f"{path}: expected a list of records, found an empty list")
    chosen = records[: config.instances]
    return [instance(record, config, f"{path}: record {i}") for i, record in enumerate(chosen)]


def instance(record: Any, config: BuildConfig, where: str) -> Instance:
    """The instance of one record; `where` opens the message of every error."""
    question = take(record, "question", str, where)
    dates = take(record, "haystack_dates", list, where)
    sessions = take(record, "haystack_sessions", list, where)
    if len(dates) != len(sessions):
        found = f"{len(dates)} dates for {len(sessions)} sessions"
        raise InputError(f"{where}: haystack_dates: expected one per session, found {found}")
    if not all(isinstance(date, str) for date in dates):
        raise InputError(f"{where}: haystack_dates: expected text only, found {dates!r:.60}")
    turns = [read_turns(s, f"{where}: haystack_sessions[{i}]") for i, s in enumerate(sessions)]
    chunks = pack_dialogues(
        [[(role, content) for role, content, _ in session] for session in turns],
        dates,
        counter(config.counter),
        limit=config.chunk_max_tokens,
        close=config.dialogue_close_tokens,
        reserve=config.dialogue_reserve_tokens,
    )
    flags = {(s, t) for s, session in enumerate(turns) for t, turn in enumerate(session) if turn[2]}
    evidence = evidence_chunk(chunks, answer_sessions(record), flags)
    name = str(record.get("question_id", "q0"))
    qa = QA(name, question, (answer_text(record, where),), evidence)
    types = question_types([record.get("question_type")])
    return make_instance("longmemeval", [chunk.text for chunk in chunks], [qa], metadata=types)


def question_types(found: Sequence[Any]) -> dict[str, list[str]]:
    """What an instance's metadata says of its questions' types, one each; {} if one is unknown.

    Judges need them (evaluation.md M-14). That a question cannot be answered from the history is
    in its id, which ends in `_abs`.
    """
    known = all(isinstance(kind, str) and kind.strip() for kind in found)
    return {"question_types": list(found)} if known and found else {}


def read_turns(session: Any, where: str) -> list[tuple[str, str, bool]]:
    """(role, content, has the answer) of each turn with content."""
    if not isinstance(session, list):
        raise InputError(f"{where}: expected a list of turns, found {type(session).__name__}")
    read = []
    for i, turn in enumerate(session):
        role = take(turn, "role", str, f"{where}[{i}]")
        content = turn.get("content")
        if not isinstance(content, str):
            raise InputError(f"{where}[{i}]: content: expected text, found {content!r}")
        if content.strip():
            read.append((role, content, turn.get("has_answer") is True))
    return read


def answer_text(record: Any, where: str) -> str:
    """The accepted answer as text; the raw files also have whole numbers."""
    answer = record.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    return take(record, "answer", str, where)


def answer_sessions(record: Any) -> set[int]:
    """Positions of the sessions that the record names as evidence; empty if it does not say."""
    wanted, ids = record.get("answer_session_ids"), record.get("haystack_session_ids")
    if not (isinstance(wanted, list) and isinstance(ids, list)):
        return set()
    return {i for i, name in enumerate(ids) if name in wanted}


def evidence_chunk(
    chunks: Sequence[DialogueChunk], sessions: set[int], flags: set[tuple[int, int]]
) -> int | None:
    """The one chunk with the evidence, or None if there are several or the record does not say.

    Turns marked in `flags` decide where evidence sessions have some, whole sessions otherwise.
    """
    marked = {turn for turn in flags if turn[0] in sessions}
    hits = {
        index
        for index, chunk in enumerate(chunks)
        if (marked & set(chunk.turns) if marked else sessions & {s for s, _ in chunk.turns})
    }
    return hits.pop() if len(hits) == 1 else None
