"""LongMemEval for training: about four questions that share one reduced history.

The file the paper trained on was never published, nor its builder, so nobody can tell whether it
overlaps with the evaluation rows `longmemeval_s*`. This is a documented substitute from the public
records (see dialogues.py): records of the evaluation rows are left out, by `question_id` and by the
words of their question; the others are shuffled and merged in fours; an instance keeps all
dialogues with evidence and, to fill about 15 chunks, other dialogues of its records. No other
dialogue is used twice, and none that an evaluation row shows.

Raw files, side by side in one folder:

* `longmemeval*.json`: a list of public records, or the unpublished layout,
  `{"samples": [{"sample_id", "questions", "answers", "haystack_dates", "haystack_sessions"}]}`,
  of which each sample is an instance;
* `Accurate_Retrieval*`: the rows of MemoryAgentBench; needed, unless `config.exclude` is "none".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import model_validator

from memalpha_kit.data.sources import longmemeval, memory_agent_bench
from memalpha_kit.data.sources.building import Skips, generator
from memalpha_kit.data.sources.dialogues import (
    AnswerText,
    RawHistory,
    Record,
    Session,
    about_questions,
    asked,
    evidence_chunk,
    in_time_order,
    pack,
    read_record,
)
from memalpha_kit.data.sources.memory_agent_bench import DIALOGUES, RETRIEVAL, read_dialogues
from memalpha_kit.data.sources.raw import Row, Text, checked, raw_file, rows
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import Counter, counter

log = logging.getLogger(__name__)

EVALUATION = f"{RETRIEVAL}*|data/{RETRIEVAL}*"
FILES = (*longmemeval.FILES, EVALUATION)


class RawSamples(Row):
    """The unpublished file."""

    samples: list


class RawSample(RawHistory):
    """A sample of the unpublished file."""

    sample_id: Text
    questions: list[Text]
    answers: list[AnswerText]
    question_types: Any = None

    @model_validator(mode="after")
    def _one_answer_each(self) -> RawSample:
        if len(self.questions) != len(self.answers):
            found = f"{len(self.answers)} for {len(self.questions)} questions"
            raise ValueError(f"answers: expected one per question, found {found}")
        return self


@dataclass(frozen=True)
class Excluded:
    """What evaluation rows have: ids and words of questions, keys of dialogues."""

    ids: frozenset[str] = frozenset()
    questions: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances of `config.merged_questions` questions each, at most `config.instances`.

    Raises InputError for files that are missing or not as they must be, and if nothing is left.
    """
    path = raw_file(raw, longmemeval.FILES[0])
    excluded = evaluation(raw, config)
    found = rows(raw, longmemeval.FILES[0], (), skips, single=True)
    first = next(found, None)
    if first and isinstance(first[0], dict) and "samples" in first[0]:
        samples = checked(RawSamples, first[0], str(path)).samples
        numbered = ((sample, f"{path}: sample {i}") for i, sample in enumerate(samples))
        read = skips.each(lambda s, w: read_sample(s, w, excluded, config, skips), numbered)
        built = [instance for instance in read if instance is not None]
    else:
        records = skips.each(read_record, chain([first] if first else [], found))
        built = _of_records(records, path, excluded, config, seed, skips)
    if not built:
        raise InputError(f"{path}: expected questions that no evaluation row has, found none")
    return built[: config.instances]


def evaluation(raw: Path, config: BuildConfig) -> Excluded:
    """What must not be trained on; under "questions" dialogues may be, but for their questions.

    Raises InputError if the evaluation rows are not there.
    """
    split = memory_agent_bench.left_out(raw, RETRIEVAL, EVALUATION, config, log)
    found = [row for row in split if row.source == DIALOGUES]
    if not found and config.exclude != "none":
        raise InputError(f"{raw}: {RETRIEVAL}*: expected rows of {DIALOGUES}, found none")
    sessions = (
        session.key
        for row in (found if config.exclude == "evaluation" else ())
        for session in read_dialogues(row.context, row.where)
    )
    return Excluded(
        frozenset(id for row in found for id in row.ids),
        frozenset(normalise(question) for row in found for question in row.questions),
        frozenset(sessions),
    )


# --- Public records ------------------------------------------------------------------------------


def _of_records(
    read: Iterable[Record],
    path: Path,
    excluded: Excluded,
    config: BuildConfig,
    seed: int,
    skips: Skips,
) -> list[Instance]:
    records, n = list(_once(usable(read, excluded, skips))), config.merged_questions
    if 0 < len(records) < n:
        raise InputError(
            f"{path}: expected at least {n} usable records (merged_questions), found {len(records)}"
        )
    generator(seed, "lme_train", "all", "order").shuffle(records)
    groups = [records[start : start + n] for start in range(0, len(records) - n + 1, n)]
    skips.drop("lme_train: questions left over from the last instance", len(records) % n)
    groups = groups[: config.instances]
    used = set(excluded.sessions)
    used |= {s.key for group in groups for r in group for s in r.sessions if s.evidence}
    built = []
    for index, group in enumerate(groups):
        sessions = (s for r in group for s in r.sessions if s.key not in used and s.turns)
        fillers = list({session.key: session for session in sessions}.values())
        generator(seed, "lme_train", index, "dialogues").shuffle(fillers)
        built.append(merge(group, fillers, used, config))
    return built


def usable(records: Iterable[Record], excluded: Excluded, skips: Skips) -> Iterator[Record]:
    """The records that evaluation does not have, each question once; counts the others."""
    seen: set[str] = set()
    for record in records:
        shown = {session.key for session in record.sessions if session.evidence}
        if record.id in excluded.ids or normalise(record.question) in excluded.questions:
            skips.drop("lme_train: questions of evaluation rows")
        elif shown & excluded.sessions:
            skips.drop("lme_train: questions with evidence that evaluation rows show")
        elif record.id in seen:
            skips.drop("lme_train: questions that occur twice")
        else:
            seen.add(record.id)
            yield record


def _once(records: Iterable[Record]) -> Iterator[Record]:
    """The records with the turns of dialogues that several of them have held once in memory."""
    turns: dict[str, Any] = {}
    for record in records:
        held = [replace(s, turns=turns.setdefault(s.key, s.turns)) for s in record.sessions]
        yield replace(record, sessions=tuple(held))


def merge(
    group: Sequence[Record], fillers: Iterable[Session], used: set[str], config: BuildConfig
) -> Instance:
    """One instance of several records: all evidence, then fillers until the history is long enough.

    Long enough are `config.history_chunks` chunks that are three quarters full, as the paper's are
    (1,522 of 2,048 tokens). Dialogues are in time order. Adds the keys of the fillers it takes to
    `used`.
    """
    measure = counter(config.counter)
    chosen = {s.key: s for r in group for s in r.sessions if s.evidence}
    room = config.history_chunks * config.chunk_max_tokens * 3 // 4
    room -= sum(_tokens(session, measure) for session in chosen.values())
    for session in fillers:
        room -= _tokens(session, measure)
        if room < 0:
            break
        chosen[session.key] = session
        used.add(session.key)
    history = in_time_order(list(chosen.values()))
    chunks = pack(history, config)
    place = {session.key: i for i, session in enumerate(history)}
    evidence = [{place[s.key] for s in r.sessions if s.evidence} for r in group]
    keys = sorted({history[i].key for where in evidence for i in where})
    groups = [*(f"longmemeval:{r.id}" for r in group), *(f"dialogue:{k[:16]}" for k in keys)]
    return make_instance(
        "lme_train",
        [chunk.text for chunk in chunks],
        [
            asked(r, evidence_chunk(chunks, history, where), config)
            for r, where in zip(group, evidence, strict=True)
        ],
        metadata={
            "groups": groups,
            **about_questions([r.kind for r in group], [r.date for r in group]),
        },
    )


def _tokens(session: Session, measure: Counter) -> int:
    return sum(measure.count(content) for _, content, _ in session.turns)


# --- The unpublished layout ----------------------------------------------------------------------


def read_sample(
    raw: Any, where: str, excluded: Excluded, config: BuildConfig, skips: Skips
) -> Instance | None:
    """The instance of one sample; None if evaluation has all its questions.

    Raises InputError naming the field.
    """
    sample = checked(RawSample, raw, where)
    types = sample.question_types
    if not (isinstance(types, list) and len(types) == len(sample.questions)):
        types = [None] * len(sample.questions)
    numbered = enumerate(zip(sample.questions, sample.answers, types, strict=True))
    kept = [(i, *row) for i, row in numbered if normalise(row[0]) not in excluded.questions]
    skips.drop("lme_train: questions of evaluation rows", len(sample.questions) - len(kept))
    if not kept:
        return None
    chunks = pack(sample.sessions(), config)
    return make_instance(
        "lme_train",
        [chunk.text for chunk in chunks],
        [QA(f"{sample.sample_id}-{i}", question, (answer,)) for i, question, answer, _ in kept],
        metadata={
            "groups": [f"lme_train:{sample.sample_id}"],
            **about_questions([kind for *_, kind in kept], []),
        },
    )
