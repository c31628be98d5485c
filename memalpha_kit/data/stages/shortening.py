"""PerLTQA's sentences to keywords that a metric can look for.

A shortened answer is one or more keywords of at most three words each, separated by `;`.
Source: data.md 5.3, 7.5. Differs: an answer that cannot be shortened stays as it is and is flagged,
in place of null (D10e); its attempts are not stored, so the next run asks again (D4).

>>> problem("Lemon grower; Van seller")
''
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memalpha_kit.data.stages import rules
from memalpha_kit.data.stages.llm import Complete, Request

VERSION = "shortening/1"
ATTEMPTS = 3
MAX_TOKENS = 256
INSTRUCTION = (
    "Shorten the answer to the keywords that decide whether another answer is right. Each keyword "
    "has at most three words, copied from the answer as they stand. Separate keywords with ; and "
    "write nothing else."
)


@dataclass(frozen=True)
class Short:
    """The text to score against; `shortened` is False for an original that had to stay."""

    text: str
    shortened: bool


def shorten(pairs: Sequence[tuple[str, str]], complete: Complete | None) -> list[Short]:
    """The short form of each (question, answer).

    A reply that breaks the rules is asked for again with the reason, three times in all.
    `complete` None is `rules`: what the answer adds to the words of its question.
    """
    if complete is None:
        return [_checked(rules.shortened(*pair), pair[1]) for pair in pairs]
    found: list[Short] = [Short(answer, False) for _, answer in pairs]
    reasons = {i: "" for i, (_, answer) in enumerate(pairs) if answer.strip()}
    for _ in range(ATTEMPTS):
        replies = complete([request(*pairs[i], why) for i, why in reasons.items()], problem)
        again = {}
        for i, reply in zip(reasons, replies, strict=True):
            if reply and reply.problem:
                again[i] = reply.problem
            elif reply:
                found[i] = Short(tidy(reply.text), True)
        reasons = again
        if not reasons:
            break
    return found


def request(question: str, answer: str, reason: str = "") -> Request:
    """Question and answer, and what was wrong with the reply before."""
    text = f"Question: {question}\nAnswer: {answer}"
    if reason:
        text += f"\nYour last reply could not be used: {reason}."
    return Request((("system", INSTRUCTION), ("user", text)), VERSION, MAX_TOKENS)


def problem(reply: str) -> str:
    """Why the reply cannot be used, or ""."""
    keywords = [keyword.strip() for keyword in reply.split(";") if keyword.strip()]
    if not keywords:
        return "it has no keyword"
    for keyword in keywords:
        if len(keyword.split()) > rules.MAX_WORDS:
            return f"{keyword!r} has {len(keyword.split())} words, three are allowed"
    return ""


def tidy(reply: str) -> str:
    """The keywords joined by `; `, without blank and repeated ones."""
    return "; ".join(rules.unique(reply.split(";")))


def _checked(reply: str, answer: str) -> Short:
    return Short(answer, False) if problem(reply) else Short(tidy(reply), True)
