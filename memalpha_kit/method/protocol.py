"""What the writer is shown and how its reply is read.

The one law: `parse_reply(render_calls(calls, wire), "stop", wire)` gives the calls back, and
`parse_reply` is a pure function of the text and the finish reason that never raises for what a
model wrote: every attempt at a call becomes a `ToolCall`, a broken one a `malformed` one.

Three wires:
* "qwen": Qwen3's native JSON between `<tool_call>` tags; the chat template lists the tools.
* "text": the `✿FUNCTION✿` / `✿ARGS✿` lines that the published Memalpha-4B speaks.
* "compact": "qwen" for the miniature: arguments first and the name last, so that insert or update
  is decided after the content; an update's text is called `content` there.

>>> call = ToolCall("memory_delete", {"memory_type": "core_memory"})
>>> render_calls([call], "compact")
'<tool_call>{"arguments": {"memory_type": "core_memory"}, "name": "memory_delete"}</tool_call>'
>>> parse_reply('<tool_call>{"name": "memory_delete"', "length", "qwen")[0].detail
'truncated'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.memory import (
    COMPONENTS,
    DELETE,
    INSERT,
    SEARCH,
    TOOLS,
    UPDATE,
    Tool,
    components,
    shown,
)
from memalpha_kit.records import STORES, Entry, Memory, ToolCall
from memalpha_kit.settings import Behaviour, MemoryConfig, ProtocolConfig
from memalpha_kit.text import complete_object, repaired_object, value_end, without_surrogates

WIRES = ("qwen", "text", "compact")
STOP_MARKERS = ("✿RESULT✿", "✿RETURN✿")
"""Stop strings for a sampler that speaks the text wire; what follows them is never read."""

# --- Tools ---------------------------------------------------------------------------------------

_PURPOSE = {
    INSERT: "Add one entry to a memory store. The entry gets an id of its own. "
    "The core memory is one paragraph and takes no entries.",
    UPDATE: "Rewrite what is stored. For core memory give the whole new paragraph, also to fill it "
    "for the first time; for a store, replace the text of the entry with the given id.",
    DELETE: "Empty the core memory, or remove the entry with the given id from a store.",
    SEARCH: "Find entries of a store by their words or by their meaning. "
    "The core memory needs no search: it is always visible.",
}
_MEANING = {
    "memory_type": "The part of the memory that the call is about.",
    "content": "Text of the new entry.",
    "new_content": "The complete new text: what stays true of the old one together with the news.",
    "memory_id": "Id of the entry, as it stands in front of it. Left out for core memory.",
    "query": "What to look for.",
    "search_method": "How entries are ranked: by words (the default) or by meaning.",
}


def tool_schemas(
    config: MemoryConfig, mode: Literal["memorise", "chat"] = "memorise"
) -> list[dict[str, Any]]:
    """The tools offered in a mode, as JSON schemas of functions.

    Memorising offers insert, update and delete; chat offers search. `memory_type` lists only what
    is switched on, and a tool with nothing to work on is not offered. Source: method.md 2.1.
    """
    names = (INSERT, UPDATE, DELETE) if mode == "memorise" else (SEARCH,)
    offered = {name: [c for c in components(config) if TOOLS[name].accepts(c)] for name in names}
    return [_schema(name, TOOLS[name], on) for name, on in offered.items() if on]


def _schema(name: str, tool: Tool, names: list[str]) -> dict[str, Any]:
    values = {"memory_type": [f"{component}_memory" for component in names]}
    optional = ("memory_id",) if tool.takes_id else ()
    if name == SEARCH:
        optional, values["search_method"] = ("search_method",), ["bm25", "text-embedding"]
    properties = {
        argument: {"type": "string", "description": _MEANING[argument]}
        | ({"enum": values[argument]} if argument in values else {})
        for argument in (*tool.required, *optional)
    }
    parameters = {"type": "object", "properties": properties, "required": list(tool.required)}
    function = {"name": name, "description": _PURPOSE[name], "parameters": parameters}
    return {"type": "function", "function": function}


# --- What the writer is shown --------------------------------------------------------------------

_KEEP = {
    "core": "Core memory is one dense paragraph: the essence of everything read up to now.",
    "semantic": "Semantic memory lists facts and concepts that hold in general.",
    "episodic": "Episodic memory lists what happened to somebody: always with its date, and with "
    "the place or the circumstances where they are known.",
}
_STEP = {
    "core": "Core memory: rewrite it in a few sentences so that it holds whichever fits the "
    "material: who the user is; the gist of the book or article so far; or, for labelled samples, "
    "the rules that say what each label number stands for.",
    "semantic": 'Semantic memory: add every fact worth keeping, for example "Ines, 41, is the '
    'user\'s aunt", "The author of The Salt Road is Jon Aker" or "Sample: Where is Oslo? '
    'Label: 3".',
    "episodic": "Episodic memory: add what the user, the people around the user or the assistant "
    'did, time first, for example "At 2024-05-02, the user booked a train to Graz".',
}


def render_messages(
    memory: Memory,
    chunk: str,
    memory_config: MemoryConfig,
    protocol_config: ProtocolConfig,
    shown_k: int | None = None,
) -> list[dict[str, str]]:
    """System and user message for one chunk: nothing of earlier chunks but the memory.

    `shown_k` overrides how many entries of each store are shown (see `fit_prompt`). The text wire
    lists the tools in the system message; for "qwen" pass `tool_schemas` to the chat template.
    Special-token text in a chunk is ordinary text: encode it as such (D17). Own wording.
    Source: method.md 1.5, 2.3, 3.1, 3.2.
    """
    config = memory_config if shown_k is None else replace(memory_config, shown=shown_k)
    system = _system_text(memory, chunk, config)
    if protocol_config.wire == "text":
        system += _tool_text(tool_schemas(config))
    user = _chunk_text(chunk, config, int(0.8 * protocol_config.max_reply_tokens))
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _system_text(memory: Memory, chunk: str, config: MemoryConfig) -> str:
    kinds = [_KEEP[component] for component in COMPONENTS if getattr(config, component)]
    if not kinds:
        return "You are an assistant whose memory is switched off: there is nothing to write to."
    rules = (
        "Take in all of the text you are given.",
        "Find its facts and concepts and how they belong together.",
        "Store what matters where it fits. The content decides the kind of memory:",
        *(f"  {kind}" for kind in kinds),
    )
    return "\n\n".join(
        (
            "You are an assistant with a memory. In this turn you take in what the user brings "
            "you and keep it for later.",
            "# Rules\n" + "\n".join(f"- {rule}" for rule in rules),
            "# Memory now",
            *_blocks(memory, chunk, config),
            "Your task is to store, with the tools. If nothing is left to store, answer Done. "
            "Nobody reads your reply and there is only this turn, so make all calls in it.",
        )
    )


def _blocks(memory: Memory, chunk: str, config: MemoryConfig) -> Iterator[str]:
    """One tagged block per component; a store says how many entries are visible, and which."""
    if config.core:
        yield f"<core_memory>\n{memory.core}\n</core_memory>"
    for store, entries in zip(STORES, shown(memory, chunk, config), strict=True):
        if getattr(config, store):
            count = f"{len(entries)} of {len(getattr(memory, store))} entries"
            how = f"most recent {count}"
            if config.display == "relevant":
                how = f"{count}: those closest to the new text"
            lines = "\n".join(f"[{entry.id}] {entry.text}" for entry in entries) or "Empty."
            yield f"<{store}_memory> ({how})\n{lines}\n</{store}_memory>"


def _chunk_text(chunk: str, config: MemoryConfig, reply_tokens: int) -> str:
    on = [component for component in COMPONENTS if getattr(config, component)]
    steps = "\n".join(f"{i}. {_STEP[component]}" for i, component in enumerate(on, 1))
    return (
        f"Commit the text below to memory, step by step.\n{steps}\n\n"
        f"<new_chunk>\n{chunk}\n</new_chunk>\n\n"
        f"**Your reply may have at most {reply_tokens} tokens, so keep entries short.**"
    )


def _tool_text(schemas: list[dict[str, Any]]) -> str:
    """The tools and how to call them in the text wire; "" without tools (method.md 2.3)."""
    if not schemas:
        return ""
    functions = [schema["function"] for schema in schemas]
    tools = "\n\n".join(
        f"### {f['name']}\n\n{f['name']}: {f['description']} Parameters: "
        f"{json.dumps(f['parameters'])} The arguments are one JSON object."
        for f in functions
    )
    names, n = ", ".join(f["name"] for f in functions), len(functions)
    calls = "\n".join(
        f"✿FUNCTION✿: name of tool {i}{f', one of [{names}]' if i == 1 else ''}\n"
        f"✿ARGS✿: arguments of tool {i}"
        for i in range(1, n + 1)
    )
    results = "\n".join(f"✿RESULT✿: result of tool {i}" for i in range(1, n + 1))
    return (
        f"\n\n# Tools\n\n## What you can call\n\n{tools}\n\n"
        f"## To call {n} tools at once, write\n\n{calls}\n{results}\n✿RETURN✿: reply to the results"
    )


def render_compact(memory: Memory, chunk: str, memory_config: MemoryConfig) -> str:
    """The miniature's prompt: the shown entries, oldest first, then the chunk.

    A row is written like the arguments of a call and ends in the entry's id, so that using an id
    is copying it. The core is not shown: the miniature has none.
    """
    semantic, episodic = shown(memory, chunk, memory_config)
    rows = "".join(
        "\n" + _json_text({"content": entry.text, "memory_id": entry.id})
        for entry in _by_age(semantic + episodic)
    )
    return f"<memory>{rows}\n</memory>\n<text>\n{chunk}\n</text>"


def _by_age(entries: tuple[Entry, ...]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (len(entry.id), entry.id))  # decimal ids, oldest first


Prompt = TypeVar("Prompt")


def fit_prompt(
    render: Callable[[int], Prompt], count: Callable[[Prompt], int], shown: int, limit: int
) -> tuple[Prompt, int]:
    """The first prompt of at most `limit` tokens, and how many entries per store it shows.

    Starts with `shown` entries and halves (5, 2, 1, 0). `count` gives the policy tokens of a
    rendered prompt. Raises InputError if even the prompt without entries is too long: such a chunk
    must be split when the data is built. Source: method.md 1.5, D09.
    """
    while True:
        prompt = render(shown)
        n_tokens = count(prompt)
        if n_tokens <= limit:
            return prompt, shown
        if shown <= 0:
            raise InputError(
                f"prompt: expected at most {limit} tokens, found {n_tokens} with no entry shown; "
                "build the data with smaller chunks"
            )
        shown //= 2


# --- What the writer replies ---------------------------------------------------------------------

AS_TEXT = ("memory_id",)  # arguments whose unquoted value is text: 0712 is "0712"
MAX_REPAIR_CHARS = 32_000  # a longer reply is read, but nothing in it is repaired


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a call as a wire's scanner finds it, from its start marker to its end."""

    raw: str
    source: str | None  # JSON text; None if the marker for arguments is missing
    name: str = ""  # text wire: the name stands outside the JSON
    closed: bool = False  # an end marker was written, so the attempt cannot be cut off


def parse_reply(
    text: str,
    finish: str,
    wire: str,
    thinking: bool = False,
    execute_truncated: bool = False,
    behaviour: Behaviour = "fixed",
) -> tuple[ToolCall, ...]:
    """Every attempt at a call in a reply, in order; status `parsed`, or `malformed` with a code.

    `finish` is "stop" or "length": the last attempt of a reply that hit the length limit is
    `truncated` unless its JSON is complete (`execute_truncated`: it is repaired and run). With
    `thinking` only what follows the last `</think>` is read; without it the same holds if the
    reply opens a `<think>` before its first call. Arguments are decoded, else repaired, else
    `bad_json`; an unquoted `memory_id` keeps its characters (0712 is "0712").
    `behaviour` "release" reads the text wire as the published training code does, losing and
    completing calls on the way (method.md 2.4); the other wires are our own and have none.
    Source: method.md 2.5, 9.4. Raises InputError for an unknown wire.
    """
    if wire not in WIRES:
        raise InputError(f"wire: expected one of {WIRES}, found {wire!r}{closest(wire, WIRES)}")
    text = without_surrogates(text)
    if behaviour == "release" and wire == "text":
        return tuple(_parse_release(text))
    marker, scan = ("✿FUNCTION✿", _scan_text) if wire == "text" else ("<tool_call>", _scan_tags)
    if thinking or "<think>" in text.split(marker, 1)[0]:
        text = text.rpartition("</think>")[2] if "</think>" in text else ""
    attempts = list(scan(text))
    repair = len(text) <= MAX_REPAIR_CHARS
    last = len(attempts) - 1
    return tuple(
        _read(
            attempt,
            wire,
            cut=finish == "length" and i == last and not attempt.closed,
            repair_cut=execute_truncated,
            repair=repair,
        )
        for i, attempt in enumerate(attempts)
    )


_UNFINISHED = re.compile(r"(?<!✿ARGS)✿[A-Z]*\Z")


def _scan_text(text: str) -> Iterator[_Attempt]:
    """Attempts of the text wire: each runs from a function marker to the next one.

    Nothing counts from the first result or return marker on, nor an unfinished marker at the end.
    """
    text = re.split("|".join(STOP_MARKERS), text, maxsplit=1)[0]
    for part in text.split("✿FUNCTION✿")[1:]:
        part = _UNFINISHED.sub("", part)
        name, marker, rest = (piece.strip() for piece in part.partition("✿ARGS✿"))
        name = name.removeprefix(":").strip()
        if not marker:
            name = name.partition("\n")[0]
        source = rest.partition("✿ARGS✿")[0].removeprefix(":") if marker else None
        yield _Attempt("✿FUNCTION✿" + part.rstrip(), source, name)


_TAG = re.compile("</?tool_call>")
_CLOSING = re.compile(r"\s*</tool_call>")


def _scan_tags(text: str) -> Iterator[_Attempt]:
    """Attempts of the tag wires: each runs from `<tool_call>` to the end of its JSON object.

    So a tag inside a string ends nothing. Without a complete object the attempt runs to the next
    tag, opening or closing, or to the end of the text.
    """
    start = text.find("<tool_call>")
    while start >= 0:
        inside = start + len("<tool_call>")
        end = value_end(text, inside)
        if end is None:
            tag = _TAG.search(text, inside)
            end = tag.start() if tag else len(text)
        closing = _CLOSING.match(text, end)
        stop = closing.end() if closing else end
        yield _Attempt(text[start:stop], text[inside:end], closed=closing is not None)
        start = text.find("<tool_call>", stop)


def _read(attempt: _Attempt, wire: str, cut: bool, repair_cut: bool, repair: bool) -> ToolCall:
    """The call of an attempt. `cut`: generation stopped inside it if its JSON is not complete."""
    broken = ToolCall(attempt.name, raw=attempt.raw, status="malformed", detail="malformed")
    if attempt.source is None:
        return replace(broken, detail="truncated") if cut else broken
    value = complete_object(attempt.source, AS_TEXT)
    if value is None and cut and not repair_cut:
        return replace(broken, detail="truncated")
    if value is None and repair:
        value = repaired_object(attempt.source, AS_TEXT)
    if value is None:
        return replace(broken, detail="bad_json")
    if wire == "text":
        return ToolCall(attempt.name, value, attempt.raw)
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or arguments is None:
        return broken
    if isinstance(arguments, str):  # JSON text within JSON
        arguments = complete_object(arguments, AS_TEXT)
    if not isinstance(arguments, dict):
        return replace(broken, name=name, detail="bad_json")
    if wire == "compact" and name == UPDATE:
        arguments = _renamed(arguments, "content", "new_content")
    return ToolCall(name, arguments, attempt.raw)


def _renamed(arguments: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """`arguments` with one key renamed, unless the new key is there too."""
    if new in arguments:
        return dict(arguments)
    return {new if key == old else key: value for key, value in arguments.items()}


# The release's scan, marker for marker; possessive so that no text makes it slow (method.md 2.4).
_RELEASE_CALL = re.compile(
    r"✿FUNCTION✿:([^\n✿]*+)\s*+✿ARGS✿:([^✿]++)(?=✿RESULT✿|✿RETURN✿|✿FUNCTION✿|\Z)"
)


def _parse_release(text: str) -> Iterator[ToolCall]:
    text = text.partition("✿RESULT✿:")[0].strip()
    for match in _RELEASE_CALL.finditer(text):
        name, source = match[1].strip(), match[2].strip()
        for first, end in (("{", "}"), ("```", "```")):
            if source.startswith(first) and source.rfind(end) > 0:
                source = source[: source.rfind(end) + len(end)]
        value, end = complete_object(source), value_end(source)
        if value is None and len(text) <= MAX_REPAIR_CHARS:
            value = repaired_object(source)
        if value is None or (end is not None and value_end(source, end) is not None):
            # also several objects in a row: there an array, which no tool takes
            yield ToolCall(name, raw=match[0], status="malformed", detail="bad_json")
        else:
            yield ToolCall(name, value, match[0])


# --- What a teacher writes -----------------------------------------------------------------------

_MARKUP = re.compile(r"<(?=/?(?:tool_call|think)>|\|)")  # tags of the wire, special tokens


def render_calls(calls: Iterable[ToolCall], wire: str) -> str:
    """The reply that makes these calls; the inverse of `parse_reply`.

    Arguments come in the order of the schema. Markers and tags inside texts are escaped in the
    JSON, so that nothing a text holds can end a call. Raises InputError for an unknown wire.
    """
    if wire not in WIRES:
        raise InputError(f"wire: expected one of {WIRES}, found {wire!r}{closest(wire, WIRES)}")
    return ("" if wire == "compact" else "\n").join(_render_call(call, wire) for call in calls)


def _render_call(call: ToolCall, wire: str) -> str:
    order = [*TOOLS[call.name].required, "memory_id"] if call.name in TOOLS else []
    keys = sorted(call.arguments, key=lambda k: order.index(k) if k in order else len(order))
    arguments = {key: call.arguments[key] for key in keys}
    if wire == "text":
        return f"✿FUNCTION✿: {call.name}\n✿ARGS✿: {_json_text(arguments)}"
    if wire == "qwen":
        body = _json_text({"name": call.name, "arguments": arguments})
        return f"<tool_call>\n{body}\n</tool_call>"
    if call.name == UPDATE:
        arguments = _renamed(arguments, "new_content", "content")
    return f"<tool_call>{_json_text({'arguments': arguments, 'name': call.name})}</tool_call>"


def _json_text(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("✿", "\\u273f")
    return _MARKUP.sub(r"\\u003c", text)
