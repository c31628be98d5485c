"""The external memory: what a call does to it, and how large it is.

A memory has three components (paper, section 3.2): core is one paragraph, semantic a list of facts,
episodic a list of dated events. A model changes it by calls of three tools, and searches it with a
fourth (`ranking.py`). The one law: `apply` is a pure function and never raises for what a model
wrote, so folding it over an episode's calls (`replay`) gives the episode's memory, byte for byte.

What is refused, and when two texts are the same, is a set of `Rules` that the setting `behaviour`
names: "fixed" is right, "release" is what the published code does (`release/memory.py`).
A user's module adds a tool with `TOOLS.add` and a component with `MEMORY_COMPONENTS.add`; the
settings `memory.tools` and `memory.components` then switch them on.

>>> call = ToolCall("new_memory_insert", {"memory_type": "semantic_memory", "content": "Bees hum."})
>>> memory, call = apply(empty(MemoryConfig()), call, MemoryConfig())
>>> memory.semantic, call.status
((Entry(id='1', text='Bees hum.'),), 'ok')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import yaml
from immutables import Map

from memalpha_kit.entries import Entry, Store, essence
from memalpha_kit.episode_settings import MemoryConfig
from memalpha_kit.records import PAPER_PARTS, Memory, ToolCall
from memalpha_kit.registry import Registry
from memalpha_kit.tokens import Counter, check_counter, counter


def load_texts(name: str) -> dict[str, Any]:
    """What `texts/<name>.yaml` holds."""
    file = resources.files("memalpha_kit.method") / "texts" / f"{name}.yaml"
    return yaml.safe_load(file.read_text("utf-8"))


TEXTS = load_texts("writer")
"""What the writer is told about components, tools and arguments."""


# --- Components -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Component:
    """A part of the memory: a list of entries, or one paragraph that is rewritten as a whole.

    `keeps` tells the writer what belongs into it, `task` what to do about it with each chunk, and
    `answering` tells a model that answers from the memory what it is looking at.
    """

    keeps: str
    task: str
    answering: str = ""
    paragraph: bool = False


MEMORY_COMPONENTS: Registry[Component] = Registry("memory component")
for _name in PAPER_PARTS:
    MEMORY_COMPONENTS.add(_name, Component(**TEXTS["components"][_name], paragraph=_name == "core"))


def components(config: MemoryConfig) -> tuple[str, ...]:
    """The names of the components that are switched on, in the order of listing."""
    return (*(name for name in PAPER_PARTS if getattr(config, name)), *config.components)


def empty(config: MemoryConfig) -> Memory:
    """A memory with nothing in it; components that are switched off are None.

    Raises InputError for a name in the settings that nobody has registered.
    """
    for name in config.tools:
        TOOLS[name]
    RULES[config.behaviour]
    check_counter(config.counter)
    on = {name: "" if MEMORY_COMPONENTS[name].paragraph else Store() for name in components(config)}
    paper: Any = {name: on.pop(name, None) for name in PAPER_PARTS}
    return Memory(**paper, others=Map(on))


# --- Tools ----------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What an accepted call asks for: the component, the text, and the id of an entry that is there
    (None where the tool or the component takes none)."""

    component: str
    text: str = ""
    id: str | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Tool:
    """A tool: what it is for, what it takes, and what it does.

    `run` gives the memory afterwards, or a code such as "duplicate" if there is nothing to do (the
    call is `skipped` then). `text` names the argument that holds the text, None if it takes none;
    `takes_id`: the lists need the id of an entry. `refuse` adds a reason of its own: a code, ""
    for none. Memorising offers tools of mode "memorise", answering those of mode "chat".
    """

    purpose: str
    run: Callable[[Memory, Request, MemoryConfig], Memory | str]
    text: str | None = None
    takes_id: bool = False
    on_paragraphs: bool = False  # whether it works on core, too
    meanings: Mapping[str, str] = field(default_factory=dict)  # of arguments that only it has
    mode: Literal["memorise", "chat"] = "memorise"
    refuse: Callable[[Memory, Request, MemoryConfig], str] = lambda memory, request, config: ""

    @cached_property
    def required(self) -> dict[str, None]:
        """Arguments that must be there whatever the component is, in order."""
        return dict.fromkeys(("memory_type", *(() if self.text is None else (self.text,))))

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """All that it takes, in the order of its schema."""
        return (*self.required, *(("memory_id",) if self.takes_id else ()))

    def accepts(self, component: str) -> bool:
        """Whether it works on this component at all."""
        return self.on_paragraphs or not MEMORY_COMPONENTS[component].paragraph


def _insert(memory: Memory, request: Request, config: MemoryConfig) -> Memory | str:
    """A new entry at the end, with the memory's next id; the same text twice is a duplicate."""
    entries = memory.part(request.component)
    assert isinstance(entries, Store)  # `Rules.check` refuses to insert into anything else
    if RULES[config.behaviour].repeats(entries, request):
        return "duplicate"
    entry = Entry(str(memory.next_id), request.text)
    return memory.with_part(request.component, entries.adding(entry), memory.next_id + 1)


def _update(memory: Memory, request: Request, config: MemoryConfig) -> Memory | str:
    """Another text for the paragraph, or for the entry, which keeps its id and its place."""
    rules, part = RULES[config.behaviour], memory.part(request.component)
    if isinstance(part, str):
        text = rules.fit_core(request.text, config)
        return "unchanged" if rules.same(part, text) else memory.with_part(request.component, text)
    assert part is not None  # `Rules.check` refuses what is switched off,
    entry = part.get(request.id)
    assert entry  # and what is not there
    if rules.same(entry.text, request.text):
        return "unchanged"
    if config.update_duplicate == "skip" and rules.repeats(part, request):
        return "duplicate"
    return memory.with_part(request.component, part.replacing(entry.id, request.text))


def _delete(memory: Memory, request: Request, config: MemoryConfig) -> Memory | str:
    """The paragraph emptied, or the entry removed."""
    part = memory.part(request.component)
    if isinstance(part, str):
        same = RULES[config.behaviour].same(part, "")
        return "unchanged" if same else memory.with_part(request.component, "")
    assert part is not None  # `Rules.check` refuses what is switched off
    return memory.with_part(request.component, part.removing(request.id) if request.id else part)


INSERT, UPDATE, DELETE = "new_memory_insert", "memory_update", "memory_delete"
SEARCH = "search_memory"
TOOLS: Registry[Tool] = Registry("tool")
_purposes = TEXTS["tools"]
TOOLS.add(INSERT, Tool(_purposes[INSERT], _insert, "content"))
TOOLS.add(UPDATE, Tool(_purposes[UPDATE], _update, "new_content", True, on_paragraphs=True))
TOOLS.add(DELETE, Tool(_purposes[DELETE], _delete, takes_id=True, on_paragraphs=True))
TOOLS.add(SEARCH, Tool(_purposes[SEARCH], lambda memory, *_: memory, "query", mode="chat"))


# --- Applying calls -------------------------------------------------------------------------------


def apply(memory: Memory, call: ToolCall, config: MemoryConfig) -> tuple[Memory, ToolCall]:
    """The memory after `call`, and the call with its status: ok, skipped or rejected.

    A malformed call comes back as it is. A call that was applied before is applied afresh, so
    saved calls can be replayed. Extra arguments are ignored. Nothing changes unless it is ok.
    """
    if call.status == "malformed":
        return memory, call
    ended = partial(ToolCall, call.name, call.arguments, call.raw)
    code, request = RULES[config.behaviour].check(memory, call, config)
    if code:
        return memory, ended("rejected", code)
    result = TOOLS[call.name].run(memory, request, config)
    if isinstance(result, str):
        return memory, ended("skipped", result)
    return result, ended("ok", "")


def replay(calls: Iterable[ToolCall], config: MemoryConfig) -> Memory:
    """The memory that `calls` build from nothing; malformed ones change nothing."""
    memory = empty(config)
    for call in calls:
        memory, _ = apply(memory, call, config)
    return memory


class Rules:
    """How a memory reacts: what is refused with which code, and when two texts are the same."""

    def check(self, memory: Memory, call: ToolCall, config: MemoryConfig) -> tuple[str, Request]:
        """Why the call may not run, as a code, or "" and what it asks for.

        In this order: unknown_tool, not_offered, missing_argument, bad_type, bad_memory_type,
        disabled, core_insert, not_found, empty_content, and what the tool itself refuses.
        """
        nothing, arguments = Request(""), call.arguments
        if call.name not in TOOLS:
            return "unknown_tool", nothing
        tool = TOOLS[call.name]
        if call.name not in self.offered(config):
            return "not_offered", nothing
        if not tool.required.keys() <= arguments.keys():
            return "missing_argument", nothing
        text = self.text(arguments[tool.text]) if tool.text else ""
        if not isinstance(arguments["memory_type"], str) or text is None:
            return "bad_type", nothing
        name = arguments["memory_type"].removesuffix("_memory")
        short = name == arguments["memory_type"]
        if (short and not self.takes_short_names(call, config)) or name not in MEMORY_COMPONENTS:
            return "bad_memory_type", nothing
        part = memory.part(name)
        if part is None:
            return "disabled", nothing
        if not tool.accepts(name):  # core can neither grow nor be searched
            return "core_insert" if call.name == INSERT else "bad_memory_type", nothing
        code, number = "", None
        if tool.takes_id and isinstance(part, Store):
            code, number = self.entry_id(part, call)
        if not code and tool.text and self.is_blank(text):
            code = "empty_content"
        request = Request(name, text, number, arguments)
        return code or tool.refuse(memory, request, config), request

    def offered(self, config: MemoryConfig) -> tuple[str, ...]:
        """The tools that may be called while memorising."""
        return config.tools

    def takes_short_names(self, call: ToolCall, config: MemoryConfig) -> bool:
        """Whether "core" means "core_memory"."""
        return config.short_types

    def entry_id(self, entries: Store, call: ToolCall) -> tuple[str, str | None]:
        """Why `memory_id` is not the id of an entry here, or "" and that id.

        A whole number counts as its digits.
        """
        if "memory_id" not in call.arguments:
            return "missing_argument", None
        value = call.arguments["memory_id"]
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 10**18 else ""
        if not isinstance(value, str):
            return "bad_type", None
        return ("" if entries.get(value) else "not_found"), value

    def text(self, value: Any) -> str | None:
        """A text argument as it is stored; None: it has the wrong type."""
        return value if isinstance(value, str) else None

    def is_blank(self, text: str) -> bool:
        """Whether there is nothing in a text that could be stored."""
        return not essence(text)

    def same(self, before: str, after: str) -> bool:
        """Whether a call changes nothing: white space and invisible characters do not count."""
        return essence(before) == essence(after)

    def repeats(self, entries: Store, request: Request) -> bool:
        """Whether an entry, another one for an update, already says this, however it is spaced."""
        return any(entry.id != request.id for entry in entries.alike(request.text))

    def fit_core(self, text: str, config: MemoryConfig) -> str:
        """`text`, or its beginning and a notice, in at most `config.core_limit_tokens` tokens.

        Cut at a token boundary, white space kept.
        """
        limit, counts = config.core_limit_tokens, counter(config.counter)
        if counts.count(text) <= limit:
            return text
        notice = self.notice(limit)
        for n in range(limit - counts.count(notice), 0, -1):  # the join may cost one more
            if counts.count(cut := counts.cut(text, n) + notice) <= limit:
                return cut
        return counts.cut(text, limit)

    def notice(self, limit: int) -> str:
        """What stands at the end of a core that was cut."""
        return f" [cut after exceeding {limit} tokens]"


RULES: Registry[Rules] = Registry("behaviour")
RULES.add("fixed", Rules())


# --- Looking at a memory --------------------------------------------------------------------------


def tokens(memory: Memory, counter: Counter) -> int:
    """Tokens of the core and of every entry, counted one by one; ids are not counted.

    The size of a memory in the compression reward (paper, section 3.3).
    """
    paragraphs = [part for part in (memory.core, *memory.others.values()) if isinstance(part, str)]
    texts = [entry.text for _, entry in memory.entries()]
    return sum(map(counter.count, (*paragraphs, *texts)))
