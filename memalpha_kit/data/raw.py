"""Raw files: one reader for JSON, JSON lines, CSV and parquet, plain or packed, row by row.

    for row, where in rows(folder, "hotpot*.json|fullwiki/train-*.parquet", COLUMNS, skips):
        record = checked(Record, row, where)

`where` is the file with its line, row or record, and opens the message of every error. Nothing is
held but the row that is read, so that a file of some hundred megabytes needs no more memory than a
small one. Raw rows are described by pydantic models (`Row`), whose first error becomes one line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memalpha_kit.data.packed import opened
from memalpha_kit.data.skips import Skips
from memalpha_kit.errors import InputError
from memalpha_kit.files import parse_json

Item = tuple[Any, str]
"""A raw row and where it stands."""

PACKED = (".gz", ".zip")
"""Endings that a plain raw file may have on top of its own; an archive has one member."""
SHOWN = 8  # names of a folder that an error lists


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files in `folder` that a pattern means, sorted; none below a name that begins with a dot.

    `a*.json|b/c.txt` means files of the first alternative that has any, packed ones included.
    """
    for choice in pattern.split("|"):
        endings = ("",) if choice.endswith((".parquet", ".7z", *PACKED)) else ("", *PACKED)
        found = {path for end in endings for path in Path(folder).glob(choice + end)}
        named = choice.startswith(".")  # one that is asked for by its name
        names = {path: f"/{path.relative_to(folder).as_posix()}" for path in found}
        if files := sorted(p for p in found if (named or "/." not in names[p]) and p.is_file()):
            return files
    return []


def raw_file(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`. Raises InputError for none or several."""
    found = matches(folder, pattern)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or f"none of them in {listing(Path(folder))}"
    first, *others = pattern.split("|")
    also = f" (or {', '.join(others)})" if others else ""
    raise InputError(f"{folder}: expected one raw file {first}{also}, found {names}")


def listing(folder: Path, kind: str = "raw files") -> str:
    """What is in a folder, as an error shows it. Raises InputError if there is no folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with {kind}, found no folder")
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}" if names else "an empty folder"


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a raw file in the first encoding that fits; a byte order mark is dropped.

    Raises InputError, naming the file, if it cannot be read, is blank, or is not text.
    """
    with opened(path) as file:
        raw = file.read()
    text, problem = None, ""
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


def rows(
    folder: Path, pattern: str, columns: Sequence[str], skips: Skips, single: bool = False
) -> Iterator[Item]:
    """(row, where it stands) of one raw file: a JSON list, JSON lines, or parquet shards.

    Rows of parquet have the `columns` only (`a.b` is a field of column a); rows of JSON are as they
    stand, and with `single` an object that is no list is the only row. Bad rows of JSON are
    skipped, and so is the rest of a JSON list that is cut off.
    Raises InputError for no file, several that are no shards, and one that cannot be read.
    """
    files = matches(folder, pattern)
    shards = [path for path in files if path.suffix == ".parquet" and "-of-" in path.name]
    if not (shards == files and len({path.parent for path in files}) == 1):
        files = [raw_file(folder, pattern)]
    for path in files:
        if path.suffix == ".parquet":
            with parquet(path, columns) as file:
                batches = file.iter_batches(1000, columns=list(columns))
                found = (row for batch in batches for row in batch.to_pylist())
                yield from ((row, f"{path}: row {number}") for number, row in enumerate(found))
        elif ".jsonl" in path.suffixes[-2:]:
            filled = (item for item in lines(path, skips) if item[0].strip())
            yield from skips.each(lambda line, where: (parse_json(line, where), where), filled)
        else:
            yield from _json_items(path, skips, single)


@contextmanager
def parquet(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """The open parquet file, which has these columns unless it is without rows.

    Raises InputError, naming the file, for a pointer, what is no parquet, and a missing column.
    """
    with opened(path):  # for its errors
        pass
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns if file.metadata.num_rows else ():
                if "." not in column and column not in names:
                    found = ", ".join(names)
                    raise InputError(f"{path}: expected a column {column!r}, found {found}")
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: expected parquet, found: {found:.80}") from error


def lines(path: Path, skips: Skips) -> Iterator[tuple[str, str]]:
    """(line, "file:number") of a text file, line breaks and a byte order mark dropped.

    A line that is not UTF-8 is skipped. Raises InputError as `opened` does.
    """
    with opened(path) as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                yield raw.decode().rstrip("\r\n"), f"{path}:{number}"
            except UnicodeDecodeError as error:
                found = f"expected UTF-8 text, found byte {raw[error.start]:#04x}"
                skips.add(f"{path}:{number}", found)


def _json_items(path: Path, skips: Skips, single: bool) -> Iterator[Item]:
    """The records of a list, decoded one at a time while the file is read."""
    with opened(path) as file:
        feed, number = _Feed(io.TextIOWrapper(file, "utf-8-sig")), 0
        try:
            if single and feed.peek() == "{":
                yield feed.value(), f"{path}: record 0"
                return
            if (first := feed.peek()) != "[":
                found = f"{feed.text[feed.at :][:40]!r}" if first else "an empty file"
                raise InputError(f"{path}: expected a JSON list of records, found {found}")
            feed.at += 1
            while number or feed.peek() != "]":
                yield feed.value(), f"{path}: record {number}"
                number += 1
                if (after := feed.peek()) == "]":
                    return
                if after != ",":
                    raise json.JSONDecodeError("expected ',' or ']'", feed.text, feed.at)
                feed.at += 1
                feed.peek()
        except UnicodeDecodeError as error:
            found = f"byte {error.object[error.start]:#04x}"
            raise InputError(f"{path}: expected text in utf-8-sig, found {found}") from error
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            line = feed.lines + getattr(error, "lineno", 1)
            skips.add(f"{path}:{line}", f"expected JSON, found: {_problem(error)}")


class _Feed:
    """The text of a JSON file, of which a window is held that grows until a value fits."""

    BLOCK = 1 << 20  # characters
    SPACE = re.compile(r"\s*")
    DECODER = json.JSONDecoder()

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.text, self.at, self.lines = stream, "", 0, 0

    def more(self) -> bool:
        """Whether there was more to read; drops what was used and doubles the window."""
        new = self.stream.read(max(len(self.text) - self.at, self.BLOCK))
        if new:
            self.lines += self.text.count("\n", 0, self.at)
            self.text, self.at = self.text[self.at :] + new, 0
        return bool(new)

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            space = self.SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The next value. Raises ValueError or RecursionError where there is none."""
        while True:
            try:
                value, end = self.DECODER.raw_decode(self.text, self.at)
            except ValueError:
                if self.more():
                    continue
                raise
            if end < len(self.text) or not self.more():  # a number may go on
                self.at = end
                return value


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises InputError naming the file and the line."""
    try:
        return json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: expected JSON, found: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "one that is nested too deeply"
    return getattr(error, "msg", None) or str(error).partition(";")[0]


def csv_rows(
    path: Path, columns: Sequence[str], text: str, skips: Skips, delimiter: str = ","
) -> Iterator[tuple[dict[str, str], str]]:
    """(row, "file:line") of a CSV text whose first line names at least the `columns`.

    A row with too many cells is a bad record. Raises InputError for a missing column, and for text
    that is no CSV.
    """
    stream = io.StringIO(text, newline="")
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True, restval="")
    try:
        names = reader.fieldnames or []
        for column in columns:
            if column not in names:
                found = ", ".join(names)
                raise InputError(f"{path}:1: expected a column {column!r}, found {found}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                expected = f"expected {len(row) - 1} cells"
                skips.add(where, f"{expected}, found more (quote the comma?)")
            else:
                yield row, where
    except csv.Error as error:
        found = f"expected CSV after line {reader.line_num}, found: {error}"
        raise InputError(f"{path}: {found}") from error


class Row(BaseModel):
    """A raw row: fields that are not named are ignored, values are never converted."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)


M = TypeVar("M", bound=Row)
Text = Annotated[str, Field(pattern=r"\S")]
"""Text that is not blank."""


def checked(model: type[M], raw: Any, where: str) -> M:
    """The raw row as its model. Raises InputError naming the first field that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f": {part}" for part in problem["loc"]
    )
    wanted = _WORDS.get(problem["type"], "another value")
    if problem["type"] == "value_error":
        raise InputError(f"{where}{place}: {problem['ctx']['error']}")
    if not problem["loc"]:
        wanted += f" with {next(iter(model.model_fields))}"
    found = "nothing" if problem["type"] == "missing" else short(problem["input"])
    raise InputError(f"{where}{place}: expected {wanted}, found {found}")


_WORDS = {
    **dict.fromkeys(("string_type", "string_unicode", "string_pattern_mismatch"), "text"),
    **{"list_type": "a list", "dict_type": "an object", "model_type": "an object"},
    "too_short": "a list that is not empty",
    **{"int_type": "a whole number", "greater_than_equal": "a larger number"},
    **dict.fromkeys(("int_parsing_size", "less_than_equal"), "a smaller number"),
    "missing": "a value",
}


def short(value: Any) -> str:
    """The beginning of a value as an error shows it."""
    return json.dumps(value, default=str)[:60]
