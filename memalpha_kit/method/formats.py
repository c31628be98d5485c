"""Four tool-call formats: how a call is written, and where the attempts at calls stand in a reply.

The formats (the setting `wire`):
* "qwen": Qwen3's native JSON between `<tool_call>` tags; the chat template lists the tools.
* "text": the `✿FUNCTION✿` / `✿ARGS✿` lines that the published Memalpha-4B speaks.
* "compact": "qwen" for the miniature: arguments first and the name last, so that insert or update
  is decided after the content; an update's text is called `content` there.
* "lines": a call is a line, its values in the order of the schema; a third of the tokens of "qwen",
  for small models whose template knows no tools. Nothing in it is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from memalpha_kit.method.memory import TOOLS, UPDATE
from memalpha_kit.records import ToolCall
from memalpha_kit.registry import Registry
from memalpha_kit.text import value_end


@dataclass(frozen=True)
class Attempt:
    """One attempt at calls as a format finds it, from its start marker to its end."""

    raw: str
    source: Any  # JSON text, or what it was decoded to; None if the marker for it is missing
    name: str | None = None  # where the name stands outside the JSON
    closed: bool = False  # an end marker was written, so the attempt cannot be cut off


@dataclass(frozen=True)
class Format:
    """A way to write calls: what stands between them, how one is written, where attempts stand.

    `new_content` is what it calls this argument; `lists_tools`: the system message must list the
    tools, as no chat template does.
    """

    write: Callable[[ToolCall], str]
    scan: Callable[[str], Iterator[Attempt]]
    between: str = "\n"
    new_content: str = "new_content"
    lists_tools: bool = False


_UNFINISHED = re.compile(r"(?<!✿ARGS)✿[A-Z]*\Z")


def _scan_text(text: str) -> Iterator[Attempt]:
    """Attempts of the text format: each runs from a function marker to the next one.

    Nothing counts from the first result or return marker on, nor an unfinished marker at the end.
    """
    text, *rest = re.split("✿RESULT✿|✿RETURN✿", text, maxsplit=1)
    for part in text.split("✿FUNCTION✿")[1:]:
        part = _UNFINISHED.sub("", part)
        name, *sources = (piece.strip().removeprefix(":").strip() for piece in part.split("✿ARGS✿"))
        if not sources:
            name = name.partition("\n")[0]
        raw = "✿FUNCTION✿" + part.rstrip()
        yield Attempt(raw, sources[0] if sources else None, name, closed=bool(rest))
        for _ in sources[1:]:  # arguments of no function
            yield Attempt(raw, None, name, closed=True)


OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG = re.compile("</?tool_call>")
_NEXT = re.compile(r"[\s,]*(?=\{|\[\s*\{)")
_NEXT_CALL = re.compile(r'[\s,;]*(?:```\w*\s*)?(?=(?:\[\s*)?\{\s*"(?:name|arguments)")')
_INNER_CALL = re.compile(r'(?=\{\s*"(?:name|arguments)")|</?tool_call>')


def _scan_tags(text: str) -> Iterator[Attempt]:
    """Attempts of the tag formats: each runs from `<tool_call>` to the end of its JSON values.

    So a tag inside a string ends nothing. Where a value is not complete the attempt runs to the
    next tag, opening or closing, or to the end of the text. Objects with a name are read wherever
    they stand before the next tag, and right after a closing one. A closing tag that nothing has
    opened is a broken call, if there is text before it: whoever is rewarded for calls that run
    would else learn to write parts of calls that count as none.
    """
    start, done = text.find(OPEN), 0
    while start >= 0:
        yield from _unopened(text[done:start])
        inside = start + len(OPEN)
        while True:
            end = _values_end(text, inside)
            tag = _TAG.search(text, end)
            closed = tag is not None and tag[0] != OPEN
            stop = tag.end() if tag and closed else end
            yield Attempt(text[start:stop], text[inside:end], closed=closed)
            another = _NEXT_CALL.match(text, stop) if closed else None
            if not another:
                break
            start = inside = another.end()
        start, done = text.find(OPEN, stop), stop
    yield from _unopened(text[done:])


def _unopened(text: str) -> Iterator[Attempt]:
    """A broken attempt for every closing tag of a text that has no opening one."""
    for part in text.split(_CLOSE)[:-1]:
        if part.strip():
            yield Attempt(part + _CLOSE, None, closed=True)


def _values_end(text: str, place: int) -> int:
    """Where the JSON values at `place` end, or the next tag if one of them is not complete."""
    while (end := value_end(text, place)) is not None:
        more = _NEXT.match(text, end) or _INNER_CALL.search(text, end)
        if not more or more[0].startswith("<"):
            return end
        place = more.end()
    tag = _TAG.search(text, place)
    return tag.start() if tag else len(text)


def renamed(call: ToolCall, old: str, new: str) -> ToolCall:
    """The call with one key of an update's arguments renamed, unless the new key is there too."""
    if call.name != UPDATE or new in call.arguments:
        return call
    return replace(call, arguments={new if k == old else k: v for k, v in call.arguments.items()})


_MARKUP = re.compile(r"<(?=/?(?:tool_call|think|memory|text)>|\|)")  # tags, special tokens


def json_text(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON in which nothing that a text holds can end a call, a row or a block."""
    return _MARKUP.sub(r"\\u003c", json.dumps(value, ensure_ascii=False).replace("✿", "\\u273f"))


def _write_text(call: ToolCall) -> str:
    return f"✿FUNCTION✿: {call.name}\n✿ARGS✿: {json_text(call.arguments)}"


def _write_qwen(call: ToolCall) -> str:
    body = json_text({"name": call.name, "arguments": call.arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


def _write_compact(call: ToolCall) -> str:
    arguments = renamed(call, "new_content", "content").arguments
    return f"<tool_call>{json_text({'arguments': arguments, 'name': call.name})}</tool_call>"


_LINE_CALL = re.compile(r"^[ \t]*(\w+)\((.*)$", re.MULTILINE)


def _write_lines(call: ToolCall) -> str:
    """`name("value", "value")`; arguments that a schema does not list in this order: one object."""
    names = TOOLS[call.name].arguments if call.name in TOOLS else ()
    in_order = tuple(call.arguments) == names[: len(call.arguments)]
    values = list(call.arguments.values()) if in_order else [call.arguments]
    return f"{call.name}({json_text(values)[1:-1]})"


def _scan_lines(text: str) -> Iterator[Attempt]:
    """Lines that begin like a call; a JSON string has no line break, so one is never inside."""
    for found in _LINE_CALL.finditer(text):
        name, rest = found[1], found[2].rstrip()
        closed, names = rest.endswith(")"), TOOLS[name].arguments if name in TOOLS else ()
        source: Any = ""  # which is no JSON
        with suppress(ValueError, RecursionError):
            values = json.loads(f"[{rest[:-1]}]") if closed else None
            if values == [] or (values and len(values) == 1 and isinstance(values[0], dict)):
                source = values[0] if values else {}
            elif values and len(values) <= len(names):
                source = dict(zip(names, values, strict=False))
        yield Attempt(found[0], source, name, closed)


FORMATS: Registry[Format] = Registry("wire")
FORMATS.add("qwen", Format(_write_qwen, _scan_tags))
FORMATS.add("text", Format(_write_text, _scan_text, lists_tools=True))
FORMATS.add("compact", Format(_write_compact, _scan_tags, "", new_content="content"))
FORMATS.add("lines", Format(_write_lines, _scan_lines))
