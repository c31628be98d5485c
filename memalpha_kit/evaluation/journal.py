"""Replies kept on disk while memories are built, so that a killed run goes on at the next chunk.

A reply is found again by everything that changes within a run, so going on gives the bytes that an
uninterrupted run gives. A journal belongs to one run: settings are not in its keys. Only good
replies are kept; failures are asked again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Done
from memalpha_kit.files import Log, read_jsonl
from memalpha_kit.method.writers import Writer
from memalpha_kit.records import Completion, ToolUse, WriteRequest


@dataclass(frozen=True)
class Journal:
    """Values by key in a file that only grows."""

    path: Path

    @cached_property
    def _known(self) -> dict[str, Any]:
        lines = read_jsonl(self.path) if self.path.exists() else []
        return {line["key"]: line["value"] for line in lines}

    @cached_property
    def _log(self) -> Log:
        return Log(self.path)

    def get(self, *parts: Any) -> Any:
        """The value that was kept for everything that it depends on, None if there is none."""
        return self._known.get(_key(parts))

    def put(self, value: Any, *parts: Any) -> None:
        """Keeps a value. Raises DiskError."""
        key = _key(parts)
        known = self._known  # read before it grows
        self._log.append({"key": key, "value": value})
        known[key] = value

    def close(self) -> None:
        """Lets other processes in."""
        if "_log" in vars(self):
            vars(self).pop("_log").__exit__()


def _key(parts: Sequence[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class KeptChat:
    """A chat model whose good replies are kept."""

    model: ChatModel
    journal: Journal

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As the model, which is asked only for what is not kept yet."""
        replies: dict[int, ChatReply] = {}
        missing = []

        def take(place: int, reply: ChatReply) -> None:
            replies[place] = reply
            if done:
                done(place, reply)

        def keep(number: int, reply: ChatReply) -> None:
            place = missing[number]
            if not reply.error:
                self.journal.put(asdict(reply), self.name, requests[place])
            take(place, reply)

        for place, request in enumerate(requests):
            if kept := self.journal.get(self.name, request):
                tools = tuple(ToolUse(**use) for use in kept["tools"])
                take(place, ChatReply(**kept | {"tools": tools, "cached": True}))
            else:
                missing.append(place)
        if missing:
            self.model.chat([requests[place] for place in missing], keep)
        return [replies[place] for place in range(len(requests))]


def plus(one: int | None, other: int | None) -> int | None:
    """The sum, None if either is unknown."""
    return None if one is None or other is None else one + other


@dataclass
class Spent:
    """Model calls with their tokens; a sum is None without a call or if a part is unknown."""

    requests: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """One more call."""
        for name, more in (
            ("prompt_tokens", prompt_tokens),
            ("completion_tokens", completion_tokens),
        ):
            before = getattr(self, name) if self.requests else 0
            setattr(self, name, None if before is None or more is None else before + more)
        self.requests += 1


@dataclass(frozen=True)
class KeptWriter:
    """A writer whose replies are kept as texts; token ids are counted by instance and left out."""

    writer: Writer
    journal: Journal | None = None
    spent: dict[str, Spent] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The writer's."""
        return self.writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """As the writer, which is asked only for what is not kept yet."""
        kept = [self.journal.get(self.name, r) if self.journal else None for r in requests]
        missing = [place for place, value in enumerate(kept) if value is None]
        made = self.writer.write([requests[place] for place in missing]) if missing else []
        for place, completion in zip(missing, made, strict=True):
            counts = len(completion.prompt_ids), len(completion.completion_ids)
            kept[place] = [completion.text, completion.finish, *counts]
            if self.journal:
                self.journal.put(kept[place], self.name, requests[place])
        completions = []
        for request, (text, finish, *counts) in zip(requests, kept, strict=True):
            if any(counts):  # without ids nothing was sampled
                self.spent.setdefault(request.instance, Spent()).add(*counts)
            completions.append(replace(Completion(text), finish=finish))
        return completions
