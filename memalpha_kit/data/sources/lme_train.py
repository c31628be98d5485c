"""LongMemEval for training: about four questions that share one reduced history.

The file the paper trained on was never published, nor its builder, so nobody can tell whether it
overlaps with the evaluation rows `longmemeval_s*` (data.md 6.1, D30). This is a documented
substitute from the public records (see longmemeval.py): records of the evaluation rows are left
out, by `question_id` and by the words of their question; the others are shuffled and merged in
fours; an instance keeps all dialogues with evidence and, to fill about 15 chunks, other dialogues
of its records. No other dialogue is used twice, and none that an evaluation row shows.

Raw files, side by side in one folder:

* `longmemeval*.json`: a list of public records, or the unpublished layout (data.md 7.7),
  `{"samples": [{"sample_id", "questions", "answers", "haystack_dates", "haystack_sessions"}]}`,
  of which each sample is an instance;
* `Accurate_Retrieval*`: the rows of MemoryAgentBench; needed, unless `config.exclude` is "none".
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalpha_kit.data.chunks import DialogueChunk, pack_dialogues
from memalpha_kit.data.sources import longmemeval, memory_agent_bench
from memalpha_kit.data.sources.building import Skips, generator, raw_file, read_json, take
from memalpha_kit.data.sources.memory_agent_bench import DIALOGUES, RETRIEVAL, read_dialogues
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import Counter, counter

log = logging.getLogger(__name__)

EVALUATION = f"{RETRIEVAL}*"
FILES = (*longmemeval.FILES, EVALUATION)

Turns = list[tuple[str, str, bool]]
"""(role, content, has the answer) of each turn."""


@dataclass(frozen=True)
class Session:
    """One dated dialogue."""

    key: str  # a hash of its words
    date: str
    turns: Turns


@dataclass(frozen=True)
class Record:
    """One question with its history; `evidence` are positions in `sessions`."""

    id: str
    question: str
    answer: str
    date: str
    sessions: tuple[Session, ...]
    evidence: frozenset[int]
    kind: str | None = None  # the question's type


@dataclass(frozen=True)
class Excluded:
    """What evaluation rows have: ids and words of questions, keys of dialogues."""

    ids: frozenset[str] = frozenset()
    questions: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances of `config.merged_questions` questions each, at most `config.instances`.

    Raises InputError for files that are missing or not as they must be, and if nothing is left.
    Source: data.md 2.7. Differs: public records take the place of the unpublished file (D30).
    """
    path = raw_file(raw, *longmemeval.FILES)
    content = read_json(path)
    excluded = evaluation(raw, config)
    if isinstance(content, dict) and "samples" in content:
        built = _of_samples(content, path, excluded, config, skips)
    else:
        records = content if isinstance(content, list) else [content]
        built = _of_records(records, path, excluded, config, seed, skips)
    if not built:
        raise InputError(f"{path}: expected questions that no evaluation row has, found none")
    return built[: config.instances]


def evaluation(raw: Path, config: BuildConfig) -> Excluded:
    """What must not be trained on; under "questions" dialogues may be, but for their questions.

    Raises InputError if the evaluation rows are not there.
    """
    if config.exclude == "none":
        log.warning("lme_train: nothing is excluded: questions of evaluation may be trained on")
        return Excluded()
    memory_agent_bench.check_present(raw, EVALUATION)
    split = memory_agent_bench.read_split(raw, RETRIEVAL)
    rows = [row for row in split if row.source == DIALOGUES]
    if not rows:
        raise InputError(f"{raw}: {EVALUATION}: expected rows of {DIALOGUES}, found none")
    sessions = (
        session_key(turns)
        for row in (rows if config.exclude == "evaluation" else ())
        for turns in read_dialogues(row.context, row.where)[1]
    )
    return Excluded(
        frozenset(id for row in rows for id in row.ids),
        frozenset(normalise(question) for row in rows for question in row.questions),
        frozenset(sessions),
    )


# --- Public records ------------------------------------------------------------------------------


def _of_records(
    raw_records: Sequence[Any],
    path: Path,
    excluded: Excluded,
    config: BuildConfig,
    seed: int,
    skips: Skips,
) -> list[Instance]:
    numbered = ((record, f"{path}: record {i}") for i, record in enumerate(raw_records))
    records = list(usable(skips.each(read_record, numbered), excluded, skips))
    generator(seed, "lme_train", "all", "order").shuffle(records)
    n = config.merged_questions
    groups = [records[start : start + n] for start in range(0, len(records) - n + 1, n)]
    skips.drop("lme_train: questions left over from the last instance", len(records) % n)
    groups = groups[: config.instances]
    used = set(excluded.sessions)
    used |= {r.sessions[i].key for group in groups for r in group for i in r.evidence}
    built = []
    for index, group in enumerate(groups):
        fillers = _fillers(group, used)
        generator(seed, "lme_train", index, "dialogues").shuffle(fillers)
        built.append(merge(group, fillers, used, config))
    return built


def read_record(raw: Any, where: str) -> Record:
    """The checked record; `where` opens the message of every error."""
    name = take(raw, "question_id", str, where)
    question = take(raw, "question", str, where)
    dates, sessions = read_history(raw, where)
    date = raw.get("question_date")
    return Record(
        id=name,
        question=question,
        answer=longmemeval.answer_text(raw, where),
        date=date if isinstance(date, str) else "",
        sessions=tuple(
            Session(session_key([(role, text) for role, text, _ in turns]), date, turns)
            for date, turns in zip(dates, sessions, strict=True)
        ),
        evidence=frozenset(longmemeval.answer_sessions(raw)),
        kind=raw.get("question_type"),
    )


def read_history(raw: Any, where: str) -> tuple[list[str], list[Turns]]:
    """(dates, dialogues) of a record. Raises InputError for a dialogue without a date."""
    dates = take(raw, "haystack_dates", list, where)
    sessions = take(raw, "haystack_sessions", list, where)
    if len(dates) != len(sessions):
        found = f"{len(dates)} dates for {len(sessions)} sessions"
        raise InputError(f"{where}: haystack_dates: expected one per session, found {found}")
    for i, date in enumerate(dates):
        if not isinstance(date, str) or not date.strip():
            raise InputError(f"{where}: haystack_dates[{i}]: expected a date, found {date!r:.40}")
    read = longmemeval.read_turns
    return dates, [read(s, f"{where}: haystack_sessions[{i}]") for i, s in enumerate(sessions)]


def session_key(turns: Iterable[tuple[str, str]]) -> str:
    """A hash of the words of a dialogue: the same for the same dialogue in another record."""
    words = " ".join(word for _, content in turns for word in content.split())
    return hashlib.sha256(words.encode()).hexdigest()


def usable(records: Iterable[Record], excluded: Excluded, skips: Skips) -> Iterator[Record]:
    """The records that evaluation does not have, each question once; counts the others."""
    seen: set[str] = set()
    for record in records:
        key = normalise(record.question)
        shown = {record.sessions[i].key for i in record.evidence}
        if record.id in excluded.ids or key in excluded.questions:
            skips.drop("lme_train: questions of evaluation rows")
        elif shown & excluded.sessions:
            skips.drop("lme_train: questions with evidence that evaluation rows show")
        elif record.id in seen:
            skips.drop("lme_train: questions that occur twice")
        else:
            seen.add(record.id)
            yield record


def _fillers(group: Sequence[Record], used: set[str]) -> list[Session]:
    """Dialogues of the records that are nobody's evidence and that no instance has yet."""
    found = {s.key: s for r in group for s in r.sessions if s.key not in used and s.turns}
    return list(found.values())


def merge(
    group: Sequence[Record], fillers: Iterable[Session], used: set[str], config: BuildConfig
) -> Instance:
    """One instance of several records: all evidence, then fillers until the history is long enough.

    Long enough are `config.history_chunks` chunks that are three quarters full, as the paper's are
    (1,522 of 2,048 tokens). Dialogues are in the order of their dates. Adds the keys of the fillers
    it takes to `used`.
    """
    measure = counter(config.counter)
    chosen = {r.sessions[i].key: r.sessions[i] for r in group for i in sorted(r.evidence)}
    room = config.history_chunks * config.chunk_max_tokens * 3 // 4
    room -= sum(_tokens(session, measure) for session in chosen.values())
    for session in fillers:
        room -= _tokens(session, measure)
        if room < 0:
            break
        chosen[session.key] = session
        used.add(session.key)
    history = sorted(chosen.values(), key=lambda session: session.date)
    chunks = _pack(history, config)
    flags = {(s, t) for s, x in enumerate(history) for t, turn in enumerate(x.turns) if turn[2]}
    place = {session.key: i for i, session in enumerate(history)}
    evidence = [{place[r.sessions[i].key] for i in r.evidence} for r in group]
    questions = [
        QA(r.id, r.question, (r.answer,), longmemeval.evidence_chunk(chunks, where, flags))
        for r, where in zip(group, evidence, strict=True)
    ]
    keys = sorted({history[i].key for where in evidence for i in where})
    metadata = {
        "groups": [*(f"longmemeval:{r.id}" for r in group), *(f"dialogue:{k[:16]}" for k in keys)],
        "question_dates": [r.date for r in group],
        **longmemeval.question_types([r.kind for r in group]),
    }
    texts = [chunk.text for chunk in chunks]
    return make_instance("lme_train", texts, questions, metadata=metadata)


def _tokens(session: Session, measure: Counter) -> int:
    return sum(measure.count(content) for _, content, _ in session.turns)


def _pack(history: Sequence[Session], config: BuildConfig) -> list[DialogueChunk]:
    return pack_dialogues(
        [[(role, content) for role, content, _ in session.turns] for session in history],
        [session.date for session in history],
        counter(config.counter),
        limit=config.chunk_max_tokens,
        close=config.dialogue_close_tokens,
        reserve=config.dialogue_reserve_tokens,
    )


# --- The unpublished layout ----------------------------------------------------------------------


def _of_samples(
    content: Any, path: Path, excluded: Excluded, config: BuildConfig, skips: Skips
) -> list[Instance]:
    samples = take(content, "samples", list, str(path))
    numbered = ((sample, f"{path}: sample {i}") for i, sample in enumerate(samples))
    read = skips.each(lambda s, w: read_sample(s, w, excluded, config, skips), numbered)
    return [instance for instance in read if instance is not None]


def read_sample(
    raw: Any, where: str, excluded: Excluded, config: BuildConfig, skips: Skips
) -> Instance | None:
    """The instance of one sample, its history as it is; None if evaluation has all its questions.

    Raises InputError naming the field.
    """
    name = take(raw, "sample_id", str, where)
    questions, answers = (take(raw, field, list, where) for field in ("questions", "answers"))
    if len(questions) != len(answers):
        found = f"{len(answers)} for {len(questions)} questions"
        raise InputError(f"{where}: answers: expected one per question, found {found}")
    types = raw.get("question_types")
    if not (isinstance(types, list) and len(types) == len(questions)):
        types = [None] * len(questions)
    asked, kinds = [], []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        here = f"{where}: question {i}"
        pair = {"question": question, "answer": answer}
        text = take(pair, "question", str, here)
        if normalise(text) in excluded.questions:
            skips.drop("lme_train: questions of evaluation rows")
            continue
        asked.append(QA(f"{name}-{i}", text, (longmemeval.answer_text(pair, here),)))
        kinds.append(types[i])
    if not asked:
        return None
    dates, sessions = read_history(raw, where)
    history = [Session("", date, turns) for date, turns in zip(dates, sessions, strict=True)]
    texts = [chunk.text for chunk in _pack(history, config)]
    metadata = {"groups": [f"lme_train:{name}"], **longmemeval.question_types(kinds)}
    return make_instance("lme_train", texts, asked, metadata=metadata)
