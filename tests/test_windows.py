"""Cutting to a window: worked examples of the published cuts, and what always survives of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha_kit.evaluation.contexts import (
    CUTS,
    GENERATION_TOKENS,
    Tail,
    cut_context,
    prompt_tokens,
)
from memalpha_kit.method.retrieval import Unanswerable
from memalpha_kit.tokens import Counter, counter

WORDS, PUNCT = counter("words"), counter("wordpunct")


def words(n: int, stem: str = "w") -> str:
    return " ".join(f"{stem}{i}" for i in range(n))


def cut(name: str, texts: tuple[str, str], window: int):
    """The released cut of these texts, whatever of the user text is the context."""
    return CUTS[name](lambda _: texts, Tail("", WORDS), window, WORDS)


def test_qwen_a_prompt_of_41500_tokens_loses_its_first_11500_with_the_system_message():
    frame = 2 * 5 + GENERATION_TOKENS
    texts = (words(100, "s"), words(41_500 - 100 - frame))
    assert prompt_tokens(texts, WORDS) == 41_500
    (system, user), lost = cut("prompt", texts, 30_000)
    assert lost and system == ""
    # dropped: system header 3, text 100, footer 2, user header 3, and so many words of the text
    assert user.split()[0] == f"w{11_500 - 108}" and user.endswith(texts[1][-6:])


def test_qwen_a_small_cut_takes_the_beginning_of_the_system_message_only():
    texts = (words(10, "s"), words(50))
    (system, user), _ = cut("prompt", texts, prompt_tokens(texts, WORDS) - 5)
    assert system == words(10, "s")[6:] and user == texts[1]


def test_gpt_4o_mini_a_user_text_of_139900_of_140000_tokens_keeps_124900():
    texts = (words(98, "s"), words(139_900))  # and "system:", "user:"
    (system, user), lost = cut("user", texts, 126_000)
    assert lost and system == texts[0]
    assert len(user.split()) == 126_000 - 100 - 1_000 == 124_900 and user.endswith("w139899")


def test_gpt_4o_mini_nothing_is_cut_when_it_fits_or_no_room_would_be_left():
    assert cut("user", ("", words(125_999)), 126_000) == (("", words(125_999)), False)
    texts = (words(200, "s"), words(50))
    assert cut("user", texts, 100) == (texts, False)


def around(context: str) -> tuple[str, str]:
    return "Be brief.", "\n\n".join(filter(None, ("Read.", context, "Who keeps bees?")))


def test_the_last_tokens_of_the_context_survive_with_system_task_and_question():
    fixed = prompt_tokens(around(""), PUNCT)
    (system, user), cut = cut_context(around, Tail(words(100), PUNCT), fixed + 3, PUNCT)
    assert cut and system == "Be brief." and user == "Read.\n\nw97 w98 w99\n\nWho keeps bees?"


def test_a_context_that_fits_is_whole():
    text = words(100)
    room = prompt_tokens(around(text), PUNCT)
    assert cut_context(around, Tail(text, PUNCT), room, PUNCT) == (around(text), False)
    assert cut_context(around, Tail("", PUNCT), room, PUNCT) == (around(""), False)


def test_without_room_for_the_question_there_is_no_prompt():
    fixed = prompt_tokens(around(""), PUNCT)
    assert cut_context(around, Tail("a b", PUNCT), fixed, PUNCT) == (around(""), True)
    with pytest.raises(Unanswerable, match=f"at most {fixed - 1} tokens without context, found"):
        cut_context(around, Tail("a b", PUNCT), fixed - 1, PUNCT)


BYTES = Counter("bytes", lambda text: [i for i, c in enumerate(text, 1) for _ in c.encode()])
"""As a subword tokenizer may: a character of several tokens."""


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 60), st.booleans())
def test_whatever_the_text_the_prompt_fits_and_ends_with_the_end_of_the_context(
    text, more, subword
):
    counts = BYTES if subword else PUNCT
    window = prompt_tokens(around(""), counts) + more
    (_, user), cut = cut_context(around, Tail(text, counts), window, counts)
    assert prompt_tokens(around("")[:1] + (user,), counts) <= window
    kept = user.removeprefix("Read.\n\n").removesuffix("\n\nWho keeps bees?")
    assert cut or user == around(text)[1]
    assert not cut or text.endswith(kept) or user == around("")[1]
