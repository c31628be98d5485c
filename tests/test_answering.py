"""Answering from memory: retrieval, the budget, and readers that ask a chat model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_server import Faults, StubServer

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method import episode
from memalpha_kit.method.model_readers import AgenticReader, ModelReader
from memalpha_kit.method.prompts import (
    VERSION,
    Retrieved,
    query_prompt,
    system_prompt,
)
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.readers import reader as make
from memalpha_kit.method.retrieval import (
    TEMPLATE_TOKENS,
    Retrieval,
    Unanswerable,
    Vectors,
    view,
)
from memalpha_kit.method.writers import writer
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.records import (
    QA,
    Answer,
    ChatReply,
    ChatRequest,
    Entry,
    Memory,
    Question,
    ToolUse,
    make_instance,
)
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import counter

PLAIN = Retrieval()


def retrieve(memory, text, retrieval=PLAIN, embed=None, source=""):
    return view(memory, retrieval, embed and Vectors(embed)).show(text, source)


def put(memory, id, text, source=""):
    """A question to a memory."""
    return Question(id, text, source, memory=memory)


RELEASE = Retrieval(behaviour="release")


def memory(semantic=(), episodic=(), core: str | None = "") -> Memory:
    """A memory of these texts, ids from 1 on."""
    entries = [Entry(str(i), text) for i, text in enumerate((*semantic, *episodic), 1)]
    n = len(semantic)
    return Memory(core, tuple(entries[:n]), tuple(entries[n:]), len(entries) + 1)


def texts(entries) -> list[str]:
    return [entry.text for entry in entries]


BOATS = memory(
    ["Nora keeps bees.", "Ana sails boats."], ["2024-05-01: Tom sold a boat.", "2024-05-02: rain."]
)

# ---- retrieval --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "query", "expected"),
    [
        (("the cat sat", "the dog ran", "the bird flew"), "the cat", "012"),
        (("a dog ran", "the cat sat", "a bird flew"), "cat", "102"),
        (("a dog ran", "the cat sat"), "cat", "01"),  # idf 0 at half: no order at all
        (("the cat sat",), "cat", "0"),  # below zero, and still shown
        (("!!!", "..."), "cat", "01"),  # the release divides by zero
        (("the cat sat", "a dog ran"), " ?!", ""),  # no word: nothing is found
    ],
)
def test_the_release_ranks_and_fills_as_in_the_worked_example(documents, query, expected):
    """Spec evaluation.md 7.10: no minimum score, zero scores fill up in insertion order."""
    found = retrieve(memory(documents), query, RELEASE)
    assert texts(found.semantic) == [documents[int(i)] for i in expected]


def test_a_small_store_is_ranked_sensibly_and_shown_whole_in_its_own_order():
    """S-6."""
    found = retrieve(memory(["a dog ran", "the cat sat"]), "cat")
    assert texts(found.semantic) == ["a dog ran", "the cat sat"]
    assert found.ids == ("2", "1")
    assert retrieve(memory(["!!!", "..."]), "cat").ids == ("1", "2")
    assert retrieve(memory(["a dog", "a cat"]), "?!").ids == ("1", "2")


def test_of_a_large_store_the_best_are_shown_best_first_and_the_oldest_fill_up():
    """S-7: the rule that is stated in `retrieve`."""
    words = ["rain fell", "snow fell", "cat cat sat", "a cat ran off at noon"]
    found = retrieve(memory(words), "cat", Retrieval(top_k=3))
    assert texts(found.semantic) == ["cat cat sat", "a cat ran off at noon", "rain fell"]


def test_episodic_entries_stand_in_the_order_of_time_but_not_in_the_release():
    """S-7."""
    days = ["day 1: rain", "day 2: a cat", "day 3: rain", "day 4: cat cat", "day 5: snow"]
    assert texts(retrieve(memory((), days), "cat", Retrieval(top_k=2)).episodic) == [
        days[1],
        days[3],
    ]
    released = retrieve(memory((), days), "cat", replace(RELEASE, top_k=2))
    assert texts(released.episodic) == [days[3], days[1]]
    assert retrieve(memory((), days), "cat", Retrieval(top_k=2)).ids == ("4", "2")


def test_ids_that_are_no_numbers_are_ordered_too():
    odd = Memory("", (), tuple(Entry(name, name) for name in ("b7", "a1", "zz")))
    assert [e.id for e in retrieve(odd, "zz", Retrieval(top_k=2)).episodic] == ["b7", "zz"]


QUESTION = "Sentence: where is my parcel\nWhich label belongs to this sentence?"
SAMPLES = memory(
    [
        "Sentence: play music\nLabel: 1",
        "Core memory holds rules; work out what each class means; give that one number.",
        "Sentence: my parcel is late\nLabel: 2",
    ]
)


def test_the_query_is_the_sentence_and_not_the_instruction_around_it():
    """S-2, D41."""
    top = Retrieval(top_k=1)
    assert retrieve(SAMPLES, QUESTION, top, source="ttl_train").ids == ("3",)
    released = retrieve(SAMPLES, QUESTION, replace(RELEASE, top_k=1), source="ttl_train")
    assert released.ids == ("2",)


def test_what_is_switched_off_stays_off():
    off = Memory(None, None, (Entry("1", "day 1"),))
    assert retrieve(off, "day") == Retrieved(None, None, off.episodic, ("1",))


def test_a_blank_question_is_refused_and_finds_nothing_in_the_release():
    """S-7."""
    with pytest.raises(Unanswerable, match="found a blank one"):
        retrieve(BOATS, " \n")
    assert retrieve(BOATS, " \n", RELEASE).ids == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "bm52"}, "did you mean 'bm25'"),
        ({"behaviour": "relase"}, "found 'relase'"),
        ({"behaviour": "release", "method": "embedding"}, "expected bm25 under release"),
        ({"top_k": 0}, "top_k: expected >= 1"),
        ({"budget_tokens": 0}, "budget_tokens: expected >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, reason):
    with pytest.raises(InputError, match=reason):
        Retrieval(**change)


# ---- embeddings -------------------------------------------------------------------------------

COMPASS = {
    "north": (0, 1),
    "east": (1, 0),
    "north east": (2, 2),
    "Where is north?": (0.1, 5),
    "east of what?": (1, 0.5),
}


@dataclass
class Embedder:
    """Looks vectors up and keeps what it was asked."""

    table: dict = field(default_factory=lambda: COMPASS)
    asked: list[list[str]] = field(default_factory=list)
    name: str = "compass"

    def __call__(self, wanted: list[str]) -> list:
        self.asked.append(list(wanted))
        return [self.table[text] for text in wanted]


EMBEDDING = Retrieval(method="embedding", top_k=2)


def test_embeddings_rank_by_direction_not_by_length():
    stored = memory(["east", "north east", "north"])
    found = retrieve(stored, "Where is north?", EMBEDDING, Embedder())
    assert texts(found.semantic) == ["north", "north east"]


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (lambda wanted: [(0.0, 0.0)] * len(wanted), "expected a direction"),
        (lambda wanted: [(float("nan"), 1.0)] * len(wanted), "expected a direction"),
        (lambda wanted: [(1.0, 0.0)] * (len(wanted) - 1), "expected 3 vectors, found 2"),
        (lambda wanted: [(1.0,) * n for n in range(1, len(wanted) + 1)], "of one width"),
        (None, "expected a function that embeds"),
    ],
)
def test_an_embedding_that_failed_is_an_error_and_never_zeros(vectors, reason):
    """A-15."""
    reader = ModelReader(Fake(), EMBEDDING, embed=vectors)
    with pytest.raises(InputError, match=reason):
        reader.read([put(memory(["north", "east"]), "q0", "Where is north?")])


def test_texts_are_embedded_once_in_one_call_for_all_questions():
    embedder, stored = Embedder(), memory(["north", "east"])
    requests = [put(stored, "q", q) for q in ("Where is north?", "east of what?")] * 2
    ModelReader(Fake(), EMBEDDING, embed=embedder).read(requests)
    assert [sorted(asked) for asked in embedder.asked] == [
        sorted(["Where is north?", "east of what?", "north", "east"])
    ]
    lexical = Embedder()
    ModelReader(Fake(), embed=lexical).read(requests)
    assert lexical.asked == []


# ---- the budget -------------------------------------------------------------------------------


def worked(n_semantic: int, n_episodic: int, base: int = 2000, item: int = 2048) -> Memory:
    """A memory whose system text has `base` words without its items and `item` for each."""
    body = " ".join(["word"] * (item - 2))  # its number and its own name are two more
    bare = memory(
        [f"s{i} {body}" for i in range(n_semantic)], [f"e{i} {body}" for i in range(n_episodic)]
    )
    shown = Retrieved("x", bare.semantic[:1], bare.episodic[:1])
    n_items = min(1, n_semantic) + min(1, n_episodic)
    rest = counter("words").count(system_prompt(shown)) - n_items * item
    return replace(bare, core=" ".join(["x"] * (base - rest + 1)))


WORDS = Retrieval(counter="words")
WORDS_RELEASE = replace(WORDS, behaviour="release")


def size(retrieval: Retrieval, shown: Retrieved, question: str = "") -> int:
    """Tokens of the system text; with a question of the whole prompt."""
    count = counter(retrieval.counter).count
    rest = TEMPLATE_TOKENS + count(question) if question else 0
    return count(system_prompt(shown)) + rest


@pytest.mark.parametrize(
    ("stores", "k", "tokens"), [((20, 0), 13, 28_624), ((20, 20), 6, 26_576), ((3, 0), 3, 8_144)]
)
def test_the_release_lowers_top_k_as_in_the_worked_example(stores, k, tokens):
    """Spec evaluation.md 7.11."""
    found = retrieve(worked(*stores), "word", WORDS_RELEASE)
    assert [len(found.semantic), len(found.episodic)] == [min(k, n) for n in stores]
    assert size(WORDS, found) == tokens


def test_exactly_the_budget_fails_in_the_release_and_costs_an_item_otherwise():
    """Spec evaluation.md 7.11, S-5."""
    full = worked(20, 0, base=2000, item=3500)  # 30,000 at top_k 8
    with pytest.raises(Unanswerable, match="expected less than 30000 tokens, found 30000"):
        retrieve(full, "word", WORDS_RELEASE)
    assert len(retrieve(full, "word", WORDS).semantic) == 7
    assert len(retrieve(full, "word", replace(WORDS, budget_tokens=30_021)).semantic) == 8


def test_fixed_leaves_out_the_lowest_ranks_of_both_stores_one_by_one():
    """As in the second worked example, but 13 items fit, not 2 x 6."""
    found = retrieve(worked(20, 20), "word", WORDS)
    assert (len(found.semantic), len(found.episodic)) == (7, 6)
    assert size(WORDS, found, "word") == 28_624 + 1 + TEMPLATE_TOKENS


def test_question_and_template_count():
    """S-5: the whole prompt has to fit."""
    memories = worked(20, 0)
    room = 30_000 - 28_624 - TEMPLATE_TOKENS
    assert len(retrieve(memories, "word " * room, WORDS).semantic) == 13
    assert len(retrieve(memories, "word " * (room + 1), WORDS).semantic) == 12
    assert len(retrieve(memories, "word " * (room + 1), WORDS_RELEASE).semantic) == 13
    prefix = len(query_prompt("booksum").split())
    assert (
        len(retrieve(memories, "word " * (room - prefix), WORDS, source="booksum").semantic) == 13
    )


def test_at_equal_rank_the_semantic_entry_stays():
    tight = replace(WORDS, budget_tokens=2000 + 2048 + TEMPLATE_TOKENS + 1)
    found = retrieve(worked(1, 1), "word", tight)
    assert (len(found.semantic), len(found.episodic)) == (1, 0)


def test_an_entry_larger_than_the_budget_is_cut_and_not_lost():
    """D42."""
    huge = memory(["sun " * 50_000], core="Nora is a vet.")
    found = retrieve(huge, "sun", WORDS)
    assert found.ids == ("1",) and size(WORDS, found, "sun") == 30_000
    assert "Nora" in system_prompt(found)


def test_a_core_that_does_not_fit_is_the_question_s_own_error():
    """S-5, D42: the others are answered."""
    large = memory(["north"], core="x " * 40_000)
    requests = [put(BOATS, "q0", "Who?"), put(large, "q1", "Who?")] * 2
    model, told = Fake(), []
    answers = ModelReader(model, WORDS).read(requests, lambda place, _: told.append(place))
    assert [a.prediction for a in answers] == ["Nora", None] * 2
    assert "expected at most 30000 tokens, found 40" in answers[1].error
    assert (answers[1].finish, answers[1].qa) == ("unanswerable", "q1")
    assert sorted(told) == [0, 1, 2, 3] and [len(batch) for batch in model.batches] == [2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab c\n", max_size=40), max_size=8),
    st.lists(st.text("ab c\n", max_size=40), max_size=8),
    st.integers(1, 400),
    st.integers(1, 5),
)
def test_whatever_is_stored_the_prompt_fits_or_the_question_says_why(semantic, episodic, limit, k):
    retrieval = Retrieval(top_k=k, budget_tokens=limit)
    stored = memory(semantic, episodic, "a core")
    try:
        found = retrieve(stored, "a b?", retrieval)
    except Unanswerable:
        bare = Retrieved("a core", (), ())
        assert size(retrieval, bare, "a b?") > limit
        return
    assert size(retrieval, found, "a b?") <= limit
    assert len(found.semantic) <= k and len(found.episodic) <= k
    assert sorted(found.ids) == sorted(e.id for e in (*found.semantic, *found.episodic))
    assert list(found.episodic) == sorted(found.episodic, key=lambda e: int(e.id))


# ---- asking once ------------------------------------------------------------------------------


@dataclass
class Fake:
    """A chat model in memory: `answer` makes a reply or its text; keeps what it was asked."""

    answer: Callable[[ChatRequest], ChatReply | str] = lambda asked: "Nora"
    tells: bool = True
    name: str = "fake"
    batches: list[list[ChatRequest]] = field(default_factory=list)

    def chat(self, requests, done=None) -> list[ChatReply]:
        self.batches.append(list(requests))
        replies = [self.answer(asked) for asked in requests]
        replies = [ChatReply(r) if isinstance(r, str) else r for r in replies]
        if done and self.tells:
            for place in reversed(range(len(replies))):
                done(place, replies[place])
        return replies


def question(asked: ChatRequest) -> str:
    return asked.plain()[-1]["content"]


def test_the_model_sees_the_memory_and_the_question_and_its_raw_reply_is_the_prediction():
    reply = ChatReply("<think>hm</think>\n\nTom", "stop", (), 90, 7, 0.25)
    model = Fake(lambda asked: reply)
    reader = ModelReader(model, max_tokens=64, temperature=0.7, thinking=True, seed=3)
    [answer] = reader.read([put(BOATS, "q0", "Who sold a boat?", "squad")])
    [[asked]] = model.batches
    system = system_prompt(retrieve(BOATS, "Who sold a boat?"))
    assert [m["content"] for m in asked.plain()] == [system, "Who sold a boat?"]
    assert (asked.max_tokens, asked.temperature, asked.thinking, asked.seed) == (64, 0.7, True, 3)
    assert asked.version == VERSION and asked.tools == ""
    ids = retrieve(BOATS, "Who sold a boat?").ids
    assert answer == Answer("q0", reply.text, None, ids, "stop", 1, 90, 7, 0.25)


def test_by_default_answers_are_greedy_and_do_not_think():
    """A-20, S-12."""
    model = Fake()
    ModelReader(model).read([put(BOATS, "q0", "Who?")])
    asked = model.batches[0][0]
    assert (asked.temperature, asked.thinking, asked.max_tokens) == (0.0, False, 2048)


def test_all_questions_of_all_memories_go_in_one_call():
    """A-9."""
    model = Fake(question)
    memories = [memory([f"fact {i}"]) for i in range(3)]
    requests = [put(m, f"q{j}", f"Q{i}{j}?") for i, m in enumerate(memories) for j in "ab"]
    answers = ModelReader(model).read(requests)
    assert [len(batch) for batch in model.batches] == [6]
    assert [a.prediction for a in answers] == [r.text for r in requests]
    assert ModelReader(model).read([]) == [] and len(model.batches) == 1


def test_a_failed_call_has_no_prediction_and_a_text_that_starts_with_error_is_one():
    """S-3, S-20."""
    replies = {
        "Q0?": ChatReply(None, "error", error="timeout"),
        "Q1?": ChatReply("Error: 404 is the code", "stop"),
        "Q2?": ChatReply("", "length"),
        "Q3?": ChatReply(None),
    }
    model = Fake(lambda asked: replies[question(asked)])
    answers = ModelReader(model).read([put(BOATS, "q", q) for q in replies])
    assert [a.prediction for a in answers] == [None, "Error: 404 is the code", "", None]
    assert [a.error for a in answers] == ["timeout", "", "", "the reply has no text"]
    assert [a.finish for a in answers] == ["error", "stop", "length", "stop"]


@pytest.mark.parametrize("tells", [True, False])
def test_every_answer_is_told_once_as_soon_as_it_is_known(tells):
    told = []
    requests = [put(BOATS, "q", f"Q{i}?") for i in range(3)]
    reader = ModelReader(Fake(question, tells))
    answers = reader.read(requests, lambda place, answer: told.append((place, answer)))
    assert sorted(told, key=lambda row: row[0]) == list(enumerate(answers))
    assert [place for place, _ in told] == ([2, 1, 0] if tells else [0, 1, 2])


def test_a_model_that_is_gone_ends_the_run_and_what_was_known_is_kept():
    class Dying(Fake):
        def chat(self, requests, done=None):
            done(0, ChatReply("Nora"))
            raise ModelGone("nobody answers")

    told = []
    with pytest.raises(ModelGone):
        ModelReader(Dying()).read([put(BOATS, "q0", "Who?")] * 2, lambda *a: told.append(a))
    assert [answer.prediction for _, answer in told] == ["Nora"]


# ---- over real HTTP ---------------------------------------------------------------------------


def last_word(body: dict) -> str:
    """An answer that only depends on the question."""
    return body["messages"][-1]["content"].split()[-1]


def test_answers_over_http_with_faults_equal_those_without_and_overlap(tmp_path):
    """Questions of several episodes are in flight together, never more than allowed."""
    instances = [
        make_instance(
            "squad",
            [f"Nora has {n} bees."],
            [QA(f"q{i}", f"What of {n} {i}", (f"{i}",)) for i in range(8)],
        )
        for n in range(5)
    ]
    episodes = episode.write(instances, writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
    faults = Faults(busy=0.05, broken=0.1, malformed=0.03, cut=0.02)
    found = []
    for given_faults in (Faults(), faults):
        with StubServer(last_word, latency_s=0.01, faults=given_faults) as stub:
            client = Client(Endpoint(stub.url, "stub", concurrency=8))
            done: list[int] = []
            found.append(
                episode.ask(episodes, instances, ModelReader(client), progress=done.append)
            )
            assert done == [1] * 5 and 4 <= stub.peak_in_flight <= 8
            assert sum(stub.faulty.values()) == 0 or given_faults is faults
    plain, faulty = ([[(a.qa, a.prediction, a.score) for a in e.answers] for e in f] for f in found)
    assert plain == faulty
    assert all(a.score == 1.0 and a.prompt_tokens > 0 for e in found[1] for a in e.answers)


# ---- asking with search -----------------------------------------------------------------------


def search(
    query: str, store: str = "semantic", name: str = "search_memory", id: str = "c1"
) -> ToolUse:
    return ToolUse(id, name, json.dumps({"memory_type": store, "query": query}))


def uses(*calls: ToolUse, text: str = "") -> ChatReply:
    return ChatReply(text, "tool_calls", calls, 10, 2, 0.5)


@dataclass
class Script(Fake):
    """Replies in turn; the last one again and again."""

    replies: list[ChatReply] = field(default_factory=list)

    def chat(self, requests, done=None):
        place = min(len(self.batches), len(self.replies) - 1)
        self.answer = lambda asked: self.replies[place]
        return super().chat(requests, done)


def ask(reader: AgenticReader, stored: Memory, text: str = "cat?"):
    [(answer, history)] = reader.converse([put(stored, "q0", text)])
    return answer, history


CATS = memory([f"cat {i} {'cat ' * (9 - i)}" for i in range(9)], ["day 1: a dog", "day 2: rain"])


def test_a_search_brings_the_best_entries_that_were_not_shown_yet():
    """Spec evaluation.md 2.6: 2 at the start, 2 for each search, known ids dropped."""
    model = Script(
        replies=[
            uses(search("cat"), search("dog", "episodic_memory", id="c2")),
            ChatReply("Tom", "stop", (), 5, 1, 0.5),
        ]
    )
    answer, history = ask(AgenticReader(model), CATS)
    first = retrieve(CATS, "cat?", Retrieval(top_k=2))
    assert texts(first.semantic) == texts(CATS.semantic[:2])
    [[opening], [second]] = model.batches
    assert "Only a few entries" in opening.plain()[0]["content"] and opening.tools
    said, found, nothing = second.plain()[2:]
    assert [call["id"] for call in said["tool_calls"]] == ["c1", "c2"]
    assert found["tool_call_id"] == "c1" and nothing["tool_call_id"] == "c2"
    assert found["content"] == f"1. {CATS.semantic[2].text}\n2. {CATS.semantic[3].text}"
    assert nothing["content"] == "Nothing new was found."
    assert answer.prediction == "Tom" and answer.retrieved == (*first.ids, "3", "4")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.latency_s) == (15, 3, 1.0)
    assert answer.requests == 2
    assert history == [
        {
            "iteration": 1,
            "memory_type": "semantic",
            "query": "cat",
            "search_method": "bm25",
            "results_count": 9,
            "new_items": 2,
        },
        {
            "iteration": 1,
            "memory_type": "episodic",
            "query": "dog",
            "search_method": "bm25",
            "results_count": 2,
            "new_items": 0,
        },
        {"iteration": 2, "action": "final_answer", "message": ""},
    ]


def test_every_tool_call_gets_an_answer_also_unknown_and_broken_ones():
    """S-11."""
    calls = [
        search("cat", name="delete_everything"),
        ToolUse("c2", "search_memory", '{"query": "cat'),
        search("cat", "core", id="c3"),
        search(" ", id="c4"),
        ToolUse("c5", "search_memory", '{"memory_type": "semantic", "query": 7}'),
    ]
    model = Script(replies=[uses(*calls), ChatReply("Tom")])
    answer, history = ask(AgenticReader(model), CATS)
    said, *results = model.batches[1][0].plain()[2:]
    assert [r["tool_call_id"] for r in results] == ["c1", "c2", "c3", "c4", "c5"]
    problems = [
        "no tool 'delete",
        "one JSON object",
        "one of: semantic, episodic",
        "blank",
        "blank",
    ]
    assert all(problem in r["content"] for problem, r in zip(problems, results, strict=True))
    for call in said["tool_calls"]:
        json.loads(call["function"]["arguments"])  # servers refuse a history that is not JSON
    assert answer.prediction == "Tom"
    assert [event.get("action") for event in history] == ["error"] * 5 + ["final_answer"]


def test_after_the_last_round_the_model_has_to_answer():
    model = Script(replies=[uses(search("cat"))] * 3 + [ChatReply("Tom")])
    answer, history = ask(AgenticReader(model, max_iterations=3), CATS)
    assert [bool(batch[0].tools) for batch in model.batches] == [True, True, True, False]
    assert answer.prediction == "Tom" and len(answer.retrieved) == 4 + 2 + 2 + 2
    assert history[-1] == {"iteration": 4, "action": "max_iterations_reached", "message": ""}
    assert model.batches[-1][0].thinking is False
    released = Script(replies=[uses(search("cat"))] * 2)
    answer, _ = ask(AgenticReader(released, RELEASE, max_iterations=1), CATS)
    assert released.batches[-1][0].thinking is None
    assert answer.prediction == ""  # it searched again instead: an answer that was not given


def test_searching_ends_when_the_budget_is_used_up():
    """S-11; the release has none."""
    large = memory([f"cat {i} " + "cat " * 1000 for i in range(9)])
    calls = [uses(search("cat"))] * 5 + [ChatReply("Tom")]
    tight = replace(WORDS, budget_tokens=5000)
    model = Script(replies=calls)
    answer, _ = ask(AgenticReader(model, tight), large)
    assert len(answer.retrieved) == 4 and len(model.batches) == 3
    last = model.batches[-1][0]
    assert last.tools == "" and "no room" in last.plain()[-1]["content"]
    assert sum(len(m["content"].split()) for m in last.plain()) < 5000
    answer, _ = ask(
        AgenticReader(Script(replies=calls), replace(tight, behaviour="release")), large
    )
    assert len(answer.retrieved) == 9


def test_a_failed_call_ends_its_question_and_no_other():
    """S-11: round by round, one call for all that are open."""

    def answer(asked: ChatRequest) -> ChatReply:
        text, turns = asked.plain()[1]["content"], len(asked.messages)
        if text == "bad?":
            return uses(search("cat")) if turns == 2 else ChatReply(None, "error", error="timeout")
        return uses(search("cat")) if turns < 6 and text == "long?" else ChatReply(text)

    model, told = Fake(answer), []
    reader = AgenticReader(model)
    names = ("short?", "bad?", "long?", " ")
    requests = [put(CATS, name, name) for name in names]
    answers = reader.read(requests, lambda place, _: told.append(place))
    assert [a.prediction for a in answers] == ["short?", None, "long?", None]
    assert [a.error for a in answers[:3]] == ["", "timeout", ""] and "blank" in answers[3].error
    assert [len(batch) for batch in model.batches] == [3, 2, 1]
    assert told == [3, 0, 1, 2]


def test_a_memory_without_stores_is_asked_without_a_tool():
    model = Fake()
    answer, _ = ask(AgenticReader(model), Memory("Nora is a vet.", None, None))
    assert model.batches[0][0].tools == "" and answer.prediction == "Nora"


def test_queries_of_a_round_are_embedded_in_one_call():
    embedder = Embedder(COMPASS | {"n": (0, 1), "e": (1, 0)})
    model = Script(replies=[uses(search("n"), search("e", id="c2")), ChatReply("Tom")])
    stored = memory(["north", "east", "north east"])
    reader = AgenticReader(model, EMBEDDING, initial_k=1, per_search=1, embed=embedder)
    answer, _ = ask(reader, stored, "Where is north?")
    assert [len(asked) for asked in embedder.asked] == [4, 2]
    assert answer.retrieved == ("1", "3", "2")


def test_searching_works_over_http():
    def searches_first(body: dict) -> str | dict:
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        if results:
            return results[0].splitlines()[0]
        function = {"name": "search_memory", "arguments": search("cat").arguments}
        return {"tool_calls": [{"id": "c1", "type": "function", "function": function}]}

    with StubServer(searches_first) as stub:
        reader = AgenticReader(Client(Endpoint(stub.url, "stub")))
        answers = reader.read([put(CATS, f"q{i}", f"cat {i}?") for i in range(4)])
    assert all(a.prediction.startswith("1. cat ") and len(a.retrieved) == 6 for a in answers)
    assert stub.n_requests == 8 and stub.requests[-1]["tools"][0]["type"] == "function"
    assert stub.requests[-1]["chat_template_kwargs"] == {"enable_thinking": False}


# ---- by name ----------------------------------------------------------------------------------


def test_readers_are_built_by_name():
    model = Fake()
    assert make("model", model, temperature=0.7) == ModelReader(model, temperature=0.7)
    assert isinstance(make("agentic", model, max_iterations=2), AgenticReader)
    assert make("best_entry", k=2) == BestEntry(2)
    assert make("model", model).name == "model"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("modle", {}, "found 'modle'; did you mean 'model'"),
        ("model", {}, "expected a chat model, found none"),
        ("model", {"temprature": 1.0}, "did you mean 'temperature'"),
        ("best_entry", {"top_k": 3}, "'top_k' is unknown"),
        ("agentic", {"model": Fake(), "max_iterations": 0}, "max_iterations: expected >= 1"),
    ],
)
def test_a_reader_that_cannot_be_built_says_why(name, options, reason):
    with pytest.raises(InputError, match=reason):
        make(name, **options)


@pytest.mark.parametrize("name", ["model", "agentic"])
def test_settings_are_plain_values_that_tell_runs_apart(name):
    reader = make(name, Fake(), embed=Embedder())
    found = json.loads(json.dumps(reader.settings()))
    assert found["model"] == "fake" and found["embed"] == "compass"
    assert found["retrieval"]["top_k"] == 20 and found["prompts"] == VERSION
    assert make(name, Fake(), temperature=1.0).settings() != reader.settings()
