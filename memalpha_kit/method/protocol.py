"""What the writer is shown for one chunk: the rules, the memory so far, the chunk, the tools.

The wording stands in `texts/writer.yaml`. A prompt holds nothing of earlier chunks but the memory,
and of each list at most `memory.shown` entries, fewer where the prompt would not fit. How the reply
is read is `calls.py`.

>>> from memalpha_kit.entries import Entry
>>> print(render_compact(Memory(semantic=(Entry("7", "Nora keeps bees."),)), "Hi.", MemoryConfig()))
<memory>
{"content": "Nora keeps bees.", "memory_id": "7"}
</memory>
<text>
Hi.
</text>
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from memalpha_kit.entries import Store
from memalpha_kit.episode_settings import MemoryConfig, ProtocolConfig
from memalpha_kit.errors import InputError
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.formats import FORMATS, json_text
from memalpha_kit.method.memory import INSERT, MEMORY_COMPONENTS, TEXTS, TOOLS, components
from memalpha_kit.method.ranking import shown
from memalpha_kit.records import Memory, ToolCall


def tool_schemas(config: MemoryConfig) -> list[dict[str, Any]]:
    """The tools offered while memorising (`config.tools`), as JSON schemas of functions.

    `memory_type` lists only what is switched on; a tool with nothing to work on is not offered.
    """
    schemas = []
    for name, tool in ((name, TOOLS[name]) for name in config.tools):
        kinds = [f"{on}_memory" for on in components(config) if tool.accepts(on)]
        if not kinds:
            continue
        meanings, properties = TEXTS["arguments"] | dict(tool.meanings), {}
        for argument in tool.arguments:
            properties[argument] = {"type": "string", "description": meanings[argument]}
        properties["memory_type"]["enum"] = kinds
        parameters = {"type": "object", "properties": properties, "required": list(tool.required)}
        function = {"name": name, "description": tool.purpose, "parameters": parameters}
        schemas.append({"type": "function", "function": function})
    return schemas


Chat = tuple[list[dict[str, str]], list[dict[str, Any]] | None]
"""Messages, and the tools that a chat template or an endpoint is handed beside them."""


def render_chat(
    memory: Memory, chunk: str, memory_config: MemoryConfig, protocol_config: ProtocolConfig
) -> Chat:
    """The chat of one chunk, as `protocol.prompt` says; no tools where the text tells of them.

    Raises InputError for the prompt "compact", which is no chat.
    """
    if protocol_config.prompt == "compact":
        raise InputError("protocol.prompt: expected paper or short for a chat, found compact")
    if protocol_config.prompt == "short":
        return render_short(memory, chunk, memory_config, protocol_config.wire), None
    messages = render_messages(memory, chunk, memory_config, protocol_config)
    listed = FORMATS[protocol_config.wire].lists_tools
    return messages, None if listed else tool_schemas(memory_config)


def render_messages(
    memory: Memory, chunk: str, memory_config: MemoryConfig, protocol_config: ProtocolConfig
) -> list[dict[str, str]]:
    """System and user message for one chunk: nothing of earlier chunks but the memory.

    The text format lists the tools in the system message; for others pass `tool_schemas` to the
    chat template. Tags and special tokens in a chunk are ordinary text: encode it as such.
    """
    system = _system_text(memory, chunk, memory_config)
    if FORMATS[protocol_config.wire].lists_tools:
        system += _tool_text(tool_schemas(memory_config))
    tasks = [MEMORY_COMPONENTS[name].task for name in components(memory_config)]
    steps = "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 1))
    end = TEXTS["chunk"]["end"].format(tokens=int(0.8 * protocol_config.max_reply_tokens))
    block = f"<new_chunk>\n{without_tags(chunk)}\n</new_chunk>"
    user = f"{TEXTS['chunk']['task']}\n{steps}\n\n{block}\n\n{end}"
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _system_text(memory: Memory, chunk: str, config: MemoryConfig) -> str:
    texts, on = TEXTS["system"], components(config)
    if not on:
        return texts["off"]
    rules = (*texts["rules"], *(f"  {MEMORY_COMPONENTS[name].keeps}" for name in on))
    rule_list = "# Rules\n" + "\n".join(f"- {rule}" for rule in rules)
    blocks = _blocks(memory, chunk, config)
    return "\n\n".join((texts["role"], rule_list, "# Memory now", *blocks, texts["end"]))


def _blocks(memory: Memory, chunk: str, config: MemoryConfig) -> Iterator[str]:
    """One tagged block per component; a list says how many entries are visible, and which."""
    visible = shown(memory, chunk, config)
    for name in components(config):
        part = memory.part(name)
        if not isinstance(part, Store):
            yield f"<{name}_memory>\n{without_tags(part or '')}\n</{name}_memory>"
            continue
        count = f"{len(visible[name])} of {len(part)} entries"
        closest = f"{count}: those closest to the new text"
        how = closest if config.display == "relevant" else f"most recent {count}"
        lines = "\n".join(f"[{e.id}] {one_row(e.text)}" for e in visible[name]) or "Empty."
        yield f"<{name}_memory> ({how})\n{lines}\n</{name}_memory>"


_BREAK = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLOCK_TAG = re.compile(r"<(?=/?(?:\w+_memory|new_chunk)\b)")


def one_row(text: str) -> str:
    """An entry's text for a list of rows: it can neither begin another row nor close its block.

    Lines after the first are indented, and the tags of blocks lose their first character's meaning.

    >>> one_row("Nora keeps bees.\\n[7] Tom lies.</semantic_memory>")
    'Nora keeps bees.\\n    [7] Tom lies.&lt;/semantic_memory>'
    """
    return _BREAK.sub(lambda found: found[0] + "    ", without_tags(text))


def without_tags(text: str) -> str:
    """The text, in which the tags of memory and chunk blocks have lost their first character."""
    return _BLOCK_TAG.sub("&lt;", text)


def _tool_text(schemas: list[dict[str, Any]]) -> str:
    """The tools and how to call them in the text format, as Qwen-Agent puts it; "" without any."""
    if not schemas:
        return ""
    texts, tools, calls, results = TEXTS["format_text"], [], [], []
    names = texts["names"].format(names=", ".join(s["function"]["name"] for s in schemas))
    for i, schema in enumerate(schemas, 1):
        function = schema["function"]
        parameters = json.dumps(function["parameters"])
        tools.append(texts["tool"].format(**function | {"parameters": parameters}))
        calls += [texts["name"].format(i=i) + (names if i == 1 else "")]
        calls += [texts["arguments"].format(i=i)]
        results.append(texts["result"].format(i=i))
    lines = "\n".join((*calls, *results, texts["end"]))
    how = texts["calls"].format(n=len(schemas))
    return "\n\n" + "\n\n".join((texts["heading"], *tools, how, lines))


def render_compact(memory: Memory, chunk: str, memory_config: MemoryConfig) -> str:
    """The miniature's prompt: the shown entries, oldest first, then the chunk.

    A row is written like the arguments of a call and ends in the entry's id, so that using an id
    is copying it. The core is not shown: the miniature has none.
    """
    entries = [entry for part in shown(memory, chunk, memory_config).values() for entry in part]
    entries.sort(key=lambda entry: (len(entry.id), entry.id))  # decimal ids
    rows = (json_text({"content": e.text, "memory_id": e.id}) for e in entries)
    return "\n".join(("<memory>", *rows, f"</memory>\n<text>\n{chunk}\n</text>"))


def render_short(
    memory: Memory, chunk: str, memory_config: MemoryConfig, wire: str
) -> list[dict[str, str]]:
    """System and user message in about 40 tokens beside the chunk: the task, a call as an example.

    For models of a few hundred million parameters, which learn the rest from a warm start. The
    core is not shown, and the lists are left out while nothing of them is.
    """
    example = ToolCall(INSERT, dict(TEXTS["short"]["example"]))
    task = TEXTS["short"]["task"].format(example=render_calls([example], wire))
    entries = [entry for part in shown(memory, chunk, memory_config).values() for entry in part]
    rows = "\n".join(f"[{entry.id}] {one_row(entry.text)}" for entry in entries)
    known = TEXTS["short"]["known"].format(rows=rows) if rows else ""
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": known + without_tags(chunk)},
    ]


Prompt = TypeVar("Prompt")


def fit_prompt(
    render: Callable[[int], Prompt], count: Callable[[Prompt], int], shown: int, limit: int
) -> Prompt:
    """The first prompt of at most `limit` tokens.

    Starts with `shown` entries of each list and halves (5, 2, 1, 0). `count` gives the policy
    tokens of a rendered prompt. Raises InputError if even the prompt without entries is too long:
    such a chunk must be split when the data is built.
    """
    while (n_tokens := count(prompt := render(shown))) > limit:
        if shown <= 0:
            raise InputError(
                f"prompt: expected at most {limit} tokens, found {n_tokens} with no entry shown; "
                "build the data with smaller chunks or raise protocol.max_prompt_tokens"
            )
        shown //= 2
    return prompt
