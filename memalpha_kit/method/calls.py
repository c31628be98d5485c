"""How calls are written and read: four tool-call formats, and one reader for all of them.

The one law: `parse_reply(render_calls(calls, wire), "stop", wire)` gives the calls back, and
reading is a pure function of the reply that never raises for what a model wrote and takes time
linear in its length: every attempt at a call becomes a `ToolCall`, a broken one a `malformed` one.

The formats (the setting `wire`):
* "qwen": Qwen3's native JSON between `<tool_call>` tags; the chat template lists the tools.
* "text": the `✿FUNCTION✿` / `✿ARGS✿` lines that the published Memalpha-4B speaks.
* "compact": "qwen" for the miniature: arguments first and the name last, so that insert or update
  is decided after the content; an update's text is called `content` there.
* "lines": a call is a line, its values in the order of the schema; a third of the tokens of "qwen",
  for small models whose template knows no tools.

Calls that an endpoint returns as structures are read by the same rules (`parse_tools`). The setting
`behaviour` names the rules: "fixed", or "release" (`release/calls.py`).

>>> call = ToolCall("memory_delete", {"memory_type": "core_memory"})
>>> render_calls([call], "compact")
'<tool_call>{"arguments": {"memory_type": "core_memory"}, "name": "memory_delete"}</tool_call>'
>>> parse_reply('<tool_call>{"name": "memory_delete"', "length", "qwen")[0].detail
'truncated'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memalpha_kit.episode_settings import MemoryConfig, ProtocolConfig
from memalpha_kit.method.memory import TOOLS, UPDATE
from memalpha_kit.records import Completion, ToolCall, ToolUse
from memalpha_kit.registry import Registry
from memalpha_kit.text import (
    complete_objects,
    repaired_value,
    value_end,
    without_surrogates,
    without_thinking,
)

# --- Reading --------------------------------------------------------------------------------------

AS_TEXT = ("memory_id",)  # arguments whose unquoted value is text: 0712 is "0712"
MAX_BROKEN = 64  # objects of one attempt; what follows them is one more
MAX_REPAIR_CHARS = 32_000  # a longer reply is read, but nothing in it is repaired


@dataclass(frozen=True)
class Attempt:
    """One attempt at calls as a format finds it, from its start marker to its end."""

    raw: str
    source: Any  # JSON text, or what it was decoded to; None if the marker for it is missing
    name: str | None = None  # where the name stands outside the JSON
    closed: bool = False  # an end marker was written, so the attempt cannot be cut off


@dataclass(frozen=True)
class Reading:
    """How replies are read: what the settings say, and how the reply ended.

    `thinking`: the model was asked to think. `execute_truncated`: a call that the length limit cut
    off is repaired and run, as released.
    """

    finish: str = "stop"
    thinking: bool = False
    execute_truncated: bool = False
    repair: bool = True


def parse_reply(
    text: str,
    finish: str,
    wire: str,
    thinking: bool = False,
    execute_truncated: bool = False,
    behaviour: str = "fixed",
) -> tuple[ToolCall, ...]:
    """Every attempt at a call in a reply, in order; status `parsed`, or `malformed` with a code.

    `finish` is "stop" or "length": the last attempt of a reply that hit the length limit is
    `truncated` unless its JSON is complete. A thinking block stands at the start of the reply, or
    before its first closing tag if the model was asked to think, and nothing in it is read. One
    attempt may hold several calls, one after the other or in an array; each is a call of its own.
    Arguments are decoded, else repaired, else `bad_json`; an unquoted `memory_id` keeps its
    characters. Raises InputError for an unknown format.
    """
    repair = len(text) <= MAX_REPAIR_CHARS
    reading = Reading(finish, thinking, execute_truncated, repair)
    return REPLY_RULES[behaviour](without_surrogates(text), wire, reading)


def parse_tools(uses: Sequence[ToolUse], finish: str, wire: str = "qwen") -> tuple[ToolCall, ...]:
    """The calls that an endpoint returned as structures, read like those of a text."""
    attempts = []
    for use in uses:
        name, source = map(without_surrogates, (use.name, use.arguments))
        raw = json.dumps({"name": name, "arguments": source}, ensure_ascii=False)
        attempts.append(Attempt(raw, source, name))
    size = sum(len(use.arguments) for use in uses)
    return _calls(attempts, wire, Reading(finish, repair=size <= MAX_REPAIR_CHARS))


def read_calls(
    completion: Completion, memory_config: MemoryConfig, protocol_config: ProtocolConfig
) -> tuple[ToolCall, ...]:
    """The calls in a completion, read as the settings say; not applied yet."""
    finish, wire = completion.finish, protocol_config.wire
    calls = parse_reply(
        completion.text,
        finish,
        wire,
        protocol_config.thinking,
        protocol_config.execute_truncated,
        memory_config.behaviour,
    )
    return calls + parse_tools(completion.tools, finish, wire)


def read_reply(text: str, wire: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The rules of "fixed": what follows the thinking is scanned for the format's attempts."""
    spoken = without_thinking(_after_closing(text) if reading.thinking else text, asked=False)
    return _calls(list(FORMATS[wire].scan(spoken or "")), wire, reading)


def _after_closing(text: str) -> str:
    """What follows the first closing tag that no call holds in its JSON; "" if there is none."""
    place = text.find("</think>")
    for _ in range(MAX_BROKEN):
        marker = max(text.rfind(mark, 0, place) for mark in (_OPEN, "✿ARGS✿"))
        brace = text.find("{", marker, place) if min(place, marker) >= 0 else -1
        if brace < 0 or (value_end(text, brace) or 0) < place:
            break
        place = text.find("</think>", place + 1)
    return text[place + len("</think>") :] if place >= 0 else ""


REPLY_RULES: Registry[Callable[[str, str, Reading], tuple[ToolCall, ...]]] = Registry("behaviour")
REPLY_RULES.add("fixed", read_reply)


def _calls(attempts: Sequence[Attempt], wire: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The calls of all attempts; only the last one can be cut off by the length limit."""
    result: list[ToolCall] = []
    for number, attempt in enumerate(attempts, 1):
        cut = reading.finish == "length" and number == len(attempts) and not attempt.closed
        result += _read(attempt, wire, cut and not reading.execute_truncated, reading.repair, cut)
    return tuple(result)


def _read(attempt: Attempt, wire: str, fatal: bool, repair: bool, cut: bool) -> Iterator[ToolCall]:
    """The calls of an attempt. `fatal`: generation stopped inside it if it is not complete."""

    def call(name: str | None, arguments: Any) -> ToolCall:
        if isinstance(arguments, dict):
            arguments = FORMATS[wire].arguments(name, arguments)
            return ToolCall(name, arguments, attempt.raw)
        code = arguments if isinstance(arguments, _Code) else _BAD_JSON
        return ToolCall(name or "", raw=attempt.raw, status="malformed", detail=str(code))

    if attempt.source is None:
        yield call(attempt.name, _TRUNCATED if cut else _MALFORMED)
        return
    for item in _objects(attempt.source, fatal, repair):
        if attempt.name is not None or not isinstance(item, dict):
            yield call(attempt.name, item)
            continue
        name, inner = item.get("name"), item.get("arguments")
        if not isinstance(name, str) or inner is None:
            yield call(None, _MALFORMED)
        else:
            for arguments in _objects(inner, False, repair):
                yield call(name, arguments)


class _Code(str):
    """Why a part of a reply is no call; no string that a model can write is one."""


_MALFORMED, _TRUNCATED, _BAD_JSON = map(_Code, ("malformed", "truncated", "bad_json"))


def _objects(source: Any, fatal: bool, repair: bool) -> list[Any]:
    """The objects that `source` holds, and a code for a part that is none.

    `source` is JSON text, perhaps with JSON inside a string, or what was decoded already.
    """
    if isinstance(source, list):
        return source or [_BAD_JSON]
    if not isinstance(source, str):
        return [source]
    if source.lstrip().startswith('"'):
        try:
            return _objects(json.loads(source), fatal, repair)
        except (ValueError, RecursionError):
            pass  # no whole string: broken like everything else
    found: list[Any] = []
    for _ in range(MAX_BROKEN if repair else 1):
        items, rest = complete_objects(source, AS_TEXT, anywhere=True)
        found += items
        if items and not _OBJECT.match(rest):
            return found
        another = _RESTART.search(rest) if repair else None
        if not another:
            break
        found += _repaired(rest[: another.start()])
        source = rest[another.end() :]
    if fatal:
        return [*found, _TRUNCATED]
    return [*found, *(_repaired(rest) if repair else [None])]


def _repaired(source: str) -> list[Any]:
    """The objects that the repair of a broken one gives, None if it gives nothing."""
    value = repaired_value(source, AS_TEXT)
    return value if isinstance(value, list) and value else [value]


_OBJECT = re.compile(r"[\s,]*\{")
_RESTART = re.compile(r"(?<=[}\]\"'])[^{}\[\]\"':]{1,40}(?=\{\s*[\"'])")
"""Between a broken object and the next one: no colon, which stands before an object inside."""


# --- The formats ----------------------------------------------------------------------------------


def _as_they_are(name: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments


@dataclass(frozen=True)
class Format:
    """A way to write calls: what stands between them, how one is written, where attempts stand.

    `arguments` gives the tools' names of arguments where the format has other ones; `lists_tools`:
    the system message must list the tools, as no chat template does.
    """

    write: Callable[[ToolCall], str]
    scan: Callable[[str], Iterator[Attempt]]
    between: str = "\n"
    arguments: Callable[[str | None, dict[str, Any]], dict[str, Any]] = _as_they_are
    lists_tools: bool = False


STOP_MARKERS = ("✿RESULT✿", "✿RETURN✿")
"""Stop strings for a sampler that speaks the text format; what follows them is never read."""
_UNFINISHED = re.compile(r"(?<!✿ARGS)✿[A-Z]*\Z")


def _scan_text(text: str) -> Iterator[Attempt]:
    """Attempts of the text format: each runs from a function marker to the next one.

    Nothing counts from the first result or return marker on, nor an unfinished marker at the end.
    """
    text = re.split("|".join(STOP_MARKERS), text, maxsplit=1)[0]
    for part in text.split("✿FUNCTION✿")[1:]:
        part = _UNFINISHED.sub("", part)
        name, *sources = (piece.strip().removeprefix(":").strip() for piece in part.split("✿ARGS✿"))
        if not sources:
            name = name.partition("\n")[0]
        raw = "✿FUNCTION✿" + part.rstrip()
        yield Attempt(raw, sources[0] if sources else None, name)
        for _ in sources[1:]:  # arguments of no function
            yield Attempt(raw, None, name, closed=True)


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
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
    start, done = text.find(_OPEN), 0
    while start >= 0:
        yield from _unopened(text[done:start])
        inside = start + len(_OPEN)
        while True:
            end = _values_end(text, inside)
            tag = _TAG.search(text, end)
            closed = tag is not None and tag[0] != _OPEN
            stop = tag.end() if closed else end
            yield Attempt(text[start:stop], text[inside:end], closed=closed)
            another = _NEXT_CALL.match(text, stop) if closed else None
            if not another:
                break
            start = inside = another.end()
        start, done = text.find(_OPEN, stop), stop
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


def _renamed(old: str, new: str) -> Callable[[str | None, Mapping[str, Any]], dict[str, Any]]:
    """Gives an update's arguments with one key renamed, unless the new key is there too."""

    def rename(name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if name != UPDATE or new in arguments:
            return dict(arguments)
        return {new if key == old else key: value for key, value in arguments.items()}

    return rename


_MARKUP = re.compile(r"<(?=/?(?:tool_call|think|memory|text)>|\|)")  # tags, special tokens


def json_text(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON in which nothing that a text holds can end a call, a row or a block."""
    text = json.dumps(value, ensure_ascii=False).replace("✿", "\\u273f")
    return _MARKUP.sub(r"\\u003c", text)


def _write_text(call: ToolCall) -> str:
    return f"✿FUNCTION✿: {call.name}\n✿ARGS✿: {json_text(call.arguments)}"


def _write_qwen(call: ToolCall) -> str:
    body = json_text({"name": call.name, "arguments": call.arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


def _write_compact(call: ToolCall) -> str:
    arguments = _renamed("new_content", "content")(call.name, call.arguments)
    return f"<tool_call>{json_text({'arguments': arguments, 'name': call.name})}</tool_call>"


_LINE_CALL = re.compile(r"^[ \t]*(\w+)\((.*)$", re.MULTILINE)


def _values_in_order(name: str) -> tuple[str, ...]:
    if name not in TOOLS:
        return ()
    return (*TOOLS[name].required, *(["memory_id"] if TOOLS[name].takes_id else ()))


def _write_lines(call: ToolCall) -> str:
    """`name("value", "value")`; arguments that a schema does not list in this order: one object."""
    values = [call.arguments]
    if tuple(call.arguments) == _values_in_order(call.name)[: len(call.arguments)]:
        values = list(call.arguments.values())
    return f"{call.name}({json_text(values)[1:-1]})"


def _scan_lines(text: str) -> Iterator[Attempt]:
    """Lines that begin like a call; a JSON string has no line break, so one is never inside."""
    for found in _LINE_CALL.finditer(text):
        name, rest = found[1], found[2].rstrip()
        closed, names = rest.endswith(")"), _values_in_order(found[1])
        try:
            values = json.loads(f"[{rest[:-1]}]") if closed else None
        except (ValueError, RecursionError):
            values = None
        source: Any = "" if values is None else "?"
        if values is not None and len(values) <= 1 and (not values or isinstance(values[0], dict)):
            source = values[0] if values else {}
        elif values is not None and len(values) <= len(names):
            source = dict(zip(names, values, strict=False))
        yield Attempt(found[0], source, name, closed)


FORMATS: Registry[Format] = Registry("wire")
FORMATS.add("qwen", Format(_write_qwen, _scan_tags))
FORMATS.add("text", Format(_write_text, _scan_text, lists_tools=True))
FORMATS.add("compact", Format(_write_compact, _scan_tags, "", _renamed("content", "new_content")))
FORMATS.add("lines", Format(_write_lines, _scan_lines))


def render_calls(calls: Iterable[ToolCall], wire: str) -> str:
    """The reply that makes these calls; the inverse of `parse_reply`.

    Arguments come in the order of the schema. Markers and tags inside texts are escaped in the
    JSON. Raises InputError for an unknown format.
    """
    form, texts = FORMATS[wire], []
    for call in calls:
        order = [*TOOLS[call.name].required, "memory_id"] if call.name in TOOLS else []
        known = [key for key in order if key in call.arguments]
        keys = (*known, *(key for key in call.arguments if key not in known))
        texts.append(form.write(replace(call, arguments={k: call.arguments[k] for k in keys})))
    return form.between.join(texts)
