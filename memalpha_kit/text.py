"""Texts of people and models: normalised answers, thinking blocks, JSON that may be broken.

The one law: whatever the text, the answer comes soon. Nothing here is evaluated, recurses deeply or
raises for its input.

>>> normalise("The U.S.A.")
'usa'
>>> without_thinking("<think>Who was it?</think> Nora")
'Nora'
>>> complete_object('{"content": "Nora ke') is None
True
>>> repaired_value('{"content": "Nora ke')
{'content': 'Nora ke'}
"""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any, NoReturn

import json_repair

NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
"""Characters of scripts that put no space between words, for a class of a pattern: Thai, Lao,
Burmese, Khmer, Japanese, Chinese."""
MARKS = "".join(
    char
    for char in map(chr, range(0x300, 0xAC00))
    if unicodedata.category(char) in ("Mn", "Mc") and not re.match(f"[{NO_SPACES}]", char)
)
r"""Signs that belong to the letter before them, which `\w` leaves out: accents, signs of vowels."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """`text` lower-cased, without ASCII punctuation and articles, single spaces between words.

    Deleting punctuation joins its neighbours: "U.S.A." becomes "usa".
    It is the normalisation of the published scorers (`naive.py`); ours is `metrics.comparable`.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


_CLOSING = re.compile(r"</think>(?=[ \t]*\n)|(?<![ \t\"'`(\[])</think>")


def without_thinking(reply: str, asked: bool | None = None) -> str | None:
    """What stands after the thinking block of a reply, trimmed; None if the block never closes.

    A block stands at the start of the reply. Where the prompt has opened it, the reply has its
    closing tag only: `asked` says whether the model was asked to think. Where nobody knows (None),
    a closing tag after a space or a quote is only mentioned unless its line ends there, and so is
    one in JSON. A tag that is mentioned later is text.

    >>> without_thinking("Who was it?</think>Nora"), without_thinking("Close it with </think>.")
    ('Nora', 'Close it with </think>.')
    """
    text = reply.strip()
    if asked or (asked is None and not text.startswith(("{", "[", "```"))):
        closing = re.search("</think>" if asked else _CLOSING, text)
        if closing and "<think>" not in text[: closing.start()]:
            text = text[closing.end() :].strip()
    while text.startswith("<think>"):
        _, closed, text = text.partition("</think>")
        if not closed:
            return None
        text = text.strip()
    return text


# ---- JSON that a model wrote ------------------------------------------------------------------

REPAIR_FAILS = (ValueError, AssertionError, LookupError, TypeError, RecursionError)
"""What json_repair raises for debris: the second for "{'```json[?```json[", found by fuzzing."""


def value_end(text: str, start: int = 0) -> int | None:
    """Where the JSON object or array at `start` ends (after white space); None if incomplete."""
    decoded = _decoded(text, start)
    return decoded and decoded[1]


def past_space(text: str, start: int) -> int:
    """Where the white space that stands at `start`, if any, ends."""
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _decoded(text: str, start: int = 0) -> tuple[Any, int] | None:
    """The object or array at `start` and where it ends, in time linear in its length.

    Decoded in windows that grow, because an error in a long text costs a count of its lines.
    """
    start, size = past_space(text, start), 512
    if not text.startswith(("{", "["), start):
        return None
    while True:
        window = text[start : start + size]
        try:
            value, end = _JSON.raw_decode(window)
            return value, start + end
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated") or error.pos > len(window) - 16
            if start + size >= len(text) or not cut:
                return None
            size *= 4
        except (ValueError, RecursionError):
            return None


def complete_object(source: str) -> dict[str, Any] | None:
    """The JSON object that `source` begins with, or None if there is no complete one.

    A code fence before it is removed, what follows it is ignored, an array of one object is
    unwrapped, and raw line breaks inside strings are allowed.
    """
    return _only(_value(_FENCE.sub("", source))[0])


def complete_objects(
    source: str, as_text: Sequence[str] = (), anywhere: bool = False
) -> tuple[list[Any], str]:
    """All JSON values that `source` begins with, and what follows them.

    Read like `complete_object`; objects and arrays of them may follow each other after white space
    or a comma, or `anywhere`, and arrays are opened. What follows begins with an object if one is
    left that is not complete. An unquoted value of a key in `as_text` is taken as its characters:
    0712 is "0712", 5e20 is "5e20".

    >>> complete_objects('{"id": 07}, [{"b": 2}] and more', as_text=("id",))
    ([{'id': '07'}, {'b': 2}], ' and more')
    """
    items: list[Any] = []
    place, source = 0, _with_text(source, as_text)
    while True:
        value, end = _value(source, place)
        if value is None:
            return items, source[place:]
        items += value if isinstance(value, list) else [value]
        more = _ANY_OBJECT.search(source, end) if anywhere else _NEXT_OBJECT.match(source, end)
        if not more:
            return items, source[end:]
        place = more.start() if anywhere else more.end()


def repaired_value(source: str, as_text: Sequence[str] = ()) -> dict[str, Any] | list[Any] | None:
    """The JSON object that `json_repair` makes of `source`, or the array of several, or None.

    It closes open strings and objects, takes single quotes, stray commas and comments, and finds
    an object inside other text. Sources with many brackets or quotes are not tried.
    """
    if len(re.findall(r"[\[\]{}()]", source)) > 64:  # json_repair recurses in opening ones
        return None
    if len(re.findall("[\"'`“”]", source)) > 200:  # and takes quadratic time in these
        return None
    for key in as_text:
        source = re.sub(rf"""(["']{key}["']{_BARE_VALUE}""", r'\1"\2"', source)
    try:
        return _value(_with_text(json_repair.repair_json(source), as_text))[0]
    except REPAIR_FAILS:
        return None


def _with_text(source: str, as_text: Sequence[str]) -> str:
    """The source without a code fence, values of these keys in quotes."""
    source = _FENCE.sub("", source)
    for key in as_text:  # valid JSON never holds this pattern inside a string
        source = re.sub(rf'("{key}"{_BARE_VALUE}', r'\1"\2"', source)
    return source


def _value(source: str, start: int = 0) -> tuple[dict[str, Any] | list[Any] | None, int]:
    """The object or array at `start`, and where it ends."""
    value, end = _decoded(source, start) or (None, 0)
    try:
        return _tame(value, 8), end  # what is nested deeper is not decoded
    except (ValueError, RecursionError):
        return None, 0


def _only(value: dict[str, Any] | list[Any] | None) -> dict[str, Any] | None:
    """The object itself, or the one that an array holds."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else None


def without_surrogates(text: str) -> str:
    """`text` with "?" for each half of a surrogate pair, which no file or tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


_SPACE = re.compile(r"\s*")
_ANY_OBJECT = re.compile(r"\{\s*[\"']|\[\s*\{")
_NEXT_OBJECT = re.compile(r"[\s,]*(?=\{|\[\s*\{)")
_FENCE = re.compile(r"\A\s*(?:```\w*)?\s*")
_BARE_VALUE = r"\s*:\s*)(?!(?:null|true|false)\b)([\w.+-]+)"


def _number(source: str) -> int | float:
    value = float(source)
    if len(source) > 20 or not math.isfinite(value):
        raise ValueError("number out of range")
    return int(source) if source.lstrip("-").isdigit() else value


def not_json(constant: str) -> NoReturn:
    """Raises ValueError for NaN and Infinity, which are Python's."""
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(
    strict=False, parse_int=_number, parse_float=_number, parse_constant=not_json
)


def _tame(value: Any, depth: int) -> Any:
    """`value` with text that can be encoded; ValueError if it is nested deeper than `depth`."""
    if isinstance(value, str):
        return without_surrogates(value)
    if depth == 0 and isinstance(value, list | dict):
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_tame(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(k): _tame(item, depth - 1) for k, item in value.items()}
    return value
