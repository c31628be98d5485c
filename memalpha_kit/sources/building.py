"""What every builder shares: its random generators, reading raw files, what is left out.

The one law: a build depends on the raw bytes, the settings and the seed alone. Each (source,
instance, purpose) has a generator of its own, so that drawing one more lead-in does not change
which questions are asked (data.md 6.5, D13).

>>> generator(0, "squad", 3, "frames").random() == generator(0, "squad", 3, "frames").random()
True
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.config import OnError
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
