"""Writers: what turns one chunk and the memory before it into a reply with tool calls.

The one law: a writer sees a chunk, the memory and its seed, never the questions, and answers with
a `Completion` that goes through the same parser as a model's. Scripted writers are rules; their
replies are rendered by `calls.render_calls`. They are honest floors: they keep everything of one
kind, select nothing and never update. `model_writers.py` has models. A user's module adds a rule or
a writer with `WRITERS.add`.

>>> from memalpha_kit.records import Memory
>>> request = WriteRequest(Memory(), "Sentence: Where is Oslo?\\nLabel: 3", "trec/1")
>>> keep_examples(request)[0].arguments["content"]
'Sentence: Where is Oslo?\\nLabel: 3'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.memory import INSERT
from memalpha_kit.records import Completion, ToolCall, WriteRequest
from memalpha_kit.registry import Registry


@runtime_checkable
class Writer(Protocol):
    """Answers write requests."""

    @property
    def name(self) -> str:
        """What it is called in the episode."""

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """One completion per request, in order."""
        ...


Rule = Callable[[WriteRequest], list[ToolCall]]


@dataclass(frozen=True)
class ScriptedWriter:
    """A rule as a writer: its calls are rendered in a format and read back like a model's."""

    name: str
    rule: Rule
    wire: str = "qwen"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """The rule's calls as text; no token ids, for nothing was sampled."""
        return [Completion(render_calls(self.rule(request), self.wire)) for request in requests]


@dataclass(frozen=True)
class ScriptedReplies:
    """A writer that says given replies, one per step, whatever it reads. For tests."""

    replies: Sequence[str | Completion]
    name: str = "scripted_replies"

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """The reply at each request's step; an IndexError if there is none."""
        said = [self.replies[request.step] for request in requests]
        return [Completion(reply) if isinstance(reply, str) else reply for reply in said]


# ---- rules ------------------------------------------------------------------------------------


def keep_sentences(request: WriteRequest) -> list[ToolCall]:
    """One semantic insert per sentence; headers, lead-ins and role tags are left out."""
    return [insert("semantic", text) for text in sentences(content(request.chunk))]


def keep_lines(request: WriteRequest) -> list[ToolCall]:
    """The same with headers, lead-ins and role tags: it selects nothing at all."""
    return [insert("semantic", text) for text in sentences(request.chunk)]


def keep_examples(request: WriteRequest) -> list[ToolCall]:
    """One semantic insert per labelled sample (`Sentence:`/`Label:` or `Sample:`/`Labels:`)."""
    return [insert("semantic", match[0]) for match in SAMPLE.finditer(request.chunk)]


def keep_turns(request: WriteRequest) -> list[ToolCall]:
    """One episodic insert per turn of a dated dialogue, as `At DATE, SPEAKER said: TEXT`.

    Turns are kept whole: a long turn is a long entry.
    """
    return [
        insert("episodic", f"At {date}, {ROLES.get(speaker, speaker)} said: {text}")
        for date, speaker, text in turns(request.chunk)
    ]


def silent(request: WriteRequest) -> list[ToolCall]:
    """No call at all: what can be answered without reading."""
    return []


WRITERS: Registry[Rule | Writer] = Registry("writer")
"""Rules by name, and whole writers: a user's module adds either."""
for _rule in (keep_sentences, keep_lines, keep_examples, keep_turns, silent):
    WRITERS.add(_rule.__name__, _rule)


def writer(name: str, wire: str = "qwen") -> Writer:
    """The writer of this name. Raises InputError naming the closest one."""
    found = WRITERS[name]
    return found if isinstance(found, Writer) else ScriptedWriter(name, found, wire)


def insert(store: str, text: str) -> ToolCall:
    """The call that stores a text in a list."""
    return ToolCall(INSERT, {"memory_type": f"{store}_memory", "content": text})


# ---- reading a chunk ----------------------------------------------------------------------------

SAMPLE = re.compile(r"^(?:Sentence|Sample): .+\nLabels?: .+$", re.MULTILINE)
_FRAME = re.compile(
    r"\[Dialogue between [^\]\n]*\]\n<User>[^\n]*\n(?P<content>.*)\n<Assistant>[^\n]*", re.DOTALL
)
_BOOK = re.compile(r"\[Event [^\]\n]*\]\n<User>(?P<content>.*)\n<System>[^\n]*", re.DOTALL)
_DIALOGUE = re.compile(r"^\[Dialogue [^\]\n]*?(?:timestamp|on) ([^\]\n]+)\]$", re.MULTILINE)
ROLES = {"User": "the user", "Assistant": "the assistant"}
_TURN = re.compile(r"^<(User|Assistant)>", re.MULTILINE)
_NAMED = re.compile(r"^<(\w[^<>\n]*)>", re.MULTILINE)  # of people, where nobody has a role
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|(?<!\s)\s*\n\s*")


def content(chunk: str) -> str:
    """What a chunk is about: the framed text, or the turns without header and roles."""
    if framed := _FRAME.fullmatch(chunk.strip()) or _BOOK.fullmatch(chunk.strip()):
        return framed["content"].strip()
    said = (text if who in ROLES else f"{who}: {text}" for _, who, text in turns(chunk))
    return "\n".join(said) or chunk


def turns(chunk: str) -> Iterator[tuple[str, str, str]]:
    """(date, speaker, text) of every turn in the chunk's dated dialogues, in order."""
    _, *parts = _DIALOGUE.split(chunk)  # date, dialogue, date, dialogue, ...
    for date, dialogue in zip(parts[::2], parts[1::2], strict=True):
        _, *said = (_TURN if _TURN.search(dialogue) else _NAMED).split(dialogue)
        for speaker, text in zip(said[::2], said[1::2], strict=True):
            if text.strip():
                yield date, speaker, text.strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text by punctuation; a line break always ends one. A rule of thumb."""
    breaks = [(m.start() + len(m[0].rstrip()), m.end()) for m in _SENTENCE_END.finditer(text)]
    starts, ends = [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)]
    pieces = (text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return [piece for piece in pieces if piece]
