"""What every builder shares: its random generators, reading raw files.

The one law: a build depends on the raw bytes, the settings and the seed alone. Each (source,
instance, purpose) has a generator of its own, so that drawing one more lead-in does not change
which questions are asked (data.md 6.5, D13).

>>> generator(0, "squad", 3, "frames").random() == generator(0, "squad", 3, "frames").random()
True
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.errors import InputError

T = TypeVar("T")


def generator(seed: int, source: str, instance: int | str, purpose: str) -> random.Random:
    """A random generator of its own for this purpose, the same in every process."""
    return random.Random(f"{seed}/{source}/{instance}/{purpose}")


def draw(items: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """`n` of the items in their old order, or all of them if there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in sorted(rng.sample(range(len(items)), n))]


# --- Raw files -----------------------------------------------------------------------------------


def raw_file(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`. Raises InputError for none or several."""
    found = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder}: expected one raw file {pattern}, found {names}")
    return found[0]


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a raw file in the first encoding that fits; a byte order mark is dropped.

    Raises InputError, naming the file, if it cannot be read, is blank, or is not text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error
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
