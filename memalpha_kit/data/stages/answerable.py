"""PerLTQA's check that a question can be answered from the chunks of its instance.

Source: data.md 2.5, 7.5. Differs: keywords are looked for from word to word, in any case; the same
code narrows a gold whether the reply is new or stored (D11); a failed call is None and the caller
decides, the original drops the question.

>>> narrowed("Forty; lemon trees; olive trees", "Forty lemon trees")
'Forty;lemon trees'
"""

from __future__ import annotations

from collections.abc import Sequence

from memalpha_kit.data.stages.llm import Complete, Request
from memalpha_kit.data.stages.rules import mentions

VERSION = "answerable/1"
MAX_TOKENS = 2048
INSTRUCTION = (
    "Answer the question from the text alone, in one short sentence. If the text does not say, "
    "answer: unknown."
)


def answerable(
    context: str, pairs: Sequence[tuple[str, str]], complete: Complete | None
) -> list[str | None]:
    """For each (question, gold): the gold that the text supports, "" if none, None if it failed.

    `context` is all chunks joined by blank lines. `complete` None is `rules`: the text itself is
    read as the reply.
    """
    if complete is None:
        return [narrowed(gold, context) for _, gold in pairs]
    replies = complete([request(context, question) for question, _ in pairs])
    return [
        None if reply is None else narrowed(gold, reply.text)
        for (_, gold), reply in zip(pairs, replies, strict=True)
    ]


def request(context: str, question: str) -> Request:
    """The whole text, then the question."""
    return Request(
        (("system", INSTRUCTION), ("user", f"{context}\n\nQuestion: {question}")),
        VERSION,
        MAX_TOKENS,
    )


def narrowed(gold: str, reply: str) -> str:
    """The keywords of the gold that the reply mentions, joined by `;`; "" if it mentions none."""
    if ";" not in gold:
        return gold if mentions(reply, gold) else ""
    return ";".join(k.strip() for k in gold.split(";") if mentions(reply, k))
