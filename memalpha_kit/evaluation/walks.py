"""Methods that walk a model over a text: MemAgent and MEM1.

Each reply is the state that the next request shows. Chains do not see each other: they are walked
in rounds, one request of every chain that still has a piece, so that a server has them all at once.
A request that failed ends its chain with a reason. A reply without a usable state is the model's
mistake: the old state stays, the mistake is counted, and the questions are put all the same.

All wording is our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from memalpha_kit import files
from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, request
from memalpha_kit.data.raw import read_text
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.contexts import ChatSettings, ContextMethod, ContextSettings
from memalpha_kit.evaluation.methods import METHODS, Backends, Method, Prepared, Put, groups
from memalpha_kit.evaluation.writing import Counts, WatchedChat, counts, paid, spent
from memalpha_kit.method.prompts import VERSION, asked
from memalpha_kit.records import Answer, Instance
from memalpha_kit.sections import Count, NonNegative, Share, about, section
from memalpha_kit.text import without_thinking


@dataclass
class Chain:
    """One walk over an instance."""

    instance: Instance
    states: list[str] = field(default_factory=lambda: [""])  # at the beginning, after each chunk
    unusable: int = 0  # replies without a usable state
    calls: list[Counts] = field(default_factory=list)
    failure: dict[str, Any] = field(default_factory=dict)  # why it ended early, as in `Prepared`

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.failure) or len(self.states) > len(self.instance.chunks)

    def take(self, reply: ChatReply, read: Callable[[str], str | None]) -> None:
        """The next state from a reply."""
        self.calls.append(counts(reply))
        if reply.error or reply.text is None:
            why = f"piece {len(self.states) - 1}: {reply.error or 'the reply has no text'}"
            self.failure = {"error": why, "finish": reply.finish, "lost": paid(reply)}
            return
        state = read(reply.text)
        self.unusable += state is None
        self.states.append(self.states[-1] if state is None else state)


def walk_all(
    method: Method,
    model: ChatModel,
    instances: Sequence[Instance],
    ask: Callable[[Instance, str, str], ChatRequest],
    read: Callable[[str], str | None],
    done: Callable[[Prepared], None],
    used: Callable[[str], str] = str,
) -> None:
    """Calls `done` with what each instance's walk left, as soon as it is finished.

    `ask` makes the request of an instance for a state ("" at the beginning) and a chunk, `read`
    gives the state in a reply, None if there is none; `used` is what of a state counts as memory.
    Raises ModelGone.
    """
    model = WatchedChat(model, method.journal)
    for group in groups(instances, method.backends.group):
        live = [Chain(instance) for instance in group]
        while live := [chain for chain in live if not chain.finished]:

            def take(place: int, reply: ChatReply, live: Sequence[Chain] = live) -> None:
                chain = live[place]
                chain.take(reply, read)
                if chain.finished:
                    state = chain.states[-1]
                    left = {"unusable": chain.unusable, **chain.failure}
                    left |= {"text": state, "steps": tuple(chain.states[1:])}
                    left |= {"memory_tokens": method.counter.count(used(state))}
                    done(method.measured(chain.instance, **left, **spent(chain.calls)))

            asked = [(c.instance, c.states[-1], c.instance.chunks[len(c.states) - 1]) for c in live]
            model.chat([ask(*one) for one in asked], take)


NOTHING = "Nothing has been kept yet."
MEMAGENT_WORDING = "memagent-1"
"""Version of the instructions below."""

_READ = (
    "Below are a problem, a section of a long text, and the memory of what was read before. Read "
    "the section with care and write the memory anew: keep every detail of the old one that may "
    "matter for the problem, and add what is new and useful. Reply with the new memory only."
)
_ANSWER = (
    "Below are a problem and the memory of a long text. Solve the problem with the memory and "
    "write the answer in \\boxed{}."
)


@section
class MemAgentSettings(ChatSettings):
    """Budgets of the walk."""

    max_tokens: Count = about(1024, "of the answer")
    memory_tokens: Count = about(1024, "of the memory")


@METHODS.register("memagent")
class MemAgent(Method):
    """One memory text, rewritten chunk by chunk. Memory: the last text.

    It walks once per instance, with the task description in place of a question, as it was run
    beside Mem-alpha. The model that walks also answers. Think text is cut off the memory.
    """

    Settings = MemAgentSettings
    summary = "a model rewrites one short memory, chunk by chunk, and answers from it"
    needs_model = model_writes = True
    prompts: ClassVar[Any] = (MEMAGENT_WORDING, VERSION)
    options: MemAgentSettings

    def __init__(self, name: str, settings: MemAgentSettings, backends: Backends) -> None:
        # It has one model: another one that writes would not be MemAgent.
        super().__init__(name, settings, replace(backends, write=None))

    def read(self, reply: str) -> str | None:
        """The new memory: the reply after its thoughts; None if these did not end."""
        return without_thinking(reply)

    def prepare(self, instances: Sequence[Instance], done: Callable[[Prepared], None]) -> None:
        """One walk per instance."""
        fields = self.options.request_fields() | {"max_tokens": self.options.memory_tokens}

        def ask(instance: Instance, memory: str, section: str) -> ChatRequest:
            shown = _tagged(problem=instance.prompt, memory=memory or NOTHING, section=section)
            return request("", f"{_READ}\n\n{shown}", version=MEMAGENT_WORDING, **fields)

        walk_all(self, self.model, instances, ask, self.read, done)

    def request(self, put: Put) -> tuple[ChatRequest, Answer]:
        """The final request, with the memory of the whole text."""
        problem = asked(put.question.text, put.instance.source, "context")
        text = f"{_ANSWER}\n\n{_tagged(problem=problem, memory=put.held.text or NOTHING)}"
        fields = {"version": f"{MEMAGENT_WORDING} {VERSION}", **self.options.request_fields()}
        return request("", text, **fields), put.draft()


def _tagged(**parts: str) -> str:
    return "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items())


MEM1_WORDING = "mem1-1"
INSTRUCTIONS = (
    "{task}\n\nYou read a text in parts. Keep one short summary of everything up to now between "
    "<think> and </think>: what stood in the last summary and still matters, and what the new "
    "part adds. The last summary stands between <summary> tags, the new part between <information> "
    "tags. Reply with the new summary in <think> tags only."
)
_STOP = re.compile("</search>|</answer>")
_STATE = re.compile("<think>.*?</think>", re.DOTALL)


@section
class Mem1Settings(ContextSettings):
    """The walk, or where its results are."""

    rollouts: str = about("", "a rollout file; : walk with the writing model")
    state_tokens: Count = about(1024, "of a reply while walking")
    state_temperature: NonNegative = about(0.0, "while walking")
    state_top_p: Share = about(0.95, "while walking")


@METHODS.register("mem1")
class Mem1(ContextMethod):
    """Puts questions to the last of one running summary between think tags. Memory: its tokens.

    Rollout files of MEM1, `{"index": row, "memory": "<think>...</think>"}` a line, can take the
    place of the walk. An index is the row of the data file; every instance must have one, and each
    index comes once. The stops of its search protocol are cut off a reply here.
    """

    Settings = Mem1Settings
    summary = "one running summary in think tags (or MEM1's rollout file); another model answers"
    prompts: ClassVar[Any] = (MEM1_WORDING, VERSION)
    options: Mem1Settings

    def __init__(self, name: str, settings: Mem1Settings, backends: Backends) -> None:
        self.model_writes = not settings.rollouts
        super().__init__(name, settings, backends)
        if settings.rollouts:
            walking = ("state_tokens", "state_temperature", "state_top_p")
            self.check_unused(walking, "memories come from a rollout file")

    def settings(self) -> dict[str, Any]:
        """With the rollout file's hash in place of its path."""
        file = self.options.rollouts
        return super().settings() | ({"rollouts": files.sha256(Path(file))} if file else {})

    def context(self, put: Put) -> tuple[str, Sequence[str]]:
        """The summary, without its tags."""
        return self.used(put.held.text or ""), ()

    def used(self, state: str) -> str:
        """What of a state is shown and counted."""
        return state.removeprefix("<think>").removesuffix("</think>").strip()

    def prepare(self, instances: Sequence[Instance], done: Callable[[Prepared], None]) -> None:
        """Loads the rollouts, or walks over the chunks."""
        if self.options.rollouts:
            for instance, state in zip(instances, self._loaded(instances), strict=True):
                tokens = self.counter.count(self.used(state))
                done(self.measured(instance, text=state, memory_tokens=tokens))
            return
        options = self.options
        fields = {
            "max_tokens": options.state_tokens,
            "temperature": options.state_temperature,
            "top_p": options.state_top_p,
            "thinking": None,
            "seed": options.seed,
            "version": MEM1_WORDING,
        }

        def ask(instance: Instance, state: str, chunk: str) -> ChatRequest:
            task = INSTRUCTIONS.format(task=instance.prompt).strip()
            return self.step(task, state, chunk, fields)

        walk_all(self, self.writing, instances, ask, _state, done, self.used)

    def step(self, task: str, state: str, chunk: str, fields: Mapping[str, Any]) -> ChatRequest:
        """The request of one chunk."""
        shown = f"<summary>\n{self.used(state)}\n</summary>\n\n"
        return request("", f"{task}\n\n{shown}<information>\n{chunk}\n</information>", **fields)

    def _loaded(self, instances: Sequence[Instance]) -> list[str]:
        """The state of each instance. Raises InputError naming what is missing."""
        path = Path(self.options.rollouts)
        rows = {name: row for row, name in enumerate(self.backends.rows)}
        states = self.rollouts(path)
        if lost := [i.id for i in instances if rows.get(i.id) not in states]:
            few = ", ".join(f"{name} (row {rows.get(name)})" for name in lost[:3])
            raise InputError(
                f"{path}: expected a memory for each of {len(instances)} instances, "
                f"found none for {len(lost)}: {few}{', ...' if len(lost) > 3 else ''}"
            )
        return [states[rows[i.id]] for i in instances]

    def rollouts(self, path: Path) -> dict[int, str]:
        """The states in a rollout file by row, each once and of a row that there is."""
        states: dict[int, str] = {}
        for row, state, where in read_rollouts(path, files.parse_json):
            if row in states:
                raise InputError(f"{where}: expected each index once, found {row} again")
            states[row] = state
        known = len(self.backends.rows)
        if odd := [row for row in states if row >= known]:
            raise InputError(f"{path}: expected rows below {known}, found {min(odd)}")
        return states


def _state(reply: str) -> str | None:
    """The first pair of think tags, with the tags; None without one."""
    found = _STATE.search(_STOP.split(reply, maxsplit=1)[0])
    return found[0] if found else None


def read_rollouts(path: Path, parse: Callable[[str, str], Any]) -> Iterator[tuple[int, str, str]]:
    """(row, state, place) of each line. Raises InputError naming file and line."""
    lines = read_text(path).split("\n")  # no other line break: a state may hold one
    for where, line in ((f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()):
        value = parse(line, where)
        values = value if isinstance(value, Mapping) else {}
        row, state = values.get("index"), values.get("memory")
        if type(row) is not int or row < 0 or not isinstance(state, str):
            raise InputError(f"{where}: expected an index and a memory, found {line[:60]!r}")
        yield row, state, where
