"""The HTTP client: bounded, retried, cached by content, and silent about keys; on real HTTP."""

import asyncio
import json
import logging
import threading
import time

import httpx2
import pytest
from stub_server import Faults, StubServer

from memalpha_kit.chats import ChatReply, ChatRequest, message, request
from memalpha_kit.errors import DiskError, InputError, ModelGone
from memalpha_kit.models.chat import Client
from memalpha_kit.models.replies import (
    Failed,
    masked,
    read_reply,
    read_vectors,
    refusal,
    without_key,
)
from memalpha_kit.models.servers import Endpoint, endpoint_from_env
from memalpha_kit.records import ToolUse

KEY = "sk-secret-123"


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    with StubServer() as running:
        yield running


@pytest.fixture
def connect(stub, tmp_path):
    def made(**settings) -> Client:
        settings = {"model": "tiny", "key_env": "STUB_KEY", "cache": tmp_path / "cache"} | settings
        return Client(Endpoint(stub.url, **settings))

    return made


def ask(text: str, **options) -> ChatRequest:
    return request("", text, **options)


def texts(replies: list[ChatReply]) -> list[str | None]:
    return [reply.text for reply in replies]


def completion(text, finish="stop", extra=None, **more) -> dict:
    said = {"role": "assistant", "content": text, **(extra or {})}
    return {"choices": [{"message": said, "finish_reason": finish}], **more}


# --- Many requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(("callers", "bound"), [(1, 32), (4, 3)])
def test_many_requests_are_under_way_and_never_too_many_over_all_callers(
    stub, connect, callers, bound
):
    stub.latency_s = 0.05
    client, replies = connect(cache=None, concurrency=bound), {}

    def work(n):
        replies[n] = texts(client.chat([ask(f"{n}/{k}") for k in range(96 // callers)]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {n: [f"{n}/{k}" for k in range(96 // callers)] for n in range(callers)}
    assert stub.n_requests == 96 and stub.peak_in_flight == bound


def test_with_a_fifth_of_all_calls_failing_the_replies_are_the_same(stub, connect):
    asked = [ask(f"question {n}") for n in range(100)]
    kinds = ("busy", "broken", "malformed", "cut", "hang")
    stub.faults = Faults(**dict.fromkeys(kinds, 0.04), hang_s=1.0, seed=3)
    client = connect(cache=None, timeout_s=0.5)
    assert texts(client.chat(asked)) == [f"QUESTION {n}" for n in range(100)]
    assert set(stub.faulty) == set(kinds)
    assert stub.n_requests == 100 + sum(stub.faulty.values())


def test_a_server_that_dies_ends_the_run_and_the_next_run_goes_on(stub, connect):
    stub.die_after = 40
    asked, known = [ask(f"question {n}") for n in range(100)], {}
    client = connect(retries=0, give_up=5, concurrency=4)
    with pytest.raises(ModelGone, match=f"{stub.url}: expected replies of 'tiny', found: .*again"):
        client.chat(asked, known.__setitem__)
    kept = {place for place, reply in known.items() if reply.text}
    assert len(kept) == 40 and all(known[place].error for place in known.keys() - kept)
    stub.die_after = None
    stub.forget()
    assert texts(connect().chat(asked)) == [f"QUESTION {n}" for n in range(100)]
    again = {body["messages"][-1]["content"] for body in stub.requests}  # one may come late
    assert again == {f"question {n}" for n in {*range(100)} - kept}


def test_replies_are_handed_over_in_the_callers_thread_as_they_come(stub, connect):
    seen = []

    def done(place, reply):
        seen.append((place, reply.text, threading.get_ident()))

    connect(concurrency=2).chat([ask("a"), ask("b"), ask("a")], done)
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


def test_it_works_inside_a_running_loop_and_with_nothing_to_ask(stub, connect):
    async def cell():
        return connect().chat([ask("a")])

    assert texts(asyncio.run(cell())) == ["A"]
    assert connect().chat([]) == [] and connect().embed([]) == [] and stub.n_requests == 1


# --- One request --------------------------------------------------------------------------------


def test_what_is_sent_is_the_request_and_the_key_in_its_header(stub, connect, monkeypatch):
    connect().chat([ask("hello", temperature=0.5, top_p=0.9, seed=4, max_tokens=7)])
    drawn = {"temperature": 0.5, "top_p": 0.9, "seed": 4, "max_tokens": 7}
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    assert stub.requests == [said | drawn | {"chat_template_kwargs": {"enable_thinking": False}}]
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    assert stub.paths == ["/v1/chat/completions"]
    monkeypatch.delenv("STUB_KEY")
    connect().chat([ask("a")])
    assert "authorization" not in stub.headers[1]


LOCAL = "http://localhost:8000"


@pytest.mark.parametrize(
    ("url", "thinking", "fields"),
    [
        (LOCAL, True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (LOCAL, False, {"chat_template_kwargs": {"enable_thinking": False}}),
        (LOCAL, None, {}),
        ("https://openrouter.ai/api/v1", True, {"reasoning": {"enabled": True}}),
        ("https://openrouter.ai/api/v1", False, {"reasoning": {"enabled": False}}),
        ("https://api.openai.com/v1", False, {}),
    ],
)
def test_reasoning_is_switched_in_the_words_of_the_server(url, thinking, fields):
    body = Client(Endpoint(url, "m")).body(ask("a", thinking=thinking))
    assert {k: v for k, v in body.items() if k in ("chat_template_kwargs", "reasoning")} == fields


def test_tool_calls_go_both_ways_and_through_the_cache(stub, connect):
    function = {"name": "search_memory", "arguments": '{"query": "bees"}'}
    call = {"id": "c1", "type": "function", "function": function}
    stub.answer = lambda body: {"content": None, "tool_calls": [call]}
    tools = json.dumps([{"type": "function", "function": {"name": "search_memory"}}])
    first, stored = (connect().chat([ask("Who?", tools=tools)])[0] for _ in range(2))
    assert first.text == "" and first.finish == "tool_calls" and not first.error
    assert first.tools == (ToolUse("c1", "search_memory", '{"query": "bees"}'),)
    assert stub.requests[0]["tools"] == json.loads(tools)
    assert stored.tools == first.tools and stub.n_requests == 1


# --- What is paid for ---------------------------------------------------------------------------

USED = {"prompt_tokens": 9, "completion_tokens": 2}


def body(text, **extra) -> bytes:
    return json.dumps(completion(text, usage=USED, **extra)).encode()


@pytest.mark.parametrize(
    ("script", "replies"),
    [
        ([body("x")], 1),
        ([body("")] * 2 + [body("x")], 3),  # said nothing twice: thrown away, and paid for
        ([body(None, finish="content_filter")], 1),
        ([body(None, extra={"reasoning_content": "hm"})], 1),
        ([500, 429, body("x")], 1),  # the server's own failures are not
    ],
    ids=["good", "empty", "withheld", "reasoning only", "busy"],
)
def test_a_reply_tells_the_tokens_of_every_one_that_was_paid_for_it(stub, connect, script, replies):
    stub.script = list(script)
    first = connect().chat([ask("a")])[0]
    paid = 9 * replies, 2 * replies
    assert (first.prompt_tokens, first.completion_tokens) == paid
    if first.text:
        again = connect().chat([ask("a")])[0]
        assert first.latency_s > 0 and again.prompt_tokens == 9 * replies and not stub.script


def test_a_reply_that_the_caller_throws_away_is_asked_again(stub, connect):
    stub.answer = lambda body: {"content": "A", "usage": USED}
    client = connect()
    for _ in range(2):
        assert texts(client.chat([ask("a")], accept=lambda r: r.text.islower())) == ["A"]
    client.chat([ask("a")])
    client.chat([ask("a")], accept=lambda reply: reply.text.islower())
    assert stub.n_requests == 4  # what another caller stored is judged too
    stub.answer = lambda body: {"content": "x", "usage": None}
    assert client.chat([ask("b")])[0].prompt_tokens is None


# --- Trouble ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [408, 429, 500, 503, "cut", "hang", b"<html>busy</html>", b"{}", b"[" * 9999]
)
def test_a_passing_trouble_is_tried_again(stub, connect, trouble):
    stub.script, stub.faults = [trouble, trouble], Faults(hang_s=1.0)
    client = connect(timeout_s=0.3 if trouble == "hang" else 10)
    assert texts(client.chat([ask("a")])) == ["A"] and stub.n_requests == 3


def test_a_bad_request_is_not_repeated_and_the_others_go_on(stub, connect):
    client = connect(concurrency=1)
    stub.script = [400]
    bad, good = client.chat([ask("too long"), ask("b")])
    assert bad == ChatReply(None, "error", error="HTTP 400 Stub: stub says 400")
    assert good.text == "B" and stub.n_requests == 2
    assert client.chat([ask("too long")])[0].text == "TOO LONG"  # a failure is never stored


VLLM_OLD = {"object": "error", "message": "The input (9 tokens) is longer than the context length"}
UNKNOWN = {"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}


@pytest.mark.parametrize(
    ("body", "said", "too_long"),
    [
        (VLLM_OLD, "The input (9 tokens) is longer than the context length", True),  # and SGLang
        ({"error": {"message": "exceeds the  context size"}}, "exceeds the context size", True),
        ({"error": "input length and `max_tokens` exceed context limit"}, "input length", True),
        ([{"error": {"message": "over the maximum number of tokens"}}], "over the maximum", True),
        ({"error": {"message": "Please reduce the length of the messages"}}, "reduce", True),
        ({"message": "max_tokens must be at least 1, got -186."}, "got -186", True),
        ({"detail": [UNKNOWN]}, json.dumps(UNKNOWN), False),
        ({"object": "error", "message": {"detail": [UNKNOWN]}}, json.dumps(UNKNOWN), False),
        ({"detail": "no tool parser"}, "no tool parser", False),
    ],
)
def test_a_refusal_says_what_the_server_said_in_any_shape(body, said, too_long):
    error = refusal(httpx2.Response(400, json=body), KEY, "STUB_KEY")
    assert str(error).startswith("HTTP 400 Bad Request: ") and said in str(error)
    assert error.too_long == too_long


def test_an_error_in_a_good_answer_is_told_without_the_key(stub, connect):
    stub.script = [json.dumps({"error": {"message": f"{KEY}: provider is down"}}).encode()] * 3
    [reply] = connect().chat([ask("a")])
    assert reply.error == "not a chat completion (KeyError): ***: provider is down"


STRICT = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
    "chat_template_kwargs": "Unrecognized request argument supplied: chat_template_kwargs",
}


def test_fields_that_a_server_refuses_are_renamed_or_left_out_and_that_is_said(
    stub, connect, caplog
):
    stub.refuses = lambda body: next((STRICT[name] for name in STRICT if name in body), "")
    client = connect(concurrency=1)
    assert texts(client.chat([ask("a", max_tokens=7), ask("b")])) == ["A", "B"]
    said = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    assert stub.requests[3] == said | {"max_completion_tokens": 7} and stub.n_requests == 5
    told = [record.message for record in caplog.records]
    assert [name in line for name, line in zip(list(STRICT)[1:], told, strict=True)] == [True] * 2
    assert connect().chat([ask("a", max_tokens=7)])[0].text == "A" and stub.n_requests == 5
    stub.script = [400]
    assert "stub says 400" in client.chat([ask("another refusal")])[0].error
    stub.refuses = lambda body: "no tools: not supported, whatever the seed" * ("tools" in body)
    [reply] = connect().chat([ask("c", tools="[]")])
    assert "no tools" in reply.error  # what a request is about is never left out


LONG = {"loc": ["content"], "msg": "too many characters", "input": "seed of unknown temperature"}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"error": "Reasoning is mandatory for this endpoint, cannot be disabled."}, "reasoning"),
        ({"error": "'seed' is not supported. Supported: max_tokens, temperature"}, "seed"),
        ({"error": "a model of another type does not support 'temperature'"}, "temperature"),
        ({"error": "max_tokens 9: not supported above the context length"}, ""),
        ({"detail": [UNKNOWN | {"input": 1}]}, "seed"),
        ({"detail": [LONG]}, ""),
        ({"object": "error", "message": str([LONG])}, ""),  # vLLM writes a list like this
    ],
)
def test_a_refused_field_is_the_first_that_was_sent_and_no_word_of_a_repeated_prompt(said, field):
    error = refusal(httpx2.Response(400, json=said), KEY, "STUB_KEY")
    assert error.not_taken(["max_tokens", "reasoning", "temperature", "seed"]) == field
    assert error.not_taken(["model", "messages"]) == "" and "of unknown" not in str(error)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "STUB_KEY"),
        (402, "402"),
        (404, "404"),
        (302, "302"),
        (307, "to http://127.0.0.1:1/else"),
    ],
)
def test_a_server_that_refuses_everything_ends_the_run_with_one_line(stub, connect, status, said):
    stub.script = [status]
    with pytest.raises(ModelGone, match=said) as gone:
        connect(concurrency=1).chat([ask(str(n)) for n in range(50)])
    assert stub.n_requests == 1 and "\n" not in str(gone.value)


def test_a_reply_that_says_nothing_is_asked_again_and_then_believed(stub, connect):
    client = connect()
    stub.answer = lambda body: ""
    (reply,) = client.chat([ask("b")])
    assert (reply.text, reply.finish, reply.error) == ("", "stop", "")
    assert stub.n_requests == 3
    stub.answer = lambda body: "now"
    assert texts(client.chat([ask("b")])) == ["now"]  # it was not stored


HIDDEN = {"usage": {"prompt_tokens": 9, "completion_tokens": 400}}
NO_ANSWERS = {
    "reasoning_content": ({"content": None, "reasoning_content": "Nora?"}, "reasoning field"),
    "beside nothing": ({"content": "", "reasoning": "Nora?"}, "reasoning field"),
    "beside blanks": ({"content": " \n", "reasoning": "Nora?"}, "reasoning field"),
    "as details": ({"content": None, "reasoning_details": [{"text": "Nora?"}]}, "reasoning field"),
    "as thinking": ({"content": "", "thinking": "Nora?"}, "reasoning field"),
    "hidden, but counted": ({"content": ""} | HIDDEN, "counted 400 tokens and showed none"),
    "a refusal": ({"content": None, "refusal": "I cannot."}, "refusal"),
    "withheld": ({"content": "", "finish_reason": "content_filter"}, "filter"),
    "broken off": ({"content": "No", "finish_reason": "abort"}, "broke off"),  # vLLM and SGLang
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_reply_that_is_all_reasoning_is_missing_counted_and_says_so(stub, connect, name):
    said, why = NO_ANSWERS[name]
    stub.answer = lambda body: said
    client = connect()
    (reply,) = client.chat([ask("Who?")])
    assert reply.text is None and reply.finish == "error" and why in reply.error
    asked = 3 if name in ("hidden, but counted", "broken off") else 1
    assert stub.n_requests == asked
    stub.answer = lambda body: said | {"content": "Nora", "finish_reason": "stop"}
    assert texts(client.chat([ask("Who?")])) == ["Nora"]  # it was not stored


def test_a_reply_that_was_cut_off_is_a_reply_and_says_so(stub, connect):
    stub.answer = lambda body: {"content": "Nora ke", "finish_reason": "length"}
    first, again = (connect().chat([ask("a")])[0] for _ in range(2))
    assert (first.text, first.finish, first.error) == ("Nora ke", "length", "")
    assert again.finish == "length" and stub.n_requests == 1


# --- The cache ----------------------------------------------------------------------------------


def test_the_cache_knows_all_that_a_reply_depends_on_apart(stub, connect, tmp_path):
    connect().chat([ask("a")])
    others = [ask("a", version="2"), ask("a "), ask("a", max_tokens=9), ask("a", thinking=True)]
    more = [ask("a", temperature=1.0), ask("a", seed=1), ask("a", top_p=0.5), ask("a", tools="[]")]
    connect().chat(others + more)
    connect().chat([ChatRequest((message("system", "a"),))])
    connect(model="other").chat([ask("a")])
    assert stub.n_requests == 11
    with StubServer(lambda body: "other weights") as other:  # of the same name
        assert texts(Client(Endpoint(other.url, "tiny", cache=tmp_path / "cache")).chat([ask("a")]))
        stored = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]
        assert {one["url"] for one in stored if one["text"] == "other weights"} == {other.url}
    assert texts(connect().chat([ask("a")])) == ["A"]


def test_a_cache_file_that_is_not_whole_or_of_another_request_is_not_believed(connect, tmp_path):
    client = connect()
    client.chat([ask("a")])
    (file,) = (tmp_path / "cache").rglob("*.json")
    whole = file.read_text()
    for damaged in ("", whole[:20], "[]", whole.replace('"key": "', '"key": "0')):
        file.write_text(damaged)
        assert texts(client.chat([ask("a")])) == ["A"]
        assert json.loads(file.read_text())["text"] == "A"


def test_a_cache_that_cannot_be_written_is_a_disk_error(connect, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="expected to write"):
        connect(cache=tmp_path / "file").chat([ask("a")])


# --- Readiness and keys -------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no such model", "no such model"),
        (f"bad key {KEY}!", "bad key ***!"),
        ("bad key sk-secr...-123", "bad key ***...***"),
        (f"twice {KEY}{KEY}", "twice ******"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_key_and_fragments_of_it_that_a_server_repeats_are_masked(stub, connect, said, shown):
    assert masked(KEY, said) == shown and masked("", said) == said[:200]
    stub.refusal = said
    stub.script = [400]
    assert connect().chat([ask("a")])[0].error == f"HTTP 400 Stub: {shown}"


def test_a_key_that_a_server_makes_an_answer_of_is_masked(stub, connect, tmp_path, monkeypatch):
    key = "sk-" + "0123456789abcdefghij"  # in two parts: nothing may look like a real key
    monkeypatch.setattr("os.environ", {"STUB_KEY": key})
    call = {"function": {"name": "f", "arguments": json.dumps({"a": key})}}
    stub.key, stub.answer = key, lambda body: {"content": f"Say {key[2:]}!", "tool_calls": [call]}
    client = Client(Endpoint(stub.url, "tiny", "STUB_KEY", cache=tmp_path))
    [reply] = client.chat([ask("a")])
    assert reply.text == "Say ***!" and reply.tools[0].arguments == '{"a": "***"}'
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "Say ***!" in stored and key[2:] not in stored
    short = ChatReply("EMPTY is a word", "stop")
    assert without_key("EMPTY", short) == short and without_key("", short) == short


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
        (LOCAL, f"{LOCAL}/v1"),
        (f"{LOCAL}/", f"{LOCAL}/v1"),
        (f"{LOCAL}/v1/", f"{LOCAL}/v1"),
        (f"{LOCAL}/v1/chat/completions", f"{LOCAL}/v1"),
        (f"{LOCAL}/v1/completions", f"{LOCAL}/v1"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
    ],
)
def test_an_address_is_taken_with_or_without_its_end(given, url):
    assert Endpoint(given, "m").url == url


NO_ADDRESS = """
localhost:8000
http://host:port/v1
http://[::1/v1
http://me:secret@host:port/v1?key=secret
http://me:sec/secret@host:port/v1
me:secret@host/v1
http://me:secret?x@host:80/v1
http://me:secret#x@host:80/v1
http://me:secret
http://me:secret%40host/v1
http://me:secret\uff20host/v1
http:\\\\me:secret@host/v1
ftp://me:secret@host
http:/me:secret@host
"""
WITH_A_KEY = """
https://me:secret@host/v1
https://:secret@host/v1
https://host/v1?key=secret
https://host/v1#secret
https://host/v1;secret
https://host/me:secret@v1
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(({"url": url}, "url: expected http") for url in ("", *NO_ADDRESS.split())),
        *(({"url": url}, "password or query in .* of host;") for url in WITH_A_KEY.split()),
        ({"model": ""}, "model: expected"),
        ({"concurrency": 0}, "concurrency: expected at least 1, found 0"),
        ({"retries": -1}, "retries"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said) as error:
        Endpoint(**{"url": "http://x/v1", "model": "m"} | settings)
    assert "secret" not in str(error.value)


QWEN = {"QWEN_URL": "http://q", "QWEN_MODEL_NAME": "qwen"}
ROUTER, OPENAI = {"OPENROUTER_API_KEY": "k"}, {"OPENAI_API_KEY": "k"}
AT_ROUTER, AT_OPENAI = "https://openrouter.ai/api/v1", "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("env", "flags", "expected"),
    [
        (QWEN, {}, ("http://q/v1", "qwen", "OPENAI")),
        (QWEN | ROUTER, {"url": "http://f", "model": None}, ("http://f/v1", "qwen", "OPENROUTER")),
        (QWEN | OPENAI | ROUTER | {"QWEN_URL": AT_ROUTER}, {}, (AT_ROUTER, "qwen", "OPENROUTER")),
        (OPENAI, {"model": "gpt-4o-mini"}, (AT_OPENAI, "gpt-4o-mini", "OPENAI")),
        (ROUTER | {"QWEN_MODEL_NAME": "q"}, {"model": ""}, (AT_ROUTER, "q", "OPENROUTER")),
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


@pytest.mark.parametrize(
    ("env", "flags", "said"),
    [
        ({}, {}, "QWEN_URL or --url"),
        (OPENAI | ROUTER, {"model": "m"}, "QWEN_URL or --url"),
        ({"QWEN_URL": "http://q"}, {}, "http://q/v1: expected a model in QWEN_MODEL_NAME"),
        (QWEN, {"modle": "m"}, "unknown key 'modle'; did you mean 'model'"),
    ],
)
def test_what_is_missing_is_named(env, flags, said):
    with pytest.raises(InputError, match=said):
        endpoint_from_env(env, **flags)


# --- Reading answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [None, [], 3, {"choices": []}, {"choices": [None]}, {"error": 1}, completion(3)]
    + [completion("x", "error"), completion("", None), completion(["x"])]
    + [{"choices": [{"message": {"tool_calls": [{"function": {"name": 3}}]}}]}],
)
def test_a_body_that_is_no_completion_is_worth_another_try(answer):
    with pytest.raises(Failed) as error:
        read_reply(answer)
    assert error.value.retry and error.value.reply is None


def test_what_a_server_says_is_kept_as_it_is_but_can_be_written():
    reply = read_reply(completion(" <think>hm</think>\n\ud800 A \n", usage={"prompt_tokens": True}))
    assert reply == ChatReply(" <think>hm</think>\n? A \n")
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "A"}]
    assert read_reply(completion(parts)) == ChatReply("A")
    call = {"function": {"name": "x", "arguments": {"query": "bees"}}}
    reply = read_reply(completion(None, extra={"tool_calls": [call]}))
    assert reply.tools == (ToolUse("call_0", "x", '{"query": "bees"}'),)


# --- Embeddings ---------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts_and_are_stored(stub, connect):
    wanted = [f"text {n}" for n in range(100)]
    client = connect()
    vectors = client.embed([*wanted, wanted[0]])
    assert vectors == [stub.embed(text) for text in [*wanted, wanted[0]]]
    assert sorted(len(body["input"]) for body in stub.requests) == [36, 64]
    assert client.embed(wanted[::-1]) == vectors[99::-1] and stub.n_requests == 2


def test_a_server_that_takes_few_texts_at_a_time_gets_fewer(stub, connect):
    stub.refuses = lambda body: "batch size > maximum allowed 10" * (len(body["input"]) > 10)
    wanted = [f"text {n}" for n in range(70)]
    assert connect().embed(wanted) == [stub.embed(text) for text in wanted]
    asked, stub.refuses = stub.n_requests, lambda body: "no such thing"
    with pytest.raises(InputError, match="no such thing"):
        connect(cache=None).embed(wanted[:64])
    assert stub.n_requests == asked + 7  # down to one text, and no further


def test_a_text_without_a_vector_is_an_error_and_never_a_zero(stub, connect):
    stub.script = [400]
    with pytest.raises(InputError, match="expected a vector for each text, found: HTTP 400"):
        connect().embed(["a"])
    stub.die_after = stub.n_requests
    with pytest.raises(ModelGone):
        connect(retries=1, give_up=1).embed(["a"])


def rows(*vectors, index=None) -> dict:
    return {"data": [{"index": n if index is None else index, "embedding": v}
                     for n, v in enumerate(vectors)]}  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [rows([1]), rows([1], [1], index=0), rows([1], [1, 2]), rows([1], ["x"]), rows([1], [1], [1])]
    + [{"data": None}, None],
)
def test_vectors_are_counted_and_measured(answer):
    with pytest.raises(Failed) as error:
        read_vectors(answer, 2)
    assert error.value.retry
