"""What of a memory is shown with a question: ranking, embeddings, the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from answering import BOATS, EMBEDDING, Embedder, memory, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import MEMORY_COMPONENTS, Component
from memalpha_kit.method.prompts import Retrieved, query_prompt, system_prompt
from memalpha_kit.method.retrieval import (
    TEMPLATE_TOKENS,
    Retrieval,
    Unanswerable,
    Vectors,
    view,
)
from memalpha_kit.records import Entry, Memory, Store
from memalpha_kit.tokens import Counter, counter

PLAIN, RELEASE = Retrieval(), Retrieval(behaviour="release")


def show(stored, text, retrieval=PLAIN, embed=None, source=""):
    return view(stored, retrieval, embed and Vectors(embed)).show(text, source)


# ---- ranking ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "query", "released", "fixed"),
    [
        (("the cat sat", "the dog ran", "the bird flew"), "the cat", "012", "012"),
        (("a dog ran", "the cat sat", "a bird flew"), "cat", "102", "102"),
        (("a dog ran", "the cat sat"), "cat", "01", "10"),  # released: idf 0 at half, no order
        (("the cat sat",), "cat", "0", "0"),  # released: below zero, and still shown
        (("!!!", "..."), "cat", "01", "01"),
        (("the cat sat", "a dog ran"), " ?!", "", "01"),  # no word: the release finds nothing
    ],
)
def test_entries_are_ranked_and_filled_up_as_worked_out_by_hand(documents, query, released, fixed):
    found = show(memory(documents), query, RELEASE)
    assert texts(found.parts["semantic"]) == [documents[int(i)] for i in released]
    found = show(memory(documents), query)
    assert texts(found.parts["semantic"]) == list(documents)  # few: whole, in their order
    assert "".join(str(int(i) - 1) for i in found.ids) == fixed


DAYS = ["day 1: rain", "day 2: a cat", "day 3: rain", "day 4: cat cat", "day 5: snow"]
SAMPLES = [
    "Sentence: play music\nLabel: 1",
    "Core memory holds rules; work out what each class means; give that one number.",
    "Sentence: my parcel is late\nLabel: 2",
]
QUESTION = "Sentence: where is my parcel\nWhich label belongs to this sentence?"


def test_of_a_large_store_the_best_come_first_and_episodic_entries_in_the_order_of_time():
    rain = memory(["rain fell", "snow fell", "cat cat sat", "a cat ran off at noon"])
    best = ["cat cat sat", "a cat ran off at noon", "rain fell"]  # the oldest fills up
    assert texts(show(rain, "cat", Retrieval(top_k=3)).parts["semantic"]) == best
    found = show(memory((), DAYS), "cat", Retrieval(top_k=2))
    assert texts(found.parts["episodic"]) == [DAYS[1], DAYS[3]] and found.ids == ("4", "2")
    released = show(memory((), DAYS), "cat", replace(RELEASE, top_k=2))
    assert texts(released.parts["episodic"]) == [DAYS[3], DAYS[1]]
    odd = Memory("", (), tuple(Entry(name, name) for name in ("b7", "a1", "zz")))
    assert [e.id for e in show(odd, "zz", Retrieval(top_k=2)).parts["episodic"]] == ["b7", "zz"]


def test_the_query_is_the_sentence_and_in_the_release_the_instruction_around_it_too():
    stored = memory(SAMPLES)
    assert show(stored, QUESTION, Retrieval(top_k=1), source="ttl_train").ids == ("3",)
    assert show(stored, QUESTION, replace(RELEASE, top_k=1), source="ttl_train").ids == ("2",)
    stored = memory(["On Tuesday 2023/05/30 Tom slept", "Nora bought apples"])
    dated = "Current date: 2023/05/30 (Tue)\nWhen did Nora buy apples?"  # the day is not sought
    assert show(stored, dated, Retrieval(top_k=1)).ids == ("2",)


def test_what_is_switched_off_stays_off_and_a_blank_question_is_refused():
    off = Memory(None, None, (Entry("1", "day 1"),))
    assert show(off, "day") == Retrieved({"episodic": tuple(off.episodic)}, ("1",))
    with pytest.raises(Unanswerable, match="found a blank one"):
        show(BOATS, " \n")
    assert show(BOATS, " \n", RELEASE).ids == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "bm52"}, "did you mean 'bm25'"),
        ({"behaviour": "relase"}, "found 'relase'"),
        ({"behaviour": "release", "method": "embedding"}, "expected bm25 under release"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, reason):
    with pytest.raises(InputError, match=reason):
        Retrieval(**change)


# ---- embeddings -------------------------------------------------------------------------------


def test_embeddings_rank_by_direction_not_by_length():
    found = show(memory(["east", "north east", "north"]), "Where is north?", EMBEDDING, Embedder())
    assert texts(found.parts["semantic"]) == ["north", "north east"]


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (lambda wanted: [(0.0, 0.0)] * len(wanted), "expected a direction"),
        (lambda wanted: [(float("nan"), 1.0)] * len(wanted), "expected a direction"),
        (lambda wanted: [(1.0,) * n for n in range(1, len(wanted) + 1)], "of one width"),
        (lambda wanted: [(1.0,) * len(wanted)] * len(wanted), "of one width"),  # not the query's
        (None, "expected a function that embeds"),
    ],
)
def test_an_embedding_that_failed_is_an_error_and_never_zeros(vectors, reason):
    with pytest.raises(InputError, match=reason):
        show(memory(["north", "east"]), "Where is north?", EMBEDDING, vectors)


# ---- the budget -------------------------------------------------------------------------------


def worked(n_semantic: int, n_episodic: int, base: int = 2000, item: int = 2048) -> Memory:
    """A memory whose system text has `base` words without its items and `item` for each."""
    body = " ".join(["word"] * (item - 2))  # its number and its own name are two more
    semantic, episodic = range(n_semantic), range(n_episodic)
    bare = memory([f"s{i} {body}" for i in semantic], [f"e{i} {body}" for i in episodic])
    shown = Retrieved({"core": "x", "semantic": bare.semantic[:1], "episodic": bare.episodic[:1]})
    n_items = min(1, n_semantic) + min(1, n_episodic)
    rest = counter("words").count(system_prompt(shown)) - n_items * item
    return replace(bare, core=" ".join(["x"] * (base - rest + 1)))


WORDS = Retrieval(counter="words")
WORDS_RELEASE = replace(WORDS, behaviour="release")
ROOM = 30_000 - 28_624 - TEMPLATE_TOKENS  # beside 13 items of the worked example


def size(retrieval: Retrieval, shown: Retrieved, question: str = "") -> int:
    """Tokens of the system text; with a question of the whole prompt."""
    count = counter(retrieval.counter).count
    return count(system_prompt(shown)) + (TEMPLATE_TOKENS + count(question) if question else 0)


@pytest.mark.parametrize(
    ("stored", "question", "retrieval", "kept"),
    [
        (worked(20, 0), "word", WORDS_RELEASE, (13, 0)),  # both stores cut to the same k
        (worked(20, 20), "word", WORDS_RELEASE, (6, 6)),
        (worked(3, 0), "word", WORDS_RELEASE, (3, 0)),
        (worked(20, 20), "word", WORDS, (7, 6)),  # the lowest ranks are left out one by one
        (worked(1, 1), "word", replace(WORDS, budget_tokens=2000 + 2048 + 21), (1, 0)),
        (worked(20, 0, item=3500), "word", WORDS, (7, 0)),  # exactly 30,000 cost an item
        (worked(20, 0, item=3500), "word", replace(WORDS, budget_tokens=30_021), (8, 0)),
        # question and template count, but not in the release
        (worked(20, 0), "word " * ROOM, WORDS, (13, 0)),
        (worked(20, 0), "word " * (ROOM + 1), WORDS, (12, 0)),
        (worked(20, 0), "word " * (ROOM + 1), WORDS_RELEASE, (13, 0)),
    ],
)
def test_as_many_entries_are_shown_as_the_budget_holds(stored, question, retrieval, kept):
    found = show(stored, question, retrieval)
    assert (len(found.parts["semantic"]), len(found.parts["episodic"])) == kept
    item = 1 + counter("words").count(stored.semantic[0].text)  # with its number
    assert size(WORDS, found) == 2000 + item * sum(kept)


def test_the_source_s_prompt_counts_and_exactly_the_budget_fails_in_the_release():
    prefix = len(query_prompt("booksum").split())
    found = show(worked(20, 0), "word " * (ROOM - prefix), WORDS, source="booksum")
    assert len(found.parts["semantic"]) == 13
    with pytest.raises(Unanswerable, match="expected less than 30000 tokens, found 30000"):
        show(worked(20, 0, item=3500), "word", WORDS_RELEASE)


def test_an_entry_larger_than_the_budget_is_cut_and_not_lost():
    found = show(memory(["sun " * 50_000], core="Nora is a vet."), "sun", WORDS)
    assert found.ids == ("1",) and size(WORDS, found, "sun") == 30_000
    assert "Nora" in system_prompt(found)


# counts pairs of characters: what is joined has not the tokens of its parts
PAIRS = Counter("pairs", lambda text: [*range(2, len(text), 2), len(text)] if text else [])
STORED = st.lists(st.text("ab c\n", max_size=40), max_size=8)


@settings(max_examples=60, deadline=None)
@given(STORED, STORED, st.integers(1, 900), st.integers(1, 5), st.booleans())
def test_whatever_is_stored_the_prompt_fits_or_the_question_says_why(
    semantic, episodic, limit, k, subwords
):
    retrieval, question = Retrieval(top_k=k, budget_tokens=limit), "a b?"
    stored = memory(semantic, episodic, "a core")
    shows = view(stored, retrieval)
    if subwords:
        shows.counter = PAIRS
    count = shows.counter.count
    around = TEMPLATE_TOKENS + count(question)
    try:
        found = shows.show(question)
    except Unanswerable:
        bare = Retrieved({"core": "a core", "semantic": (), "episodic": ()})
        assert count(system_prompt(bare)) + around > limit
        return
    assert count(system_prompt(found)) + around <= limit
    _, first, second = found.parts.values()
    assert len(first) <= k and len(second) <= k
    assert sorted(found.ids) == sorted(e.id for e in (*first, *second))
    assert list(second) == sorted(second, key=lambda e: int(e.id))


def test_a_component_of_the_user_s_own_is_shown_and_searched(monkeypatch):
    monkeypatch.setattr(MEMORY_COMPONENTS, "_things", dict(MEMORY_COMPONENTS._things))
    keeps = ("Plans are kept.", "Plans: add them.", "Plans: what is to be done.")
    MEMORY_COMPONENTS.add("test_plans", Component(*keeps))
    MEMORY_COMPONENTS.add("test_mood", Component(*keeps[:2], "Mood: a word.", paragraph=True))
    stored = BOATS.with_part("test_plans", Store((Entry("9", "Paint boats."),)))
    found = show(stored.with_part("test_mood", "calm"), "Who paints?", Retrieval(top_k=1))
    system = system_prompt(found)
    assert found.ids == ("1", "3", "9") and "- Plans: what is to be done." in system
    assert "<test_plans_memory>\n1. Paint boats.\n</test_plans_memory>" in system
    assert "<test_mood_memory>\ncalm\n</test_mood_memory>" in system
