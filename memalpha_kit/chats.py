"""Talking to chat models: what is asked, what came back, and who answers.

A request is a value, as replies are cached under everything they depend on. `models` has the
clients; `method` only knows the face `ChatModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memalpha_kit.records import ToolUse

Message = dict[str, Any]
"""One chat message as it goes over the wire; nobody changes it."""


def message(role: str, content: str | list | None, **extra: Any) -> Message:
    """A chat message; `extra` are further fields of the protocol, such as `tool_calls`."""
    return {"role": role, "content": content, **extra}


@dataclass(frozen=True)
class ChatRequest:
    """What is asked, and everything that the reply may depend on."""

    messages: tuple[Message, ...]
    max_tokens: int = 2048  # of the reply, its reasoning included
    temperature: float = 0.0
    top_p: float = 1.0
    thinking: bool | None = False  # None: as the server or the template does by itself
    tools: str = ""  # the tools' schemas, a JSON list; "" for none
    seed: int | None = None
    version: str = ""  # of the instruction; another one is another cache entry

    def __hash__(self) -> int:
        return hash((repr(self.messages), self.version))


def request(system: str, user: str, **options: Any) -> ChatRequest:
    """A system message ("" for none) and a user message; `options` are fields of `ChatRequest`.

    >>> request("Answer briefly.", "Who keeps bees?", max_tokens=16).messages[1]
    {'role': 'user', 'content': 'Who keeps bees?'}
    """
    head = (message("system", system),) if system else ()
    return ChatRequest((*head, message("user", user)), **options)


@dataclass(frozen=True)
class ChatReply:
    """What came back. `finish` as in `Answer`; counts are None if unknown."""

    text: str | None  # as the model wrote it, reasoning included, tool calls taken out
    finish: str = "stop"
    tools: tuple[ToolUse, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    error: str = ""  # why there is no text


def reply_message(reply: ChatReply) -> Message:
    """The assistant's message that continues a chat after `reply`; its reasoning is left out."""
    text = (reply.text or "").rpartition("</think>")[2].strip()
    if not reply.tools:
        return message("assistant", text)
    calls = []
    for use in reply.tools:
        function = {"name": use.name, "arguments": use.arguments}
        calls.append({"id": use.id, "type": "function", "function": function})
    return message("assistant", text, tool_calls=calls)


def tool_message(use: ToolUse, content: str) -> Message:
    """The answer to one tool call; every call of a reply must get one before the next request."""
    return message("tool", content, tool_call_id=use.id)


Done = Callable[[int, ChatReply], object]
"""Called in the caller's thread with a request's place and its reply, as soon as it is known."""


class ChatModel(Protocol):
    """Answers chat requests.

    A call that failed has `text` None and says why in `error`: an error text is never an answer.
    """

    @property
    def name(self) -> str:
        """What it is called in tables and cache keys."""

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """One reply per request, in order. Raises ModelGone if no request would be answered."""
        ...
