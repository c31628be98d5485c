"""Instances on disk: parquet in the public layout of eight columns, so published files load too.

Law: load(save(x)) == x. Ids and evidence are in `metadata`, one flat JSON object whatever it was
before, so that saving what was loaded changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.data.raw import parquet
from memalpha_kit.errors import InputError
from memalpha_kit.files import flat, parse_json, write_bytes
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.tasks import TASKS

NUMBERS = ("instance_id", "num_chunks", "num_questions")
COLUMNS = (
    *("instance_id", "prompt", "chunks", "questions_and_answers"),
    *("data_source", "metadata", "num_chunks", "num_questions"),
)
SCHEMA = pa.schema([(c, pa.int64() if c in NUMBERS else pa.string()) for c in COLUMNS])
OWN_KEYS = ("id", "question_ids", "question_chunks")
"""Keys of `metadata` that are fields of the record and never keys of `Instance.metadata`."""
ANSWER_TYPE = "answer_type"
"""Key of `Instance.metadata`; "list": a single answer is written as a list too, as in published
evaluation files."""
MAX_QUESTIONS = 100
GROUP = 8_000_000
"""Characters of rows that are written together, so that a data set is not held several times."""


def save_instances(path: Path, instances: Sequence[Instance]) -> None:
    """Writes a parquet file with the public schema, also when there is no instance.

    Raises InputError for two instances with one id and, as public readers refuse it, for one of a
    public source with more than 100 questions.
    """
    check_ids(instances, str(path))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for number, instance in enumerate(instances):
            rows.append(row := _row(number, instance))
            if (size := size + len(row["chunks"])) > GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows, size = [], 0
        if rows or not instances:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    write_bytes(path, memoryview(sink.getvalue()))


def check_limit(where: str, source: str, n: int) -> None:
    """Nothing; raises InputError for more questions than readers of a public source take."""
    if n > MAX_QUESTIONS and (source not in TASKS or TASKS[source].role != "ours"):
        raise InputError(f"{where}: expected at most {MAX_QUESTIONS} questions, found {n}")


def check_ids(instances: Iterable[Instance], where: str) -> None:
    """Nothing; raises InputError starting with `where` if two instances have one id."""
    seen: set[str] = set()
    for instance in instances:
        if instance.id in seen:
            raise InputError(f"{where}: expected an instance once, found {instance.id} twice")
        seen.add(instance.id)


def _row(number: int, instance: Instance) -> dict[str, Any]:
    questions = instance.questions
    check_limit(instance.id, instance.source, len(questions))
    for key, value in instance.metadata.items():
        expected = "another name" if key in OWN_KEYS else "text, numbers or a list of them"
        if key in OWN_KEYS or not _is_flat(value):
            found = f"{value!r:.40}"
            raise InputError(f"{instance.id}: metadata {key!r}: expected {expected}, found {found}")
    metadata = {
        **instance.metadata,
        "id": instance.id,
        "question_ids": [qa.id for qa in questions],
        "question_chunks": [qa.chunk for qa in questions],
    }
    lists = instance.metadata.get(ANSWER_TYPE) == "list"
    pairs = [
        {"question": q.question, "answer": q.answers if lists or q.answers[1:] else q.answers[0]}
        for q in questions
    ]
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


def _is_flat(value: Any) -> bool:
    """Whether this is a JSON value without objects, lists of lists, NaN and infinities."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(
        math.isfinite(v) if isinstance(v, float) else v is None or isinstance(v, (str, int))
        for v in values
    )


def load_instances(path: Path, source: str | None = None) -> list[Instance]:
    """The instances of a parquet file with the public schema, ours or published.

    `source` is used where a row does not name its own. Raises InputError naming file, row and
    column for anything missing or strange, an id that occurs twice, and for a Git-LFS pointer.
    """
    with parquet(path, ("chunks", "questions_and_answers")) as file:
        rows = file.read().to_pylist()
    instances = [read_instance(row, f"{path}: row {i}", source) for i, row in enumerate(rows)]
    check_ids(instances, str(path))
    return instances


def read_instance(row: Mapping[str, Any], where: str, source: str | None = None) -> Instance:
    """The instance in a row, whose lists may be JSON text or lists.

    Its source is `data_source`, as in merged files, else `sub_source`, as in the parts that they
    are merged of, else `source`.
    """
    name = row.get("data_source") or row.get("sub_source") or source
    if not isinstance(name, str):
        raise InputError(f"{where}: data_source: expected a name, found {name or 'none'}")
    chunks = _items(row["chunks"], f"{where}: chunks")
    for i, chunk in enumerate(chunks):
        if not isinstance(chunk, str):
            raise InputError(f"{where}: chunks[{i}]: expected text, found {chunk!r:.40}")
    column = f"{where}: questions_and_answers"
    items = _items(row["questions_and_answers"], column)
    pairs = [_pair(pair, f"{column}[{i}]") for i, pair in enumerate(items)]
    metadata = _metadata(row.get("metadata"))
    if (also := row.get("sub_source")) and also != name:
        metadata.setdefault("sub_source", _flat(also))
    id, ids, evidence = (metadata.pop(key, None) for key in OWN_KEYS)
    ids = _parallel(ids, str, [f"q{i}" for i in range(len(pairs))])
    evidence = _parallel(evidence, int | None, [None] * len(pairs))
    if any(isinstance(answers, list) and len(answers) == 1 for _, answers in pairs):
        metadata[ANSWER_TYPE] = "list"
    questions = [
        QA(i, question, tuple(map(str, answers if isinstance(answers, list) else [answers])), chunk)
        for i, (question, answers), chunk in zip(ids, pairs, evidence, strict=True)
    ]
    prompt = row["prompt"] if isinstance(row.get("prompt"), str) else ""
    try:
        instance = make_instance(name, chunks, questions, prompt, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return replace(instance, id=id) if isinstance(id, str) else instance


def _items(value: Any, where: str) -> list[Any]:
    """The cell's non-empty list."""
    if isinstance(value, str):
        value = parse_json(value, where, "a JSON list")
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: expected a list that is not empty, found {value!r:.40}")
    return list(value)


def _pair(pair: Any, where: str) -> tuple[str, Any]:
    """Question and accepted answer or answers of one entry, under `answer` or `answers`."""
    question = pair.get("question") if isinstance(pair, dict) else None
    if not isinstance(question, str):
        raise InputError(f"{where}: question: expected text, found {question!r:.40}")
    value = pair["answer"] if pair.get("answer") is not None else pair.get("answers")
    for answer in value if isinstance(value, list) else [value]:
        odd = isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer))
        if odd or not isinstance(answer, (str, int, float)):
            raise InputError(f"{where}: answer: expected text or a list, found {value!r:.40}")
    return question, value


def _metadata(value: Any) -> dict[str, Any]:
    """The cell as one flat object; nothing may depend on a key, as no published file has ours.

    JSON within JSON under the name "metadata", the mark of a merge, is unpacked, other objects get
    dotted names, deeper lists become JSON text, NaN None, and what is no object stays under
    "metadata".
    """
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value, parse_constant=lambda _: None)
    if not isinstance(value, dict):
        return {} if value is None else {"metadata": _flat(value)}
    outer = flat({key: inner for key, inner in value.items() if key != "metadata"})
    return _metadata(value.get("metadata")) | {key: _flat(inner) for key, inner in outer.items()}


def _flat(value: Any) -> Any:
    return value if _is_flat(value) else json.dumps(value, default=str)


def _parallel(value: Any, kind: Any, default: list[Any]) -> list[Any]:
    """The list if it has an item of this kind per question, else `default`."""
    fits = isinstance(value, list) and len(value) == len(default)
    return value if fits and all(isinstance(item, kind) for item in value) else default
