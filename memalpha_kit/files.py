"""Files: one way to write a file whole, one log that only grows, one "was this made the same way?".

Laws: a file under its final name is whole. It is written beside the final name, flushed to the disk
and renamed; when that fails (a full disk), the old file stays as it was, nothing is left behind and
the error names the file. Only a `Log` grows: a line that could not be written wholly is taken back,
and one that a crash cut off is dropped when the file is read or opened again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.settings import Profile, profile_dict
from memalpha_kit.text import not_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


# ---- whole files ------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Puts `content` in the place of the file, whole or not at all. Raises DiskError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(path, len(content), error) from error


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented strict JSON: NaN is a ValueError, a missing number is null."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def load_json(path: Path) -> Any:
    """What `save_json` wrote. Raises InputError naming the file if it is not there or no JSON."""
    return parse_json(_read(path, "a JSON file"), str(path), "a JSON file", strict=True)


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV without its index; a missing value is an empty cell."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def parse_json(text: bytes | str, where: str, expected: str = "JSON", strict: bool = False) -> Any:
    """The value in a JSON text. Raises InputError starting with `where`, whatever is wrong with it.

    That may be bytes that are no UTF-8, brackets thousands deep or a number of thousands of digits;
    if `strict`, also NaN and Infinity, which are Python's and not JSON's.
    """
    try:
        return json.loads(text, parse_constant=not_json if strict else None)
    except ValueError as error:
        raise InputError(f"{where}: expected {expected}, found: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: expected {expected}, found: nested too deeply") from error


def refuse_pipe(path: Path) -> None:
    """Nothing; raises InputError for a pipe or a device, whose end may never come."""
    with suppress(OSError):
        if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path}: expected a file, found a pipe or a device")


def _read(path: Path, expected: str) -> bytes:
    refuse_pipe(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        found = error.strerror or error
        raise InputError(f"{path}: expected {expected}, found: {found}") from error


def _unwritten(path: Path, size: int, error: OSError) -> DiskError:
    what = f"{size} bytes" if size else "into it"
    return DiskError(f"{path}: expected to write {what}, found: {error.strerror}")


# ---- files that grow --------------------------------------------------------------------------


class Log:
    """A file of JSON lines that only grows; one process at a time may hold it.

    Opening drops a last line that a crash has torn. Use it in a `with` block, or let it go.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "answers.jsonl"
    >>> with Log(path) as answers:
    ...     answers.append({"qa": "q0"})
    >>> read_jsonl(path)
    [{'qa': 'q0'}]
    """

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises InputError if another process holds it, DiskError if it cannot."""
        self.path = Path(path)
        refuse_pipe(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _unwritten(self.path, 0, error) from error
        try:
            _take(self._file.fileno(), self.path)
            content = self.path.read_bytes()
            if torn := len(content) - content.rfind(b"\n") - 1:
                log.warning("%s: the last line was cut off and is dropped", self.path)
                os.ftruncate(self._file.fileno(), len(content) - torn)
        except BaseException:
            self._file.close()
            raise

    def append(self, *records: Mapping[str, Any]) -> None:
        """Adds a line each; returns when they are on the disk, all of them or none (DiskError)."""
        lines, size = b"".join(map(json_line, records)), os.fstat(self._file.fileno()).st_size
        try:
            rest = lines
            while rest:  # one write in all but odd cases
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise _unwritten(self.path, len(lines), error) from error

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def held(folder: Path, wait: bool = False, hint: str = "") -> Iterator[None]:
    """The folder, made if need be, for this process alone.

    If another process has it, InputError is raised, with the hint at its end; with `wait`, which is
    for moments, its end is waited for.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(folder, 0, error) from error
    number = os.open(folder, os.O_RDONLY)
    try:
        _take(number, folder, wait, hint)
        yield
    finally:
        os.close(number)


def _take(number: int, path: Path, wait: bool = False, hint: str = "") -> None:
    """Takes an open file for this process; closing it or a kill gives it back."""
    with suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = "expected to be alone, found another process at work on it"
            raise InputError(f"{path}: {found}{hint}") from error


def json_line(record: Mapping[Any, Any]) -> bytes:
    """One line of JSON. NaN is allowed: a model may have written it as an argument."""
    return json.dumps(record).encode() + b"\n"


def read_jsonl(path: Path, strict: bool = False) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; item i stands on line i + 1.

    A last line without an end was torn by a crash: it is dropped, or an error if `strict`. Raises
    InputError for a file that cannot be read, and naming a line that is no object.
    """
    *lines, torn = _read(path, "lines of JSON").split(b"\n")
    if torn and strict:
        found = f"found one cut off after {len(torn)} bytes"
        raise InputError(f"{path}:{len(lines) + 1}: expected a whole line, {found}")
    records = []
    for number, line in enumerate(lines, start=1):
        record = parse_json(line, f"{path}:{number}")
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected an object, found {line[:40]!r}")
        records.append(record)
    return records


# ---- going on with what is there --------------------------------------------------------------


def resume_or_refuse(
    folder: Path,
    settings: Mapping[str, Any],
    free: Iterable[str] = (),
    name: str = "settings.json",
    of: Path | None = None,
) -> bool:
    """Whether the folder, or `of` in it, was begun under the same settings and can be gone on with.

    A new folder gets the file `name` with the settings, and False. `free` are keys (dotted where
    nested) that change no result: the newest value is kept, or the old one where it is None. Raises
    InputError naming another key that differs, both values and what to do.
    """
    file, settings = Path(folder) / name, json.loads(json.dumps(settings))
    if not file.exists():
        save_json(file, settings)
        return False
    kept = load_json(file)
    if not isinstance(kept, dict):
        raise InputError(f"{file}: expected settings, found {str(kept)[:40]!r}")
    old, new, free = flat(kept), flat(settings), tuple(free)
    other = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{f}.") for f in free)
    ]
    if other:  # what can be read comes before hashes
        key = min(other, key=lambda key: _is_hash(old.get(key)))
        was, now = old.get(key), new.get(key)
        found = f"{key} = {was!r}, now it is {now!r}"
        if _is_hash(was) and _is_hash(now):
            found = f"other content of {key} (SHA-256 {was:.8}..., now {now:.8}...)"
        instead = f"file, or delete it and {name}" if of else "folder or delete it"
        raise InputError(f"{of or folder}: was begun with {found}; choose another {instead}")
    newest = _newest(kept, settings)
    if newest != kept:
        save_json(file, newest)
    return True


def _is_hash(value: Any) -> bool:
    return bool(re.fullmatch("[0-9a-f]{64}", str(value)))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, to say which one of two runs differs."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _newest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What is said now, and what was said before where nothing is, a price for instance."""
    said = {
        key: _newest(old.get(key) or {}, value) if isinstance(value, Mapping) else value
        for key, value in new.items()
        if value is not None
    }
    return {**new, **old, **said}


# ---- hashes -----------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises InputError for a file that cannot be read."""
    refuse_pipe(path)
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


# ---- the card of a run ------------------------------------------------------------------------

PACKAGES = (
    *("numpy", "pandas", "torch", "transformers", "trl", "rank-bm25", "papermill"),
    *("peft", "accelerate", "unsloth", "vllm"),
)


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
        "versions": {name: _version(name) for name in ("memalpha-kit", *PACKAGES)},
        "python": platform.python_version(),
        "data_sha256": fingerprint(list(inputs)) if inputs else None,
        "inputs": [path.name for path in inputs],
        "duration_s": round(time.time() - started, 1),
        **(extra or {}),
    }
    save_json(folder / "run.json", card)
    return card


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A short name for exactly these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _version(name: str) -> str:
    """Of an installed package, or "absent"."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "absent"
