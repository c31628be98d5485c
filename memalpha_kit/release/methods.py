"""The published runs by the names of the public scripts: a method and what they set differently.

`release-gpt-4o-mini` is what `long_context_eval.py --model gpt-4o-mini` ran, as far as an endpoint
can repeat it. Which model answers, its token counter and files are still to be said: the published
code counts with Qwen3-32B's tokenizer (gpt-4o-mini: `tiktoken:o200k_base`).

Beside the settings these variants repeat: prompts that lose their beginning where they are too long
(`long_context_eval.py`), an idf of rank_bm25 and a ranking however few chunks there are, thoughts
that stay in MemAgent's memory, and MEM1's state as the beginning of the model's own turn, with its
tags (`generate_rollout.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.chats import ChatRequest, message
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.contexts import (
    CUTS,
    FOOTER_TOKENS,
    HEADER_TOKENS,
    Bm25Chunks,
    ClosedBook,
    LongContext,
    Tail,
    Texts,
    bm25,
    prompt_tokens,
)
from memalpha_kit.evaluation.memories import WrittenMemory
from memalpha_kit.evaluation.methods import METHODS, Method
from memalpha_kit.evaluation.walks import Mem1, MemAgent, read_rollouts
from memalpha_kit.text import repaired_value
from memalpha_kit.tokens import Counter


@CUTS.register("prompt")
def cut_prompt(
    render: Callable[[str], Texts], context: Tail, window: int, counter: Counter
) -> tuple[Texts, bool]:
    """The prompt without its first tokens beyond the window: the system message goes first.

    What the published code does for Qwen. A chat endpoint puts the user's header back.
    """
    system, user = render(context.text)
    drop = prompt_tokens((system, user), counter) - window
    if drop <= 0:
        return (system, user), False
    if system:
        system, drop = _dropped(system, drop, counter)
    if drop > 0:
        user, _ = _dropped(user, drop, counter)
    return (system, user), True


def _dropped(text: str, drop: int, counter: Counter) -> tuple[str, int]:
    """`text` without its header and first tokens, and how many are still to be dropped after it."""
    tail = Tail(text, counter)
    left = tail.n_tokens - max(0, drop - HEADER_TOKENS)
    return tail.last(left), drop - HEADER_TOKENS - tail.n_tokens - FOOTER_TOKENS


MARGIN = 1_000


@CUTS.register("user")
def cut_user(
    render: Callable[[str], Texts], context: Tail, window: int, counter: Counter
) -> tuple[Texts, bool]:
    """The user message cut to its end, a thousand tokens below what would fit.

    What the published code does for gpt-4o-mini, with a window of 126,000. All messages are counted
    as "role: content" lines; nothing is cut if no room would be left.
    """
    system, user = render(context.text)
    lines = [f"system: {system}"] * bool(system) + [f"user: {user}"]
    total, tail = counter.count("\n".join(lines)), Tail(user, counter)
    room = window - (total - tail.n_tokens) - MARGIN
    if total <= window or room <= 0:
        return (system, user), False
    return (system, tail.last(room)), True


class ReleaseBm25(Bm25Chunks):
    """Ranks with rank_bm25's idf, which can be negative, however few chunks there are."""

    def best(self, question: str, chunks: tuple[str, ...]) -> Sequence[int]:
        """The k best places."""
        return bm25(chunks, "release").top(question, self.options.top_k)


class ReleaseMemAgent(MemAgent):
    """Keeps the thoughts of a reply in the memory."""

    def read(self, reply: str) -> str:
        """All of it."""
        return reply


class ReleaseMem1(Mem1):
    """Shows the state with its tags, as the beginning of the model's own turn.

    In rollout files the last of several lines of an index wins, broken lines are repaired, and rows
    that the data does not have are ignored.
    """

    def used(self, state: str) -> str:
        """All of it."""
        return state

    def step(self, task: str, state: str, chunk: str, fields: Mapping[str, Any]) -> ChatRequest:
        """The plain chunk, then the state."""
        turns = (message("user", f"{task}\n\n{chunk}"), message("assistant", state))
        return ChatRequest(turns if state else turns[:1], **fields)

    def rollouts(self, path: Path) -> dict[int, str]:
        """The states in a rollout file by row."""
        return {row: state for row, state, _ in read_rollouts(path, _repaired)}


def _repaired(line: str, where: str) -> Any:
    value = repaired_value(line)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an index and a memory, found {line[:60]!r}")
    return value


_ASKED = {"temperature": 0.1, "wording": "memory"}
_QWEN = _ASKED | {"thinking": True, "cut": "prompt"}  # window 30,000
_GPT = _ASKED | {"thinking": None, "cut": "user", "window": 126_000}
_MEMAGENT = {"temperature": 0.1, "top_p": 0.95, "thinking": None}
_WRITTEN = {"memory.behaviour": "release", "behaviour": "release", "temperature": 0.7}
_AGENT = _WRITTEN | {"protocol.wire": "text", "protocol.execute_truncated": True}

RELEASED: dict[str, tuple[str, type[Method], dict[str, Any]]] = {
    "release-agent": ("memory", WrittenMemory, _AGENT),
    "release-agent-agentic": ("memory", WrittenMemory, _AGENT | {"reader": "agentic"}),
    "release-gpt-4.1-mini-agent": (
        *("memory", WrittenMemory),
        _WRITTEN | {"writer": "api", "write_temperature": 0.6},
    ),
    "release-qwen3-32b": ("long-context", LongContext, _QWEN),
    "release-qwen3-32b-bm25": ("bm25", ReleaseBm25, _QWEN | {"top_k": 2}),
    "release-gpt-4o-mini": ("long-context", LongContext, _GPT),
    "release-gpt-4o-mini-bm25": ("bm25", ReleaseBm25, _GPT | {"top_k": 2}),
    "release-gpt-4.1-mini": ("long-context", LongContext, _GPT | {"window": 1_000_000}),  # no cut
    "release-mem1": ("mem1", ReleaseMem1, _QWEN | {"state_temperature": 0.01}),
    "release-memagent-14b": ("memagent", ReleaseMemAgent, _MEMAGENT),
    "release-memagent-7b": ("memagent", ReleaseMemAgent, _MEMAGENT),
    "release-without-chunks": ("closed-book", ClosedBook, _QWEN),
}
"""Name -> (our method, its variant, options)."""

for _name, (_base, _made, _options) in RELEASED.items():
    METHODS.add(_name, type(_made.__name__, (_made,), {"base": _base, "defaults": _options}))
