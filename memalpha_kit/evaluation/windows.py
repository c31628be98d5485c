"""Cutting what does not fit a model's window.

The rule "context" keeps the system message, the task and the question, whatever the length, and
drops the oldest text of the context.

>>> from memalpha_kit.tokens import counter
>>> Tail("one two three", counter("words")).last(2)
'two three'
"""

from __future__ import annotations

from collections.abc import Callable

from memalpha_kit.errors import InputError
from memalpha_kit.registry import Registry
from memalpha_kit.tokens import Counter

Texts = tuple[str, str]
"""System text ("" for none) and user text."""
HEADER_TOKENS, FOOTER_TOKENS = 3, 2
"""Of each message in Qwen's chat template: `<|im_start|>`, role, line break; `<|im_end|>`, ..."""
GENERATION_TOKENS = 7
"""The header that asks for a reply, with the empty thinking block."""


class DoesNotFit(InputError):
    """A question that is longer than the window, without any context."""


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


Cut = Callable[[Callable[[str], Texts], Tail, int, Counter], tuple[Texts, bool]]
"""(prompt around a context, context, window, counter) -> the prompt, whether a part was left out"""
CUTS: Registry[Cut] = Registry("cut")


@CUTS.register("context")
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


def pieces(text: str, n_tokens: int, counter: Counter) -> list[str]:
    """`text` in consecutive pieces of `n_tokens` tokens, cut wherever that is; joined, the text."""
    ends = counter.ends(text)
    stops = [*(ends[i - 1] for i in range(n_tokens, len(ends), n_tokens)), len(text)]
    return [text[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True) if a < b]


def without_middle(text: str, limit: int, counter: Counter) -> tuple[str, bool]:
    """The first and the last half of `limit` tokens, and whether anything between was left out."""
    ends = counter.ends(text)
    if len(ends) <= limit:
        return text, False
    first = limit // 2
    head = text[: ends[first - 1]] if first else ""
    return head + Tail(text, counter).last(limit - first), True
