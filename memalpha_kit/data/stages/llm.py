"""What stages ask a model: short texts at temperature 0, each reply checked before it is stored.

Laws: a request is named by its content, so a reply can never be given to another text, whatever its
place in a file (data.md D3, D26); only a finished and accepted reply is stored, so what failed is
asked again next time (D4); temperature is 0 and a reply that was cut off or left its reasoning open
is none (D12a). A batch that is stopped goes on where it was: finished replies are on disk. A reply
that cannot be had is None and counted, never "".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memalpha_kit.method.metrics import answer_text
from memalpha_kit.models.endpoint import Client
from memalpha_kit.records import ChatReply, ChatRequest, message

TEMPERATURE = 0.0


@dataclass(frozen=True)
class Request:
    """What is asked: chat messages as (role, text), and the version of the instruction in them."""

    messages: tuple[tuple[str, str], ...]
    version: str
    max_tokens: int = 512


@dataclass(frozen=True)
class Reply:
    """A finished reply without its reasoning; `problem` says why it was not accepted, or ""."""

    text: str
    problem: str = ""


class Complete(Protocol):
    """Asks a model. `problem` says what is wrong with a text, "" if nothing is."""

    def __call__(
        self, requests: Sequence[Request], problem: Callable[[str], str] = ...
    ) -> list[Reply | None]:
        """One reply per request, in order; None where none could be had."""
        ...


def no_problem(text: str) -> str:
    """ "": every finished reply is accepted."""
    return ""


@dataclass(frozen=True)
class Asker:
    """A `Complete` on the server of `client`, whose `usage` counts what was asked."""

    client: Client

    def __call__(
        self, requests: Sequence[Request], problem: Callable[[str], str] = no_problem
    ) -> list[Reply | None]:
        """One reply per request, in order; equal requests are sent once.

        Raises ModelGone if the server refuses everything or is gone, DiskError for a cache that
        cannot be written.
        """

        def accepted(reply: ChatReply) -> bool:
            text = finished_text(reply)
            return text is not None and not problem(text)

        replies = self.client.chat([chat_request(asked) for asked in requests], accept=accepted)
        texts = [finished_text(reply) for reply in replies]
        return [None if text is None else Reply(text, problem(text)) for text in texts]


def chat_request(asked: Request) -> ChatRequest:
    """The request as it is sent; whether the model reasons is left to the server."""
    return ChatRequest(
        tuple(message(role, text) for role, text in asked.messages),
        asked.max_tokens,
        TEMPERATURE,
        thinking=None,
        version=asked.version,
    )


def finished_text(reply: ChatReply) -> str | None:
    """The reply without its reasoning; None if it failed, was cut off or says nothing (D12a)."""
    if reply.text is None or reply.finish == "length":
        return None
    return answer_text(reply.text) or None
