"""How calls are written and read: one reader for all four tool-call formats (`formats.py`).

The one law: `parse_reply(render_calls(calls, wire), "stop", wire)` gives the calls back, and
reading is a pure function of the reply that never raises for what a model wrote and takes time
linear in its length: every attempt at a call becomes a `ToolCall`, a broken one a `malformed` one.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memalpha_kit.episode_settings import MemoryConfig, ProtocolConfig
from memalpha_kit.method.formats import FORMATS, OPEN, Attempt, renamed
from memalpha_kit.method.memory import TOOLS
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
    reading = Reading(finish, thinking, execute_truncated, len(text) <= MAX_REPAIR_CHARS)
    return REPLY_RULES[behaviour](without_surrogates(text), wire, reading)


def calls_apart(text: str, finish: str) -> tuple[str, tuple[ToolUse, ...]]:
    """A reply's text without its calls, and these as a server with a tool parser gives them.

    Calls inside the reasoning are thoughts, and attempts that are broken beyond repair stay text.
    """
    calls = [call for call in parse_reply(text, finish, "qwen") if call.status == "parsed"]
    for call in reversed(calls):  # from the end, for a thought may hold the same words
        text = "".join(text.rpartition(call.raw)[::2])
    pairs = ((call.name, json.dumps(call.arguments)) for call in calls)
    uses = tuple(ToolUse(f"call_{place}", *pair) for place, pair in enumerate(pairs))
    return text.strip() if uses else text, uses


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
    how = (protocol_config.thinking, protocol_config.execute_truncated, memory_config.behaviour)
    calls = parse_reply(completion.text, finish, wire, *how)
    return calls + parse_tools(completion.tools, finish, wire)


def read_reply(text: str, wire: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The rules of "fixed": what follows the thinking is scanned for the format's attempts."""
    spoken = without_thinking(_after_closing(text) if reading.thinking else text, asked=False)
    return _calls(list(FORMATS[wire].scan(spoken or "")), wire, reading)


def _after_closing(text: str) -> str:
    """What follows the first closing tag that no call holds in its JSON; "" if there is none."""
    place = text.find("</think>")
    for _ in range(MAX_BROKEN):
        marker = max(text.rfind(mark, 0, place) for mark in (OPEN, "✿ARGS✿"))
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
        if name is not None and isinstance(arguments, dict):
            parsed = ToolCall(name, arguments, attempt.raw)
            return renamed(parsed, FORMATS[wire].new_content, "new_content")
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
    source, found = source.lstrip("\"'}],:;. \n"), list[Any]()  # no part of a call
    for _ in range(MAX_BROKEN if repair else 1):
        items, rest = complete_objects(source, AS_TEXT, anywhere=True)
        found += items
        if items and not _OBJECT.match(rest):
            return found
        another = _RESTART.search(rest, rest.find("{") + 1) if repair else None
        if not another:
            break
        found += _repaired(rest[: another.start()])
        source = rest[another.end() :]
    return [*found, *([_TRUNCATED] if fatal else _repaired(rest) if repair else [None])]


def _repaired(source: str) -> list[Any]:
    """The objects that the repair of a broken one gives, None if it gives nothing."""
    value = repaired_value(source, AS_TEXT)
    return value if isinstance(value, list) and value else [value]


_OBJECT = re.compile(r"[\s,]*\{")
_RESTART = re.compile(
    r"(?<=[}\]\"'])[^{}\[\]\"':]{1,40}(?=\{\s*([\"']|(name|arguments|memory_type)\s*:))"
    r"|(?<=[}\]])(?=\{\s*([\"']\w+[\"']|name|arguments|memory_type)\s*:)"  # no "}{" in a text
)
"""Between a broken object and the next one: no colon, which stands before an object inside."""


# --- Writing -------------------------------------------------------------------------------------


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
