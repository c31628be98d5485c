"""LongMemEval for training: about four questions that share one reduced history.

The file the paper trained on was never published, nor its builder, so nobody can tell whether it
overlaps with the evaluation rows `longmemeval_s*`. This is a documented substitute from the public
records (see longmemeval.py): those of the evaluation rows are left out, by `question_id` and by the
words of their question; the others are shuffled and merged in fours; an instance keeps all
dialogues with evidence and, to fill about 15 chunks, other dialogues of its records. No other
dialogue is used twice, and none that an evaluation row shows.

Raw files, side by side in one folder:

* `longmemeval*.json`: a list of public records, or samples in the layout of the unpublished file,
  `{"samples": [{"sample_id", "questions", "answers", "question_types", "haystack_dates",
  "haystack_sessions"}]}`, each of which is an instance;
* `Accurate_Retrieval*`: the rows of MemoryAgentBench; needed, unless `config.exclude` is "none".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from pydantic import model_validator

from memalpha_kit.data.raw import Row, Text, checked, raw_file, rows
from memalpha_kit.data.sources import longmemeval, memory_agent_bench
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.longmemeval import AnswerText, RawHistory, Record, Session
from memalpha_kit.data.sources.memory_agent_bench import DIALOGUES, RETRIEVAL
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.text import normalise

FILES = (*longmemeval.FILES, memory_agent_bench.files(RETRIEVAL))


class _RawSamples(Row):
    samples: list


class RawSample(RawHistory):
    """A sample of it: several questions about one history."""

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

    ids: set[str]
    questions: set[str]
    sessions: set[str]


def build(job: Job) -> list[Instance]:
    """At most `config.instances`, of `config.merged_questions` questions or of a sample each.

    Raises InputError for files that are missing or not as they must be, and if nothing is left.
    """
    path = raw_file(job.raw, FILES[0])
    excluded = evaluation(job)
    items = rows(job.raw, FILES[0], (), job.skips, single=True)
    first = list(islice(items, 1))
    if first and isinstance(first[0][0], dict) and "samples" in first[0][0]:
        samples = checked(_RawSamples, first[0][0], str(path)).samples
        numbered = ((sample, f"{path}: sample {i}") for i, sample in enumerate(samples))
        read = job.skips.each(lambda raw, where: of_sample(job, raw, where, excluded), numbered)
        built = [instance for instance in read if instance][: job.config.instances]
    else:
        records = job.skips.each(longmemeval.read_record, chain(first, items))
        built = of_records(job, str(path), records, excluded)
    return job.not_none(built, FILES[0], "questions that no evaluation row has")


def of_sample(job: Job, raw: Any, where: str, excluded: Excluded) -> Instance | None:
    """The instance of one sample, without the questions of evaluation; None if no other is left."""
    sample = checked(RawSample, raw, where)
    kept = [i for i, q in enumerate(sample.questions) if normalise(q) not in excluded.questions]
    job.skips.drop("lme_train: questions of evaluation rows", len(sample.questions) - len(kept))
    if not kept:
        return None
    chunks = longmemeval.pack(job, longmemeval.in_time_order(sample.sessions()))
    types = sample.question_types
    known = isinstance(types, list) and len(types) == len(sample.questions)
    return job.instance(
        [chunk.text for chunk in chunks],
        [QA(f"{sample.sample_id}-{i}", sample.questions[i], (sample.answers[i],)) for i in kept],
        groups=[f"lme_train:{sample.sample_id}"],
        **longmemeval.about_questions([types[i] for i in kept] if known else [], []),
    )


def of_records(job: Job, path: str, read: Iterable[Record], excluded: Excluded) -> list[Instance]:
    """The instances of public records. Raises InputError if there are too few for one."""
    n = job.config.merged_questions
    turns: dict[str, Any] = {}  # dialogues that several records have are held once in memory
    records = []
    for record in usable(job, read, excluded):
        held = [replace(s, turns=turns.setdefault(s.key, s.turns)) for s in record.sessions]
        records.append(replace(record, sessions=tuple(held)))
    if 0 < len(records) < n:
        expected = f"at least {n} usable records (merged_questions)"
        raise InputError(f"{path}: expected {expected}, found {len(records)}")
    job.rng("all", "order").shuffle(records)
    groups = [records[start : start + n] for start in range(0, len(records) - n + 1, n)]
    job.skips.drop("lme_train: questions left over from the last instance", len(records) % n)
    groups = groups[: job.config.instances]
    used = set(excluded.sessions)
    used |= {s.key for group in groups for r in group for s in r.sessions if s.evidence}
    return [merge(job, index, group, used) for index, group in enumerate(groups)]


def evaluation(job: Job) -> Excluded:
    """What must not be trained on; under "questions" dialogues may be, but for their questions.

    Raises InputError if the evaluation rows are not there.
    """
    exclude = job.config.exclude
    found = [row for row in memory_agent_bench.left_out(job, RETRIEVAL) if row.source == DIALOGUES]
    if not found and exclude != "none":
        raise InputError(f"{job.raw}: {RETRIEVAL}*: expected rows of {DIALOGUES}, found none")
    shown = found if exclude == "evaluation" else []
    return Excluded(
        {id for row in found for id in row.ids},
        {normalise(question) for row in found for question in row.questions},
        {s.key for row in shown for s in longmemeval.read_dialogues(row.context, row.where)},
    )


def usable(job: Job, records: Iterable[Record], excluded: Excluded) -> Iterator[Record]:
    """The records that evaluation does not have, each question once; counts the others."""
    seen: set[str] = set()
    for record in records:
        shown = {session.key for session in record.sessions if session.evidence}
        if record.id in excluded.ids or normalise(record.question) in excluded.questions:
            job.skips.drop("lme_train: questions of evaluation rows")
        elif shown & excluded.sessions:
            job.skips.drop("lme_train: questions with evidence that evaluation rows show")
        elif record.id in seen:
            job.skips.drop("lme_train: questions that occur twice")
        else:
            seen.add(record.id)
            yield record


def merge(job: Job, index: int, group: Sequence[Record], used: set[str]) -> Instance:
    """One instance of several records: all evidence, then fillers until the history is long enough.

    Long enough are `config.history_chunks` chunks that are three quarters full, as the paper's are
    (1,522 of 2,048 tokens). Dialogues are in time order. Adds the keys of the fillers it takes to
    `used`.
    """

    def tokens(session: Session) -> int:
        return sum(job.counter.count(content) for _, content, _ in session.turns)

    sessions = (s for r in group for s in r.sessions if s.key not in used and s.turns)
    fillers = list({session.key: session for session in sessions}.values())
    job.rng(index, "dialogues").shuffle(fillers)
    chosen = {s.key: s for r in group for s in r.sessions if s.evidence}
    room = job.config.history_chunks * job.config.chunk_max_tokens * 3 // 4
    room -= sum(map(tokens, chosen.values()))
    for session in fillers:
        room -= tokens(session)
        if room < 0:
            break
        chosen[session.key] = session
        used.add(session.key)
    history = longmemeval.in_time_order(list(chosen.values()))
    keys = sorted({s.key for r in group for s in r.sessions if s.evidence})
    groups = [*(f"longmemeval:{r.id}" for r in group), *(f"dialogue:{k[:16]}" for k in keys)]
    return longmemeval.instance(job, history, group, groups=groups)
