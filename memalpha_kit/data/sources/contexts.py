"""Contexts of MemoryAgentBench: labelled examples, numbered facts, lists that are spelt as text."""

from __future__ import annotations

import ast
import json
import re
from itertools import pairwise
from typing import Any

from memalpha_kit.errors import InputError

MAX_LITERAL = 50_000_000  # characters of a textual list that is parsed
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

    Raises InputError for anything else, a text above `MAX_LITERAL` characters included.
    """
    found = f"{len(text)} characters"
    if len(text) <= MAX_LITERAL:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                value = None
        if isinstance(value, list) and value:
            return value
        found = repr(text[:40])
    raise InputError(f"{where}: expected a list as text, found {found}")
