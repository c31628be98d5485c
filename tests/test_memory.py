"""Memory: worked examples by hand, and the laws of changes, replay and search."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from memalpha_kit.entries import Store
from memalpha_kit.errors import InputError
from memalpha_kit.method.memory import apply, empty, replay, tokens
from memalpha_kit.method.ranking import Bm25, rank, search, shown
from memalpha_kit.records import Entry, Memory, ToolCall
from memalpha_kit.settings import MemoryConfig
from memalpha_kit.tokens import counter

FIXED = MemoryConfig(counter="words")
RELEASE = replace(FIXED, behaviour="release")
WORDS = counter("words")


def insert(store, content):
    return ToolCall("new_memory_insert", {"memory_type": f"{store}_memory", "content": content})


def update(store, text, **rest):
    arguments = {"memory_type": f"{store}_memory", "new_content": text, **rest}
    return ToolCall("memory_update", arguments)


def delete(store, **rest):
    return ToolCall("memory_delete", {"memory_type": f"{store}_memory", **rest})


def outcome(memory, call, config=FIXED):
    """Status and code of one call."""
    _, done = apply(memory, call, config)
    return done.status, done.detail


# --- A worked example -----------------------------------------------------------------------------

BEFORE = Memory(
    core="Mira, 34, vet in Lund.",
    semantic=(Entry("a1f3", "Mira owns a grey parrot named Pixel."),),
    episodic=(Entry("07bc", "At 2023-03-02, Mira adopted Pixel from a shelter."),),
)
CALLS = (
    insert("semantic", "Pixel eats only millet."),
    insert("semantic", "Pixel eats only millet."),
    update("semantic", "Mira owns two grey parrots, Pixel and Dot.", memory_id="a1f3"),
    update("episodic", "At 2023-03-05, Dot arrived.", memory_id="9999"),
    delete("episodic", memory_id="9999"),
    insert("core", "Mira likes birds."),
    update("core", "Mira, 34, vet in Lund, keeps two grey parrots."),
    ToolCall("memory_update", {"memory_type": "semantic_memory", "memory_id": "a1f3"}),
)
AFTER = Memory(
    core="Mira, 34, vet in Lund, keeps two grey parrots.",
    semantic=(
        Entry("a1f3", "Mira owns two grey parrots, Pixel and Dot."),
        Entry("1", "Pixel eats only millet."),
    ),
    episodic=BEFORE.episodic,
    next_id=2,
)


def run(memory, calls, config):
    done = []
    for call in calls:
        memory, call = apply(memory, call, config)
        done.append(call)
    return memory, done


@pytest.mark.parametrize(
    ("config", "deleting_unknown"), [(FIXED, ("rejected", "not_found")), (RELEASE, ("ok", ""))]
)
def test_the_eight_calls_of_the_worked_example_end_as_tabulated(config, deleting_unknown):
    before = pickle.dumps((BEFORE, CALLS))
    memory, done = run(BEFORE, CALLS, config)
    assert pickle.dumps((BEFORE, CALLS)) == before, "old memories and calls stay as they are"
    assert [(call.status, call.detail) for call in done] == [
        ("ok", ""),
        ("skipped", "duplicate"),
        ("ok", ""),
        ("rejected", "not_found"),
        deleting_unknown,
        ("rejected", "core_insert"),
        ("ok", ""),
        ("rejected", "missing_argument"),
    ]
    assert memory == AFTER
    assert (tokens(BEFORE, WORDS), tokens(memory, WORDS)) == (20, 29)


# --- What is refused and why ---------------------------------------------------------------------

ONE = Memory(core="c", semantic=(Entry("1", "x"), Entry("2", "y")), next_id=3)
UPDATE_WITHOUT_ID = update("semantic", "z")


@pytest.mark.parametrize(
    ("call", "fixed", "release"),
    [
        (ToolCall("memory_merge", {}), "unknown_tool", "unknown_tool"),
        (ToolCall("x executed successfully", {}), "unknown_tool", "unknown_tool"),
        (
            ToolCall("search_memory", {"memory_type": "semantic_memory", "query": "x"}),
            "not_offered",
            "ok",
        ),
        (ToolCall("memory_delete", {}), "missing_argument", "missing_argument"),
        (ToolCall("memory_delete", {"memory_type": None}), "bad_type", "bad_type"),
        (ToolCall("memory_delete", {"memory_type": ["core"]}), "bad_type", "bad_type"),
        (insert("lexical", "z"), "bad_memory_type", "bad_memory_type"),
        (insert("core", "z"), "core_insert", "core_insert"),
        (insert("semantic", ""), "empty_content", "ok"),
        (insert("semantic", " \n"), "empty_content", "ok"),
        (insert("semantic", 7), "bad_type", "ok"),
        (insert("semantic", ["a"]), "bad_type", "ok"),
        (insert("semantic", None), "bad_type", "ok"),
        (insert("semantic", "x"), "duplicate", "duplicate"),
        (insert("episodic", "x"), "ok", "ok"),
        (UPDATE_WITHOUT_ID, "missing_argument", "not_found"),
        (update("semantic", "z", memory_id="9"), "not_found", "not_found"),
        (update("episodic", "z", memory_id="1"), "not_found", "not_found"),
        (update("semantic", "z", memory_id=1), "ok", "not_found"),
        (update("semantic", "z", memory_id=True), "bad_type", "not_found"),
        (update("semantic", "z", memory_id=1.0), "bad_type", "not_found"),
        (update("semantic", " ", memory_id="1"), "empty_content", "ok"),
        (update("semantic", "y", memory_id="1"), "duplicate", "ok"),
        (update("semantic", "x", memory_id="1"), "unchanged", "ok"),
        (update("semantic", " x\u200b\n", memory_id="1"), "unchanged", "ok"),
        (update("core", "c"), "unchanged", "ok"),
        (insert("semantic", "x "), "duplicate", "ok"),
        (insert("semantic", "\u200bx\ufeff"), "duplicate", "ok"),
        (insert("semantic", "\u200b \u00ad\u2060"), "empty_content", "ok"),
        (update("core", "\u3164"), "empty_content", "ok"),
        (update("core", ""), "empty_content", "ok"),
        (update("core", "z", memory_id={}), "ok", "ok"),
        (delete("semantic"), "missing_argument", "ok"),
        (delete("semantic", memory_id=None), "bad_type", "ok"),
        (delete("semantic", memory_id="1", why="old"), "ok", "ok"),
        (delete("core"), "ok", "ok"),
    ],
)
def test_each_call_ends_with_its_code(call, fixed, release):
    for config, expected in ((FIXED, fixed), (RELEASE, release)):
        status, code = outcome(ONE, call, config)
        assert (code or status) == expected
        assert status == {"ok": "ok", "duplicate": "skipped", "unchanged": "skipped"}.get(
            expected, "rejected"
        )


def test_a_switched_off_component_is_none_and_refuses_every_call():
    config = MemoryConfig(core=False, semantic=False)
    memory = empty(config)
    assert memory == Memory(core=None, semantic=None, episodic=())
    for call in (insert("semantic", "x"), update("core", "x"), delete("semantic", memory_id="1")):
        for behaviour in ("fixed", "release"):
            result = outcome(memory, call, replace(config, behaviour=behaviour))
            assert result == ("rejected", "disabled")
    assert outcome(memory, insert("episodic", "x"), config) == ("ok", "")
    assert tokens(memory, WORDS) == 0


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        (FIXED, ["", ""]),
        (replace(FIXED, short_types=False), ["bad_memory_type"] * 2),
        (RELEASE, ["bad_memory_type", ""]),
    ],
)
def test_short_type_names_are_a_setting_and_half_a_rule_in_the_release(config, codes):
    add = ToolCall("new_memory_insert", {"memory_type": "semantic", "content": "z"})
    drop = ToolCall("memory_delete", {"memory_type": "semantic", "memory_id": "1"})
    assert [outcome(ONE, call, config)[1] for call in (add, drop)] == codes


def test_emptying_what_is_empty_changes_nothing():
    assert outcome(empty(FIXED), delete("core")) == ("skipped", "unchanged")
    assert outcome(empty(FIXED), delete("core"), RELEASE) == ("ok", "")


def test_an_update_keeps_place_and_id_and_may_be_allowed_to_repeat_another_entry():
    allowing = replace(FIXED, update_duplicate="allow")
    memory, call = apply(ONE, update("semantic", "y", memory_id="1"), allowing)
    assert call.status == "ok"
    assert memory.semantic == (Entry("1", "y"), Entry("2", "y"))


def test_the_release_stores_other_json_values_as_their_text():
    memory, _ = run(empty(RELEASE), [insert("semantic", v) for v in (7, ["é"], "")], RELEASE)
    assert [entry.text for entry in memory.semantic] == ["7", '["é"]', ""]


def test_a_malformed_call_passes_through_unchanged():
    call = replace(insert("semantic", "x"), status="malformed", detail="truncated")
    assert apply(ONE, call, FIXED) == (ONE, call)


SAME = (
    "Zoë  hums",
    "Zoe\u0308 hums",
    " Zoë hums\n",
    "Zoë\u00a0hums",
    "Zo\u00adë\u200d hums",
    "Zoë\thums",
)


def test_texts_that_look_the_same_are_stored_once_and_in_the_release_as_often_as_they_come():
    calls = [insert("semantic", text) for text in SAME]
    assert [entry.text for entry in replay(calls, FIXED).semantic] == [SAME[0]]
    assert [entry.text for entry in replay(calls, RELEASE).semantic] == list(SAME)
    others = [insert("semantic", text) for text in ("Zoë hums", "Zoe hums")]
    assert len(replay(others, FIXED).semantic) == 2


# --- Ids and replay ------------------------------------------------------------------------------


def test_ids_are_shared_by_the_stores_and_never_used_again():
    calls = [
        insert("semantic", "a"),
        insert("episodic", "b"),
        delete("semantic", memory_id="1"),
        delete("episodic", memory_id="2"),
        insert("semantic", "a"),
    ]
    memory = replay(calls, FIXED)
    assert memory == Memory(semantic=(Entry("3", "a"),), next_id=4)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
TYPES = st.sampled_from(
    ["core_memory", "semantic_memory", "episodic_memory", "semantic", "core", "other"]
)
TEXTS = st.sampled_from(["a", "b", "c d", "", " "]) | ANY_JSON
IDS = st.sampled_from(["1", "2", "3", "9", 1, 2]) | ANY_JSON
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "memory_type": TYPES | ANY_JSON,
        "content": TEXTS,
        "new_content": TEXTS,
        "memory_id": IDS,
        "query": TEXTS,
    },
)
NAMES = st.sampled_from(
    ["new_memory_insert", "memory_update", "memory_delete", "search_memory", "other", ""]
)
ANY_CALLS = st.lists(st.builds(ToolCall, NAMES, ARGUMENTS), max_size=12)


@settings(max_examples=150, deadline=None)
@given(ANY_CALLS, st.sampled_from([FIXED, RELEASE, replace(FIXED, core=False, episodic=False)]))
def test_no_call_raises_and_replaying_applied_calls_gives_the_memory(calls, config):
    memory, done = run(empty(config), calls, config)
    assert {call.status for call in done} <= {"ok", "skipped", "rejected"}
    assert all(call.detail for call in done if call.status != "ok")
    assert replay(done, config) == replay(calls, config) == memory
    ids = [entry.id for _, entry in memory.entries()]
    assert len(ids) == len(set(ids))
    assert all(isinstance(entry.text, str) for _, entry in memory.entries())


# --- Core truncation, worked by hand --------------------------------------------------------------

TOY = replace(FIXED, core_limit_tokens=12)
TEN, FIFTEEN = ([f"w{i}" for i in range(1, n + 1)] for n in (10, 15))


NOTICE = " [cut after exceeding {} tokens]"
SEVEN, LONG = " ".join(FIFTEEN[:7]) + NOTICE, " ".join(f"w{i}" for i in range(601))


@pytest.mark.parametrize(
    ("text", "limits", "fixed", "release"),
    [
        ("\n".join(TEN), TOY, "\n".join(TEN), "\n".join(TEN)),
        (" ".join(FIFTEEN), TOY, SEVEN, SEVEN),
        # line breaks are kept, but lost in the release
        (
            "\n".join(FIFTEEN),
            TOY,
            "w1\nw2\nw3\nw4\nw5\nw6\nw7" + NOTICE,
            "w1 w2 w3 w4 w5 w6 w7" + NOTICE,
        ),
        (LONG, replace(TOY, core_limit_tokens=512), *[LONG[: LONG.index(" w507")] + NOTICE] * 2),
        # a text without spaces is cut inside, but vanishes in the release
        (
            "-" * 600,
            replace(TOY, counter="wordpunct", core_limit_tokens=20),
            "-" * 12 + NOTICE,
            NOTICE,
        ),
        ("a b c d", replace(TOY, core_limit_tokens=3), "a b c", NOTICE),  # no room for the notice
    ],
)
def test_a_core_over_the_limit_is_cut_and_gets_a_notice_and_the_update_succeeds(
    text, limits, fixed, release
):
    for behaviour, expected in (("fixed", fixed), ("release", release)):
        config = replace(limits, behaviour=behaviour)
        memory, call = apply(empty(config), update("core", text), config)
        assert call.status == "ok"
        assert memory.core == expected.format(config.core_limit_tokens)


# --- BM25 ----------------------------------------------------------------------------------------

NORA, TOM, ANA = "Nora keeps bees", "Tom paints boats", "Ana sails boats"
CAT = ("the cat sat", "the dog ran", "the bird flew")


@pytest.mark.parametrize(
    ("texts", "query", "scores"),
    [
        ([NORA], "bees", [-0.2747]),
        ([NORA, TOM], "bees", [0, 0]),
        ([NORA, TOM, ANA], "who keeps bees?", [1.0217, 0, 0]),
        ([NORA, TOM, ANA], "boats", [0, 0.0958, 0.0958]),
        (CAT, "the cat", [0.5508, 0.0400, 0.0400]),
        (("the cat sat", "a dog ran", "a bird flew"), "cat", [0.5108, 0, 0]),
        (("the cat sat", "a dog ran"), "cat", [0, 0]),
        (("the cat sat",), "cat", [-0.2747]),
        (("!!!", "..."), "cat", [0, 0]),
        ((), "cat", []),
        ((NORA, "...", TOM), "", [0, 0, 0]),
    ],
)
def test_release_scores_are_those_of_the_worked_examples(texts, query, scores):
    assert Bm25(texts).scores(query) == pytest.approx(scores, abs=5e-5)


WORLD = st.lists(st.text("ab ", max_size=12), max_size=6)


@settings(max_examples=60, deadline=None)
@given(WORLD, st.text("ab ", max_size=8))
def test_release_scores_are_those_of_rank_bm25(texts, query):
    if any(text.split() for text in texts):
        expected = BM25Okapi([text.split() for text in texts]).get_scores(query.split())
        assert Bm25(texts).scores(query) == pytest.approx(list(expected))


@settings(max_examples=60, deadline=None)
@given(WORLD, st.text("ab ", max_size=8))
def test_positive_scores_are_positive_exactly_where_a_word_is_shared(texts, query):
    for text, score in zip(texts, Bm25(texts, idf="positive").scores(query), strict=True):
        assert (score > 0) == bool(set(text.split()) & set(query.split()))


def test_words_are_lower_cased_runs_of_letters_digits_and_underscores():
    # N = 1, n = 1: idf = ln(1 + 0.5 / 1.5) = 0.2877; term weight 2.5 / (1 + 1.5) = 1
    assert Bm25([NORA], idf="positive").scores("bees, bees!") == pytest.approx([0.5754], abs=5e-5)
    words = "don t e mail u s a 3 14 Ärger x_1"
    texts = [*words.split(), "", "mail mail"]
    found = Bm25(texts, idf="positive").scores("Don't e-mail U.S.A. 3.14 ÄRGER x_1")
    assert [score > 0 for score in found] == [True] * 11 + [False, True]


def test_ties_go_to_the_oldest_or_on_demand_to_the_newest():
    index = Bm25([TOM, NORA, ANA, NORA], idf="positive")
    assert index.top("boats bees", 9) == [0, 1, 2, 3]
    assert index.top("boats", 3) == [0, 2, 1]
    assert index.top("boats", 3, ties="newest") == [2, 0, 3]
    assert index.top("boats", 0) == []


def memory_of(*texts):
    entries = tuple(Entry(str(i), text) for i, text in enumerate(texts, 1))
    return Memory(semantic=entries, next_id=len(texts) + 1)


def test_search_is_cut_to_k_and_empty_where_there_is_nothing_to_rank():
    memory = memory_of(NORA, TOM, ANA)
    for k, ids in ((1, ["2"]), (20, ["2", "3", "1"])):
        found = search(memory, "semantic", "boats", k)
        assert [entry.id for entry, _ in found] == ids
    assert search(memory, "semantic", " ?! ", k=5) == []
    assert search(memory, "episodic", "boats", k=5) == []
    assert search(replace(memory, episodic=None), "episodic", "boats", k=5) == []
    with pytest.raises(ValueError, match="store"):
        search(memory, "core", "boats", k=5)


LINES = st.sampled_from(["bees hum", "a bee", "Tom sails", "", "boats hum", "蜂を飼う", "hum hum"])
EDITS = st.lists(st.tuples(st.sampled_from("iud"), st.integers(0, 9), LINES), max_size=14)


def edited(entries, edit):
    kind, number, text = edit
    ids = [entry.id for entry in entries]
    if kind == "i" or not ids:
        return entries.adding(Entry(f"{len(ids)}-{number}-{id(edit)}", text))
    chosen = ids[number % len(ids)]
    return entries.replacing(chosen, text) if kind == "u" else entries.removing(chosen)


@settings(max_examples=80, deadline=None)
@given(EDITS, EDITS, EDITS, st.sampled_from(["release", "positive"]))
def test_a_search_after_any_changes_is_that_of_a_new_index(first, left, right, idf):
    """Two branches of one store, searched in turn, so that the index goes to and fro."""
    stores = [Store([Entry("0", "bees hum")])]
    for branch in (first, left, right):
        start = stores[-1] if branch is first else stores[len(first)]
        for edit in branch:
            start = edited(start, edit)
            stores.append(start)
    for store in (*stores, *stores[::-1]):
        for query in ("bees hum hum", "飼う 蜂", "sails"):
            found = rank(store, query, 99, idf)
            expected = rank(Store(tuple(store)), query, 99, idf)
            assert [entry for entry, _ in found] == [entry for entry, _ in expected]
            assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-9)


@pytest.mark.parametrize("idf", ["release", "positive"])
def test_an_index_that_took_many_changes_ranks_as_a_new_one(idf):
    rng, store = random.Random(0), Store([Entry("0", "bees hum")])
    for number in range(300):
        text = " ".join(rng.choices(["bees", "hum", "Tom", f"boat{number}"], k=4))
        store = edited(store, (rng.choice("iuud"), number, text))
        found, new = (rank(s, "bees hum boat7 hum", 9, idf) for s in (store, Store(tuple(store))))
        assert [entry for entry, _ in found] == [entry for entry, _ in new]
        assert [s for _, s in found] == pytest.approx([s for _, s in new], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(EDITS)
def test_a_store_is_the_tuple_of_its_entries(edits):
    store, plain = Store(), ()
    for edit in edits:
        before, store = store, edited(store, edit)
        assert before == plain and hash(before) == hash(Store(plain))
        plain = tuple(store)
        assert (len(store), repr(store), store[-1:]) == (len(plain), repr(plain), plain[-1:])
        assert [store.newest(n) for n in (0, 2, 99)] == [(), plain[-2:], plain]
        assert store == plain and plain == store and pickle.loads(pickle.dumps(store)) == store
        assert all(store.get(entry.id) == entry for entry in plain) and store.get("x") is None
        assert all(entry in store.alike(entry.text) for entry in plain)
    with pytest.raises(InputError, match="'1' twice"):
        Store([Entry("1", "a"), Entry("2", "b"), Entry("1", "c")])


def test_of_all_stores_of_an_episode_only_the_list_that_was_made_last_is_kept():
    one = Store([Entry("1", "a")])
    two = one.adding(Entry("2", "b"))
    for store in (two, one, two):
        listed = tuple(store)
        assert (store.change, listed) == one.change.root.listed


SPACELESS = {
    "蜂を": "彼女は蜂を飼う",
    "ボート": "トムはボートを塗る",
    "เรือ": "ทอมทาสีเรือ",
    "แมว": "เธอเลี้ยงแมว",
    "蜜蜂": "諾拉養蜜蜂",
    "톰이": "톰은 배를 칠한다 톰이",
    "मधुमक्खियाँ": "नोरा मधुमक्खियाँ पालती है",
    "النَّحل": "نورا تربي النَّحل",
    "می\u200cخواهم": "کتاب میخواهم",
}


@pytest.mark.parametrize("query", SPACELESS)
def test_scripts_without_spaces_rank_by_pairs_and_signs_belong_to_their_letters(query):
    memory = memory_of("Nora keeps bees", *SPACELESS.values())
    [(entry, score)] = search(memory, "semantic", query, 1, "positive")
    assert entry.text == SPACELESS[query] and score > 0


# --- Entries shown while memorising --------------------------------------------------------------


@pytest.mark.parametrize(
    ("display", "k", "chunk", "ids"),
    [
        ("recent", 5, "boats", "1234"),
        ("recent", 2, "boats", "34"),
        ("recent", 0, "boats", ""),
        ("relevant", 2, "Nora sold a boat to Ana", "14"),
        ("relevant", 2, "the bees are gone", "14"),  # the newest fills up
        ("relevant", 2, "nothing alike", "34"),
        ("relevant", 0, "boats", ""),
    ],
)
def test_the_newest_or_the_closest_entries_are_shown_in_insertion_order(
    display, k, chunk, ids, monkeypatch
):
    memory = memory_of(NORA, TOM, "Ida bakes bread", ANA)
    monkeypatch.setattr(Store, "_tuple", lambda entries: pytest.fail("looked at every entry"))
    lists = shown(memory, chunk, replace(FIXED, shown=k, display=display))
    assert ["".join(entry.id for entry in entries) for entries in lists.values()] == [ids, ""]
    assert shown(replace(memory, semantic=None), chunk, FIXED) == {"episodic": ()}
