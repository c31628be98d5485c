"""What every builder shares: its settings, its random generators, reading raw files.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class BuildConfig:
    """How raw rows become instances. The defaults suit a laptop; data.md 2.0 has the paper's."""

    counter: str = "wordpunct"  # token counter of every size below (text.counter)
    instances: int | None = None  # at most this many per source; None: all there are
    max_questions: int = 100  # per instance; more are sampled, seeded
    min_questions: int = 1  # documents: instances with fewer are dropped (paper: 50)
    max_chunks: int = 10  # documents: chunks per instance
    chunk_min_tokens: int = 100  # documents: smallest target drawn for a chunk
    chunk_max_tokens: int = 2048  # documents: largest target; dialogues: hard limit
    dialogue_close_tokens: int = 1800  # dialogues: a chunk this full is closed
    dialogue_reserve_tokens: int = 150  # dialogues: kept free for the header of a split turn
    examples: int | None = None  # classification: per instance; None: all, in one instance
    example_chunks: int | None = None  # classification: deal into so many chunks; None: pack
    example_chunk_tokens: int = 1024  # classification: size that chunks are packed to

    def __post_init__(self) -> None:
        """Raises InputError for a number below 1 and for sizes that contradict each other."""
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        low, high = self.chunk_min_tokens, self.chunk_max_tokens
        reserve = self.dialogue_reserve_tokens
        if low > high:
            raise InputError(
                f"chunk_min_tokens: expected at most {high} (the maximum), found {low}"
            )
        if reserve > high // 2:
            raise InputError(
                f"dialogue_reserve_tokens: expected at most {high // 2}, found {reserve}"
            )


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
