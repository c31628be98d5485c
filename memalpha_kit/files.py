"""The one place where records meet the disk: parquet, JSONL, JSON, CSV and hashes.

Laws: load(save(x)) == x; a file under its final name is whole. Files are written beside the final
name, flushed to the disk and renamed; when that fails (a full disk), the old file stays as it was,
nothing is left behind and the error names the file. Only episode files grow: a line that could not
be written wholly is taken back, and one that a crash cut off is dropped by `resume=True`.

Instances are kept in the public layout of eight columns (data.md 1.1), so published files load
too; ids and evidence are in `metadata`, one flat JSON object whatever it was before, so that saving
what was loaded changes nothing. Episodes keep their calls; memories are rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.method import memory
from memalpha_kit.records import (
    QA,
    Answer,
    Completion,
    Episode,
    Instance,
    Step,
    ToolCall,
    make_instance,
)
from memalpha_kit.settings import MemoryConfig, Profile, profile_dict

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

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


# --- Instances -----------------------------------------------------------------------------------


def save_instances(path: Path, instances: Sequence[Instance]) -> None:
    """Writes a parquet file with the public schema, also when there is no instance.

    Raises InputError for an instance with more than 100 questions, which public readers refuse.
    """
    rows = [_row(number, instance) for number, instance in enumerate(instances)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    _write(Path(path), sink.getvalue().to_pybytes())


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


# --- Episodes ------------------------------------------------------------------------------------


def save_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes one line of JSON per episode in place of what the file held."""
    _write(Path(path), b"".join(_line(episode_fields(episode)) for episode in episodes))


def append_episode(path: Path, episode: Episode) -> None:
    """Adds one episode to the file, whole or not at all."""
    append_jsonl(path, episode_fields(episode))


def load_episodes(path: Path, resume: bool = False) -> list[Episode]:
    """The episodes of a JSONL file, every memory rebuilt by replaying the calls.

    A last line that a crash cut off is an error; with `resume` it is removed from the file and
    logged, and a file that does not exist yet has no episodes. Raises InputError naming the line.
    """
    path = Path(path)
    if resume and not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected episodes, found: {error.strerror}") from error
    *lines, tail = content.split(b"\n")
    if tail and not resume:
        found = f"found one cut off after {len(tail)} bytes"
        raise InputError(f"{path}:{len(lines) + 1}: expected a whole line, {found}")
    if tail:
        log.warning("%s: line %d was cut off and is dropped", path, len(lines) + 1)
        os.truncate(path, len(content) - len(tail))
    return [_parse_episode(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]


def episode_fields(episode: Episode) -> dict[str, Any]:
    """The episode as JSON; memories are left out: `calls` and `memory_config` rebuild them."""
    return vars(episode) | {
        "memory_config": vars(episode.memory_config),
        "steps": [
            {
                "chunk": step.chunk,
                "completion": vars(step.completion),
                "calls": [vars(call) | {"arguments": dict(call.arguments)} for call in step.calls],
            }
            for step in episode.steps
        ],
        "answers": [_answer_fields(answer) for answer in episode.answers],
    }


def _answer_fields(answer: Answer) -> dict[str, Any]:
    """Plain values; what is unknown of the model's call is left out, so old files look the same."""
    first = ("qa", "prediction", "score", "retrieved")
    default = vars(Answer("", None))
    return {k: v for k, v in vars(answer).items() if k in first or v != default[k]}


def _parse_episode(line: bytes, where: str) -> Episode:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: expected JSON, found: {error.msg}") from error
    return read_episode(raw, where)


def read_episode(raw: Mapping[str, Any], where: str) -> Episode:
    """What `episode_fields` gave, every memory rebuilt. Raises InputError starting with `where`."""
    try:
        config = MemoryConfig(**raw["memory_config"])
        answers = tuple(Answer(**_tuples(answer, "retrieved")) for answer in raw["answers"])
        steps = _read_steps(raw["steps"], config, where)
        return Episode(**raw | {"memory_config": config, "steps": steps, "answers": answers})
    except KeyError as error:
        raise InputError(f"{where}: expected a field {error}, found none") from error
    except (TypeError, AttributeError) as error:  # a field too many, or of another shape
        raise InputError(f"{where}: expected an episode, found: {error}") from error


def _read_steps(raw: Any, config: MemoryConfig, where: str) -> tuple[Step, ...]:
    """The steps with the memory after each; the outcome of every call must be as recorded."""
    state, steps = memory.empty(config), []
    for number, step in enumerate(raw):
        calls = tuple(ToolCall(**call) for call in step["calls"])
        for call in calls:
            state, again = memory.apply(state, call, config)
            if again != call:
                raise InputError(
                    f"{where}: step {number}: expected {call.name} to be {call.status} again, "
                    f"found {again.status} on replay (edited file, or another version of the kit?)"
                )
        fields = _tuples(step["completion"], "prompt_ids", "completion_ids", "mask", "logprobs")
        steps.append(Step(step["chunk"], Completion(**fields), calls, state))
    return tuple(steps)


def _tuples(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: tuple(v) if k in names and v is not None else v for k, v in raw.items()}


# --- Files ---------------------------------------------------------------------------------------


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, to say which one of two runs differs."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented strict JSON: NaN is a ValueError, a missing number is null."""
    _write(Path(path), (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV without its index; a missing value is an empty cell."""
    _write(Path(path), table.to_csv(index=False, lineterminator="\n").encode())


def save_bytes(path: Path, content: bytes) -> None:
    """Writes the bytes of a file (a figure, say), whole or not at all."""
    _write(Path(path), content)


def load_json(path: Path) -> Any:
    """What `save_json` wrote. Raises InputError naming the file if it is not there or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, found: {error}") from error


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to a JSONL file and returns when it is on the disk, whole or not at all.

    Raises DiskError if it cannot be written, InputError if its last line was cut off.
    """
    path = Path(path)
    line, size = _line(record), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                raise InputError(f"{path}: expected a whole last line, found one cut off")
            file.write(line)
            _flush(file)
    except OSError as error:
        if size is not None:
            os.truncate(path, size)
        raise _unwritten(path, line, error) from error


def _write(path: Path, content: bytes) -> None:
    """Puts `content` in the place of the file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                _flush(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(path, content, error) from error


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _unwritten(path: Path, content: bytes, error: OSError) -> DiskError:
    return DiskError(f"{path}: expected to write {len(content)} bytes, found: {error.strerror}")


def _line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON. NaN is allowed: a model may have written it as an argument."""
    return json.dumps(record).encode() + b"\n"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises InputError for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of the files, whatever their order and folder.

    Raises InputError for a file that cannot be read.
    """
    digests = sorted(f"{path.name} {sha256(path)}" for path in map(Path, paths))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


# --- The card of a run ---------------------------------------------------------------------------

PACKAGES = ("numpy", "pandas", "torch", "transformers", "trl", "rank-bm25", "papermill")


def run_card(
    folder: Path,
    profile: Profile,
    started: float,
    inputs: Sequence[Path] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `run.json` into `folder` and return it: settings, seed, versions, data hash, duration.

    `started` is `time.time()` at the beginning; `inputs` are the files the numbers came from.
    """
    card = {
        "profile": profile.name,
        "seed": profile.seed,
        "settings": profile_dict(profile),
        "versions": _versions(),
        "python": platform.python_version(),
        "data_sha256": fingerprint(list(inputs)) if inputs else None,
        "inputs": [path.name for path in inputs],
        "duration_s": round(time.time() - started, 1),
        **(extra or {}),
    }
    save_json(folder / "run.json", card)
    return card


def settings_hash(profile: Profile) -> str:
    """A short name for exactly these settings, seed included; the profile's own name is not."""
    settings = {**profile_dict(profile), "name": ""}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _versions() -> dict[str, str]:
    found = {"memalpha-kit": metadata.version("memalpha-kit")}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
