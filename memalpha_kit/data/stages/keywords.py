"""Summaries to keywords, for booksum and infbench_sum_eng_shots2.

Source: data.md 5.1, 5.2, 7.3. Differs: a failed or empty extraction is None, is not stored and is
asked again (D4); a request is named by the summary's own text, so that keywords cannot be attached
to another book (D3); several answers of one row are joined as text (D36).

>>> parse("Nell, blue door, nell, , backwards clock")
('Nell', 'blue door', 'backwards clock')
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from memalpha_kit.data.stages import rules
from memalpha_kit.data.stages.llm import Complete, Request

VERSION = "keywords/1"
INSTRUCTION = (
    "List what a reader must remember of the summary: people, places, objects, events, times, "
    "relations, decisions and themes, each as a word or a short phrase taken from the text. "
    "Separate them with commas. Write the list and nothing else."
)
MAX_TOKENS = 2048
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def extract(summaries: Sequence[str], complete: Complete | None) -> list[tuple[str, ...] | None]:
    """The keywords of each summary, at least one; None where there are none to be had.

    `complete` None is `rules`: names and phrases of the summary.
    """
    if complete is None:
        return [rules.keywords(summary) or None for summary in summaries]
    asked = [i for i, summary in enumerate(summaries) if summary.strip()]
    replies = complete([request(summaries[i]) for i in asked], problem)
    found: list[tuple[str, ...] | None] = [None] * len(summaries)
    for i, reply in zip(asked, replies, strict=True):
        found[i] = parse(reply.text) if reply and not reply.problem else None
    return found


def request(summary: str) -> Request:
    """The summary and what is wanted of it."""
    return Request((("system", INSTRUCTION), ("user", summary)), VERSION, MAX_TOKENS)


def parse(reply: str) -> tuple[str, ...]:
    """The items of a comma-separated reply, no blanks, no repetitions in any case, order kept.

    Differs: lines count as separators too and a list mark is dropped, models like to bullet.
    """
    items = (_LIST_MARK.sub("", item) for line in reply.splitlines() for item in line.split(","))
    return rules.unique(items)


def problem(reply: str) -> str:
    """Why the reply cannot be used, or ""."""
    return "" if parse(reply) else "it lists no keyword"


def joined(answers: Sequence[str]) -> str:
    """The text of a row's answers, one paragraph each, without the marks of a printed list."""
    return "\n\n".join(answer.strip() for answer in answers if answer.strip())
