"""Readers that ask a chat model: once, over HTTP, and with a tool to search."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from answering import BOATS, COMPASS, EMBEDDING, Embedder, memory, texts
from fake_chat import FakeChat, user
from stub_server import Faults, StubServer

from memalpha_kit.chats import ChatReply
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method import episode
from memalpha_kit.method.model_readers import AgenticReader, ModelReader
from memalpha_kit.method.prompts import VERSION, system_prompt
from memalpha_kit.method.readers import BestEntry, reader
from memalpha_kit.method.retrieval import Retrieval, view
from memalpha_kit.method.writers import writer
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.records import QA, Answer, Memory, Question, ToolUse, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig

WORDS = Retrieval(counter="words")


def put(stored, text, id="q0", source=""):
    """A question to a memory."""
    return Question(id, text, source, "i0", stored)


# ---- asking once ------------------------------------------------------------------------------


def test_the_model_sees_the_memory_and_the_question_and_its_raw_reply_is_the_prediction():
    reply = ChatReply("<think>hm</think>\n\nTom", "stop", (), 90, 7, 0.25)
    model = FakeChat(lambda asked: reply)
    asking = ModelReader(model, max_tokens=64, temperature=0.7, thinking=True, seed=3)
    [answer] = asking.read([put(BOATS, "Who sold a boat?", source="squad")])
    [asked] = model.asked
    shown = view(BOATS, Retrieval()).show("Who sold a boat?")
    assert [m["content"] for m in asked.messages] == [system_prompt(shown), "Who sold a boat?"]
    assert (asked.max_tokens, asked.temperature, asked.thinking, asked.seed) == (64, 0.7, True, 3)
    assert asked.version == VERSION and asked.tools == ""
    expected = Answer("q0", reply.text, None, shown.ids, "stop", 1, 90, 7, 0.25, instance="i0")
    assert answer == expected
    ModelReader(model).read([put(BOATS, "Who?")])
    plain = model.asked[-1]
    assert (plain.temperature, plain.thinking, plain.max_tokens) == (0.0, False, 2048)


REPLIES = {  # question -> reply, prediction, error, finish
    "timeout?": (ChatReply(None, "error", error="timeout"), None, "timeout", "error"),
    "code?": (ChatReply("Error: 404 is the code"), "Error: 404 is the code", "", "stop"),
    "cut?": (ChatReply("", "length"), "", "", "length"),
    "silent?": (ChatReply(None), None, "the reply has no text", "stop"),
    "reasoning?": (
        ChatReply(None, "stop", error="the reply has reasoning and no answer"),
        *(None, "the reply has reasoning and no answer", "stop"),
    ),
}


def test_what_is_no_answer_is_missing_and_says_what_the_server_did():
    model = FakeChat(lambda asked: REPLIES[user(asked)][0])
    answers = ModelReader(model).read([put(BOATS, text) for text in REPLIES])
    found = [(answer.prediction, answer.error, answer.finish) for answer in answers]
    assert found == [row[1:] for row in REPLIES.values()]


class Untold(FakeChat):
    """Does not call `done`."""

    def chat(self, requests, done=None):
        return super().chat(requests)


@pytest.mark.parametrize(("kind", "order"), [(FakeChat, [2, 1, 0]), (Untold, [0, 1, 2])])
def test_all_questions_go_in_one_call_and_every_answer_is_told_once(kind, order):
    model, told = kind(user), []
    questions = [put(memory([f"fact {i}"]), f"Q{i}?") for i in range(3)]
    answers = ModelReader(model).read(questions, lambda *row: told.append(row))
    assert model.batches == [3] and [a.prediction for a in answers] == [q.text for q in questions]
    assert sorted(told, key=lambda row: row[0]) == list(enumerate(answers))
    assert [place for place, _ in told] == order
    assert ModelReader(model).read([]) == [] and model.batches == [3]


def test_a_question_that_cannot_be_asked_costs_no_other_its_answer():
    large, told = memory(["north"], core="x " * 40_000), []
    questions = [put(BOATS, "Who?"), put(large, "Who?", "q1")] * 2
    model = FakeChat()
    answers = ModelReader(model, WORDS).read(questions, lambda place, _: told.append(place))
    assert [a.prediction for a in answers] == ["Nora", None] * 2 and sorted(told) == [0, 1, 2, 3]
    assert "expected at most 30000 tokens, found 40" in answers[1].error
    assert (answers[1].finish, answers[1].qa, answers[1].instance) == ("unanswerable", "q1", "i0")
    assert model.batches == [2]


def test_a_model_that_is_gone_ends_the_run_and_what_was_known_is_kept():
    told, asking = [], ModelReader(FakeChat(dies_after=1))
    with pytest.raises(ModelGone):
        asking.read([put(BOATS, "Who?")] * 2, lambda *row: told.append(row))
    assert [answer.prediction for _, answer in told] == ["Nora"]


def test_texts_are_embedded_once_in_one_call_for_all_questions():
    stored, embedder, lexical = memory(["north", "east"]), Embedder(), Embedder()
    questions = [put(stored, text) for text in ("Where is north?", "east of what?")] * 2
    asking = ModelReader(FakeChat(), EMBEDDING, embed=embedder)
    first = asking.read(questions)
    expected = sorted(["Where is north?", "east of what?", "north", "east"])
    assert [sorted(asked) for asked in embedder.asked] == [expected]
    assert asking.read([*questions, put(stored, "north")])[:4] == first
    assert asking.read([put(memory(["north", "north east"]), "Where is north?")])
    assert embedder.asked[1:] == [["north east"]]  # only what is new
    ModelReader(FakeChat(), embed=lexical).read(questions)
    assert lexical.asked == []


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
        last_word = lambda body: body["messages"][-1]["content"].split()[-1]  # noqa: E731
        with StubServer(last_word, latency_s=0.01, faults=given_faults) as stub:
            asking = ModelReader(Client(Endpoint(stub.url, "stub", concurrency=8)))
            found.append(episode.ask(episodes, instances, asking))
            assert 4 <= stub.peak_in_flight <= 8
            assert sum(stub.faulty.values()) == 0 or given_faults is faults
    plain, faulty = ([[(a.qa, a.prediction, a.score) for a in e.answers] for e in f] for f in found)
    assert plain == faulty
    assert all(a.score == 1.0 and a.prompt_tokens > 0 for e in found[1] for a in e.answers)


# ---- asking with search -----------------------------------------------------------------------


def search(query, store="semantic", name="search_memory", id="c1") -> ToolUse:
    return ToolUse(id, name, json.dumps({"memory_type": store, "query": query}))


def uses(*calls: ToolUse, text: str = "") -> ChatReply:
    return ChatReply(text, "tool_calls", calls, 10, 2, 0.5)


@dataclass
class Script(FakeChat):
    """Replies in turn; the last one again and again."""

    replies: list[ChatReply] = field(default_factory=list)

    def chat(self, requests, done=None):
        place = min(len(self.batches), len(self.replies) - 1)
        self.say = lambda asked: self.replies[place]
        return super().chat(requests, done)


CATS = memory([f"cat {i} {'cat ' * (9 - i)}" for i in range(9)], ["day 1: a dog", "day 2: rain"])
TOM = ChatReply("Tom", "stop", (), 5, 1, 0.5)


def searched(*replies: ChatReply, stored: Memory = CATS, text: str = "cat?", **options):
    """The answer after these replies, its history, and the model that gave them."""
    model = Script(replies=list(replies))
    [(answer, history)] = AgenticReader(model, **options).converse([put(stored, text)])
    return answer, history, model


def test_a_search_brings_the_best_entries_that_were_not_shown_yet():
    """2 at the start, 2 for each search, known ids dropped, as in the published code."""
    both = uses(search("cat"), search("dog", "episodic_memory", id="c2"))
    answer, history, model = searched(both, TOM)
    first = view(CATS, Retrieval(top_k=2)).show("cat?")
    assert texts(first.parts["semantic"]) == texts(CATS.semantic[:2])
    opening, second = model.asked
    assert "Only a few entries" in opening.messages[0]["content"] and opening.tools
    said, found, nothing = second.messages[2:]
    assert [call["id"] for call in said["tool_calls"]] == ["c1", "c2"]
    assert (found["tool_call_id"], nothing["tool_call_id"]) == ("c1", "c2")
    assert found["content"] == f"1. {CATS.semantic[2].text}\n2. {CATS.semantic[3].text}"
    assert nothing["content"] == "Nothing new was found."
    assert answer.prediction == "Tom" and answer.retrieved == (*first.ids, "3", "4")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.latency_s) == (15, 3, 1.0)
    assert answer.requests == 2
    event = {"iteration": 1, "search_method": "bm25"}
    cats = {"memory_type": "semantic", "query": "cat", "results_count": 9, "new_items": 2}
    dogs = {"memory_type": "episodic", "query": "dog", "results_count": 2, "new_items": 0}
    last = {"iteration": 2, "action": "final_answer", "message": ""}
    assert history == [event | cats, event | dogs, last]


def test_every_tool_call_gets_an_answer_also_unknown_and_broken_ones():
    cases = {
        "no tool 'delete": search("cat", name="delete_everything"),
        "one JSON object": ToolUse("c2", "search_memory", "cat"),
        "one of: semantic, episodic": search("cat", "core", id="c3"),
        "is not blank": search(" ", id="c4"),
        "a text that": ToolUse("c5", "search_memory", '{"memory_type": "semantic", "query": 7}'),
    }
    answer, history, model = searched(uses(*cases.values()), TOM)
    said, *results = model.asked[1].messages[2:]
    assert [r["tool_call_id"] for r in results] == ["c1", "c2", "c3", "c4", "c5"]
    assert all(what in r["content"] for what, r in zip(cases, results, strict=True))
    for call in said["tool_calls"]:
        json.loads(call["function"]["arguments"])  # servers refuse a history that is not JSON
    assert answer.prediction == "Tom"
    assert [event.get("action") for event in history] == ["error"] * 5 + ["final_answer"]


def test_a_search_with_broken_arguments_is_repaired_as_a_writer_s_call_is():
    broken = ToolUse("c1", "search_memory", "{'memory_type': 'semantic', 'query': 'cat',")
    answer, history, model = searched(uses(broken), TOM)
    assert (history[0]["query"], history[0]["new_items"], answer.prediction) == ("cat", 2, "Tom")
    sent = model.asked[1].messages[2]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"memory_type": "semantic", "query": "cat"}


def test_rounds_before_a_call_that_failed_were_paid_for():
    answer, *_ = searched(uses(search("cat")), ChatReply(None, "error", error="HTTP 500"))
    assert (answer.prediction, answer.requests, answer.prompt_tokens) == (None, 2, 10)


def test_after_the_last_round_the_model_has_to_answer():
    answer, history, model = searched(*[uses(search("cat"))] * 3, TOM, max_iterations=3)
    assert [bool(asked.tools) for asked in model.asked] == [True, True, True, False]
    assert answer.prediction == "Tom" and len(answer.retrieved) == 4 + 2 + 2 + 2
    assert history[-1] == {"iteration": 4, "action": "max_iterations_reached", "message": ""}
    assert model.asked[-1].thinking is False
    released = {"retrieval": Retrieval(behaviour="release"), "max_iterations": 1}
    answer, _, model = searched(*[uses(search("cat"))] * 2, **released)
    assert model.asked[-1].thinking is None
    assert answer.prediction == ""  # it searched again instead: an answer that was not given


@pytest.mark.parametrize(("behaviour", "shown"), [("fixed", 4), ("release", 9)])
def test_searching_ends_when_the_budget_is_used_up_but_in_the_release(behaviour, shown):
    large = memory([f"cat {i} " + "cat " * 1000 for i in range(9)])
    tight = replace(WORDS, budget_tokens=5000, behaviour=behaviour)
    replies = [uses(search("cat"))] * 5 + [TOM]
    answer, _, model = searched(*replies, stored=large, retrieval=tight)
    assert len(answer.retrieved) == shown
    if behaviour == "fixed":
        last = model.asked[-1]
        assert len(model.asked) == 3 and last.tools == ""
        assert "no room" in last.messages[-1]["content"]
        assert sum(len(m["content"].split()) for m in last.messages) < 5000


def test_a_failed_call_ends_its_question_and_no_other():
    def say(asked):
        text, turns = asked.messages[1]["content"], len(asked.messages)
        if text == "bad?":
            return uses(search("cat")) if turns == 2 else ChatReply(None, "error", error="timeout")
        return uses(search("cat")) if turns < 6 and text == "long?" else text

    model, told = FakeChat(say), []
    questions = [put(CATS, text, text) for text in ("short?", "bad?", "long?", " ")]
    answers = AgenticReader(model).read(questions, lambda place, _: told.append(place))
    assert [a.prediction for a in answers] == ["short?", None, "long?", None]
    assert [a.error for a in answers[:3]] == ["", "timeout", ""] and "blank" in answers[3].error
    assert model.batches == [3, 2, 1] and told == [3, 0, 1, 2]


def test_a_memory_without_stores_is_asked_without_a_tool():
    answer, _, model = searched(TOM, stored=Memory("Nora is a vet.", None, None))
    assert model.asked[0].tools == "" and answer.prediction == "Tom"


def test_queries_of_a_round_are_embedded_in_one_call():
    embedder = Embedder(COMPASS | {"n": (0, 1), "e": (1, 0)})
    how = {"retrieval": EMBEDDING, "initial_k": 1, "per_search": 1, "embed": embedder}
    compass = {"stored": memory(["north", "east", "north east"]), "text": "Where is north?"}
    answer, *_ = searched(uses(search("n"), search("e", id="c2")), TOM, **compass, **how)
    assert [len(asked) for asked in embedder.asked] == [4, 2]
    assert answer.retrieved == ("1", "3", "2")


@pytest.mark.parametrize("parser", [True, False])
def test_searching_works_over_http_with_and_without_a_tool_parser_at_the_server(parser):
    def searches_first(body: dict) -> str | dict:
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        if results:
            return results[0].splitlines()[0]
        function = {"name": "search_memory", "arguments": search("cat").arguments}
        if not parser:  # it leaves the call in the text, which is no answer
            called = f'{{"name": "search_memory", "arguments": {function["arguments"]}}}'
            return f"<tool_call>\n{called}\n</tool_call>"
        return {"tool_calls": [{"id": "c1", "type": "function", "function": function}]}

    with StubServer(searches_first) as stub:
        asking = AgenticReader(Client(Endpoint(stub.url, "stub")))
        answers = asking.read([put(CATS, f"cat {i}?") for i in range(4)])
    assert all(a.prediction.startswith("1. cat ") and len(a.retrieved) == 6 for a in answers)
    assert stub.n_requests == 8 and stub.requests[-1]["tools"][0]["type"] == "function"
    assert stub.requests[-1]["chat_template_kwargs"] == {"enable_thinking": False}


# ---- by name ----------------------------------------------------------------------------------


def test_readers_are_made_by_name_and_their_settings_tell_runs_apart():
    model = FakeChat()
    assert reader("model", model, temperature=0.7) == ModelReader(model, temperature=0.7)
    assert isinstance(reader("agentic", model, max_iterations=2), AgenticReader)
    assert reader("best_entry", k=2) == BestEntry(2) and reader("model", model).name == "model"
    for name in ("model", "agentic"):
        made = reader(name, model, embed=Embedder())
        found = json.loads(json.dumps(made.settings()))
        assert found["model"] == "fake" and found["embed"] == "compass"
        assert found["retrieval"]["top_k"] == 20 and found["prompts"] == VERSION
        assert reader(name, model, temperature=1.0).settings() != made.settings()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("modle", {}, "found 'modle'; did you mean 'model'"),
        ("model", {}, "expected a chat model, found none"),
        ("model", {"temprature": 1.0}, "did you mean 'temperature'"),
        ("best_entry", {"top_k": 3}, "'top_k' is unknown"),
    ],
)
def test_a_reader_that_cannot_be_made_says_why(name, options, reason):
    with pytest.raises(InputError, match=reason):
        reader(name, **options)
    with pytest.raises(InputError, match="expected a memory of three parts, found none"):
        ModelReader(FakeChat()).read([Question("q0", "Who?")])
