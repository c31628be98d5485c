"""What a server's answers mean: a reply, vectors, a reason to ask again, or a refusal.

>>> read_reply({"choices": [{"message": {"content": "Nora"}, "finish_reason": "stop"}]}).text
'Nora'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from memalpha_kit.chats import ChatReply
from memalpha_kit.records import ToolUse
from memalpha_kit.text import without_surrogates

BUSY = (408, 409, 425, 429)  # worth another try, as is every 5xx
REFUSED = (401, 402, 403, 404, 405)  # no other request would do better
SHORTEST_FRAGMENT = 4  # characters of a key in a row that are masked in a server's errors
LONG_FRAGMENT = 16  # and in its answers

ONLY_REASONING = (
    "the server put the whole reply into its reasoning field and no answer beside it; ask without "
    "thinking, or start the server without a reasoning parser"
)
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # beside content
UNSEEN = (
    "the server counted {} tokens and showed none of them, as for reasoning that it hides; ask "
    "without thinking, or let the server show it"
)
MOST_UNSEEN = 8  # tokens of a reply that says nothing: the turn's end, tags of an empty thought


@dataclass(eq=False)
class Failed(Exception):
    """One request got no usable reply; the message says why."""

    why: str
    retry: bool = True
    fatal: bool = False  # no other request would get one either
    reply: Any = None  # what counts if further attempts get no more
    status: int | None = None  # of HTTP
    thrown: list[tuple[int | None, int | None]] = field(default_factory=list)  # tokens, before

    def __str__(self) -> str:
        return self.why

    @property
    def too_long(self) -> bool:
        """Whether the prompt does not fit the model: asking again will not help."""
        return self.status in (400, 413, 422) and bool(_TOO_LONG.search(str(self)))

    def not_taken(self, sent: Iterable[str]) -> str:
        """The field of those sent that this server does not take; "" if it was not that."""
        said, known = str(self), "|".join(name for name in OTHERWISE if name in sent)
        refused = self.status in (400, 422) and not self.too_long and _NOT_TAKEN.search(said)
        found = re.search(rf"(?i)\b({known})\b", said)  # the first, for later ones may be taken
        return found[1].lower() if refused and found else ""


OTHERWISE = {"max_tokens": "max_completion_tokens"} | dict.fromkeys(
    ("chat_template_kwargs", "reasoning", "temperature", "top_p", "seed"), ""
)
"""Fields that some servers refuse: their other name, "" for one that can only be left out."""
_NOT_TAKEN = re.compile(
    "unsupported|not support|unrecognized|unknown|unexpected|extra inputs|not permitted|deprecated"
    "|cannot be disabled",
    re.IGNORECASE,
)
_ECHO = re.compile(r"""(?<=['"\])}]), ['"]input['"]: """)  # a request, as pydantic repeats it
_TOO_LONG = re.compile(
    r"context.{0,3}(length|window|size|limit)|prompt is too long|maximum.{0,20}(tokens|length)"
    r"|reduce the length|tokens must be at least 1, got -|tokens.{0,30}must be <=",
    re.IGNORECASE,
)


def read_reply(completion: Any, latency_s: float | None = None) -> ChatReply:
    """The reply in a chat completion.

    A reply cut off by its limit is one too (`finish` length, perhaps with text ""). Raises Failed,
    worth a retry, for what is no chat completion; with the empty reply for one that says nothing,
    which is the model's own word only if it stays so; and without retry for one that the server's
    filter withheld, a refusal, or one that is all reasoning, for these are no answers.
    """
    try:
        choice = completion["choices"][0]
        said, reason = choice["message"], choice.get("finish_reason")
        text = said.get("content")
        if isinstance(text, list):  # parts: reasoning and text, as some gateways send them
            text = "".join(part["text"] for part in text if part["type"] == "text")
        uses = tuple(_tool_use(n, call) for n, call in enumerate(said.get("tool_calls") or ()))
    except (LookupError, TypeError, AttributeError) as error:
        raise Failed(f"not a chat completion ({type(error).__name__})") from None
    if not isinstance(text, str | None):
        raise Failed(f"not a chat completion (content is {type(text).__name__})")
    if reason == "content_filter":
        raise Failed("the server's content filter withheld the reply", retry=False)
    if reason in ("error", "abort"):
        raise Failed("the server broke off the reply")
    finish = "length" if reason == "length" else "tool_calls" if uses else "stop"
    text = without_surrogates(text or "")
    reply = ChatReply(text, finish, uses, *tokens(completion), latency_s=latency_s)
    if finish == "stop" and not text.strip():
        if any(said.get(name) for name in REASONING):
            raise Failed(ONLY_REASONING, retry=False)
        if said.get("refusal"):
            raise Failed("the server put a refusal in the place of the reply", retry=False)
        if (reply.completion_tokens or 0) > MOST_UNSEEN and not text:
            raise Failed(UNSEEN.format(reply.completion_tokens))
        raise Failed("the reply is empty", reply=reply if reason == "stop" else None)
    return reply


def _tool_use(place: int, call: Mapping[str, Any]) -> ToolUse:
    function = call["function"]
    name, arguments = function["name"], function.get("arguments") or "{}"
    if not isinstance(name, str):
        raise TypeError("a tool's name is a text")
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
    given = call.get("id")
    own = given if isinstance(given, str) and given else f"call_{place}"
    return ToolUse(own, without_surrogates(name), without_surrogates(raw))


def tokens(answer: Any) -> tuple[int | None, int | None]:
    """Tokens read and written, as the server counted them; None where it did not tell."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    read, written = (n if type(n) is int and n >= 0 else None for n in counts)
    return read, written


def read_vectors(answer: Any, n_texts: int) -> list[list[float]]:
    """The embeddings of `n_texts` texts in their order.

    Raises Failed unless there is one vector of numbers for each place, all of one length: a text
    without a vector is never a vector of zeros.
    """
    try:
        rows = {row["index"]: [float(x) for x in row["embedding"]] for row in answer["data"]}
        vectors = [rows[place] for place in range(n_texts)]
    except (ValueError, LookupError, TypeError) as error:
        raise Failed(f"not a list of embeddings ({type(error).__name__})") from None
    if len(rows) != n_texts or len({len(vector) for vector in vectors}) > 1:
        raise Failed(f"expected {n_texts} embeddings of one length, found others")
    return vectors


def refusal(answer: Any, key: str, key_env: str) -> Failed:
    """What an HTTP status means: the server is in trouble, this request is bad, or all would be."""
    status = answer.status_code
    why = f"HTTP {status} {answer.reason_phrase}".strip()
    if answer.has_redirect_location:  # it is not followed, for the key would go there too
        why += f" to {masked(key, answer.headers['location'].partition('?')[0])}"
    elif status in (401, 403):  # such a body may hold part of the key in any form
        why += f" (the key is read from {key_env})"
    else:
        why += said_error(parsed(answer.content), key)
    fatal = status in REFUSED or 200 < status < 400
    return Failed(why, status in BUSY or status >= 500, fatal, status=status)


def parsed(body: bytes) -> Any:
    """A body's JSON, None for anything else."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def said_error(said: Any, key: str) -> str:
    """`: ` and the message of a server's error, whatever shape it has, as one line; "" for none."""
    for name in (0, "error", "message", "detail", 0):  # from outside to inside
        if type(said) in (dict, list):
            with suppress(LookupError, TypeError):
                said = said[name]
    said = said if isinstance(said, str) else json.dumps(said) if said else ""
    said = _ECHO.split(said, maxsplit=1)[0]
    return without_surrogates(f": {masked(key, ' '.join(said.split()))}" if said else "")


def masked(key: str, text: str) -> str:
    """`text`, at most 200 characters of it, without the key and without fragments of it.

    >>> masked("sk-1234567890", "wrong key sk-12345***")
    'wrong key ******'
    """
    return _hidden(key, SHORTEST_FRAGMENT, text)[:200]


def without_key(key: str, reply: ChatReply) -> ChatReply:
    """The reply without the key, of which a hostile server may make an answer.

    Only long parts are hidden: a short one, or a made-up key such as EMPTY, may be an honest word.
    """
    hide = partial(_hidden, key, LONG_FRAGMENT)
    uses = (replace(u, name=hide(u.name), arguments=hide(u.arguments)) for u in reply.tools)
    return replace(reply, text=hide(reply.text or ""), tools=tuple(uses))


def _hidden(key: str, shortest: int, text: str) -> str:
    if not any(key[at : at + shortest] in text for at in range(len(key) - shortest + 1)):
        return text
    hidden, place = [], 0
    while place < len(text):
        end = place + shortest
        while end <= len(text) and text[place:end] in key:
            end += 1
        length = end - 1 - place
        hidden.append("***" if length >= shortest else text[place])
        place += length if length >= shortest else 1
    return "".join(hidden)
