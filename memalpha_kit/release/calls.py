"""How the published training code reads a reply (`agent.py`, `_parse_function_calls_from_text`).

Registered as "release" for the text format; the other formats are our own and are read by our
rules. Calls are lost and completed on the way: nothing counts after `✿RESULT✿:`; arguments end at
the next `✿`, and a call whose arguments hold one is gone; of two calls on one line only the last
arguments count, under a name that holds the first call; of several objects of one shape the last
counts, and others or an array are a failed call; a thinking block is scanned like everything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from memalpha_kit.method.calls import REPLY_RULES, Reading, read_reply
from memalpha_kit.records import ToolCall
from memalpha_kit.text import complete_objects, past_space, repaired_value

NAME, ARGUMENTS, RESULT, RETURN = "✿FUNCTION✿", "✿ARGS✿:", "✿RESULT✿", "✿RETURN✿"


def read_released(text: str, wire: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The calls that the published code finds in a reply."""
    if wire != "text":
        return read_reply(text, wire, reading)
    return tuple(
        _call(name, source, raw, reading.repair)
        for name, source, raw in _matches(text.partition(f"{RESULT}:")[0].strip())
    )


def _matches(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, arguments and text of what their regular expression matches, in linear time:

    `✿FUNCTION✿:\\s*([^\\n]+)\\s*✿ARGS✿:\\s*([^✿]+?)(?=✿RESULT✿|✿RETURN✿|✿FUNCTION✿|$)`. The name
    takes as much of its line as it can, so the last possible `✿ARGS✿:` counts.
    """
    start = text.find(f"{NAME}:")
    while start >= 0:
        after = start + len(NAME) + 1
        begin = past_space(text, after)
        blank = bool(text[after:begin].strip("\n"))  # a name of blanks is one
        line = text.find("\n", begin)
        line = len(text) if line < 0 else line
        stop = after
        for place in _argument_markers(text, begin, line):
            inside = place + len(ARGUMENTS)
            end = text.find("✿", inside)
            end = len(text) if end < 0 else end
            whole = end == len(text) or text.startswith((NAME, RESULT, RETURN), end)
            if whole and end > inside and place >= begin + (not blank):
                name, source = text[begin:place].strip(), text[inside:end].strip()
                yield name, source, text[start:end]
                stop = end
                break
        start = text.find(f"{NAME}:", stop)


def _argument_markers(text: str, begin: int, line: int) -> Iterator[int]:
    """Where the arguments may start: on a line below the name, else on its line, last first."""
    below = past_space(text, line)
    if text.startswith(ARGUMENTS, below):
        yield below
    place = text.rfind(ARGUMENTS, begin, line)
    while place >= 0:
        yield place
        place = text.rfind(ARGUMENTS, begin, place)


def _call(name: str, source: str, raw: str, repair: bool) -> ToolCall:
    """The call after the repair of its arguments: of objects in a row that have the same keys and
    types `json_repair` keeps the last, and of others makes an array, which no tool takes."""
    for first, end in (("{", "}"), ("```", "\n```")):
        if source.startswith(first) and source.rfind(end) > 0:
            source = source[: source.rfind(end) + len(end)]
    items, rest = complete_objects(source, anywhere=True)
    whole = not re.search(r"[{\[]", rest) and not re.match(r"(```\w*)?\s*\[", source)
    source = "\n".join(map(json.dumps, items)) if items and whole else source
    value = items[0] if len(items) == 1 and whole else repaired_value(source) if repair else None
    if not isinstance(value, dict):
        return ToolCall(name, raw=raw, status="malformed", detail="bad_json")
    return ToolCall(name, value, raw)


REPLY_RULES.add("release", read_released)
