"""Who writes while a run goes on: replies kept on disk, what they took, and chat models as writers.

A killed run goes on at the next chunk: a reply is found again by everything that changes within a
run, so going on gives the bytes that an uninterrupted run gives. A journal belongs to one run:
settings are not in its keys. Only good replies are kept; failures are asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Done, message
from memalpha_kit.errors import InputError
from memalpha_kit.files import Log, read_jsonl
from memalpha_kit.method.calls import read_calls
from memalpha_kit.method.memory import empty
from memalpha_kit.method.protocol import Chat, fit_prompt, render_chat
from memalpha_kit.method.writers import Writer
from memalpha_kit.progress import bar
from memalpha_kit.records import Completion, ToolUse, WriteRequest
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import Counter

log = logging.getLogger(__name__)

SILENT_CHUNKS = 20


def silence(without: int, chunks: int, wire: str) -> str:
    """A warning if a model that writes made no call at all in most chunks, "" otherwise.

    Many small models cannot use tools, and a server does not say whether its chat template shows
    them.
    """
    if 2 * without <= chunks:
        return ""
    hint = "it does not keep their format, or its replies are cut (protocol.max_reply_tokens)"
    if wire == "qwen":
        hint = "are tools shown to it? --set protocol.wire=text asks for marker text instead"
    return f"the writer made no call in {without} of {chunks} chunks; {hint}"


@dataclass(frozen=True)
class Journal:
    """Values by key in a file that only grows; without a file nothing is kept."""

    path: Path | None

    @cached_property
    def _known(self) -> dict[str, Any]:
        lines = read_jsonl(self.path) if self.path and self.path.exists() else []
        return {line["key"]: line["value"] for line in lines}

    @cached_property
    def _log(self) -> Log | None:
        return Log(self.path) if self.path else None

    def get(self, *parts: Any) -> Any:
        """The value that was kept for everything that it depends on, None if there is none."""
        return self._known.get(_key(parts)) if self._known else None

    def put(self, value: Any, *parts: Any) -> None:
        """Keeps a value. Raises DiskError."""
        known = self._known  # read before it grows
        if self._log:
            key = _key(parts)
            self._log.append({"key": key, "value": value})
            known[key] = value

    def close(self) -> None:
        """Lets other processes in."""
        if log := vars(self).pop("_log", None):
            log.__exit__()


def _key(parts: Sequence[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def address(model: Any) -> str:
    """Where a model is served, "" for one in this process."""
    return getattr(getattr(model, "endpoint", None), "url", "")


Counts = tuple[int | None, int | None]
"""Tokens of a prompt and of its reply, None where nobody told."""


def paid(reply: ChatReply) -> tuple[int, int]:
    """What a failed reply cost in tokens; what nobody told was not paid for."""
    return reply.prompt_tokens or 0, reply.completion_tokens or 0


def counts(reply: ChatReply) -> Counts:
    """The tokens of a reply."""
    return paid(reply) if reply.error else (reply.prompt_tokens, reply.completion_tokens)


def spent(calls: Sequence[Counts]) -> dict[str, int | None]:
    """Model calls and their tokens; a sum is None without a call or if a part is unknown."""
    sums = [None if None in column else sum(column) for column in zip(*calls, strict=True)]
    prompt, completion = sums or (None, None)
    return {"requests": len(calls), "prompt_tokens": prompt, "completion_tokens": completion}


@dataclass(frozen=True)
class WatchedChat:
    """A chat model whose good replies are kept in a journal, and whose tokens are counted.

    Replies from a journal or a cache count too: they were paid for once. A bar grows where more is
    asked.
    """

    model: ChatModel
    journal: Journal = Journal(None)
    shown: bar | None = None
    spent: list[Counts] = field(default_factory=list)
    lost: list[Counts] = field(default_factory=list)  # of failed ones, which are asked for again

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As the model, which is asked only for what is not kept yet.

        At another address there may be another model of that name.
        """
        served = self.name, address(self.model)
        replies: dict[int, ChatReply] = {}
        missing: list[int] = []
        if self.shown is not None:
            self.shown.total = max(self.shown.total or 0, self.shown.n + len(requests))

        def take(place: int, reply: ChatReply) -> None:
            replies[place] = reply
            (self.lost if reply.error else self.spent).append(counts(reply))
            if self.shown is not None:
                self.shown.advance()
            if done:
                done(place, reply)

        def keep(number: int, reply: ChatReply) -> None:
            place = missing[number]
            if not reply.error:
                self.journal.put(asdict(reply), served, requests[place])
            take(place, reply)

        for place, request in enumerate(requests):
            if kept := self.journal.get(served, request):
                tools = tuple(ToolUse(**use) for use in kept["tools"])
                take(place, ChatReply(**kept | {"tools": tools}))
            else:
                missing.append(place)
        if missing:
            self.model.chat([requests[place] for place in missing], keep)
        return [replies[place] for place in range(len(requests))]


@dataclass(frozen=True)
class KeptWriter:
    """A writer whose replies are kept as texts; token ids are counted by instance and left out.

    An episode's replies stand for its memory in the keys: it follows from them, and grows.
    """

    writer: Writer
    journal: Journal
    spent: dict[str, list[Counts]] = field(default_factory=lambda: defaultdict(list))
    past: dict[tuple[str, int], str] = field(default_factory=dict)  # of replies, by episode

    @property
    def name(self) -> str:
        """The writer's."""
        return self.writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """As the writer, which is asked only for what is not kept yet."""
        pasts = [self.past[r.instance, r.rollout] if r.step else "" for r in requests]
        parts = [(self.name, vars(r) | {"memory": p}) for r, p in zip(requests, pasts, strict=True)]
        kept = [self.journal.get(*part) for part in parts]
        missing = [place for place, value in enumerate(kept) if value is None]
        made = self.writer.write([requests[place] for place in missing]) if missing else []
        for place, completion in zip(missing, made, strict=True):
            counts = len(completion.prompt_ids), len(completion.completion_ids)
            kept[place] = [completion.text, completion.finish, *counts]
            self.journal.put(kept[place], *parts[place])
        for request, part, reply in zip(requests, parts, kept, strict=True):
            self.past[request.instance, request.rollout] = _key((part, reply))
            if any(counts := reply[2:]):  # without ids nothing was sampled
                self.spent[request.instance].append(tuple(counts))
        return [Completion(text, finish=finish) for text, finish, *_ in kept]


@dataclass(frozen=True)
class ApiWriter:
    """Writes with a chat model, by the instructions that the trained policy gets.

    With the wire "qwen" it is offered the tools of its endpoint, and its calls come back beside the
    text; with "text" it is asked for marker text, for servers without a tool parser and models
    whose chat template ignores tools; the prompt "short", of any wire, is for small models that
    were trained on it. If the first `SILENT_CHUNKS` chunks bring no call at all, that is said at
    once, for each chunk is paid for. A request that failed ends the memory of its instance, with
    the reason in `failed`: a chunk that was never read must not pass for one with nothing to store.
    `counter` measures prompts against `protocol.max_prompt_tokens`.
    """

    model: ChatModel
    memory: MemoryConfig
    protocol: ProtocolConfig
    counter: Counter
    temperature: float = 0.0
    spent: dict[str, list[Counts]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)  # fields of `Prepared`
    seen: Tally[str] = field(default_factory=Tally)  # chunks that were read, calls

    @property
    def name(self) -> str:
        """`api:` and the model's name."""
        return f"api:{self.model.name}"

    def check(self) -> None:
        """Raises InputError where no chunk could be put to the model: settings that fit no chat,
        or, in this process, a chat template that leaves out the tools."""
        protocol = self.protocol
        if protocol.prompt == "paper" and protocol.wire not in ("qwen", "text"):
            raise InputError(
                "protocol.wire: expected qwen (the endpoint's tools) or text (marker text) for "
                f"writer api with protocol.prompt paper, found {protocol.wire}"
            )
        asked = self._request(WriteRequest(empty(self.memory), ""))
        if check := getattr(self.model, "check", None):
            check(asked)

    def write(self, requests: Sequence[WriteRequest]) -> list[Completion]:
        """One completion per request; finish "error" where the instance's request failed.

        Raises ModelGone, and InputError for a chunk that does not fit with no entry shown.
        """
        live = [place for place, asked in enumerate(requests) if asked.instance not in self.failed]
        replies = self.model.chat([self._request(requests[i]) for i in live]) if live else []
        completions = [Completion("", finish="error") for _ in requests]
        for place, reply in zip(live, replies, strict=True):
            completions[place] = self._completion(requests[place], reply)
        good = [one for one in completions if one.finish != "error"]
        before, n = self.seen["chunks"], self.seen["chunks"] + len(good)
        self.seen["chunks"] = n
        for completion in good if before < SILENT_CHUNKS else ():
            self.seen["calls"] += len(read_calls(completion, self.memory, self.protocol))
        if before < SILENT_CHUNKS <= n and not self.seen["calls"]:
            log.warning("%s: %s", self.name, silence(n, n, self.protocol.wire))
        return completions

    def _request(self, asked: WriteRequest) -> ChatRequest:
        def render(shown: int) -> Chat:
            config = replace(self.memory, shown=shown)
            return render_chat(asked.memory, asked.chunk, config, self.protocol)

        def count(chat: Chat) -> int:
            return sum(self.counter.count(said["content"]) for said in chat[0])

        try:
            limit = self.protocol.max_prompt_tokens
            messages, schemas = fit_prompt(render, count, self.memory.shown, limit)
        except InputError as error:
            where = f"{asked.instance}: chunk {asked.step}: " if asked.instance else ""
            raise InputError(f"{where}{error}") from error
        return ChatRequest(
            tuple(message(said["role"], said["content"]) for said in messages),
            max_tokens=self.protocol.max_reply_tokens,
            temperature=self.temperature,
            thinking=self.protocol.thinking,
            tools=json.dumps(schemas) if schemas else "",
            seed=asked.seed if self.temperature else None,
        )

    def _completion(self, asked: WriteRequest, reply: ChatReply) -> Completion:
        self.spent[asked.instance].append(counts(reply))
        if reply.error or (reply.text is None and not reply.tools):
            reason = reply.error or "the reply has neither text nor calls"
            why = {"error": f"chunk {asked.step}: {reason}", "finish": reply.finish}
            self.failed[asked.instance] = why | {"lost": paid(reply)}
            return Completion("", finish="error")
        finish = "length" if reply.finish == "length" else "stop"
        return Completion(reply.text or "", finish=finish, tools=reply.tools)
