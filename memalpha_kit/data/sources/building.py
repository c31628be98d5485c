"""What every builder shares: its random generators, reading raw files, what is left out.

The one law: a build depends on the raw bytes, the settings and the seed alone. Each (source,
instance, purpose) has a generator of its own, so that drawing one more lead-in does not change
which questions are asked (data.md 6.5, D13).

>>> generator(0, "squad", 3, "frames").random() == generator(0, "squad", 3, "frames").random()
True
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig, OnError
from memalpha_kit.tokens import counter

T = TypeVar("T")
R = TypeVar("R")


def generator(seed: int, source: str, instance: int | str, purpose: str) -> random.Random:
    """A random generator of its own for this purpose, the same in every process."""
    return random.Random(f"{seed}/{source}/{instance}/{purpose}")


def draw(items: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """`n` of the items in their old order, or all of them if there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in sorted(rng.sample(range(len(items)), n))]


def spread(
    work: Callable[[list[T]], Sequence[R]], items: Iterable[T], config: BuildConfig, batch: int
) -> Iterator[R]:
    """What `work` gives for batches of the items, in order, done by `config.workers` processes.

    Reads the items a few batches ahead. `work` is a function that a process can be sent.
    """
    items, waiting = iter(items), deque()
    if config.workers == 1:
        while held := list(islice(items, batch)):
            yield from work(held)
        return
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        while held := list(islice(items, batch)):
            waiting.append(pool.submit(work, held))
            if len(waiting) > 2 * config.workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def sizes(texts: Iterable[str], config: BuildConfig) -> Iterator[int]:
    """Tokens of each text, in order."""
    return spread(partial(_counts, config.counter), texts, config, 1000)


def _counts(name: str, texts: Sequence[str]) -> list[int]:
    return [counter(name).count(text) for text in texts]


# --- What is left out ----------------------------------------------------------------------------


class Skips:
    """What a build left out, for its card: bad records, and good ones that a rule drops.

    A bad record raises at once under `on_error` "stop" and is listed under "skip". What a rule
    drops (too few questions, say) is counted under both.

    >>> skips = Skips("skip")
    >>> skips.add("squad.json: article 3", "context: expected text, found nothing")
    >>> skips.drop("instances with too few questions")
    >>> skips.card()["skipped"]
    ['squad.json: article 3: context: expected text, found nothing']
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        self.on_error = on_error
        self.skipped: list[str] = []  # one line each: where and why
        self.dropped: dict[str, int] = {}  # how many, by rule

    def add(self, where: str, reason: str) -> None:
        """Lists a bad record. Raises InputError under "stop"."""
        self.failed(InputError(f"{where}: {reason}"))

    def failed(self, error: InputError) -> None:
        """Lists the record whose reading raised `error`, or raises it again under "stop"."""
        if self.on_error == "stop":
            raise error
        self.skipped.append(str(error))

    def drop(self, rule: str, n: int = 1) -> None:
        """Counts `n` good records that a rule drops."""
        if n:
            self.dropped[rule] = self.dropped.get(rule, 0) + n

    def each(self, read: Callable[[Any, str], T], items: Iterable[tuple[Any, str]]) -> Iterator[T]:
        """What `read(item, where)` gives for each (item, where); those that fail are listed."""
        for item, where in items:
            try:
                value = read(item, where)
            except InputError as error:
                self.failed(error)
                continue
            yield value

    def card(self) -> dict[str, Any]:
        """Plain values for JSON: lines of what was skipped, counts of what was dropped."""
        return {"skipped": list(self.skipped), "dropped": dict(sorted(self.dropped.items()))}


@dataclass(frozen=True)
class HubFile:
    """Raw data on the Hugging Face hub: a data set and the files of it that a source reads."""

    repo: str  # "rajpurkar/squad"
    paths: tuple[str, ...]  # name patterns inside the data set
    revision: str = "main"  # a commit where it is pinned


# --- Raw files -----------------------------------------------------------------------------------

PACKED = (".gz", ".zip")
"""Endings that a plain raw file may have on top of its own; a .zip has one member."""
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError)
_LFS_POINTER = b"version https://git-lfs"


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files in `folder` that a pattern means, sorted.

    `a*.json|b.txt` means files of the first alternative that has any, packed ones included.
    """
    for choice in pattern.split("|"):
        endings = ("",) if choice.endswith((".parquet", *PACKED)) else ("", *PACKED)
        found = {path for end in endings for path in Path(folder).glob(choice + end)}
        if files := sorted(path for path in found if path.is_file()):
            return files
    return []


def raw_file(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`. Raises InputError for none or several."""
    found = matches(folder, pattern)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        first, *others = pattern.split("|")
        also = f"; also read: {', '.join(others)}" if others else ""
        raise InputError(f"{folder}: expected one raw file {first}, found {names}{also}")
    return found[0]


def read_bytes(path: Path) -> bytes:
    """The content of a raw file, unpacked. Raises InputError, naming the file, as `raw_stream`."""
    with raw_stream(path) as file:
        return file.read()


@contextmanager
def raw_stream(path: Path) -> Iterator[IO[bytes]]:
    """The open raw file, unpacked while it is read.

    Raises InputError, naming the file, if it cannot be read, is cut off or damaged, is a Git-LFS
    pointer, or is an archive of several files.
    """
    try:
        with ExitStack() as stack:
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(path))
            elif path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                file = stack.enter_context(archive.open(_member(archive, path)))
            else:
                file = stack.enter_context(open(path, "rb"))
            file = stack.enter_context(io.BufferedReader(file)) if path.suffix in PACKED else file
            if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
                raise InputError(
                    f"{path}: expected data, found a Git-LFS pointer (run git lfs pull)"
                )
            yield file
    except _BROKEN as error:
        found = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a readable file, found: {found}") from error


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
    if len(names) != 1:
        found = ", ".join(names[:3]) or "none"
        raise InputError(f"{path}: expected an archive of one file, found {found}")
    return names[0]


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a raw file in the first encoding that fits; a byte order mark is dropped.

    Raises InputError, naming the file, if it cannot be read, is blank, or is not text.
    """
    raw = read_bytes(path)
    text = None
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError as error:
            problem = f"byte {raw[error.start]:#04x} at position {error.start}"
    if text is None or "\0" in text:
        found = problem if text is None else "a zero byte"
        raise InputError(f"{path}: expected text in {' or '.join(encodings)}, found {found}")
    if not text.strip():
        raise InputError(f"{path}: expected content, found an empty file")
    return text


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises InputError naming the file and the line."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: expected JSON, found: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}: expected JSON, found one that is nested too deeply") from error


def csv_rows(
    path: Path, text: str, columns: Sequence[str], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(number of the row's last line, row) of a CSV text; `path` is for messages.

    Raises InputError for a missing column and for text that is no CSV.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        found = reader.fieldnames or []
        for column in columns:
            if column not in found:
                names = ", ".join(found)
                raise InputError(f"{path}:1: expected a column {column!r}, found {names}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            f"{path}: expected CSV after line {reader.line_num}, found: {error}"
        ) from error


def raw_lines(path: Path, skips: Skips) -> Iterator[tuple[str, str]]:
    """(line, "file:number") of a text file that is read as a stream, line breaks dropped.

    A line that is not UTF-8 is skipped; a byte order mark is dropped. Raises InputError as
    `raw_stream` does.
    """
    with raw_stream(path) as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            where = f"{path}:{number}"
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                skips.add(where, f"expected UTF-8 text, found byte {raw[error.start]:#04x}")
                continue
            yield line, where


def raw_rows(
    folder: Path, pattern: str, columns: Sequence[str], skips: Skips
) -> Iterator[tuple[Any, str]]:
    """(row, where it stands) of one raw file: a JSON list, JSON lines, or parquet shards.

    Rows of parquet have the `columns` only; rows of JSON are as they stand. Bad rows of JSON are
    skipped, and so is the rest of a JSON list that is cut off.
    Raises InputError for no file, several that are no shards, and one that cannot be read.
    """
    files = matches(folder, pattern)
    if files and all(path.suffix == ".parquet" and "-of-" in path.name for path in files):
        for path in files:
            yield from _parquet_rows(path, columns)
        return
    path = raw_file(folder, pattern)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif ".jsonl" in path.suffixes[-2:]:
        yield from _json_lines(path, skips)
    else:
        yield from _json_items(path, skips)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, str]]:
    with raw_stream(path):  # for its errors
        pass
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    found = ", ".join(names)
                    raise InputError(f"{path}: expected a column {column!r}, found {found}")
            number = 0
            for batch in file.iter_batches(1000, columns=list(columns)):
                for row in batch.to_pylist():
                    yield row, f"{path}: row {number}"
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: expected parquet, found: {found}") from error


def _json_lines(path: Path, skips: Skips) -> Iterator[tuple[Any, str]]:
    for line, where in raw_lines(path, skips):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            skips.add(where, f"expected JSON, found: {error.msg}")
            continue
        yield row, where


def _json_items(path: Path, skips: Skips) -> Iterator[tuple[Any, str]]:
    """The records of a list, one decoded at a time."""
    text, decoder, number = read_text(path), json.JSONDecoder(), 0
    position = _next(text, 0)
    if text[position] != "[":
        raise InputError(f"{path}: expected a JSON list of records, found {text[position:][:40]!r}")
    position = _next(text, position + 1)
    try:
        while number or not text.startswith("]", position):
            row, position = decoder.raw_decode(text, position)
            yield row, f"{path}: record {number}"
            number, position = number + 1, _next(text, position)
            if text.startswith("]", position):
                return
            if not text.startswith(",", position):
                raise json.JSONDecodeError("expected ',' or ']'", text, position)
            position = _next(text, position + 1)
    except json.JSONDecodeError as error:
        skips.add(f"{path}:{error.lineno}", f"expected JSON, found: {error.msg}")
    except RecursionError as error:
        raise InputError(f"{path}: expected JSON, found one that is nested too deeply") from error


_SPACE = re.compile(r"\s*")


def _next(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()


# --- Fields --------------------------------------------------------------------------------------

_KINDS = {str: "text", list: "a list", dict: "an object"}


def take(record: Any, field: str, kind: type, where: str) -> Any:
    """`record[field]`, checked to be a `kind`; blank text is not text.

    Raises InputError that starts with `where` (file and row) and names the field.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with {field}, found {_short(record)}")
    value = record.get(field)
    if isinstance(value, kind) and not (kind is str and not value.strip()):
        return value
    found = _short(value) if field in record else "nothing"
    raise InputError(f"{where}: {field}: expected {_KINDS[kind]}, found {found}")


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
