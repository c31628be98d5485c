"""Replies kept on disk while memories are built, so that a killed run goes on at the next chunk.

The one law: a reply is found again by everything that changes within a run, so going on gives the
bytes that an uninterrupted run gives. A journal belongs to one run: settings are not in its keys.
Only good replies are kept; failures are asked again (spec evaluation.md A-3, B-3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from memalpha_kit import files as store
from memalpha_kit.method.writers import Writer, WriteRequest
from memalpha_kit.records import ChatModel, ChatReply, ChatRequest, Completion, Done, ToolUse


@dataclass(frozen=True)
class Journal:
    """Values by key in a JSONL file that only grows; a last line cut off by a crash is dropped."""

    path: Path

    @cached_property
    def _known(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        return {line["key"]: line["value"] for line in store.read_jsonl(self.path)}

    def get(self, key: str) -> Any:
        """The value of the key, None if there is none."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value; returns when it is on the disk. Raises DiskError."""
        known = self._known
        with store.Log(self.path) as file:
            file.append({"key": key, "value": value})
        known[key] = value


def key_of(*parts: Any) -> str:
    """A key from everything that a reply depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class JournalledChat:
    """A chat model whose good replies are kept."""

    model: ChatModel
    journal: Journal

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As the model, which is asked only for what is not kept yet."""
        keys = [key_of(self.name, asked) for asked in requests]
        replies: dict[int, ChatReply] = {}

        def take(place: int, reply: ChatReply) -> None:
            replies[place] = reply
            if done:
                done(place, reply)

        def keep(number: int, reply: ChatReply) -> None:
            if not reply.error:
                self.journal.put(keys[missing[number]], asdict(reply))
            take(missing[number], reply)

        missing = []
        for place, key in enumerate(keys):
            kept = self.journal.get(key)
            if kept is None:
                missing.append(place)
            else:
                tools = tuple(ToolUse(**use) for use in kept["tools"])
                take(place, ChatReply(**kept | {"tools": tools, "cached": True}))
        if missing:
            self.model.chat([requests[place] for place in missing], keep)
        return [replies[place] for place in range(len(requests))]


@dataclass
class Spent:
    """Prompt and completion tokens of some model calls, None where a call did not say them."""

    calls: list[tuple[int | None, int | None]] = field(default_factory=list)

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """One more call."""
        self.calls.append((prompt_tokens, completion_tokens))

    def fields(self) -> dict[str, int | None]:
        """As fields of a record; a sum is None without a call or if one of its parts is unknown."""
        prompt, completion = zip(*self.calls, strict=True) if self.calls else ((None,), (None,))
        return {
            "requests": len(self.calls),
            "prompt_tokens": None if None in prompt else sum(prompt),
            "completion_tokens": None if None in completion else sum(completion),
        }


@dataclass(frozen=True)
class MeteredWriter:
    """A writer of text only: token ids are counted by instance and left out, replies are kept."""

    writer: Writer
    journal: Journal | None = None
    spent: dict[str, Spent] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The writer's."""
        return self.writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """As the writer, which is asked only for what is not kept yet."""
        keys = [key_of(self.name, asked) for asked in requests]
        found = {key: self.journal.get(key) for key in keys} if self.journal else {}
        missing = [place for place, key in enumerate(keys) if found.get(key) is None]
        made = self.writer.write([requests[place] for place in missing]) if missing else []
        for place, completion in zip(missing, made, strict=True):
            counts = len(completion.prompt_ids), len(completion.completion_ids)
            found[keys[place]] = [completion.text, completion.finish, *counts]
            if self.journal:
                self.journal.put(keys[place], found[keys[place]])
        return [self._counted(asked, found[key]) for asked, key in zip(requests, keys, strict=True)]

    def _counted(self, asked: WriteRequest, kept: Sequence[Any]) -> Completion:
        text, finish, prompt, completion = kept
        if prompt:  # without ids nothing was sampled
            self.spent.setdefault(asked.instance, Spent()).add(prompt, completion)
        return replace(Completion(text), finish=finish)
