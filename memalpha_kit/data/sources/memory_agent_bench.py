"""MemoryAgentBench (Hu et al., 2025): the evaluation rows of Mem-alpha, and one split more.

A raw row is a long context with its questions; `metadata.source` says what it is:

    {"context": "Document 1:\\nQuill Bay\\nQuill Bay is a port. It trades salt.",
     "questions": ["What does Quill Bay trade?"], "answers": [["salt", "Salt"]],
     "metadata": {"source": "ruler_qa1_197K", "question_ids": null, ...}}

Files are parquet, a JSON list or JSON lines, one per split, named `Accurate_Retrieval*` and so on.
Laws: sources are an allow-list of exact names, each with the number of rows that was published
(later revisions have other rows); texts that look like Python lists are parsed as literals and
never evaluated; no example, document border or word is lost between chunks. `Conflict_Resolution`
is built too, which the paper leaves out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from memalpha_kit.data.chunks import pack_paragraphs, pack_sentences
from memalpha_kit.data.raw import Item, Text, checked, matches, rows, short
from memalpha_kit.data.raw import Row as RawRow
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import booksum, frames
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.contexts import KEYWORDS, keywords_of, parse_examples, read_facts
from memalpha_kit.data.sources.labelled import labelled_chunks
from memalpha_kit.data.sources.longmemeval import about_questions, dated, pack, read_dialogues
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance

log = logging.getLogger(__name__)

REPOSITORY = "ai-hyz/MemoryAgentBench"
LICENCE = "MIT; cite Hu et al. (2025) and the data sets inside"
RETRIEVAL, LEARNING = "Accurate_Retrieval", "Test_Time_Learning"
UNDERSTANDING, CONFLICTS = "Long_Range_Understanding", "Conflict_Resolution"


def _context(value: Any) -> Any:
    if isinstance(value, list) or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(f"expected text, found {short(value)}")


class RawDetails(RawRow):
    """What is read of the `metadata` of a raw row; the rest may be 60 MB of turns."""

    source: Text
    question_ids: Any = None
    qa_pair_ids: Any = None
    question_types: Any = None
    question_dates: Any = None
    keypoints: Any = None


COLUMNS = ("context", "questions", "answers", *(f"metadata.{n}" for n in RawDetails.model_fields))


class RawNamed(RawRow):
    """A raw row of which only the source is looked at."""

    metadata: RawDetails


class Row(RawNamed):
    """A raw row that is built. `answers` are accepted answers by question."""

    context: Annotated[Any, AfterValidator(_context)]
    questions: Annotated[list[Text], Field(min_length=1)]
    answers: list
    where: str = ""  # opens the message of every error

    @field_validator("answers")
    @classmethod
    def _by_question(cls, answers: list, row: ValidationInfo) -> list[tuple[str, ...]]:
        """One question takes all answers of the row; several pair up with as many lists."""
        n = len(row.data.get("questions", answers))
        if n == 1:
            answers = [[text for answer in answers for text in _texts(answer)]]
        if len(answers) != n:
            found = f"{len(answers)} for {n} questions"
            raise ValueError(f"expected one list per question, found {found}")
        return [_texts(answer) for answer in answers]

    @property
    def source(self) -> str:
        """What the row's instance is named after."""
        return self.metadata.source

    @property
    def text(self) -> str:
        """The context as text. Raises InputError for a list."""
        if not isinstance(self.context, str):
            raise InputError(f"{self.where}: context: expected text, found a list")
        return self.context.replace(booksum.END_OF_TEXT, "\n")

    @property
    def ids(self) -> list[str]:
        """Names of the questions: of LongMemEval, else of the benchmark, else by position."""
        for name in ("question_ids", "qa_pair_ids"):
            ids = self.of_questions(name)
            if all(ids) and len(set(map(str, ids))) == len(ids):
                return list(map(str, ids))
        return [f"q{i}" for i in range(len(self.questions))]

    def of_questions(self, name: str) -> list[Any]:
        """What the metadata say of each question under this name; None where they do not."""
        values = getattr(self.metadata, name)
        fits = isinstance(values, list) and len(values) == len(self.questions)
        return values if fits else [None] * len(self.questions)


def _texts(answer: Any) -> tuple[str, ...]:
    values = answer if isinstance(answer, (list, tuple)) else [answer]
    if not values or not all(isinstance(v, (str, int)) and str(v).strip() for v in values):
        raise ValueError(f"expected texts, found {answer!r:.60}")
    return tuple(map(str, values))


@dataclass(frozen=True)
class Known:
    """What an allowed source looks like upstream and how its rows become instances."""

    split: str
    rows: int
    make: Callable[[Job, Row, int], Instance]


def files(split: str) -> str:
    """The name pattern of a split's file."""
    return f"{split}*|data/{split}*"


def read_rows(job: Job, name: str) -> list[Row]:
    """The rows of the source `name`, in the order of the file.

    Raises InputError if their number is not the published one (`config.rows` "any": if there is
    none).
    """
    known = KNOWN[name]
    chosen = _chosen(job, known.split, [name], job.skips)
    if job.config.rows == "published" and len(chosen) != known.rows:
        raise InputError(
            f"{job.raw}: {known.split}*: {name}: expected {known.rows} rows as published, found "
            f"{len(chosen)} (another revision? a sample is built with rows = any)"
        )
    return list(job.skips.each(read_row, chosen))


def left_out(job: Job, split: str) -> list[Row]:
    """All rows of a split that must not be trained on; none, with a warning, for `exclude` "none".

    Raises InputError if there are none, and for a bad row: it may hold what must be left out.
    """
    if job.config.exclude == "none":
        log.warning("nothing is excluded: what evaluation asks may be trained on")
        return []
    if not matches(job.raw, files(split)):
        raise InputError(
            f"{job.raw}: expected {split}*, the evaluation rows that must not be trained on, found "
            "none (exclude = none builds without them)"
        )
    wanted = [name for name, known in KNOWN.items() if known.split == split]
    return [read_row(row, where) for row, where in _chosen(job, split, wanted, Skips())]


def _chosen(job: Job, split: str, wanted: Sequence[str], skips: Skips) -> list[Item]:
    """The raw rows of the wanted sources. Raises InputError, naming what there is, for none."""

    def read(row: Any, where: str) -> tuple[str, Item]:
        return checked(RawNamed, row, where).metadata.source, (row, where)

    found = list(skips.each(read, rows(job.raw, files(split), COLUMNS, skips)))
    if chosen := [item for name, item in found if name in wanted]:
        return chosen
    names = ", ".join(sorted({name for name, _ in found})) or "no rows"
    expected = wanted[0] if len(wanted) == 1 else split
    raise InputError(f"{job.raw}: {split}*: expected rows of {expected}, found {names}")


def read_row(raw: Any, where: str) -> Row:
    """The checked row; `where` opens the message of every error."""
    return checked(Row, raw, where).model_copy(update={"where": where})


SUMMARIZE = f"{booksum.QUESTION}."  # the training set's has no period, as published


def build(job: Job) -> list[Instance]:
    """One instance per row of the source, at most `config.instances`.

    Raises InputError naming file, row and field.
    """
    found = read_rows(job, job.source)[: job.config.instances]
    if job.source == BOOKS:
        found = _with_keywords(job, found)
    make = KNOWN[job.source].make
    numbered = [((row, index), row.where) for index, row in enumerate(found)]
    built = job.skips.each(lambda item, _: make(job, *item), numbered)
    return job.not_none(list(built), files(KNOWN[job.source].split), f"a row of {job.source}")


def _with_keywords(job: Job, found: Sequence[Row]) -> list[Row]:
    """The rows with keywords in place of their summaries; a row without any is a bad record."""
    kept = []
    words_of = keywords_of([row.answers[0] for row in found], job)
    for row, words in zip(found, words_of, strict=True):
        if words:
            kept.append(row.model_copy(update={"answers": [words]}))
        else:
            expected = f"expected keywords from {KEYWORDS} or a stage"
            job.skips.add(row.where, f"answers: {expected}, found none")
    return kept


def make_documents(job: Job, row: Row, index: int) -> Instance:
    """Sentences packed into dialogues about documents; blank lines between documents stay."""
    contents = pack_sentences(row.text, job.counter, job.config.chunk_max_tokens)
    return _instance(job, row, index, job.framed(contents, index))


def make_facts(job: Job, row: Row, index: int) -> Instance:
    """Numbered facts, each whole and on a line of its own, packed into dialogues."""
    facts, limit = read_facts(row.text), job.config.chunk_max_tokens
    groups = pack_paragraphs(facts, job.counter, lambda: limit, joiner="\n")
    contents = ["\n".join(facts[i] for i in group) for group in groups]
    return _instance(job, row, index, job.framed(contents, index))


def make_examples(job: Job, row: Row, index: int) -> Instance:
    """Whole labelled examples packed to `config.example_chunk_tokens`; plain questions."""
    examples = parse_examples(row.text, row.where)
    items = [f"Sentence: {text}\nLabel: {label}" for text, label in examples]
    return _instance(job, row, index, labelled_chunks(job, index, items))


def make_dialogues(job: Job, row: Row, index: int) -> Instance:
    """Dated dialogues in the order of the row, every chunk within the limit."""
    chunks = pack(job, read_dialogues(row.context, row.where))
    return _instance(job, row, index, [chunk.text for chunk in chunks])


def make_books(job: Job, row: Row, index: int) -> Instance:
    """Parts of a book on dated days and one question, for a summary; answers are keywords."""
    contents = pack_sentences(row.text, job.counter, job.config.chunk_max_tokens)
    chunks, days = frames.book_frames(contents, job.rng(index, "days"))
    row = row.model_copy(update={"questions": [SUMMARIZE.format(first=days[0], last=days[-1])]})
    return _instance(job, row, index, chunks, dates=[days[0], days[-1]])


def _instance(job: Job, row: Row, index: int, chunks: Sequence[str], **metadata: Any) -> Instance:
    """The instance that asks the row's questions, in order, at most `config.max_questions`."""
    types, dates = map(row.of_questions, ("question_types", "question_dates"))
    columns = zip(row.ids, row.questions, row.answers, types, dates, strict=True)
    kept = job.sampled(list(columns), index)
    asked = [QA(id, dated(text, date, job.config), golds) for id, text, golds, _, date in kept]
    metadata |= about_questions([kind for *_, kind, _ in kept], [date for *_, date in kept])
    metadata |= {"groups": groups(row), "split": KNOWN[row.source].split}
    if isinstance(points := row.metadata.keypoints, list):
        points = [text for text in points if isinstance(text, str)]
        metadata |= {"keypoints": points} if points else {}
    return job.instance(chunks, asked, **metadata)


def groups(row: Row) -> list[str]:
    """What must never be trained on: the row, and single LongMemEval records by their id."""
    content = json.dumps([row.source, row.context, row.questions], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    records = [f"longmemeval:{id}" for id in row.ids] if row.source == DIALOGUES else []
    return [f"memoryagentbench:{name}", *records]


BOOKS, DIALOGUES = "infbench_sum_eng_shots2", "longmemeval_s*"
TREC, TREC_FINE = "icl_trec_coarse_6600shot_balance", "icl_trec_fine_6400shot_balance"
NLU = "icl_nlu_8296shot_balance"
KNOWN: dict[str, Known] = {
    "ruler_qa1_197K": Known(RETRIEVAL, 1, make_documents),
    "ruler_qa2_421K": Known(RETRIEVAL, 1, make_documents),
    DIALOGUES: Known(RETRIEVAL, 5, make_dialogues),
    "icl_banking77_5900shot_balance": Known(LEARNING, 1, make_examples),
    "icl_clinic150_7050shot_balance": Known(LEARNING, 1, make_examples),
    NLU: Known(LEARNING, 1, make_examples),
    TREC: Known(LEARNING, 1, make_examples),
    TREC_FINE: Known(LEARNING, 1, make_examples),
    BOOKS: Known(UNDERSTANDING, 100, make_books),
} | {
    f"factconsolidation_{hops}_{size}": Known(CONFLICTS, 1, make_facts)
    for hops in ("sh", "mh")
    for size in ("6k", "32k", "64k", "262k")
}
"""Exact names, with rows as published; everything else is left out."""
