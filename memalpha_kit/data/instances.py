"""Instances on disk: parquet in the public layout of eight columns, so published files load too.

Law: load(save(x)) == x. Ids and evidence are in `metadata`, one flat JSON object whatever it was
before, so that saving what was loaded changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.errors import InputError
from memalpha_kit.files import write_bytes
from memalpha_kit.records import QA, Instance, make_instance

NUMBERS = ("instance_id", "num_chunks", "num_questions")
COLUMNS = (
    *("instance_id", "prompt", "chunks", "questions_and_answers"),
    *("data_source", "metadata", "num_chunks", "num_questions"),
)
SCHEMA = pa.schema([(c, pa.int64() if c in NUMBERS else pa.string()) for c in COLUMNS])
OWN_KEYS = ("id", "question_ids", "question_chunks")
"""Keys of `metadata` that are fields of the record and never keys of `Instance.metadata`."""
ANSWER_TYPE = "answer_type"
"""Key of `Instance.metadata`; "list": a single answer is written as a list too (data.md 1.6)."""
MAX_QUESTIONS = 100
LFS_POINTER = b"version https://git-lfs"


def save_instances(path: Path, instances: Sequence[Instance]) -> None:
    """Writes a parquet file with the public schema, also when there is no instance.

    Raises InputError for an instance with more than 100 questions, which public readers refuse.
    """
    rows = [_row(number, instance) for number, instance in enumerate(instances)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _row(number: int, instance: Instance) -> dict[str, Any]:
    questions = instance.questions
    if len(questions) > MAX_QUESTIONS:
        found = f"found {len(questions)}"
        raise InputError(f"{instance.id}: expected at most {MAX_QUESTIONS} questions, {found}")
    metadata = _checked(instance) | {
        "id": instance.id,
        "question_ids": [qa.id for qa in questions],
        "question_chunks": [qa.chunk for qa in questions],
    }
    lists = instance.metadata.get(ANSWER_TYPE) == "list"
    pairs = [{"question": qa.question, "answer": _answer(qa.answers, lists)} for qa in questions]
    return {
        "instance_id": number,
        "prompt": instance.prompt,
        "chunks": json.dumps(instance.chunks),
        "questions_and_answers": json.dumps(pairs),
        "data_source": instance.source,
        "metadata": json.dumps(metadata),
        "num_chunks": len(instance.chunks),
        "num_questions": len(questions),
    }


def _answer(answers: tuple[str, ...], lists: bool) -> str | list[str]:
    return answers[0] if len(answers) == 1 and not lists else list(answers)


def _checked(instance: Instance) -> dict[str, Any]:
    """The instance's metadata. Raises InputError for a key of ours or what is not flat JSON."""
    for key, value in instance.metadata.items():
        expected = "text, numbers or a list of them"
        if key in OWN_KEYS or not _is_flat(value):
            expected = "another name" if key in OWN_KEYS else expected
            found = f"{value!r:.40}"
            raise InputError(f"{instance.id}: metadata {key!r}: expected {expected}, found {found}")
    return dict(instance.metadata)


def _is_flat(value: Any) -> bool:
    """Whether this is a JSON value without objects, lists of lists, NaN and infinities."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(
        math.isfinite(v) if isinstance(v, float) else v is None or isinstance(v, (str, int))
        for v in values
    )


def load_instances(path: Path, source: str | None = None) -> list[Instance]:
    """The instances of a parquet file with the public schema, ours or published.

    `source` is used where a row has no `data_source`. Raises InputError naming file, row and column
    for anything missing, and for a Git-LFS pointer in place of the data.
    Source: data.md 1.5, the one reader.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(f"{path}: expected data, found a Git-LFS pointer (git lfs pull)")
        table = pq.read_table(path, partitioning=None)
    except OSError as error:
        raise InputError(
            f"{path}: expected a readable file, found: {error.strerror or error}"
        ) from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: expected parquet, found something else") from error
    for column in ("chunks", "questions_and_answers"):
        if table.num_rows and column not in table.column_names:
            found = ", ".join(table.column_names)
            raise InputError(f"{path}: expected a column {column!r}, found {found}")
    rows = table.to_pylist()
    return [read_instance(row, f"{path}: row {i}", source) for i, row in enumerate(rows)]


def read_instance(row: Mapping[str, Any], where: str, source: str | None = None) -> Instance:
    """The instance in a row, whose lists may be JSON text, lists, tuples or arrays."""
    name = row.get("data_source") or source
    if not name:
        raise InputError(f"{where}: data_source: expected a name, found none")
    chunks = _items(row["chunks"], f"{where}: chunks")
    for i, chunk in enumerate(chunks):
        if not isinstance(chunk, str):
            raise InputError(f"{where}: chunks[{i}]: expected text, found {chunk!r:.40}")
    column = f"{where}: questions_and_answers"
    pairs = _items(row["questions_and_answers"], column)
    metadata = _metadata(row.get("metadata"))
    own = {key: metadata.pop(key, None) for key in OWN_KEYS}
    ids = _parallel(own["question_ids"], [f"q{i}" for i in range(len(pairs))])
    evidence = _parallel(own["question_chunks"], [None] * len(pairs))
    questions = [
        QA(ids[i], *_pair(pair, f"{column}[{i}]"), evidence[i]) for i, pair in enumerate(pairs)
    ]
    if any(isinstance(_value(pair), list) and len(_value(pair)) == 1 for pair in pairs):
        metadata[ANSWER_TYPE] = "list"
    prompt = row.get("prompt")
    try:
        prompt = prompt if isinstance(prompt, str) else ""
        instance = make_instance(name, chunks, questions, prompt, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return replace(instance, id=own["id"]) if isinstance(own["id"], str) else instance


def _items(value: Any, where: str) -> list[Any]:
    """The cell's non-empty list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: expected a JSON list, found {value[:40]!r}") from error
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: expected a list that is not empty, found {value!r:.40}")
    return list(value)


def _pair(pair: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """Question and accepted answers of one entry, `answer` or `answers`, numbers as text."""
    question = pair.get("question") if isinstance(pair, dict) else None
    if not isinstance(question, str):
        raise InputError(f"{where}: question: expected text, found {question!r:.40}")
    value = _value(pair)
    answers = value if isinstance(value, (list, tuple)) else [value]
    for answer in answers:
        odd = isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer))
        if odd or not isinstance(answer, (str, int, float)):
            raise InputError(f"{where}: answer: expected text or a list, found {value!r:.40}")
    return question, tuple(map(str, answers))


def _value(pair: Mapping[str, Any]) -> Any:
    """What stands under `answer`, else `answers`; an array as a list."""
    value = pair["answer"] if pair.get("answer") is not None else pair.get("answers")
    return value.tolist() if hasattr(value, "tolist") else value


def _metadata(value: Any) -> dict[str, Any]:
    """The cell as one flat object; nothing may depend on a key, as no published file has ours.

    JSON within JSON under the name "metadata", the mark of a merge, is unpacked, other objects get
    dotted names, deeper lists become JSON text, NaN None, and what is no object stays under
    "metadata" (data.md 1.3, D16).
    """
    value = _parsed(value)
    if not isinstance(value, dict):
        return {} if value is None else {"metadata": _flattened(value)}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        inner = _parsed(inner) if key == "metadata" else inner
        if isinstance(inner, dict):
            prefix = "" if key == "metadata" else f"{key}."
            below = {prefix + name: v for name, v in _metadata(inner).items()}
            flat = below | flat
        else:
            flat[key] = _flattened(inner)
    return flat


def _flattened(value: Any) -> Any:
    return value if _is_flat(value) else json.dumps(value, default=str)


def _parsed(value: Any) -> Any:
    """The JSON value in a text, or the value itself."""
    try:
        return json.loads(value, parse_constant=lambda _: None) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError):
        return value


def _parallel(value: Any, default: list[Any]) -> list[Any]:
    return value if isinstance(value, list) and len(value) == len(default) else default
