"""The closed-book filter of squad and hotpotqa: short answers that need the text.

A question stays if its gold is short and a model that sees only the question does not know it.
Source: data.md 2.0. Differs: temperature 0 and finished replies only (D12a); the gold is looked for
from word to word, so "no" is not found in "know" (D12b); verdicts are by position, never by the
question's text (D12c, D26); replies are stored one by one (D12d).

>>> keeps("every winter", "In every winter."), keeps("No", "I do not know")
(False, True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memalpha_kit.data.stages.llm import Complete, Request
from memalpha_kit.data.stages.rules import guessable, mentions

SHORT_TOKENS = 5  # a gold with so many tokens is too long for a contains metric
VERSION = "closed-book/1"
INSTRUCTION = (
    "Answer the question from what you know. Give the answer alone, in as few words as possible. "
    "If you do not know it, say: unknown."
)
MAX_TOKENS = 4096  # room for the reasoning of models that think first


def closed_book(
    pairs: Sequence[tuple[str, str]],
    count: Callable[[str], int],
    complete: Complete | None,
) -> list[bool | None]:
    """For each (question, gold): True to keep, False to remove, None if the model failed.

    `count` measures golds in tokens; golds of five tokens or more are removed without asking.
    `complete` None is `rules`: the question must not give its own answer away.
    """
    verdicts: list[bool | None] = [False] * len(pairs)
    short = [i for i, (_, gold) in enumerate(pairs) if gold.strip() and count(gold) < SHORT_TOKENS]
    if complete is None:
        for i in short:
            verdicts[i] = not guessable(*pairs[i])
        return verdicts
    for i, reply in zip(short, complete([request(pairs[i][0]) for i in short]), strict=True):
        verdicts[i] = None if reply is None else keeps(pairs[i][1], reply.text)
    return verdicts


def request(question: str) -> Request:
    """The question alone, without any text."""
    return Request((("system", INSTRUCTION), ("user", question)), VERSION, MAX_TOKENS)


def keeps(gold: str, prediction: str) -> bool:
    """Whether the prediction does not mention the gold."""
    return not mentions(prediction, gold)
