"""MemoryAgentBench (Hu et al., 2025): the evaluation rows of Mem-alpha, and one split more.

A raw row is a long context with its questions; `metadata.source` says what it is:

    {"context": "Document 1:\\nQuill Bay\\nQuill Bay is a port. It trades salt.",
     "questions": ["What does Quill Bay trade?"], "answers": [["salt", "Salt"]],
     "metadata": {"source": "ruler_qa1_197K", "question_ids": null, ...}}

Files are parquet, a JSON list or JSON lines, one per split, named `Accurate_Retrieval*` and so on.
Laws: sources are an allow-list of exact names, each with the number of rows that was published
(D29: later revisions have other rows); texts that look like Python lists are parsed as literals and
never evaluated (D23); no example, document border or word is lost between chunks (D6, D7, D32).
Source: data.md 3. Differs: `Conflict_Resolution` is built too, which the paper leaves out; the
release's sentence packer cannot be repeated (it needs a trained splitter), so `compat` has no
effect here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.data import stages
from memalpha_kit.data.chunks import Turn, pack_dialogues, pack_paragraphs, pack_sentences
from memalpha_kit.data.sources import booksum
from memalpha_kit.data.sources.building import (
    Skips,
    draw,
    generator,
    matches,
    raw_rows,
    raw_stream,
    read_json,
    take,
)
from memalpha_kit.data.sources.frames import (
    CLASSIFICATION_LEAD_INS,
    DOCUMENT_LEAD_INS,
    book_frame,
    frame_all,
    reading_days,
)
from memalpha_kit.data.sources.labelled import arrange
from memalpha_kit.data.sources.longmemeval import question_types, read_turns
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import counter

log = logging.getLogger(__name__)

REPOSITORY = "ai-hyz/MemoryAgentBench"
LICENCE = "MIT; cite Hu et al. (2025) and the data sets inside"
RETRIEVAL, LEARNING = "Accurate_Retrieval", "Test_Time_Learning"
UNDERSTANDING, CONFLICTS = "Long_Range_Understanding", "Conflict_Resolution"
COLUMNS = ("context", "questions", "answers")
DETAILS = (  # the rest may be 60 MB of turns
    *("source", "question_ids", "qa_pair_ids"),
    *("question_types", "keypoints"),
)
MAX_LITERAL = 50_000_000  # characters of a textual list that is parsed


@dataclass(frozen=True)
class Row:
    """One raw row, checked. `answers` are accepted answers by question."""

    source: str
    context: str | list[Any]
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    where: str
    keypoints: tuple[str, ...] = ()
    types: tuple[Any, ...] = ()  # of LongMemEval's questions, one each, where the row has them


@dataclass(frozen=True)
class Known:
    """What an allowed source looks like upstream and how its rows become instances."""

    split: str
    rows: int
    questions: int  # per row
    make: Callable[[Row, int, BuildConfig, int], Instance]


# --- Reading rows --------------------------------------------------------------------------------


def read_rows(raw: Path, name: str, config: BuildConfig, skips: Skips) -> list[Row]:
    """The rows of the source `name`, in the order of the file.

    Raises InputError if their number is not the published one (`config.rows` "any": if there is
    none). Another number of questions is logged: it changed between revisions.
    """
    known = KNOWN[name]
    where = f"{raw}: {known.split}*"
    names, chosen = _chosen(raw, known.split, {name}, skips)
    if not chosen:
        found = ", ".join(sorted(set(names))) or "no rows"
        raise InputError(f"{where}: expected rows of {name}, found {found}")
    published = config.rows == "published"
    if published and len(chosen) != known.rows:
        raise InputError(
            f"{where}: {name}: expected {known.rows} rows as published, found {len(chosen)} "
            "(another revision? a sample is built with rows = any)"
        )
    rows = list(skips.each(read_row, chosen))
    for row in rows:
        if published and len(row.questions) != known.questions:
            found = len(row.questions)
            log.warning("%s: expected %d questions, found %d", row.where, known.questions, found)
    return rows


def read_split(raw: Path, split: str) -> list[Row]:
    """All rows of a split that are in the allow-list, however many, for what must be left out.

    Raises InputError for none, and for a bad row: it may hold what must not be trained on.
    """
    wanted = {name for name, known in KNOWN.items() if known.split == split}
    names, chosen = _chosen(raw, split, wanted, Skips())
    if not chosen:
        found = ", ".join(sorted(set(names))) or "no rows"
        raise InputError(f"{raw}: {split}*: expected rows of {split}, found {found}")
    return [read_row(row, where) for row, where in chosen]


def _chosen(
    raw: Path, split: str, wanted: Container[str], skips: Skips
) -> tuple[list[str], list[tuple[Any, str]]]:
    """(the source of every row of the split, (raw row, where it stands) of the wanted ones)."""

    def read(row: Any, where: str) -> tuple[str, tuple[Any, str]]:
        return _source(row, where), (row, where)

    rows = list(skips.each(read, _raw_rows(raw, f"{split}*", skips)))
    return [name for name, _ in rows], [item for name, item in rows if name in wanted]


def read_row(raw: Any, where: str) -> Row:
    """The checked row; `where` opens the message of every error.

    One question takes all answers of the row; several pair up with as many lists (data.md 3.4).
    """
    context = raw.get("context") if isinstance(raw, dict) else None
    if not isinstance(context, list):
        context = take(raw, "context", str, where)
    questions = take(raw, "questions", list, where)
    if not questions or not all(isinstance(q, str) and q.strip() for q in questions):
        raise InputError(f"{where}: questions: expected texts, found {questions!r:.60}")
    answers = take(raw, "answers", list, where)
    if len(questions) == 1:
        answers = [[text for answer in answers for text in _texts(answer, where)]]
    if len(answers) != len(questions):
        found = f"{len(answers)} for {len(questions)} questions"
        raise InputError(f"{where}: answers: expected one list per question, found {found}")
    details = raw["metadata"]
    return Row(
        source=details["source"],
        context=context,
        questions=tuple(questions),
        answers=tuple(_texts(answer, where) for answer in answers),
        ids=_ids(details, len(questions)),
        where=where,
        types=_types(details, len(questions)),
        keypoints=tuple(text for text in details.get("keypoints") or () if isinstance(text, str)),
    )


def _texts(answer: Any, where: str) -> tuple[str, ...]:
    values = answer if isinstance(answer, (list, tuple)) else [answer]
    if not values or not all(isinstance(v, (str, int)) and str(v).strip() for v in values):
        raise InputError(f"{where}: answers: expected texts, found {answer!r:.60}")
    return tuple(map(str, values))


def _ids(details: dict[str, Any], n: int) -> tuple[str, ...]:
    """Names of the questions: of LongMemEval, else of the benchmark, else by position."""
    for field in ("question_ids", "qa_pair_ids"):
        value = details.get(field)
        if isinstance(value, list) and len(value) == n == len(set(map(str, value))) and all(value):
            return tuple(map(str, value))
    return tuple(f"q{i}" for i in range(n))


def _types(details: dict[str, Any], n: int) -> tuple[Any, ...]:
    value = details.get("question_types")
    return tuple(value) if isinstance(value, list) and len(value) == n else ()


def _source(raw: Any, where: str) -> str:
    return take(take(raw, "metadata", dict, where), "source", str, f"{where}: metadata")


def _raw_rows(raw: Path, pattern: str, skips: Skips) -> Iterator[tuple[Any, str]]:
    """(raw row, where it stands); of parquet files only the details that are needed."""
    files = matches(raw, pattern)
    if files and all(path.suffix == ".parquet" for path in files):
        for path in files:
            yield from _parquet_rows(path)
    else:
        yield from raw_rows(raw, pattern, (), skips)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, str]]:
    with raw_stream(path):  # for its errors
        pass
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        rows = file.read([*COLUMNS, *(f"metadata.{field}" for field in DETAILS)]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        found = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: expected parquet, found: {found}") from error
    for column in COLUMNS:
        if column not in names:
            found = ", ".join(names)
            raise InputError(f"{path}: expected a column {column!r}, found {found}")
    for number, row in enumerate(rows):
        yield row, f"{path}: row {number}"


def parse_list(text: str, where: str) -> list[Any]:
    """The list that a text spells as JSON or as a Python literal; nothing is ever evaluated.

    Raises InputError for anything else, a text above `MAX_LITERAL` characters included.
    """
    found = f"{len(text)} characters"
    if len(text) <= MAX_LITERAL:
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            try:
                value = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                value = None
        if isinstance(value, list) and value:
            return value
        found = repr(text[:40])
    raise InputError(f"{where}: expected a list as text, found {found}")


# --- Rows to instances ---------------------------------------------------------------------------

SUMMARIZE = f"{booksum.QUESTION}."  # the training set's has no period (data.md 2.3, 3.3)
END_OF_TEXT = "<|endoftext|>"  # a text's border in raw contexts; a line's border for us


def build(name: str, raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """One instance per row of the source `name`, at most `config.instances`.

    Raises InputError naming file, row and field.
    """
    rows = read_rows(raw, name, config, skips)[: config.instances]
    if name == BOOKS:
        rows = with_keywords(rows, raw, config, skips)
    make = KNOWN[name].make
    numbered = [((row, index), row.where) for index, row in enumerate(rows)]
    return list(skips.each(lambda item, _: make(*item, config, seed), numbered))


def make_documents(row: Row, index: int, config: BuildConfig, seed: int) -> Instance:
    """Sentences packed into dialogues about documents; blank lines between documents stay (D32)."""
    contents = pack_sentences(_text(row), counter(config.counter), config.chunk_max_tokens)
    return _framed(row, contents, DOCUMENT_LEAD_INS, index, config, seed)


def make_facts(row: Row, index: int, config: BuildConfig, seed: int) -> Instance:
    """Numbered facts, each whole and on a line of its own, packed into dialogues.

    Source: data.md 4.4, the builder of `cr_train` that the release never calls.
    """
    measure, limit = counter(config.counter), config.chunk_max_tokens
    facts = read_facts(_text(row))
    groups = pack_paragraphs(facts, measure, lambda: limit, joiner="\n")
    contents = ["\n".join(facts[i] for i in group) for group in groups]
    return _framed(row, contents, DOCUMENT_LEAD_INS, index, config, seed)


def make_examples(row: Row, index: int, config: BuildConfig, seed: int) -> Instance:
    """Whole labelled examples packed to `config.example_chunk_tokens` (D6, D7); plain questions."""
    examples = parse_examples(_text(row), row.where)
    items = [f"Sentence: {text}\nLabel: {label}" for text, label in examples]
    contents = ["\n\n".join(group) for group in arrange(items, [], config)]
    return _framed(row, contents, CLASSIFICATION_LEAD_INS, index, config, seed)


def make_dialogues(row: Row, index: int, config: BuildConfig, seed: int) -> Instance:
    """Dated dialogues as they are, every chunk within the limit (D9)."""
    dates, sessions = read_dialogues(row.context, row.where)
    chunks = pack_dialogues(
        sessions,
        dates,
        counter(config.counter),
        limit=config.chunk_max_tokens,
        close=config.dialogue_close_tokens,
        reserve=config.dialogue_reserve_tokens,
    )
    return _instance(row, [chunk.text for chunk in chunks], index, config, seed)


def make_books(row: Row, index: int, config: BuildConfig, seed: int) -> Instance:
    """Parts of a book on dated days and one question, for a summary; answers are keywords."""
    contents = pack_sentences(_text(row), counter(config.counter), config.chunk_max_tokens)
    days = reading_days(len(contents), generator(seed, row.source, index, "days"))
    chunks = [book_frame(content, day) for content, day in zip(contents, days, strict=True)]
    first, last = days[0].isoformat(), days[-1].isoformat()
    asked = replace(row, questions=(SUMMARIZE.format(first=first, last=last),))
    return _instance(asked, chunks, index, config, seed, dates=[first, last])


def _framed(
    row: Row,
    contents: Sequence[str],
    lead_ins: Sequence[str],
    index: int,
    config: BuildConfig,
    seed: int,
) -> Instance:
    rng = generator(seed, row.source, index, "frames")
    return _instance(row, frame_all(contents, lead_ins, rng), index, config, seed)


def _instance(
    row: Row, chunks: Sequence[str], index: int, config: BuildConfig, seed: int, **metadata: Any
) -> Instance:
    """The instance that asks the row's questions, in order, at most `config.max_questions`."""
    questions = [QA(*qa) for qa in zip(row.ids, row.questions, row.answers, strict=True)]
    types = row.types or (None,) * len(questions)
    rng = generator(seed, row.source, index, "questions")
    drawn = draw(list(zip(questions, types, strict=True)), config.max_questions, rng)
    asked = [qa for qa, _ in drawn]
    metadata |= question_types([kind for _, kind in drawn])
    metadata |= {"groups": groups(row), "split": KNOWN[row.source].split}
    if row.keypoints:
        metadata["keypoints"] = list(row.keypoints)
    return make_instance(row.source, chunks, asked, metadata=metadata)


def groups(row: Row) -> list[str]:
    """What must never be trained on: the row, and single LongMemEval records by their id."""
    content = json.dumps([row.source, row.context, row.questions], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    records = [f"longmemeval:{id}" for id in row.ids] if row.source == DIALOGUES else []
    return [f"memoryagentbench:{name}", *records]


# --- Contexts ------------------------------------------------------------------------------------

_LABEL = re.compile(r"label:\s*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|(?<=\s))(\d+)\.(?=\s)")


def parse_examples(context: str, where: str, last_line: bool = False) -> list[tuple[str, str]]:
    """(sentence, label number) of every example: lines of text, then a line `label: 2`.

    Several lines of text are joined with spaces; `last_line` keeps only the last of them, as the
    release does (data.md 7.6). Raises InputError for text without a label or a label without text.
    """
    examples, held = [], []
    for number, line in enumerate(map(str.strip, context.split("\n")), start=1):
        label = _LABEL.fullmatch(line)
        if label and not held:
            raise InputError(
                f"{where}: context, line {number}: expected a sentence, found {line!r}"
            )
        if label:
            examples.append((held[-1] if last_line else " ".join(" ".join(held).split()), label[1]))
            held = []
        elif line:
            held.append(line)
    if held:
        raise InputError(f"{where}: context: expected a label after {held[-1][:40]!r}, found none")
    if not examples:
        raise InputError(f"{where}: context: expected examples, found none")
    return examples


def read_facts(context: str) -> list[str]:
    """The numbered facts `0. ...`, `1. ...`, whatever stands between them; text before the first
    one is an item of its own. A number that is not the next one is part of a fact.
    """
    starts: list[int] = []
    first = None
    for match in _NUMBER.finditer(context):
        number = int(match[1])
        if first is None and number <= 1:
            first = number
        if first is not None and number == first + len(starts):
            starts.append(match.start(1))
    pieces = (context[a:b].strip() for a, b in pairwise([0, *starts, len(context)]))
    return [" ".join(piece.split()) for piece in pieces if piece]


def read_dialogues(context: Any, where: str) -> tuple[list[str], list[list[Turn]]]:
    """(dates, dialogues) of a list, or the text of one, in which a date and its turns alternate."""
    items = parse_list(context, f"{where}: context") if isinstance(context, str) else context
    if not items or len(items) % 2:
        raise InputError(f"{where}: context: expected pairs of date and turns, found {len(items)}")
    for i, date in enumerate(items[::2]):
        if not isinstance(date, str) or not date.strip():
            raise InputError(f"{where}: context[{2 * i}]: expected a date, found {date!r:.40}")
    read = [
        read_turns(turns, f"{where}: context[{2 * i + 1}]") for i, turns in enumerate(items[1::2])
    ]
    return items[::2], [[(role, content) for role, content, _ in turns] for turns in read]


def _text(row: Row) -> str:
    if not isinstance(row.context, str):
        raise InputError(f"{row.where}: context: expected text, found a list")
    return row.context.replace(END_OF_TEXT, "\n")


# --- Keywords of summaries -----------------------------------------------------------------------

KEYWORDS = "memoryagentbench_answers_to_keywords_mapping.json"


def with_keywords(rows: Sequence[Row], raw: Path, config: BuildConfig, skips: Skips) -> list[Row]:
    """The rows with keywords in place of their summaries; a row without any is a bad record.

    They come from the file `KEYWORDS` in the raw folder or else from `config.stage`.
    Source: data.md 5.2. Differs: keywords are found by the summary they were made from, never by
    the row's position (D3); a failed extraction is missing (D4); summaries are texts (D36).
    """
    path = raw / KEYWORDS
    stored = read_keywords(path) if path.is_file() else {}
    found = [stored.get(summary_key(row.answers[0])) for row in rows]
    lacking = [i for i, words in enumerate(found) if not words]
    if lacking and config.stage != "none":
        summaries = [
            "\n\n".join(a.strip() for a in rows[i].answers[0] if a.strip()) for i in lacking
        ]
        extracted = stages.chosen(config).keywords(summaries)
        for i, words in zip(lacking, extracted, strict=True):
            found[i] = words
    kept = []
    for row, words in zip(rows, found, strict=True):
        if words:
            kept.append(replace(row, answers=(words,)))
        else:
            skips.add(
                row.where, f"answers: expected keywords from {KEYWORDS} or a stage, found none"
            )
    return kept


def read_keywords(path: Path) -> dict[str, tuple[str, ...]]:
    """Keywords by the key of their summary, from a mapping in the release's layout.

    That is `{"<row>": {"summary": ..., "keywords": [...]}}`, in which the summary may be the
    printed form of an array (D36).
    """
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object, found {type(entries).__name__}")
    found = {}
    for name, entry in entries.items():
        where = f"{path}: {name}"
        summary, keywords = take(entry, "summary", str, where), take(entry, "keywords", list, where)
        found[summary_key(_unprinted(summary))] = tuple(
            k.strip() for k in keywords if isinstance(k, str) and k.strip()
        )
    return found


def summary_key(texts: Iterable[str]) -> str:
    """A hash of the words of the texts."""
    return hashlib.sha256(normalise(" ".join(texts)).encode()).hexdigest()


_PRINTED = re.compile(r"array\((\[.*\])(?:, dtype=\w+)?\)", re.DOTALL)


def _unprinted(summary: str) -> list[str]:
    """The texts in the printed form of a list or an array, or the text itself."""
    match = _PRINTED.fullmatch(summary.strip())
    try:
        texts = parse_list(match[1] if match else summary, "")
    except InputError:
        return [summary]
    return [text for text in texts if isinstance(text, str)] or [summary]


def check_present(raw: Path, pattern: str) -> None:
    """Nothing; raises InputError if the rows that training must leave out are not in `raw`."""
    if not matches(raw, pattern):
        raise InputError(
            f"{raw}: expected {pattern}, the evaluation rows that must not be trained on, found "
            "none (exclude = none builds without them)"
        )


# --- The allow-list ------------------------------------------------------------------------------

BOOKS, DIALOGUES = "infbench_sum_eng_shots2", "longmemeval_s*"
TREC, TREC_FINE = "icl_trec_coarse_6600shot_balance", "icl_trec_fine_6400shot_balance"
NLU = "icl_nlu_8296shot_balance"
KNOWN: dict[str, Known] = {
    "ruler_qa1_197K": Known(RETRIEVAL, 1, 100, make_documents),
    "ruler_qa2_421K": Known(RETRIEVAL, 1, 100, make_documents),
    DIALOGUES: Known(RETRIEVAL, 5, 60, make_dialogues),
    "icl_banking77_5900shot_balance": Known(LEARNING, 1, 100, make_examples),
    "icl_clinic150_7050shot_balance": Known(LEARNING, 1, 100, make_examples),
    NLU: Known(LEARNING, 1, 100, make_examples),
    TREC: Known(LEARNING, 1, 100, make_examples),
    TREC_FINE: Known(LEARNING, 1, 100, make_examples),
    BOOKS: Known(UNDERSTANDING, 100, 1, make_books),
} | {
    f"factconsolidation_{hops}_{size}": Known(CONFLICTS, 1, 100, make_facts)
    for hops in ("sh", "mh")
    for size in ("6k", "32k", "64k", "262k")
}
"""Exact names, with rows and questions per row as published; everything else is left out."""


def builder(name: str) -> Callable[[Path, BuildConfig, int, Skips], list[Instance]]:
    """`build` for one source of the allow-list, as the table of sources wants it."""
    return partial(build, name)
