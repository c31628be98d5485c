"""The memory server over real HTTP: uvicorn on loopback, httpx in front, a stub model behind."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from stub_server import StubServer

from memalpha_kit import cli
from memalpha_kit.chats import ChatReply
from memalpha_kit.errors import InputError
from memalpha_kit.method.prompts import query_prompt
from memalpha_kit.models.chat import Client
from memalpha_kit.models.local_chat import LocalChat
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.server.app import create_app
from memalpha_kit.server.limits import TOKEN_ENV, listen
from memalpha_kit.server.logs import JsonLines
from memalpha_kit.settings import ServerSettings

TOKEN = "correct-horse-battery"
KEY = "sk-a-secret-key"
BEES = {"a1b2": "Nora keeps bees."}
BOATS = {"a1b2": "Tom paints boats."}  # the same id: published ids may clash
MEMORY = {"core": "Nora is a vet.", "semantic": [BEES, BOATS], "episodic": []}
JSON = {"Content-Type": "application/json"}
ASKED = {"memories": [MEMORY], "questions": [["Who keeps bees?"]]}


def client_of(stub, **options):
    options = {"retries": 0, "timeout_s": 20.0, **options}
    return Client(Endpoint(stub.url, "qwen3-32b", **options))


class Running:
    """The server in a thread; `post` and `get` speak to it, `lines` are its log."""

    def __init__(self, app, headers=None):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=headers)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()

    def post(self, path, body, **options):
        return self.http.post(path, json=body, **options)

    def get(self, path, **options):
        return self.http.get(path, **options)


@contextlib.contextmanager
def serving(stub, headers=None, endpoint=None, token="", **settings):
    app = create_app(ServerSettings(**settings), client_of(stub, **(endpoint or {})), token)
    with Running(app, headers) as server:
        yield server


@pytest.fixture(scope="module")
def stub():
    with StubServer() as server:
        yield server


@pytest.fixture(scope="module")
def server(stub):
    with serving(stub) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(stub):
    stub.forget()
    stub.answer, stub.latency_s, stub.script, stub.die_after = bees, 0.0, [], None
    stub.key = ""


def bees(body):
    """The name that the memory in the system message gives, or a judgement."""
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "VALID" in system:
        valid = json.dumps("bad" not in user)
        return f'```json\n{{"VALID": {valid}, "ISSUES": [], "EXPLANATION": "so"}}\n```'
    return "Nora" if "Nora keeps bees." in system and "bees" in user else "I do not know."


def answered(response):
    assert response.status_code == 200, response.text
    return response.json()


def refused(response, status):
    """The body of a refusal, checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "detail", "request_id"} and body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert all(set(item) == {"loc", "msg", "type"} for item in body["detail"])
    return body


# --- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/process", "/batch_process"])
def test_questions_are_answered_each_from_its_own_memory(server, stub, path):
    body = {
        "memories": [MEMORY, {"semantic": [BOATS]}, {}],
        "questions": [["Who keeps bees?", "Who paints?"], ["Who keeps bees?"], []],
    }
    found, unknown = answered(server.post(path, body)), "I do not know."
    assert found.pop("result") == [["Nora", unknown], [unknown], []]
    assert found == {"status": "success", "processed_count": 3, "errors": []}
    sent = stub.requests[0]
    assert sent["temperature"] == 0.0 and sent["max_tokens"] == 2048
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


def test_options_are_honoured_and_the_old_batch_sizes_accepted(server, stub):
    options = {"max_tokens": 77, "temperature": 0.5, "enable_thinking": True}
    sizes = {"qwen_batch_size": 1, "azure_batch_size": 20}
    for path in ("/process", "/batch_process", "/agentic_process"):
        stub.forget()
        assert server.post(path, {**ASKED, **options, **sizes}).status_code == 200
        (sent,) = stub.requests
        assert (sent["max_tokens"], sent["temperature"]) == (77, 0.5)
        assert sent["chat_template_kwargs"] == {"enable_thinking": True}


def test_with_sources_the_server_adds_the_request_and_retrieves_with_the_question(stub):
    prefix = query_prompt("pubmed-rct")
    decoy = {"1": prefix}  # shares every word with the query prompt
    memory = {"semantic": [decoy, {"2": "Sentence: Frogs were dosed daily.\nLabel: 3"}]}
    question = "Sentence: Mice were dosed daily."
    with serving(stub, top_k=1) as server:
        old = {"memories": [memory], "questions": [[f"{prefix}\n\n{question}"]]}
        new = {"memories": [memory], "questions": [[question]], "sources": ["pubmed-rct"]}
        for body in (old, new):
            assert server.post("/batch_process", body).status_code == 200
    texts = [[message["content"] for message in sent["messages"]] for sent in stub.requests]
    assert texts[0][1] == texts[1][1] == f"{prefix}\n\n{question}"
    assert prefix in texts[0][0] and "Frogs" not in texts[0][0]
    assert "Frogs" in texts[1][0] and prefix not in texts[1][0]


def test_entries_that_are_no_text_are_written_out_and_other_keys_ignored(server, stub):
    state = {"semantic": [{"a": 7}, {"b": {"x": [None]}}], "episodic": [], "step": 3}
    assert server.post("/process", {**ASKED, "memories": [state]}).status_code == 200
    system = stub.requests[0]["messages"][0]["content"]
    assert '1. 7\n2. {"x": [null]}\n' in system and "core_memory" not in system


def test_a_search_finds_what_was_not_shown_and_its_history_comes_back(server, stub):
    def search(body):
        if body["messages"][-1]["role"] == "tool":
            return f"found {body['messages'][-1]['content']}"
        arguments = json.dumps({"memory_type": "semantic", "query": "lamp"})
        call = {"id": "c1", "function": {"name": "search_memory", "arguments": arguments}}
        return {"content": "", "tool_calls": [call]}

    stub.answer = search
    many = [{str(i): f"Fact {i} about lamp {i}."} for i in range(4)]
    body = {"memories": [{"semantic": many}], "questions": [["Fact 3?"]], "max_iterations": 2}
    found = server.post("/agentic_process", body).json()
    assert found["result"][0][0].startswith("found 1. Fact ")
    assert found["processed_count"] == 1 and found["errors"] == []
    history = found["search_iterations"][0][0]
    assert history[0]["query"] == "lamp" and history[0]["new_items"] == 2
    assert history[1] == {"iteration": 2, "action": "final_answer", "message": ""}


def test_text_that_utf8_cannot_hold_comes_back_as_json(server, stub):
    arguments = '{"memory_type": "semantic", "query": "\\ud800"}'
    call = {"id": "c1", "function": {"name": "search_memory", "arguments": arguments}}
    stub.answer = lambda body: {"content": "é\u4e2d", "tool_calls": [call] * ("tools" in body)}
    response = server.post("/agentic_process", {**ASKED, "max_iterations": 1})
    assert response.status_code == 200 and response.content.isascii()
    assert response.json()["result"] == [["é\u4e2d"]]


# --- Failures ------------------------------------------------------------------------------------


def test_a_failed_answer_is_null_with_its_reason_and_costs_no_other_its_answer(server, stub):
    stub.script = [500]
    body = {**ASKED, "questions": [["Who keeps bees?", "Who paints?"]]}
    found = answered(server.post("/batch_process", body))
    assert sorted(found["result"][0], key=str) in (["I do not know.", None], [None, "Nora"])
    (error,) = found["errors"]
    assert found["result"][error["memory"]][error["question"]] is None
    assert error["kind"] == "no_reply" and "HTTP 500" in error["message"]
    assert (found["status"], found["processed_count"]) == ("partial", 1)


@pytest.mark.parametrize("path", ["/process", "/agentic_process"])
def test_502_if_the_model_answered_nothing(server, stub, path):
    stub.script = [500, 500]
    body = refused(server.post(path, {**ASKED, "questions": [["a?", "b?"]]}), 502)
    assert [item["loc"] for item in body["detail"]] == [["questions", 0, 0], ["questions", 0, 1]]
    assert {item["type"] for item in body["detail"]} == {"no_reply"}


def test_answers_from_before_the_model_died_are_kept(stub):
    stub.die_after = 3
    with serving(stub, endpoint={"concurrency": 1, "give_up": 2}) as server:
        body = {**ASKED, "questions": [[f"Question {i}?" for i in range(8)]]}
        found = answered(server.post("/process", body))
    assert found["result"] == [["I do not know."] * 3 + [None] * 5]
    assert found["processed_count"] == 3 and len(found["errors"]) == 5
    assert stub.n_requests == 5  # two in vain, then the rest was not asked


def test_a_memory_that_does_not_fit_fails_its_own_questions_only(stub):
    with serving(stub, budget_tokens=400) as server:
        body = {"memories": [MEMORY, {"core": "word " * 500}], "questions": [["bees?"]] * 2}
        found = server.post("/process", body).json()
        assert found["result"] == [["Nora"], [None]]
        assert [e["kind"] for e in found["errors"]] == ["unanswerable"]
        only = {"memories": body["memories"][1:], "questions": [["bees?"]]}
        assert server.post("/process", only).status_code == 200  # the model did not fail


# --- The judge -----------------------------------------------------------------------------------


def call(name="new_memory_insert", kind="semantic", text="Bees hum.", **more):
    field = "new_content" if name == "memory_update" else "content"
    return {"name": name, "arguments": {"memory_type": kind, field: text}, **more}


# valid insert, invalid update, deletion
STEP = [
    call(success=True),
    call("memory_update", "core_memory", "bad", result="ok"),
    {"name": "memory_delete", "arguments": {"memory_type": "semantic", "memory_id": "1"}},
]


def test_scores_are_means_over_what_is_judged(server):
    batch = [STEP, [], [call(success=False), call(kind="episodic_memory")]]
    found = answered(server.post("/analyze_function", {"batch": batch, "qwen_batch_size": 32}))
    assert found["scores"] == [0.5, None, 1.0]
    judged = {"issues": [], "explanation": "so"}
    assert found["detailed_analyses"][0] == [
        {"is_valid": True, "score": 1.0, **judged},
        {"is_valid": False, "score": 0.0, **judged},
        {"is_valid": None, "score": None, "issues": [], "explanation": "",
         "error": "not to be judged"},
    ]  # fmt: skip
    counts = {name: found[name] for name in found if name.startswith("total")}
    assert counts == {"total_processed": 3, "total_items": 5, "total_groups": 3}
    assert (found["llm_processed"], found["status"], found["errors"]) == (3, "success", [])


def test_a_judgement_that_failed_is_missing_and_not_zero(server, stub):
    stub.answer = lambda body: "no JSON" if "hum" in str(body["messages"]) else bees(body)
    found = server.post("/analyze_function", {"batch": [[call(), call(text="Nora")]]}).json()
    assert found["scores"] == [1.0]  # over one judged item, one judge_error
    assert (found["total_processed"], found["llm_processed"]) == (1, 2)
    assert found["status"] == "partial"
    (error,) = found["errors"]
    assert (error["group"], error["item"], error["kind"]) == (0, 0, "judge_error")
    assert error["message"] == "invalid format"
    stub.script = [500] * 3
    refused(server.post("/analyze_function", {"batch": [[call()]]}), 502)


def test_both_spellings_of_a_call_are_read(server):
    old = {"tool_name": "new_memory_insert", "tool_arguments": call()["arguments"]}
    odd = [{"name": None, "arguments": None}, {"name": "f", "arguments": {"memory_type": [1]}}]
    found = server.post("/analyze_function", {"batch": [[old], odd]}).json()
    assert found["scores"] == [1.0, None]


# --- As released ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(stub):
    with serving(stub, compat="release") as running:
        yield running


def test_release_has_the_published_shapes(released, stub):
    body = {**ASKED, "memories": [MEMORY] * 2, "questions": [["bees?", " "], ["no bees?"]]}
    stub.script = [500]
    found = released.post("/batch_process", body).json()
    assert set(found) == {"result", "status", "processed_count"}
    texts = [text for row in found["result"] for text in row]
    assert sum(text.startswith("Error: HTTP 500") for text in texts) == 1
    assert (found["status"], found["processed_count"]) == ("success", 3)
    assert stub.requests[0]["temperature"] == 0.7
    assert released.post("/process", body).json()["processed_count"] == 2  # memories
    keys = {"result", "status", "processed_count", "search_iterations"}
    assert set(released.post("/agentic_process", body).json()) == keys
    stub.script = [500]
    refused(released.post("/process", ASKED), 502)


def test_release_counts_what_is_not_judged_and_what_failed_as_zero(released, stub):
    found = released.post("/analyze_function", {"batch": [STEP, []]}).json()
    assert found["scores"] == [pytest.approx(1 / 3), 0.0]
    assert "errors" not in found and found["total_items"] == 3
    assert stub.requests[0]["temperature"] == 0.1
    stub.answer = lambda body: "no JSON" if "hum" in str(body["messages"]) else bees(body)
    found = released.post("/analyze_function", {"batch": [[call(), call(text="Nora")]]}).json()
    assert found["scores"] == [0.5]
    assert found["detailed_analyses"][0][0]["issues"] == ["invalid format"]
    stub.script = [500]
    assert answered(released.post("/analyze_function", {"batch": [[call()]]}))["scores"] == [0.0]


def published_rewards(server, batch, weight=0.1):
    """What the published training does with judgements (`naive.py`), in our words: 0 for all rows
    without a status of 200, and else each score enters its row's reward as it stands."""
    response = server.post("/analyze_function", {"batch": batch})
    scores = response.json()["scores"] if response.status_code == 200 else [0.0] * len(batch)
    return [weight * score for score in scores]


def published_answers(server, asked):
    """What the published rollout does with answers (`generation.py`): only texts go on."""
    response = server.post("/batch_process", asked)
    texts = response.json()["result"][0] if response.status_code == 200 else []
    return [text.split("</think>")[-1].strip() for text in texts]


def test_a_published_client_survives_whatever_fails_under_release_and_not_a_null(stub, server):
    asked = {**ASKED, "questions": [["Who keeps bees?", "What bees?"]]}
    one = {"concurrency": 1}
    with serving(stub, {}, one, compat="release", time_limit=0.5) as old:
        assert published_rewards(old, [STEP, [], STEP[2:]]) == pytest.approx([0.1 / 3, 0, 0])
        for script in ([500] * 9, [b"{}"] * 9, ["", "hang"], ["hang"]):
            stub.script = list(script)
            assert all(0 <= r <= 0.1 for r in published_rewards(old, [STEP, [call(text="Tom")]]))
            stub.script = list(script)
            assert all(isinstance(text, str) for text in published_answers(old, asked))
            stub.script = []
            until(lambda: stub.in_flight == 0)
    with pytest.raises(TypeError):
        published_rewards(server, [[]])


# --- Life and readiness --------------------------------------------------------------------------


def test_health_tells_of_the_process_and_ready_of_the_model(server, stub):
    names = {"model": "qwen3-32b", "model_name": "qwen3-32b", "analysis_mode": "llm-based"}
    alive = {"status": "healthy", "processor_available": True, **names}
    assert server.get("/health").json() == alive
    assert server.get("/ready").json() == {"status": "ready", "model": "qwen3-32b"}
    assert not stub.requests  # neither costs a token
    stub.key = "another"
    assert "HTTP 401" in refused(server.get("/ready"), 503)["error"]


# --- Refusals ------------------------------------------------------------------------------------

SECRET = "swordfish " * 2000
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("status", "content", "headers"),
    [
        *((400, content, {}) for content in (b"", b"{", b'{"memories": [', b"\xff\xfe{", b"nul")),
        (400, DEEP, {}),
        (400, b'{"memories": [{"semantic": [{"a": ' + DEEP, {}),
        (400, b'{"memories": [{}], "questions": [["\\uD800"]]}', {}),  # half of a pair
        (400, b'{"a": ' + b"9" * 5000 + b"}", {}),
        (422, b'{"temperature": NaN}', {}),
        (415, b"{}", {"Content-Type": "text/plain"}),
        (415, b"{}", {"Content-Type": ""}),
        (415, b"{}", {"Content-Type": "json"}),
        (415, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
        (421, b"{}", {"Host": "evil.example"}),
        (421, b"{}", {"Host": "localhost.evil.example:5005"}),
        (421, b"{}", {"Host": "[::1"}),
    ],
)
def test_a_body_or_a_header_that_cannot_be_is_refused(server, stub, status, content, headers):
    headers = JSON | headers
    for path in ("/process", "/analyze_function"):
        refused(server.http.post(path, content=content, headers=headers), status)
    assert not stub.requests


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5005", "[::1]:80", "127.1.2.3"])
def test_this_machine_has_several_names_and_with_a_token_any_is_right(server, stub, host):
    assert server.get("/health", headers={"Host": host}).status_code == 200
    refused(server.get("/health", headers={"Host": "evil.example"}), 421)
    with serving(stub, token=TOKEN) as locked:
        assert locked.get("/health", headers={"Host": "evil.example"}).status_code == 200


WRONG = {
    "nothing": (None, "body"),
    "array": ([ASKED], "body"),
    "empty object": ({}, "memories"),
    "no memories": ({"memories": [], "questions": []}, "memories"),
    "memory is text": ({**ASKED, "memories": [SECRET]}, "memories.0"),
    "entry has two keys": (
        {**ASKED, "memories": [{"episodic": [{SECRET: "a", "b": SECRET}]}]},
        "memories.0.episodic.0",
    ),
    "lengths differ": ({**ASKED, "questions": [["a"], ["b"]]}, "questions: expected one per"),
    "blank question": ({**ASKED, "questions": [["a", " \n"]]}, "questions.0.1: expected a text"),
    "tokens are true": ({**ASKED, "max_tokens": True}, "max_tokens"),
    "misspelt option": ({**ASKED, "max_token": 5}, "did you mean 'max_tokens'?"),
    "unknown option": ({**ASKED, SECRET: 5}, "unknown field"),
    "unknown source": ({**ASKED, "sources": ["squat"]}, "did you mean 'squad'?"),
    "sources differ": ({**ASKED, "sources": ["squad", "squad"]}, "sources: expected one per"),
}


@pytest.mark.parametrize("name", WRONG)
def test_422_says_what_is_wrong_and_repeats_nothing_of_the_body(server, stub, name):
    body, told = WRONG[name]
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = server.http.post("/batch_process", content=content, headers=headers)
    found = refused(response, 422)
    assert told in found["error"]
    assert found["detail"] and "swordfish" not in response.text
    assert len(response.content) < 2000 and not stub.requests


def test_422_for_calls_of_another_shape_and_a_million_mistakes_are_one_short_answer(server):
    for batch in (None, [], {}, [{}], [[7]], [[{"name": 5}]], "x"):
        assert "batch" in refused(server.post("/analyze_function", {"batch": batch}), 422)["error"]
    response = server.post("/process", {**ASKED, "questions": [[7] * 300_000]})
    assert refused(response, 422) and len(response.content) < 1000


def test_413_for_a_large_body_whether_it_is_announced_or_not(stub):
    with serving(stub, max_request_mb=0.01) as server:
        big = {**ASKED, "questions": [["x" * 20_000]]}
        assert "10485 bytes" in refused(server.post("/process", big), 413)["error"]
        raw = json.dumps(big).encode()
        parts = (raw[i : i + 1000] for i in range(0, len(raw), 1000))
        refused(server.http.post("/process", content=parts, headers=JSON), 413)
        assert server.post("/process", ASKED).status_code == 200
    assert stub.n_requests == 1


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/process", {**ASKED, "questions": [["a?"] * 4]}, "at most 3 questions"),
        ("/process", {"memories": [MEMORY] * 4, "questions": [["a?"]] * 4}, "at most 3 memories"),
        ("/process", {**ASKED, "memories": [{"episodic": [BEES] * 6}]}, "at most 5 entries"),
        ("/analyze_function", {"batch": [[{"name": "x"}] * 4]}, "at most 3 items"),
        ("/analyze_function", {"batch": [[]] * 4}, "at most 3 groups"),
    ],
)
def test_413_for_too_many_of_something(stub, path, body, told):
    with serving(stub, max_items=3, max_entries=5) as server:
        assert told in refused(server.post(path, body), 413)["error"]
        assert server.post("/process", {**ASKED, "questions": [["a?"] * 3]}).status_code == 200


def test_a_body_of_a_million_entries_does_not_keep_others_waiting(server, stub):
    """It is read and checked in a thread; 53 MB once stopped everything for 50 s."""
    body = json.dumps({**ASKED, "memories": [{"semantic": [BEES] * 1_000_000}]}).encode()
    waiting = BACKGROUND.submit(server.http.post, "/process", content=body, headers=JSON)
    lives = 0
    while not waiting.done():
        lives += httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    assert refused(waiting.result(60), 413) and lives > 1 and not stub.requests


# --- Places and time -----------------------------------------------------------------------------


BACKGROUND = ThreadPoolExecutor(4)


def until(true, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_503_with_retry_after_while_all_places_are_taken(stub):
    stub.latency_s = 1.0
    with serving(stub, at_work=2) as server:
        waiting = [BACKGROUND.submit(server.post, "/process", ASKED) for _ in range(2)]
        until(lambda: stub.in_flight == 2)
        response = server.post("/process", ASKED)
        assert "2 requests are at work" in refused(response, 503)["error"]
        assert int(response.headers["retry-after"]) > 0
        assert server.get("/health").status_code == 200  # life is not a place
        assert [one.result().status_code for one in waiting] == [200, 200]
        stub.latency_s = 0.0
        assert server.post("/process", ASKED).status_code == 200
    assert stub.peak_in_flight == 2


def test_a_server_that_is_stopped_at_work_says_so_as_it_refuses_anything(stub):
    stub.latency_s = 5
    with serving(stub) as server, ThreadPoolExecutor(1) as pool:
        server.server.config.timeout_graceful_shutdown = 0.1
        asked = pool.submit(server.post, "/batch_process", ASKED)
        until(lambda: stub.in_flight)
        server.server.should_exit = True
        assert "the server stops" in refused(asked.result(), 503)["error"]


def test_504_after_the_time_limit_and_the_work_is_stopped(stub):
    stub.script = ["hang"]
    with serving(stub, time_limit=0.3, at_work=1) as server:
        assert "0.3 s" in refused(server.post("/process", ASKED), 504)["error"]
        until(lambda: stub.in_flight == 0)  # long before the stub or the client would give up
        until(lambda: server.post("/process", ASKED).status_code == 200)


def test_what_was_answered_when_the_time_is_up_is_sent_and_the_rest_is_null(stub):
    stub.script = ["", "hang"]
    asked = {**ASKED, "memories": [MEMORY] * 2, "questions": [["Who keeps bees?"], ["What bees?"]]}
    late = "no answer within the time limit of 0.5 s"
    with serving(stub, {}, {"concurrency": 1}, time_limit=0.5) as server:
        found = server.post("/process", asked).json()
        assert found["result"] == [["Nora"], [None]]
        assert (found["status"], found["processed_count"]) == ("partial", 1)
        assert [error["message"] for error in found["errors"]] == [late]
        stub.script = ["", "hang"]
        batch = [[call(), call(text="Nora")], [call(text="Tom")]]
        found = server.post("/analyze_function", {"batch": batch}).json()
        assert found["scores"] == [1.0, None] and found["status"] == "partial"
        assert {error["message"] for error in found["errors"]} == {late}


def test_408_for_a_body_that_does_not_come_and_the_place_is_free_again(stub):
    with serving(stub, body_time=0.3, at_work=1) as server:
        with socket.create_connection(server.socket.getsockname(), timeout=20) as slow:
            head = "POST /process HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            slow.sendall(f"{head}\r\nContent-Length: 100\r\n\r\n{{".encode())
            refused(server.post("/process", ASKED), 503)
            answer = b"".join(iter(lambda: slow.recv(1000), b""))  # until it hangs up
            assert answer.startswith(b"HTTP/1.1 408 ") and b"within 0.3 s" in answer
        assert server.post("/process", ASKED).status_code == 200


def test_a_client_that_leaves_frees_its_place(stub):
    stub.script = ["hang"]
    with serving(stub, at_work=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.post("/process", ASKED, timeout=0.3)
        until(lambda: server.post("/process", ASKED).status_code == 200)


class Slow:
    """A local model: no `begin`, one batch after the other."""

    name = "local"

    def __init__(self):
        self.inside = self.peak = self.batches = 0
        self.go = threading.Event()

    def chat(self, requests, done=None):
        self.inside += 1
        self.batches += 1
        self.peak = max(self.peak, self.inside)
        self.go.wait(20)
        self.inside -= 1
        replies = [ChatReply("said") for _ in requests]
        for place, reply in enumerate(replies):
            if done:
                done(place, reply)
        return replies


def test_a_local_model_is_asked_by_one_request_at_a_time_and_nobody_asks_it_for_what_was_given_up():
    model = Slow()
    with Running(create_app(ServerSettings(time_limit=0.4, at_work=2), model)) as server:
        waiting = [BACKGROUND.submit(server.post, "/process", ASKED) for _ in range(2)]
        assert [one.result().status_code for one in waiting] == [504, 504]
        refused(server.post("/process", ASKED), 504)  # the model is still at the first batch
        assert model.batches == 1
        model.go.set()
        until(lambda: server.post("/process", ASKED).status_code == 200)
    assert (model.batches, model.peak) == (2, 1) and not hasattr(LocalChat, "begin")


def test_a_prompt_that_a_local_model_does_not_take_is_502_with_its_reason():
    class Toolless:
        name = "toolless"

        def chat(self, requests, done=None):
            raise InputError("chat template: expected the tools in the prompt")

    with Running(create_app(ServerSettings(), Toolless())) as server:
        (item,) = refused(server.post("/agentic_process", ASKED), 502)["detail"]
        assert item["msg"] == "chat template: expected the tools in the prompt"


# --- The token -----------------------------------------------------------------------------------


def test_every_request_but_health_needs_the_token(stub):
    with serving(stub, token=TOKEN) as server:
        assert server.get("/health").status_code == 200
        good = {"Authorization": f"Bearer {TOKEN}"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for response in (
                server.post("/process", ASKED, headers=headers),
                server.post("/analyze_function", {"batch": [[call()]]}, headers=headers),
                server.get("/ready", headers=headers),
            ):
                assert refused(response, 401) and TOKEN not in response.text
                assert response.headers["www-authenticate"] == "Bearer"
        assert not stub.requests
        assert server.post("/process", ASKED, headers=good).status_code == 200
        assert server.get("/ready", headers=good).status_code == 200


def test_other_machines_are_served_with_a_token_only():
    for host in ("127.0.0.1", "localhost"):
        with listen(host, 0, "") as bound:
            assert bound.getsockname()[0] == "127.0.0.1"
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(InputError, match=TOKEN_ENV):
            listen(host, 0, "")
    with listen("0.0.0.0", 0, TOKEN) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    with pytest.raises(InputError, match="plain characters"):
        listen("127.0.0.1", 0, "two words")


# --- The log -------------------------------------------------------------------------------------


@pytest.fixture
def lines():
    """Everything that is logged meanwhile, as the server's format writes it."""
    written, formatter = [], JsonLines()

    class Keep(logging.Handler):
        def emit(self, record):
            written.append(formatter.format(record))

    root, own, handler = logging.getLogger(), logging.getLogger("memalpha_kit.server"), Keep()
    before = own.level
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    own.setLevel(before)


def test_a_request_is_one_line_of_counts(stub, lines):
    stub.script = [500]
    with serving(stub, token=TOKEN) as server:
        good = {"Authorization": f"Bearer {TOKEN}"}
        body = {**ASKED, "questions": [["Who keeps bees?", "Who paints?"]]}
        response = server.post("/batch_process", body, headers=good)
    line = json.loads(next(line for line in lines if "/batch_process" in line))
    assert line["event"] == "request" and line["status"] == 200
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["memories"], line["entries"], line["questions"]) == (1, 2, 2)
    assert (line["calls"], line["failed"], line["answered"]) == (2, 1, 1)
    assert line["response_bytes"] == len(response.content) and line["duration_s"] > 0
    assert line["request_bytes"] == len(response.request.content)


def test_the_log_holds_no_content_no_key_and_no_token(stub, lines, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.script = [200, 500, b"{}", 400]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with serving(stub, headers, token=TOKEN) as server:
        for path in ("/process", "/batch_process", "/agentic_process", "/process"):
            server.post(path, ASKED)
        server.post("/process", {**ASKED, "Nora": 1})
        server.post("/process?Nora=bees", ASKED)
        server.get("/Nora/bees")
        server.post("/analyze_function", {"batch": [[call(text="Nora keeps bees.")]]})
    assert any(f"Bearer {KEY}" == sent["authorization"] for sent in stub.headers)
    assert sum('"event": "request"' in line for line in lines) == 8
    for word in ("Nora", "bees", "vet", KEY, TOKEN, "stub says"):
        assert not any(word in line for line in lines), word


def test_an_error_of_ours_is_a_500_whose_log_tells_where_but_not_what(stub, lines, monkeypatch):
    def fails(*args):
        raise RuntimeError(f"bug near {SECRET}")

    monkeypatch.setattr("memalpha_kit.server.work.answer", fails)
    with serving(stub, at_work=1) as server:
        response = server.post("/process", ASKED)
        body = refused(response, 500)
        assert "swordfish" not in response.text
        monkeypatch.undo()
        assert server.post("/process", ASKED).status_code == 200  # its place is free again
    found = [json.loads(line) for line in lines]
    request = next(line for line in found if line.get("request_id") == body["request_id"])
    assert request["status"] == 500
    bug = next(line for line in found if line.get("exception") == "RuntimeError")
    assert any("test_server.py" in frame for frame in bug["frames"])
    assert not any("swordfish" in line for line in lines)


def test_a_message_of_another_package_is_not_logged():
    record = logging.LogRecord("somebody", logging.ERROR, "f.py", 7, "%s", ("Nora",), None)
    line = json.loads(JsonLines().format(record))
    assert line["event"] == "f.py:7" and "Nora" not in str(line)


# --- The command ---------------------------------------------------------------------------------


def test_memalpha_serve_answers_over_http_and_ends_when_told(stub):
    options = ("--url", stub.url, "--model-name", "qwen3-32b", "--port", "0")
    own = {k: v for k, v in os.environ.items() if k not in (TOKEN_ENV, "QWEN_URL")}
    process = subprocess.Popen(
        [sys.executable, "-m", "memalpha_kit", "serve", *options],
        env=own | {"OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            assert http.get("/health").json()["model"] == "qwen3-32b"
            assert http.get("/ready").status_code == 200
            assert http.post("/batch_process", json=ASKED).json()["result"] == [["Nora"]]
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    paths = [line["path"] for line in lines if line["event"] == "request"]
    assert paths == ["/health", "/ready", "/batch_process"]
    assert "Nora" not in log and KEY not in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), TOKEN_ENV),
        (("--port", "99999"), "'--port': Input should be less than or equal to 65535"),
        (("--max-request-mb", "0"), "max_request_mb: expected more than 0"),
        (("--time-limit", "inf"), "time_limit: expected a number"),
        (("--top-k", "0"), "top_k: expected at least 1"),
        (("--compat", "old"), "compat: found 'old'; known: fixed, release"),
        (("--counter", "wordpinct"), "did you mean 'wordpunct'?"),
        (("--model", "/nowhere", "--model-name", "x"), "found both"),
        (("--host", "no such host"), "host: expected an address"),
        (("--url", "ftp://x"), "url: expected http"),
        (("--port", "TAKEN"), "cannot listen there"),
        (("--max-entries", "0"), "max_entries: expected at least 1"),
        (("--judge-tokens", "0"), "judge_tokens: expected at least 1"),
        ((), "QWEN_URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_it_must_not_do_is_one_line_and_exit_code_2(options, told, capsys, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", TOKEN_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QWEN_URL", "" if told == "QWEN_URL" else "http://127.0.0.1:9/v1")
    monkeypatch.setenv("QWEN_MODEL_NAME", "qwen3-32b")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        try:
            code = cli.main(["serve", *(port if word == "TAKEN" else word for word in options)])
        except SystemExit as error:
            code = error.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and told in said
