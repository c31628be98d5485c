"""MemoryAgentBench's texts: labelled examples, numbered facts, lists as text, books' keywords."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from memalpha_kit.data import stages
from memalpha_kit.data.raw import Row, Text, checked, read_json
from memalpha_kit.data.sources.building import Job
from memalpha_kit.errors import InputError
from memalpha_kit.text import normalise

_LABEL = re.compile(r"label:\s*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|(?<=\s))(\d+)\.(?=\s)")


def parse_examples(context: str, where: str, last_line: bool = False) -> list[tuple[str, str]]:
    """(sentence, label number) of every example: lines of text, then a line `label: 2`.

    Several lines of text are joined with spaces; `last_line` keeps only the last of them, as the
    published code does. Raises InputError for text without a label or a label without text.
    """
    examples, held = [], list[str]()
    for number, line in enumerate(map(str.strip, context.split("\n")), start=1):
        label = _LABEL.fullmatch(line)
        if label and not held:
            expected = f"{where}: context, line {number}: expected a sentence"
            raise InputError(f"{expected}, found {line!r}")
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
        number = int(match[1][:9])
        if first is None and number <= 1:
            first = number
        if first is not None and number == first + len(starts):
            starts.append(match.start(1))
    pieces = (context[a:b].strip() for a, b in pairwise([0, *starts, len(context)]))
    return [" ".join(piece.split()) for piece in pieces if piece]


def parse_list(text: str, where: str) -> list[Any]:
    """The list that a text spells as JSON or as a Python literal; nothing is ever evaluated.

    Raises InputError for anything else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = None
    if isinstance(value, list) and value:
        return value
    raise InputError(f"{where}: expected a list as text, found {text[:40]!r}")


KEYWORDS = "memoryagentbench_answers_to_keywords_mapping.json"
"""A file of the published code, `{"<row>": {"summary": ..., "keywords": [...]}}`, in which the
summary may be the printed form of an array. The published code attaches the keywords by the row's
number, which is another book's in another revision; here they are found by their summary."""


class _RawEntry(Row):
    summary: Text
    keywords: list


def keywords_of(summaries: Sequence[tuple[str, ...]], job: Job) -> list[tuple[str, ...] | None]:
    """The keywords of each summary, None where there are none.

    They come from the file `KEYWORDS` in the raw folder or else from the setting `stage`.
    """
    path = job.raw / KEYWORDS
    stored = read_keywords(path) if path.is_file() else {}
    found = [stored.get(summary_key(summary)) or None for summary in summaries]
    lacking = [i for i, words in enumerate(found) if not words]
    if lacking and (stage := stages.chosen(job.config)):
        texts = ["\n\n".join(t.strip() for t in summaries[i] if t.strip()) for i in lacking]
        for i, words in zip(lacking, stage.keywords(texts), strict=True):
            found[i] = words
    return found


def read_keywords(path: Path) -> dict[str, tuple[str, ...]]:
    """Keywords by the key of their summary."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object, found {type(entries).__name__}")
    found = {}
    for name, raw in entries.items():
        entry = checked(_RawEntry, raw, f"{path}: {name}")
        words = (word.strip() for word in entry.keywords if isinstance(word, str))
        found[summary_key(_unprinted(entry.summary))] = tuple(filter(None, words))
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
