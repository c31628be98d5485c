"""Stages: what is asked of a model, what comes back, and what a failure must never become."""

from __future__ import annotations

import pytest
from stub_server import StubServer

from memalpha_kit.data import stages
from memalpha_kit.data.stages import answerable, closed_book, keywords, rules, shortening
from memalpha_kit.data.stages.llm import Asker, Reply, Request, finished_text
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.models.endpoint import Client, Endpoint
from memalpha_kit.records import ChatReply
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import counter

WORDS = counter("words").count


def ask(text, version="test/1"):
    return Request((("user", text),), version)


@pytest.fixture
def stub():
    with StubServer() as running:
        yield running


@pytest.fixture
def client(stub, tmp_path):
    """A `Complete` on the stub; pauses are not waited for."""

    async def no_pause(pause_s):
        pass

    return Asker(Client(Endpoint(stub.url, "tiny", cache=tmp_path / "cache"), no_pause))


def says(stub, answer):
    """From now on the server answers what `answer` makes of the question."""
    stub.answer = lambda body: answer(body["messages"][-1]["content"])


# --- What is asked (the client itself: test_endpoint.py) ----------------------------------------


def test_what_is_sent_has_temperature_0_and_nothing_about_reasoning(client, stub):
    client([ask("hello")])
    assert stub.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0.0,
            "max_tokens": 512,
        }
    ]


def test_a_request_that_fails_is_none_is_counted_and_is_asked_again(client, stub):
    stub.script = [400]
    assert client([ask("a")]) == [None]
    assert client.client.usage.failed == 1
    assert client([ask("a")]) == [Reply("A")]


def test_a_server_that_refuses_everything_ends_the_run(client, stub):
    stub.script = [401]
    with pytest.raises(ModelGone, match="OPENAI_API_KEY"):
        client([ask("a")])


def test_a_reply_with_a_problem_is_given_back_but_not_stored(client, stub):
    def problem(text):
        return "too loud" if text.isupper() else ""

    assert client([ask("a")], problem) == [Reply("A", "too loud")]
    assert client.client.usage.failed == 1
    says(stub, str)
    assert client([ask("a")], problem) == [Reply("a")]
    assert client([ask("a")], problem) == [Reply("a")] and client.client.usage.cached == 1


def test_reasoning_is_stripped_and_unfinished_reasoning_is_no_answer():
    assert finished_text(ChatReply("<think>Is it no? I know.</think>\n\nTessin")) == "Tessin"
    assert finished_text(ChatReply("It was no.</think> Tessin")) == "Tessin"
    for text, finish in (
        ("<think>Let me see", "stop"),
        ("Let me see, it could be", "length"),
        ("<think>done</think>  ", "stop"),
        ("", "stop"),
        (None, "error"),
    ):
        assert finished_text(ChatReply(text, finish)) is None


def test_a_cut_off_reply_is_none_and_is_asked_again(client, stub):
    stub.answer = lambda body: {"content": "Nell, blu", "finish_reason": "length"}
    assert client([ask("a")]) == [None]
    says(stub, str.upper)
    assert client([ask("a")]) == [Reply("A")]


@pytest.mark.parametrize(("url", "model"), [("", "m"), ("ftp://x/v1", "m"), ("http://x/v1", "")])
def test_a_stage_without_address_or_model_says_which(url, model, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="url" if model else "llm_model"):
        stages.model(BuildConfig(stage="llm", llm_url=url, llm_model=model))


def test_the_setting_names_what_stages_ask(monkeypatch):
    assert stages.model(BuildConfig(stage="rules")) is None
    config = BuildConfig(stage="llm", llm_url="http://x/v1/", llm_model="m", llm_cache="c")
    endpoint = stages.model(config).client.endpoint
    assert (endpoint.url, endpoint.model, str(endpoint.cache)) == ("http://x/v1", "m", "c")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://y/v1")
    monkeypatch.setenv("OPENAI_MODEL", "n")
    assert stages.model(BuildConfig(stage="llm")).client.endpoint.url == "http://y/v1"
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
    says(stub, lambda question: " , ")
    assert keywords.extract(["Nell opens a door."], client) == [None]
    says(stub, lambda question: "Nell, door")
    assert keywords.extract(["Nell opens a door."], client) == [("Nell", "door")]


def test_keywords_follow_their_summary_wherever_it_stands(client, stub):
    """D3: a rebuild in another order attaches nothing to another text."""
    says(stub, lambda question: question.split()[0])
    first = keywords.extract(["Nell opens.", "Tom sails."], client)
    assert keywords.extract(["Tom sails.", "Ada digs.", "Nell opens."], client) == [
        first[1],
        ("Ada",),
        first[0],
    ]
    assert client.client.usage.cached == 2


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
    says(stub, lambda question: "Forty lemon trees")
    pairs = [("What?", "Forty; lemon trees; olive trees")]
    new, stored = (answerable.answerable("text", pairs, client) for _ in range(2))
    assert new == stored == ["Forty;lemon trees"] and client.client.usage.cached == 1
