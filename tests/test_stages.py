"""Stages: what is asked of a model, what comes back, and what a failure must never become."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memalpha_kit import stages
from memalpha_kit.config import BuildConfig
from memalpha_kit.errors import InputError
from memalpha_kit.stages import answerable, closed_book, keywords, rules, shortening
from memalpha_kit.stages.llm import Client, Failed, Reply, Request, read_reply
from memalpha_kit.text import counter

KEY = "sk-secret-123"
WORDS = counter("words").count


def ask(text, version="test/1"):
    return Request((("user", text),), version)


def completion(text, finish="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


class Stub:
    """A server on loopback that answers from a script, then with `answer(question)`.

    A script entry is an HTTP status, a body, "cut" (the connection breaks) or "hang".
    """

    def __init__(self):
        self.script, self.requests, self.headers = [], [], []
        self.answer = lambda question: question.upper()
        self.delay_s, self.under_way, self.most_at_once = 0.0, 0, 0
        self.lock = threading.Lock()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            step = self.script.pop(0) if self.script else 200
        time.sleep(1.6 if step == "hang" else self.delay_s)
        with self.lock:
            self.under_way -= 1
        self.send(handler, step, body)

    def send(self, handler, step, body):
        if step == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
            handler.close_connection = True
            return
        content = step if isinstance(step, bytes) else b"{}"
        status = step if isinstance(step, int) else 200
        if status == 200 and not isinstance(step, bytes):
            content = completion(self.answer(body["messages"][-1]["content"]))
        handler.send_response(status)
        if status == 429:
            handler.send_header("Retry-After", "7")
        if status == 302:
            handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def serving(stub):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            stub.handle(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("STUB_KEY", KEY)
    made = Stub()
    with serving(made) as url:
        made.url = url
        yield made


@pytest.fixture
def client(stub, tmp_path):
    pauses = []
    made = Client(
        stub.url, "tiny", "STUB_KEY", tmp_path / "cache", timeout_s=10, sleep=pauses.append
    )
    made.pauses = pauses
    return made


# --- The client -----------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_requests(client, stub):
    stub.delay_s = 0.01
    texts = [f"question {i}" for i in range(20)]
    assert [r.text for r in client([ask(t) for t in texts])] == [t.upper() for t in texts]
    assert (client.asked, client.cached, client.failed) == (20, 0, 0)
    assert 1 < stub.most_at_once <= client.concurrency


def test_what_is_sent_has_temperature_0_and_the_key_in_its_header(client, stub):
    client([ask("hello")])
    (body,) = stub.requests
    assert body["temperature"] == 0 and body["model"] == "tiny" and body["max_tokens"] == 512
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_second_run_asks_nothing(client, stub, tmp_path):
    first = client([ask("a"), ask("b")])
    again = Client(stub.url, "tiny", "STUB_KEY", tmp_path / "cache")
    assert again([ask("b"), ask("a")]) == first[::-1]
    assert (again.asked, again.cached, len(stub.requests)) == (0, 2, 2)


def test_the_cache_knows_model_version_and_text_apart(client, stub, tmp_path):
    client([ask("a")])
    client([ask("a", "test/2"), ask("a ")])
    Client(stub.url, "other", "STUB_KEY", tmp_path / "cache")([ask("a")])
    assert len(stub.requests) == 4


def test_equal_requests_of_one_batch_are_sent_once(client, stub):
    assert [reply.text for reply in client([ask("a"), ask("b"), ask("a")])] == ["A", "B", "A"]
    assert len(stub.requests) == 2


def test_the_key_is_nowhere_but_in_the_header(client, stub, tmp_path, caplog):
    stub.script = [500, 401]
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as error:
        client([ask("a")])
    stub.script = []
    client([ask("a")])
    written = "".join(p.read_text() for p in (tmp_path / "cache").rglob("*.json"))
    assert written and KEY not in written + caplog.text + str(error.value) + repr(client)


@pytest.mark.parametrize("trouble", [429, 500, 503, "cut", "hang", b"<html>busy</html>", b"{}"])
def test_a_passing_trouble_is_tried_again(client, stub, trouble):
    stub.script = [trouble, trouble]
    client.timeout_s = 0.8 if trouble == "hang" else 10
    (reply,) = client([ask("a")])
    assert reply == Reply("A") and client.asked == 3 and client.failed == 0
    wanted = [7.0, 7.0] if trouble == 429 else [1.0, 2.0]
    assert client.pauses == wanted


def test_pauses_grow_and_have_an_end(client, stub):
    client.retries, client.pause_s = 8, 1.0
    stub.script = [500] * 8
    client([ask("a")])
    assert client.pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_request_that_fails_is_none_is_counted_and_is_asked_again(client, stub):
    client.retries = 1
    stub.script = [500, 500]
    assert client([ask("a")]) == [None]
    assert client.failed == 1
    assert client([ask("a")]) == [Reply("A")]


def test_a_bad_request_is_not_repeated_and_the_others_go_on(client, stub):
    client.concurrency = 1
    stub.script = [400]
    assert client([ask("too long"), ask("b")]) == [None, Reply("B")]
    assert client.pauses == []


@pytest.mark.parametrize(("status", "said"), [(401, "STUB_KEY"), (404, "404"), (302, "302")])
def test_a_server_that_refuses_everything_ends_the_run_with_one_line(client, stub, status, said):
    client.concurrency = 1
    stub.script = [status]
    with pytest.raises(InputError, match=said) as error:
        client([ask(str(i)) for i in range(50)])
    assert len(stub.requests) == 1 and "\n" not in str(error.value)


def test_a_server_that_is_gone_ends_the_run_and_the_next_run_goes_on(client, stub):
    client.concurrency, client.retries, client.give_up = 1, 1, 3
    stub.script = [200, 200] + [500] * 6
    requests = [ask(str(i)) for i in range(10)]
    with pytest.raises(InputError, match="run again to go on"):
        client(requests)
    sent = len(stub.requests)
    assert [reply.text for reply in client(requests)] == [str(i) for i in range(10)]
    assert len(stub.requests) == sent + 8


def test_a_closed_port_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = Client("http://127.0.0.1:9/v1", "tiny", retries=0, give_up=1, timeout_s=1)
    with pytest.raises(InputError, match="http://127.0.0.1:9/v1: expected replies of 'tiny'"):
        client([ask("a")])


def test_a_cache_file_that_is_not_whole_or_of_another_request_is_not_believed(client, tmp_path):
    client([ask("a")])
    (file,) = (tmp_path / "cache").rglob("*.json")
    whole = file.read_text()
    for damaged in ("", whole[:20], "[]", whole.replace('"key": "', '"key": "0')):
        file.write_text(damaged)
        assert client([ask("a")]) == [Reply("A")]
        assert file.read_text() == whole
    assert client.cached == 0


def test_a_reply_with_a_problem_is_given_back_but_not_stored(client, stub):
    def problem(text):
        return "too loud" if text.isupper() else ""

    assert client([ask("a")], problem) == [Reply("A", "too loud")]
    assert client.failed == 1
    stub.answer = str
    assert client([ask("a")], problem) == [Reply("a")]
    assert client([ask("a")], problem) == [Reply("a")] and client.cached == 1


def test_reasoning_is_stripped_and_unfinished_reasoning_is_no_answer():
    assert read_reply(completion("<think>Is it no? I know.</think>\n\nTessin")) == "Tessin"
    assert read_reply(completion("It was no.</think> Tessin")) == "Tessin"
    for text, finish in (
        ("<think>Let me see", "stop"),
        ("Let me see, it could be", "length"),
        ("<think>done</think>  ", "stop"),
        (None, "stop"),
    ):
        with pytest.raises(Failed) as error:
            read_reply(completion(text, finish))
        assert not error.value.retry


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b'{"choices": []}', b'{"choices": [null]}', b'{"error": 1}']
)
def test_a_body_that_is_no_completion_is_worth_another_try(body):
    with pytest.raises(Failed) as error:
        read_reply(body)
    assert error.value.retry


@pytest.mark.parametrize(("url", "model"), [("", "m"), ("ftp://x/v1", "m"), ("http://x/v1", "")])
def test_a_client_without_address_or_model_says_which(url, model):
    with pytest.raises(InputError, match="llm_url" if model else "llm_model"):
        Client(url, model)


def test_the_setting_names_what_stages_ask(monkeypatch, tmp_path):
    assert stages.model(BuildConfig(stage="rules")) is None
    config = BuildConfig(stage="llm", llm_url="http://x/v1/", llm_model="m")
    assert (stages.model(config).url, stages.model(config).model) == ("http://x/v1", "m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://y/v1")
    monkeypatch.setenv("OPENAI_MODEL", "n")
    assert stages.model(BuildConfig(stage="llm")).url == "http://y/v1"
    monkeypatch.delenv("OPENAI_MODEL")
    with pytest.raises(InputError, match="llm_model"):
        stages.model(BuildConfig(stage="llm"))


# --- The stages -----------------------------------------------------------------------------------


class Scripted:
    """A `complete` that answers from a list, None where the list says so."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []

    def __call__(self, requests, problem=lambda text: ""):
        self.requests += requests
        texts = [self.replies.pop(0) for _ in requests]
        return [None if text is None else Reply(text, problem(text)) for text in texts]


FILTER = (  # gold, prediction, kept: data.md 7.1
    ("every winter", "In every winter.", False),
    ("Lake Orvane", "unknown", True),
    ("it is exported by rail", "x", False),
    ("yes", "no", True),
    ("No", "I do not know", True),
    ("1", "In 1911", True),  # D12b
    ("blue barley", "It grows blue barley, I think.", False),
)


@pytest.mark.parametrize(("gold", "prediction", "kept"), FILTER)
def test_the_closed_book_filter_decides_as_the_specification_says(gold, prediction, kept):
    short = WORDS(gold) < 5
    model = Scripted(*[prediction] * short)
    assert closed_book.closed_book([("Q?", gold)], WORDS, model) == [kept]
    assert len(model.requests) == short  # a long gold is not asked


def test_equal_questions_keep_their_own_verdicts():
    """D12c, D26: by position, never by the question's text."""
    pairs = [("When?", "1911"), ("When?", "every winter")]
    assert closed_book.closed_book(pairs, WORDS, Scripted("1911", "1911")) == [False, True]


def test_a_failed_call_is_no_verdict():
    assert closed_book.closed_book([("Q?", "salt")], WORDS, Scripted(None)) == [None]


def test_the_rule_drops_questions_that_answer_themselves():
    pairs = [
        ("Was the ferry built in 1911?", "1911"),
        ("Is Orvane a lake?", "yes"),
        ("What does Tessin grow?", "blue barley"),
        ("How is it exported?", "it is exported by rail"),
    ]
    assert closed_book.closed_book(pairs, WORDS, None) == [False, False, True, False]


def test_keywords_of_a_reply_are_unique_in_any_case():
    expected = ("Nell", "blue door", "backwards clock")
    assert keywords.parse("Nell, blue door, nell, , backwards clock") == expected
    assert keywords.parse("- Nell\n- blue door\n2. backwards clock\n") == expected


@pytest.mark.parametrize("reply", [None, ",, ,"])
def test_a_failed_extraction_is_none_and_never_an_empty_list(reply):
    assert keywords.extract(["Nell opens a door."], Scripted(reply)) == [None]


def test_a_blank_summary_has_no_keywords_and_is_not_asked():
    model = Scripted("Nell")
    assert keywords.extract(["  ", "Nell opens a door."], model) == [None, ("Nell",)]
    assert len(model.requests) == 1
    assert keywords.extract(["  "], None) == [None]


def test_a_failed_extraction_is_not_stored(client, stub):
    stub.answer = lambda question: " , "
    assert keywords.extract(["Nell opens a door."], client) == [None]
    stub.answer = lambda question: "Nell, door"
    assert keywords.extract(["Nell opens a door."], client) == [("Nell", "door")]


def test_keywords_follow_their_summary_wherever_it_stands(client, stub):
    """D3: a rebuild in another order attaches nothing to another text."""
    stub.answer = lambda question: question.split()[0]
    first = keywords.extract(["Nell opens.", "Tom sails."], client)
    assert keywords.extract(["Tom sails.", "Ada digs.", "Nell opens."], client) == [
        first[1],
        ("Ada",),
        first[0],
    ]
    assert client.cached == 2


def test_several_answers_of_one_row_are_joined_as_text():
    """D36."""
    assert keywords.joined(["Nell opens.\n", " ", "Tom sails."]) == "Nell opens.\n\nTom sails."


def test_the_rule_finds_names_and_phrases():
    text = "Nell opens a blue door and winds a backwards clock. Søren Frost is gone since 1911."
    found = ("Nell", "blue door", "backwards clock", "Søren Frost", "1911")
    assert rules.keywords(text) == found
    assert len(rules.keywords(" ".join(f"Name{i} sat." for i in range(99)))) == rules.MAX_KEYWORDS


SENTENCE = "She grows lemons and sells vans."


def test_a_valid_short_answer_is_taken():
    model = Scripted("Lemon grower; Van seller")
    assert shortening.shorten([("What does Ila do?", SENTENCE)], model) == [
        shortening.Short("Lemon grower; Van seller", True)
    ]


def test_a_keyword_of_five_words_is_asked_for_again_with_the_reason():
    model = Scripted("Lemon grower; Part-time van dealer in town", "Lemon grower; van dealer")
    (short,) = shortening.shorten([("What does Ila do?", SENTENCE)], model)
    assert short == shortening.Short("Lemon grower; van dealer", True)
    assert "'Part-time van dealer in town' has 5 words" in model.requests[1].messages[-1][1]


@pytest.mark.parametrize("replies", [["a b c d e"] * 3, [None], [" ; "] * 3])
def test_an_answer_that_cannot_be_shortened_stays_and_is_flagged(replies):
    model = Scripted(*replies)
    assert shortening.shorten([("Q?", SENTENCE)], model) == [shortening.Short(SENTENCE, False)]
    assert len(model.requests) == len(replies)


def test_only_what_was_invalid_is_asked_again():
    model = Scripted("one", "a b c d", "three", "two")
    shorts = shortening.shorten([("1?", "x y"), ("2?", "x y"), ("3?", "x y")], model)
    assert [short.text for short in shorts] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How old is Ila Brandt?", "Ila Brandt is 31 years old.", "31 years"),
        ("How much did the repair cost?", "It cost 410 crowns.", "410 crowns"),
        ("Who was the judge?", "The judge was Lena Orr.", "Lena Orr"),
        ("How many?", "Forty", "Forty"),
    ],
)
def test_the_rule_keeps_what_the_answer_adds(question, answer, expected):
    assert shortening.shorten([(question, answer)], None) == [shortening.Short(expected, True)]


def test_the_rule_flags_an_answer_that_adds_nothing():
    pair = ("Did Ila sell the old van?", "Ila did sell the old van.")
    assert shortening.shorten([pair], None) == [shortening.Short(pair[1], False)]


def test_an_answerable_gold_is_narrowed_to_what_the_reply_has():
    pairs = [("What did Ila plant?", "Forty; lemon trees; olive trees"), ("Who?", "Oskar")]
    model = Scripted("Forty lemon trees", "It was ila.")
    assert answerable.answerable("text", pairs, model) == ["Forty;lemon trees", ""]
    assert answerable.answerable("text", pairs[1:], Scripted(None)) == [None]


def test_the_model_sees_the_whole_text():
    model = Scripted("Oskar")
    answerable.answerable("first chunk\n\nsecond chunk", [("Who?", "Oskar")], model)
    assert "first chunk\n\nsecond chunk" in model.requests[0].messages[-1][1]


def test_the_rule_reads_the_text_itself():
    text = "Ila planted forty lemon trees with Oskar."
    pairs = [("How many?", "Forty; olive trees"), ("Who?", "Lena Orr"), ("Whom?", "Osk")]
    assert answerable.answerable(text, pairs, None) == ["Forty", "", ""]


def test_a_stored_reply_narrows_as_a_new_one_does(client, stub):
    """D11."""
    stub.answer = lambda question: "Forty lemon trees"
    pairs = [("What?", "Forty; lemon trees; olive trees")]
    new, stored = (answerable.answerable("text", pairs, client) for _ in range(2))
    assert new == stored == ["Forty;lemon trees"] and client.cached == 1
