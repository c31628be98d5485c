"""The records of the kit: raw data -> Instance -> Episode -> Answers -> Rewards -> TrainingRows.

All are frozen dataclasses of plain values, so they can be printed, compared, saved and loaded.
Facts are stored; totals are properties, so they cannot disagree. The one law: folding
`memory.apply` over an episode's calls gives its memory, byte for byte, which is why disk keeps
the calls and memories are rebuilt (`method/saved.py`).

>>> QA("q0", "Who keeps bees?", ("Nora",), chunk=0)
QA(id='q0', question='Who keeps bees?', answers=('Nora',), chunk=0)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from immutables import Map

from memalpha_kit.entries import Entry, Store
from memalpha_kit.episode_settings import MemoryConfig
from memalpha_kit.errors import InputError

STORES = ("semantic", "episodic")
"""The two lists of entries. Core, the third component, is one paragraph."""
PAPER_PARTS = ("core", *STORES)
"""The components of the paper, in the order in which they are always listed."""


@dataclass(frozen=True)
class QA:
    """One question. `answers` is never empty; `chunk` is where the evidence stands, or None."""

    id: str
    question: str
    answers: tuple[str, ...]
    chunk: int | None = None


@dataclass(frozen=True)
class Instance:
    """A stream of chunks and the questions that are asked after the last one.

    `id` comes from the content, so a rebuild gives the same ids; `source` is an exact name in
    `tasks.TASKS`. `prompt` says what the task is. `metadata` is where it came from, as flat
    JSON: names to numbers, texts or lists of them; `groups` in it are the names of what must never
    be on both sides of a split, such as "squad:Oxygen". `make_instance` makes and checks one.
    """

    id: str
    source: str
    chunks: tuple[str, ...]
    questions: tuple[QA, ...]
    prompt: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def listed(self, name: str) -> tuple[str, ...]:
        """The texts that `metadata` lists under this name; empty for anything but texts."""
        value = self.metadata.get(name)
        if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
            return tuple(value)
        return ()


def make_instance(
    source: str,
    chunks: Iterable[str],
    questions: Iterable[QA],
    prompt: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Instance:
    """An `Instance` whose id is a hash of its source, chunks and questions.

    Blank chunks are dropped, and half surrogate pairs, which no file or server takes, are replaced.
    Raises InputError naming the source and the field if no chunk or no question is left, or a
    question is blank, has no non-blank answer or a text for a list of them, or another one's id.
    """
    questions = tuple(questions)
    for where, texts in [("chunks", chunks), *((f"question {q.id}", q.answers) for q in questions)]:
        if isinstance(texts, str):  # it would be taken letter by letter
            found = f'found the text {texts[:40]!r}; of one text it is ("...",)'
            raise InputError(f"{source}: {where}: expected a list or tuple of texts, {found}")
    there = {index: text for index, text in enumerate(map(_whole, chunks)) if text.strip()}
    kept = tuple(there.values())
    moved: dict[int | None, int] = {index: new for new, index in enumerate(there)}
    asked = tuple(
        QA(qa.id, _whole(qa.question), tuple(map(_whole, qa.answers)), moved.get(qa.chunk))
        for qa in questions
    )
    content = json.dumps([source, kept, [(q.question, q.answers) for q in asked]])
    name = f"{source}/{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if not kept:
        raise InputError(f"{name}: chunks: expected at least one non-blank chunk, found none")
    if not asked:
        raise InputError(f"{name}: questions: expected at least one question, found none")
    seen: set[str] = set()
    for qa in asked:
        if qa.id in seen:
            raise InputError(f"{name}: question {qa.id}: expected each id once, found it twice")
        seen.add(qa.id)
        if not qa.question.strip():
            raise InputError(f"{name}: question {qa.id}: expected text, found a blank question")
        if not any(answer.strip() for answer in qa.answers):
            raise InputError(f"{name}: question {qa.id}: expected an answer, found none")
    return Instance(name, source, kept, asked, _whole(prompt), dict(metadata or {}))


def _whole(text: str) -> str:
    """The text with U+FFFD in place of every half surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class Memory:
    """The external memory as a value: applying a call returns a new one.

    A component that is switched off is None; an empty one is "" (core) or has no entries. Lists may
    be given as tuples of entries. `others` holds components that a user's module registered. Entry
    ids are decimal text from `next_id`, shared by all lists and never reused.
    """

    core: str | None = ""
    semantic: Store | None = Store()
    episodic: Store | None = Store()
    next_id: int = 1
    others: Mapping[str, str | Store] = Map()

    def __post_init__(self) -> None:
        for name in STORES:
            value = getattr(self, name)
            if type(value) is not Store and value is not None:
                object.__setattr__(self, name, Store(value))

    def part(self, name: str) -> str | Store | None:
        """A component by name: a text, a list of entries, or None if it is switched off."""
        return getattr(self, name) if name in PAPER_PARTS else self.others.get(name)

    def with_part(self, name: str, value: str | Store, next_id: int | None = None) -> Memory:
        """A memory in which one component is another; `next_id` if entries were made."""
        if name not in PAPER_PARTS:
            name, value = "others", self.others.set(name, value)  # type: ignore[attr-defined]  # a Map
        changed = object.__new__(Memory)  # its fields were checked: half the time of `Memory(...)`
        vars(changed).update(vars(self), next_id=next_id or self.next_id, **{name: value})
        return changed

    def lists(self) -> dict[str, Store]:
        """The lists of entries that are switched on, by name, in order."""
        parts = {name: self.part(name) for name in (*STORES, *self.others)}
        return {name: part for name, part in parts.items() if isinstance(part, Store)}

    def entries(self) -> tuple[tuple[str, Entry], ...]:
        """All entries as (list, entry), list by list, each in insertion order."""
        return tuple((name, e) for name, entries in self.lists().items() for e in entries)


@dataclass(frozen=True)
class ToolCall:
    """One call attempt of the writer.

    `raw` is what the model wrote. `status` is `parsed` after reading, then `ok`, `skipped` or
    `rejected` after the memory has seen it; `malformed` never reaches the memory. `detail` is the
    code that says why: malformed, unknown_tool, not_offered, bad_json, truncated,
    missing_argument, bad_type, bad_memory_type, disabled, not_found, core_insert, empty_content,
    duplicate, unchanged; "" when there is nothing to say. Success is read here, never from a text.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    raw: str = ""
    status: str = "parsed"
    detail: str = ""


@dataclass(frozen=True)
class ToolUse:
    """A tool that the model asked for; `arguments` is JSON as it wrote it, perhaps broken."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class WriteRequest:
    """One chunk of one rollout, with everything its writer may know.

    `instance` is the instance's id, for messages; `seed` is this step's own.
    """

    memory: Memory
    chunk: str
    instance: str = ""
    step: int = 0
    rollout: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What a writer returned for one prompt.

    Sampled ids are the truth and `text` is a view of them. `mask` marks the tokens that the model
    sampled itself (1) as against forced ones (0), as long as `completion_ids`. Writers without a
    model leave ids and mask empty. `finish` is "stop" or "length". `tools` are the calls that an
    endpoint returned beside the text.
    """

    text: str
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    mask: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    finish: str = "stop"
    tools: tuple[ToolUse, ...] = ()


@dataclass(frozen=True)
class Step:
    """One chunk's turn: `chunk` is its index, `memory` the state after its calls."""

    chunk: int
    completion: Completion
    calls: tuple[ToolCall, ...]
    memory: Memory


@dataclass(frozen=True)
class Question:
    """One question as it is put to a reader or a method; `id` is the `QA`'s in its instance.

    `source` decides on the prompt and the metric; `memory` is None for methods without one.
    """

    id: str
    text: str
    source: str = ""
    instance: str = ""
    memory: Memory | None = None


@dataclass(frozen=True)
class Answer:
    """One question's outcome. `score` is None until a metric has seen it, or if scoring failed.

    `prediction` is None when the reader failed (that is never an answer) and `error` says why;
    `retrieved` are the ids of the entries the reader was given, best first. The rest is what a chat
    model told of its calls, unknown (None, "") for readers without one.
    """

    qa: str
    prediction: str | None
    score: float | None = None
    retrieved: tuple[str, ...] = ()
    finish: str = ""  # stop, length, tool_calls, error, or unanswerable: it cannot be asked
    requests: int = 0  # model calls; tokens and seconds are of all of them
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    error: str = ""
    instance: str = ""  # the question's instance, as a question's id is unique only there
    skipped: str = ""  # why this method cannot answer it at all: final, and no failure
    truncated: bool = False  # what the reader was given had to be cut
    memory_tokens: int | None = None  # size of the memory or context it was answered from
    memory: str = ""  # that memory, as text, where a run keeps it


@dataclass(frozen=True)
class Episode:
    """One rollout of one instance, self-describing: what was written, under which rules.

    `instance` is the instance's id; `memory_config` and `wire` are what replaying needs;
    `answers` is empty until the questions were asked.
    """

    id: str
    instance: str
    source: str
    rollout: int
    seed: int
    writer: str
    wire: str
    memory_config: MemoryConfig
    steps: tuple[Step, ...]
    answers: tuple[Answer, ...] = ()

    @property
    def memory(self) -> Memory:
        """The final memory."""
        return self.steps[-1].memory

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All call attempts in order."""
        return tuple(call for step in self.steps for call in step.calls)


@dataclass(frozen=True)
class Rewards:
    """The parts of one episode's reward; the paper, section 3.3.

    `accuracy` (r1) and `compression` (r3) are one number each; `format` (r2), `content` (r4) and
    `others`, the terms of a user's module by name, one per step. None is a measurement that failed
    or was not made.
    """

    accuracy: float | None
    compression: float | None
    format: tuple[float | None, ...]
    content: tuple[float | None, ...]
    others: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TrainingRow:
    """One chunk of one rollout, ready for a trainer.

    `group` names who is compared with whom. `reward` None is a row without a score: it has
    advantage 0 and must not enter a mean. `loss_mask` is as long as `completion_ids`, and so is
    `logprobs` (of the sampled ids, where the writer knows them) or it is empty.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    reward: float | None
    advantage: float
    group: str
    episode: str
    step: int
    logprobs: tuple[float, ...] = ()
