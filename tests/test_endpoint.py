"""The HTTP client: bounded, retried, cached by content, and silent about keys; on real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from email.utils import formatdate

import pytest
from stub_server import Faults, StubServer

from memalpha_kit.errors import DiskError, InputError, ModelGone
from memalpha_kit.models.endpoint import (
    Client,
    Endpoint,
    Failed,
    Usage,
    _retry_after_s,
    endpoint_from_env,
    read_reply,
    read_vectors,
)
from memalpha_kit.records import ChatReply, ChatRequest, ToolUse, message, request

KEY = "sk-secret-123"


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    with StubServer() as running:
        yield running


@pytest.fixture
def connect(stub, tmp_path):
    """Makes clients of the stub that note their pauses instead of waiting."""

    def made(**settings) -> Client:
        pauses = []

        async def sleep(pause_s):
            pauses.append(pause_s)

        settings = {"model": "tiny", "key_env": "STUB_KEY", "cache": tmp_path / "cache"} | settings
        client = Client(Endpoint(stub.url, **settings), sleep)
        client.pauses = pauses
        return client

    return made


def ask(text: str, **options) -> ChatRequest:
    return request("", text, **options)


def texts(replies: list[ChatReply]) -> list[str | None]:
    return [reply.text for reply in replies]


def completion(text, finish="stop", **extra) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **extra}).encode()


# --- Many requests ------------------------------------------------------------------------------


def test_many_at_once_are_8_times_faster_than_one_by_one_and_never_too_many(stub, connect):
    """Issue 4, shown 2. One by one, 200 requests of 100 ms take 20 s at least."""
    stub.latency_s, faster = 0.1, 0.0
    asked = [ask(f"question {n}") for n in range(200)]
    for _ in range(5):  # a busy machine may spoil some
        stub.forget()
        replies = connect(cache=None, concurrency=32).chat(asked)
        assert texts(replies) == [f"QUESTION {n}" for n in range(200)]
        assert stub.n_requests == 200 and 1 < stub.peak_in_flight <= 32
        faster = max(faster, 200 * stub.latency_s / stub.busy_s)
        if faster >= 8:
            break
    assert faster >= 8


def test_the_bound_holds_over_all_callers_of_one_client(stub, connect):
    stub.latency_s = 0.01
    client = connect(concurrency=3)
    threads = [
        threading.Thread(target=client.chat, args=([ask(f"{n}/{k}") for k in range(8)],))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stub.n_requests == 32 and stub.peak_in_flight == 3


FAULTS = Faults(busy=0.04, broken=0.04, malformed=0.04, cut=0.04, hang=0.04, hang_s=1.0, seed=3)


def test_with_a_fifth_of_all_calls_failing_the_replies_are_the_same(stub, connect):
    """Issue 4, shown 3."""
    asked = [ask(f"question {n}") for n in range(150)]
    good = connect(cache=None).chat(asked)
    stub.forget()
    stub.faults = FAULTS
    client = connect(cache=None, timeout_s=0.5)
    assert texts(client.chat(asked)) == texts(good)
    assert set(stub.faulty) == {"busy", "broken", "malformed", "cut", "hang"}
    assert client.usage.retried >= sum(stub.faulty.values()) > 20
    assert client.usage.failed == 0 and client.usage.asked == 150 + client.usage.retried


def test_a_server_that_dies_ends_the_run_and_the_next_run_goes_on(stub, connect):
    stub.die_after = 40
    asked, known = [ask(f"question {n}") for n in range(100)], {}
    client = connect(retries=1, give_up=5, concurrency=4)
    with pytest.raises(ModelGone, match=f"{stub.url}: expected replies of 'tiny', found: .*again"):
        client.chat(asked, known.__setitem__)
    kept = {place for place, reply in known.items() if reply.text}
    assert len(kept) == 40 and all(known[place].error for place in known.keys() - kept)
    stub.die_after = None
    again = connect()
    assert texts(again.chat(asked)) == [f"QUESTION {n}" for n in range(100)]
    assert (again.usage.cached, again.usage.asked) == (40, 60)


def test_a_server_that_is_gone_ends_the_run_and_the_next_run_goes_on(stub, connect):
    client = connect(concurrency=1, retries=1, give_up=3)
    stub.script = ["", "", *[500] * 6]
    asked = [ask(str(n)) for n in range(10)]
    with pytest.raises(ModelGone, match="run again to go on"):
        client.chat(asked)
    assert stub.n_requests == 8
    assert texts(client.chat(asked)) == [str(n) for n in range(10)]
    assert stub.n_requests == 16


def test_a_closed_port_is_one_line(connect):
    client = Client(Endpoint("http://127.0.0.1:9", "tiny", retries=0, give_up=1, timeout_s=1))
    with pytest.raises(
        ModelGone, match="http://127.0.0.1:9/v1: expected replies of 'tiny'"
    ) as gone:
        client.chat([ask("a")])
    assert "\n" not in str(gone.value)


def test_replies_are_handed_over_in_the_callers_thread_as_they_come(stub, connect):
    stub.latency_s = 0.01
    seen = []

    def done(place, reply):
        seen.append((place, reply.text, threading.get_ident()))

    client = connect(concurrency=2)
    client.chat([ask("a"), ask("b"), ask("a")], done)
    assert sorted(seen) == [(n, t, threading.get_ident()) for n, t in enumerate("ABA")]
    assert stub.n_requests == 2  # equal requests are sent once


def test_an_error_in_done_stops_the_work(stub, connect):
    stub.latency_s = 0.02

    def done(place, reply):
        raise DiskError("disk full")

    with pytest.raises(DiskError, match="disk full"):
        connect(concurrency=1).chat([ask(str(n)) for n in range(50)], done)
    time.sleep(0.1)
    assert stub.n_requests < 5


def test_it_works_inside_a_running_loop(stub, connect):
    """As in a notebook or a web server."""
    client, seen = connect(), {}

    async def cell():
        plain = client.chat([ask("a")])
        awaited = await client.achat([ask("b"), ask("a")], seen.__setitem__)
        return texts(plain + awaited)

    assert asyncio.run(cell()) == ["A", "B", "A"] and texts(seen.values()) in (
        ["A", "B"],
        ["B", "A"],
    )


def test_a_dead_server_ends_an_awaited_call_too(stub, connect):
    stub.die_after = 0
    with pytest.raises(ModelGone):
        asyncio.run(connect(retries=0, give_up=1).achat([ask("a"), ask("b")]))


def test_nothing_is_asked_for_no_requests(stub, connect):
    assert connect().chat([]) == [] and connect().embed([]) == []
    assert stub.n_requests == 0


# --- One request --------------------------------------------------------------------------------


def test_what_is_sent_is_the_request_and_the_key_in_its_header(stub, connect):
    connect().chat([ask("hello", temperature=0.5, top_p=0.9, seed=4, max_tokens=7)])
    assert stub.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 4,
            "max_tokens": 7,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    assert stub.paths == ["/v1/chat/completions"]


def test_a_server_without_a_key_is_asked_without_one(stub, connect, monkeypatch):
    monkeypatch.delenv("STUB_KEY")
    connect().chat([ask("a")])
    assert "authorization" not in stub.headers[0]


@pytest.mark.parametrize(
    ("url", "thinking", "fields"),
    [
        ("http://localhost:8000", True, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("http://localhost:8000", False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("http://localhost:8000", None, {}),
        ("https://openrouter.ai/api/v1", True, {"reasoning": {"enabled": True}}),
        ("https://openrouter.ai/api/v1", False, {"reasoning": {"enabled": False}}),
        ("https://api.openai.com/v1", False, {}),
        ("https://openrouter.ai.example.com/v1", None, {}),
    ],
)
def test_reasoning_is_switched_in_the_words_of_the_server(url, thinking, fields):
    body = Client(Endpoint(url, "m")).body(ask("a", thinking=thinking))
    assert {k: v for k, v in body.items() if k in ("chat_template_kwargs", "reasoning")} == fields


def test_the_words_for_reasoning_can_be_set():
    client = Client(Endpoint("http://localhost:8000", "m", thinking_field="none"))
    assert "chat_template_kwargs" not in client.body(ask("a", thinking=True))


def test_tool_calls_go_both_ways(stub, connect):
    function = {"name": "search_memory", "arguments": '{"query": "bees"}'}
    call = {"id": "c1", "type": "function", "function": function}
    stub.answer = lambda body: {"content": None, "tool_calls": [call]}
    tools = json.dumps([{"type": "function", "function": {"name": "search_memory"}}])
    client = connect()
    (reply,) = client.chat([ask("Who?", tools=tools)])
    assert reply.text == "" and reply.finish == "tool_calls" and not reply.error
    assert reply.tools == (ToolUse("c1", "search_memory", '{"query": "bees"}'),)
    assert stub.requests[0]["tools"] == json.loads(tools)
    (stored,) = client.chat([ask("Who?", tools=tools)])
    assert stored.cached and stored.tools == reply.tools and stub.n_requests == 1


def test_tokens_and_cost_are_counted_and_cached_replies_are_free(stub, connect):
    stub.answer = lambda body: {
        "content": "x",
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    client = connect(price_in=1.0, price_out=3.0)
    first, _ = client.chat([ask("a"), ask("b")])
    again, _ = client.chat([ask("a"), ask("b")])
    assert (first.prompt_tokens, first.completion_tokens) == (9, 2) and first.latency_s > 0
    assert again.cached and again.prompt_tokens == 9
    assert client.usage == Usage(asked=2, cached=2, prompt_tokens=18, completion_tokens=4)
    assert client.usage.cost(client.endpoint) == pytest.approx(30e-6)
    assert client.usage.cost(Endpoint(stub.url, "tiny")) is None


def test_a_cost_that_cannot_be_known_is_none(stub, connect):
    stub.answer = lambda body: {"content": "x", "usage": None}
    client = connect(price_in=1.0, price_out=3.0)
    (reply,) = client.chat([ask("a")])
    assert reply.prompt_tokens is None
    assert client.usage.uncounted == 1 and client.usage.cost(client.endpoint) is None


# --- Trouble ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [408, 429, 500, 503, "cut", "hang", b"<html>busy</html>", b"{}", b"[" * 9999]
)
def test_a_passing_trouble_is_tried_again(stub, connect, trouble):
    stub.script, stub.faults = [trouble, trouble], Faults(hang_s=1.0)
    client = connect(timeout_s=0.3 if trouble == "hang" else 10)
    (reply,) = client.chat([ask("a")])
    assert reply.text == "A"
    assert (client.usage.asked, client.usage.retried, client.usage.failed) == (3, 2, 0)
    first, second = client.pauses
    assert 0.5 <= first <= 1.0 <= second <= 2.0


def test_a_server_s_wish_to_wait_is_followed(stub, connect):
    stub.script, stub.faults = [429], Faults(retry_after="7")
    client = connect()
    client.chat([ask("a")])
    assert 7.5 <= client.pauses[0] <= 8.0


def test_a_wish_to_wait_is_a_number_or_a_date():
    assert _retry_after_s("1.5") == 1.5 and _retry_after_s("99999") == 600
    assert 20 < _retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 30
    for odd in ("", "soon", "-3", "nan", formatdate(0)):
        assert _retry_after_s(odd) == 0.0


def test_pauses_grow_have_an_end_and_are_the_same_again(stub, connect):
    pauses = []
    for _ in range(2):
        stub.script = [500] * 8
        client = connect(retries=8, cache=None)
        client.chat([ask("a")])
        pauses.append(client.pauses)
    assert pauses[0] == pauses[1]
    for pause, most in zip(pauses[0], [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert most / 2 <= pause <= most


def test_a_bad_request_is_not_repeated_and_the_others_go_on(stub, connect):
    client = connect(concurrency=1)
    stub.script = [400]
    bad, good = client.chat([ask("too long"), ask("b")])
    assert bad == ChatReply(None, "error", error="HTTP 400 Stub: stub says 400")
    assert good.text == "B" and client.pauses == [] and client.usage.failed == 1
    assert client.chat([ask("too long")])[0].text == "TOO LONG"  # a failure is never stored


@pytest.mark.parametrize(
    ("status", "said"), [(401, "STUB_KEY"), (402, "402"), (404, "404"), (302, "302"), (307, "307")]
)
def test_a_server_that_refuses_everything_ends_the_run_with_one_line(stub, connect, status, said):
    stub.script = [status]
    with pytest.raises(ModelGone, match=said) as gone:
        connect(concurrency=1).chat([ask(str(n)) for n in range(50)])
    assert stub.n_requests == 1 and "\n" not in str(gone.value)


def test_a_reply_that_says_nothing_is_asked_again_and_then_believed(stub, connect):
    client = connect()
    stub.script = [completion(""), completion(None)]
    assert texts(client.chat([ask("a")])) == ["A"]
    stub.answer = lambda body: ""
    (reply,) = client.chat([ask("b")])
    assert (reply.text, reply.finish, reply.error) == ("", "stop", "")
    assert client.usage.asked == 6 and client.usage.failed == 0
    stub.answer = lambda body: "now"
    assert texts(client.chat([ask("b")])) == ["now"]  # it was not stored


def test_a_reply_that_was_cut_off_is_a_reply_and_says_so(stub, connect):
    stub.answer = lambda body: {"content": "Nora ke", "finish_reason": "length"}
    client = connect()
    first, again = (client.chat([ask("a")])[0] for _ in range(2))
    assert (first.text, first.finish, first.error) == ("Nora ke", "length", "")
    assert again.finish == "length" and again.cached


# --- The cache ----------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(stub, connect):
    first = connect().chat([ask("a"), ask("b")])
    again = connect()
    assert texts(again.chat([ask("b"), ask("a")])) == texts(first)[::-1]
    assert (again.usage.asked, again.usage.cached, stub.n_requests) == (0, 2, 2)


def test_the_cache_knows_model_version_and_text_apart(stub, connect):
    connect().chat([ask("a")])
    others = [ask("a", version="2"), ask("a "), ask("a", max_tokens=9), ask("a", thinking=True)]
    more = [ask("a", temperature=1.0), ask("a", seed=1), ask("a", top_p=0.5), ask("a", tools="[]")]
    connect().chat(others + more)
    connect().chat([ChatRequest((message("system", "a"),))])
    connect(model="other").chat([ask("a")])
    assert stub.n_requests == 11


def test_a_cache_file_that_is_not_whole_or_of_another_request_is_not_believed(connect, tmp_path):
    client = connect()
    client.chat([ask("a")])
    (file,) = (tmp_path / "cache").rglob("*.json")
    whole = file.read_text()
    for damaged in ("", whole[:20], "[]", whole.replace('"key": "', '"key": "0')):
        file.write_text(damaged)
        assert texts(client.chat([ask("a")])) == ["A"]
        assert file.read_text() == whole
    assert client.usage.cached == 0


def test_a_reply_that_is_not_accepted_is_given_back_counted_and_asked_again(stub, connect):
    client = connect()
    for _ in range(2):
        (reply,) = client.chat([ask("a")], accept=lambda reply: reply.text.islower())
        assert reply.text == "A"
    assert (stub.n_requests, client.usage.failed, client.usage.cached) == (2, 2, 0)
    client.chat([ask("a")])
    client.chat([ask("a")], accept=lambda reply: reply.text.islower())
    assert stub.n_requests == 4  # what another caller stored is judged too


def test_a_cache_that_cannot_be_written_is_a_disk_error(connect, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="expected to write it"):
        connect(cache=tmp_path / "file").chat([ask("a")])


# --- Readiness ----------------------------------------------------------------------------------


def test_a_server_is_ready_if_it_answers_and_takes_the_key(stub, connect):
    client = connect()
    assert client.ready() == "" and stub.n_requests == 0
    stub.key = KEY
    assert client.ready() == ""
    stub.key = "another"
    assert "HTTP 401" in client.ready() and "STUB_KEY" in client.ready()
    stub.key, stub.models = "", ()  # keeps no list
    assert client.ready() == ""
    assert "ConnectError" in Client(Endpoint("http://127.0.0.1:9", "tiny")).ready()


# --- Keys ---------------------------------------------------------------------------------------


def test_the_key_is_nowhere_but_in_the_header(stub, connect, tmp_path, caplog):
    client = connect(retries=1)
    stub.answer = lambda body: "fine"
    stub.key = KEY
    with caplog.at_level(logging.DEBUG):
        stub.script = [500, 400]
        failed = client.chat([ask("a")])
        client.chat([ask("b")])
        stub.key = "another"
        with pytest.raises(ModelGone) as gone:
            client.chat([ask("c")])
    written = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    shown = caplog.text + str(gone.value) + repr(client) + repr(failed)
    assert written and caplog.text and KEY not in written + shown


def test_a_server_that_repeats_the_key_is_not_quoted(stub, connect, monkeypatch):
    monkeypatch.setenv("STUB_KEY", "stub")  # the stub's own word in its error message
    stub.script = [400]
    (reply,) = connect().chat([ask("a")])
    assert reply.error == "HTTP 400 Stub: *** says 400"


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ä", "sk\x00a"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(stub, monkeypatch, key):
    monkeypatch.setattr("os.environ", {"STUB_KEY": key})
    client = Client(Endpoint(stub.url, "tiny", "STUB_KEY"))
    with pytest.raises(ModelGone, match="STUB_KEY: expected a key of plain characters") as error:
        client.chat([ask("a")])
    assert key not in str(error.value) and stub.n_requests == 0


def test_a_proxy_is_not_asked_on_the_way_to_this_machine(stub, connect, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert texts(connect().chat([ask("a")])) == ["A"]


# --- Addresses and settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/completions", "http://localhost:8000/v1"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
    ],
)
def test_an_address_is_taken_with_or_without_its_end(given, url):
    assert Endpoint(given, "m").url == url


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "url: expected http"),
        ({"url": ""}, "url: expected http"),
        ({"url": "http://host:port/v1"}, "url: expected http"),
        ({"url": "http://[::1/v1"}, "url: expected http"),
        ({"url": "http://me:secret@host:port/v1?key=secret"}, "url: expected http"),
        ({"url": "https://me:secret@host/v1"}, "no user name, password or query in .* of host;"),
        ({"url": "https://host/v1?key=secret"}, "no user name, password or query"),
        ({"model": ""}, "model: expected"),
        ({"concurrency": 0}, "concurrency: expected more than 0, found 0"),
        ({"retries": -1}, "retries"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said) as error:
        Endpoint(**{"url": "http://x/v1", "model": "m"} | settings)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("env", "flags", "expected"),
    [
        (
            {"QWEN_URL": "http://q", "QWEN_MODEL_NAME": "qwen"},
            {},
            ("http://q/v1", "qwen", "OPENAI"),
        ),
        (
            {"QWEN_URL": "http://q", "QWEN_MODEL_NAME": "qwen", "OPENROUTER_API_KEY": "k"},
            {"url": "http://f", "model": None},
            ("http://f/v1", "qwen", "OPENROUTER"),
        ),
        (
            {"QWEN_URL": "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY": "k"}
            | {"OPENAI_API_KEY": "k", "QWEN_MODEL_NAME": "qwen/qwen3-32b"},
            {},
            ("https://openrouter.ai/api/v1", "qwen/qwen3-32b", "OPENROUTER"),
        ),
        (
            {"OPENAI_API_KEY": "k"},
            {"model": "gpt-4o-mini"},
            ("https://api.openai.com/v1", "gpt-4o-mini", "OPENAI"),
        ),
        (
            {"OPENROUTER_API_KEY": "k", "QWEN_MODEL_NAME": "qwen"},
            {"model": ""},
            ("https://openrouter.ai/api/v1", "qwen", "OPENROUTER"),
        ),
        (
            {"OPENAI_BASE_URL": "http://b/v1", "OPENAI_MODEL": "b"},
            {"key_env": "MINE_API_KEY"},
            ("http://b/v1", "b", "MINE"),
        ),
    ],
)
def test_environment_and_flags_name_the_endpoint(env, flags, expected):
    endpoint = endpoint_from_env(env, **flags)
    assert (endpoint.url, endpoint.model, endpoint.key_env.partition("_API")[0]) == expected


def test_other_flags_are_settings_of_the_endpoint(tmp_path):
    env = {"QWEN_URL": "http://q", "QWEN_MODEL_NAME": "qwen"}
    endpoint = endpoint_from_env(env, concurrency=4, cache=tmp_path, timeout_s=None, retries=0)
    assert (endpoint.concurrency, endpoint.cache, endpoint.retries) == (4, tmp_path, 0)
    assert endpoint.timeout_s == Endpoint("http://q", "qwen").timeout_s


@pytest.mark.parametrize(
    ("env", "flags", "said"),
    [
        ({}, {}, "QWEN_URL or --url"),
        ({"OPENAI_API_KEY": "a", "OPENROUTER_API_KEY": "b"}, {"model": "m"}, "QWEN_URL or --url"),
        ({"QWEN_URL": "http://q"}, {}, "http://q: expected a model in QWEN_MODEL_NAME"),
        ({}, {"modle": "m"}, "'modle' is unknown; did you mean 'model'"),
    ],
)
def test_what_is_missing_is_named(env, flags, said):
    with pytest.raises(InputError, match=said):
        endpoint_from_env(env, **flags)


# --- Reading answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b'{"choices": []}', b'{"choices": [null]}', b'{"error": 1}']
    + [completion(3), completion("x", "error"), completion("", None), completion(["x"])]
    + [b'{"choices": [{"message": {"tool_calls": [{"function": {"name": 3}}]}}]}'],
)
def test_a_body_that_is_no_completion_is_worth_another_try(body):
    with pytest.raises(Failed) as error:
        read_reply(body)
    assert error.value.retry and error.value.reply is None


def test_a_reply_that_the_server_withheld_is_no_answer():
    with pytest.raises(Failed, match="content filter") as error:
        read_reply(completion("", "content_filter"))
    assert not error.value.retry


def test_what_a_server_says_is_kept_as_it_is_but_can_be_written():
    reply = read_reply(completion(" <think>hm</think>\n\ud800 A \n", usage={"prompt_tokens": True}))
    assert reply == ChatReply(" <think>hm</think>\n? A \n")


def test_an_odd_tool_call_gets_an_id_and_text_arguments():
    call = {"function": {"name": "x", "arguments": {"query": "bees"}}}
    body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": [call]}}]})
    assert read_reply(body.encode()).tools == (ToolUse("call_0", "x", '{"query": "bees"}'),)


# --- Embeddings ---------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts_and_are_stored(stub, connect):
    wanted = [f"text {n}" for n in range(100)]
    client = connect()
    vectors = client.embed([*wanted, wanted[0]])
    assert vectors == [stub.embed(text) for text in [*wanted, wanted[0]]]
    assert [len(body["input"]) for body in stub.requests] == [64, 36]
    assert client.embed(wanted[::-1]) == vectors[99::-1] and stub.n_requests == 2
    assert client.usage.cached == 100 and client.usage.prompt_tokens == 200


def test_a_text_without_a_vector_is_an_error_and_never_a_zero(stub, connect):
    stub.script = [400]
    with pytest.raises(InputError, match="expected a vector for each text, found: HTTP 400"):
        connect().embed(["a"])
    stub.die_after = stub.n_requests
    with pytest.raises(ModelGone):
        connect(retries=1, give_up=1).embed(["a"])


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": ["x"]}],
        [{"index": n, "embedding": [1]} for n in range(3)],
        None,
    ],
)
def test_vectors_are_counted_and_measured(rows):
    with pytest.raises(Failed) as error:
        read_vectors(json.dumps({"data": rows}).encode(), 2)
    assert error.value.retry
