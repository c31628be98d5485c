"""Cutting what does not fit a model's window.

The one law: "context" keeps the system message, the task and the question, whatever the length, and
drops the oldest text of the context. "prompt" and "user" are what the release does and lose some of
these (spec evaluation.md 4.3, B-6).

>>> from memalpha_kit.tokens import counter
>>> Tail("one two three", counter("words")).last(2)
'two three'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from memalpha_kit.errors import InputError
from memalpha_kit.tokens import Counter

Cut = Literal["context", "prompt", "user"]
"""What is cut: the context (ours), the rendered prompt (release, Qwen), the user message (release,
gpt-4o-mini)."""


class DoesNotFit(InputError):
    """A question that is longer than the window, without any context."""


Texts = tuple[str, str]
"""System text ("" for none) and user text."""

HEADER_TOKENS, FOOTER_TOKENS = 3, 2
"""Of each message in Qwen's chat template: `<|im_start|>`, role, line break; `<|im_end|>`, ..."""
GENERATION_TOKENS = 7
"""The header that asks for a reply, with the empty thinking block."""


class Tail:
    """A text that is tokenised once and then cut from the front as often as needed."""

    def __init__(self, text: str, counter: Counter) -> None:
        self.text, self._ends = text, counter.ends(text)

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole text."""
        return len(self._ends)

    def last(self, n_tokens: int) -> str:
        """The last `n_tokens` tokens as they stand, "" for none."""
        if n_tokens >= len(self._ends):
            return self.text
        return self.text[self._ends[-n_tokens - 1] :].lstrip() if n_tokens > 0 else ""


def prompt_tokens(texts: Texts, counter: Counter) -> int:
    """Tokens of a prompt, chat template included."""
    frame = HEADER_TOKENS + FOOTER_TOKENS
    return sum(frame + counter.count(text) for text in texts if text) + GENERATION_TOKENS


def cut_context(
    render: Callable[[str], Texts], context: Tail, window: int, counter: Counter
) -> tuple[Texts, bool]:
    """The prompt around as much of the context's end as fits, and whether some was left out.

    Raises DoesNotFit if the prompt is too long without any context.
    """
    room = window - prompt_tokens(render(""), counter)
    if room < 0:
        found = window - room
        raise DoesNotFit(f"prompt: expected at most {window} tokens without context, found {found}")
    n_tokens = min(room, context.n_tokens)
    while True:  # tokens are not additive: the join may cost a few more
        texts = render(context.last(n_tokens))
        over = prompt_tokens(texts, counter) - window
        if over <= 0 or n_tokens <= 0:
            return texts, n_tokens < context.n_tokens
        n_tokens -= over


def cut_prompt(texts: Texts, window: int, counter: Counter) -> tuple[Texts, bool]:
    """The prompt without its first tokens beyond the window: the system message goes first.

    Source: evaluation.md 4.3, "Cut, Qwen". Differs: a chat endpoint puts the user's header back.
    """
    drop = prompt_tokens(texts, counter) - window
    if drop <= 0:
        return texts, False
    system, user = texts
    if system:
        cut, drop = _dropped(system, drop, counter)
        system = cut
    if drop > 0:
        user, _ = _dropped(user, drop, counter)
    return (system, user), True


def _dropped(text: str, drop: int, counter: Counter) -> tuple[str, int]:
    """`text` without its header and first tokens, and how many are still to be dropped after it."""
    tail = Tail(text, counter)
    left = tail.n_tokens - max(0, drop - HEADER_TOKENS)
    rest = drop - HEADER_TOKENS - tail.n_tokens - FOOTER_TOKENS
    return tail.last(left), rest


MARGIN = 1_000


def cut_user(texts: Texts, window: int, counter: Counter) -> tuple[Texts, bool]:
    """The user message cut to its end, a thousand tokens below what would fit.

    All messages are counted as "role: content" lines; nothing is cut if no room would be left.
    Source: evaluation.md 4.3, "Cut, gpt-4o-mini" (window 126,000).
    """
    system, user = texts
    lines = [f"system: {system}"] * bool(system) + [f"user: {user}"]
    total, tail = counter.count("\n".join(lines)), Tail(user, counter)
    room = window - (total - tail.n_tokens) - MARGIN
    if total <= window or room <= 0:
        return texts, False
    return (system, tail.last(room)), True


def pieces(text: str, n_tokens: int, counter: Counter) -> list[str]:
    """`text` in consecutive pieces of `n_tokens` tokens, cut wherever that is; joined, it is whole.

    Source: evaluation.md 4.5, the original MemAgent protocol.
    """
    ends = counter.ends(text)
    stops = [*(ends[i - 1] for i in range(n_tokens, len(ends), n_tokens)), len(text)]
    starts = [0, *stops[:-1]]
    return [text[a:b] for a, b in zip(starts, stops, strict=True) if a < b]


def without_middle(text: str, limit: int, counter: Counter) -> tuple[str, bool]:
    """The first and the last half of `limit` tokens, and whether anything between was left out."""
    ends = counter.ends(text)
    if len(ends) <= limit:
        return text, False
    first = limit // 2
    head = text[: ends[first - 1]] if first else ""
    return head + Tail(text, counter).last(limit - first), True
