"""Stages: what is asked of a model, what comes back, and what a failure must never become."""

from __future__ import annotations

import pytest
from raw_rows import Scripted
from stub_server import StubServer

from memalpha_kit.chats import ChatReply
from memalpha_kit.data import stages
from memalpha_kit.data.stages import Llm, Stage
from memalpha_kit.errors import InputError
from memalpha_kit.models.chat import Client
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

WORDS = counter("words").count
SUMMARY = "Nell opens a door."


@pytest.fixture
def stub():
    with StubServer() as running:
        yield running


@pytest.fixture
def model(stub, tmp_path):
    """A stage that asks the stub."""
    return Llm(Client(Endpoint(stub.url, "tiny", cache=tmp_path / "cache")))


def says(stub, answer):
    """From now on the server answers what `answer` makes of the question."""
    stub.answer = lambda body: answer(body["messages"][-1]["content"])


def test_what_is_sent_has_temperature_0_and_nothing_about_reasoning(model, stub):
    model.answerable("Nora keeps bees.", [("Who?", "Nora")])
    [body] = stub.requests
    said = ("system", stages.ANSWER[1]), ("user", "Nora keeps bees.\n\nQuestion: Who?")
    messages = [{"role": role, "content": content} for role, content in said]
    asked = {"model": "tiny", "messages": messages, "temperature": 0.0, "max_tokens": 2048}
    assert body == asked


def test_a_request_that_fails_is_none_and_is_asked_again(model, stub):
    stub.script = [400]
    assert model.keywords([SUMMARY]) == [None]
    says(stub, lambda question: "Nell, door")
    assert model.keywords([SUMMARY]) == [("Nell", "door")]


@pytest.mark.parametrize("bad", [" , ", {"content": "Nell, blu", "finish_reason": "length"}])
def test_a_reply_that_cannot_be_used_is_not_stored(model, stub, bad):
    says(stub, lambda question: bad)
    assert model.keywords([SUMMARY]) == [None]
    says(stub, lambda question: "Nell, door")
    for _ in range(2):
        assert model.keywords([SUMMARY]) == [("Nell", "door")]
    assert stub.n_requests == 2


@pytest.mark.parametrize("changed", [("closed-book/next", None), (None, "Say less.")])
def test_another_instruction_is_asked_again_and_no_text_is_stored(
    model, stub, tmp_path, monkeypatch, changed
):
    """So is another version of the code that reads the reply; old replies stay as they are."""
    says(stub, lambda question: "salt")
    version, text, tokens = stages.CLOSED_BOOK
    for number, (other, words) in enumerate([(version, text), changed], start=1):
        monkeypatch.setattr(stages, "CLOSED_BOOK", (other or version, words or text, tokens))
        assert model.closed_book([("Is it salt", "salt")], WORDS) == [False]
        stored = [path.read_bytes() for path in tmp_path.rglob("*.json")]
        assert stub.n_requests == len(stored) == number
        assert b"Is it" not in b"".join(stored)


@pytest.mark.parametrize(
    ("text", "finish", "read"),
    [
        ("<think>Is it no? I know.</think>\n\nTessin", "stop", "Tessin"),
        ("It was no.</think> Tessin", "stop", "Tessin"),
        ("<think>Let me see", "stop", None),
        ("Let me see, it could be", "length", None),
        ("<think>done</think>  ", "stop", None),
        ("", "stop", None),
        (None, "error", None),
    ],
)
def test_reasoning_is_stripped_and_unfinished_reasoning_is_no_answer(text, finish, read):
    assert stages.finished_text(ChatReply(text, finish)) == read


@pytest.mark.parametrize(("url", "name"), [("", "m"), ("ftp://x/v1", "m"), ("http://x/v1", "")])
def test_a_stage_without_address_or_model_says_which(url, name, monkeypatch):
    for variable in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match="url" if name else "llm_model"):
        stages.chosen(BuildConfig(stage="llm", llm_url=url, llm_model=name))


def test_the_setting_names_what_stages_ask(monkeypatch):
    assert isinstance(stages.chosen(BuildConfig(stage="rules")), Stage)
    assert stages.chosen(BuildConfig()) is None
    config = BuildConfig(stage="llm", llm_url="http://x/v1/", llm_model="m", llm_cache="c")
    endpoint = stages.chosen(config).client.endpoint
    assert (endpoint.url, endpoint.model, str(endpoint.cache)) == ("http://x/v1", "m", "c")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://y/v1")
    monkeypatch.setenv("OPENAI_MODEL", "n")
    assert stages.chosen(BuildConfig(stage="llm")).client.endpoint.url == "http://y/v1"


@pytest.mark.parametrize(
    ("gold", "prediction", "kept"),
    [
        ("every winter", "In every winter.", False),
        ("Lake Orvane", "unknown", True),
        ("it is exported by rail", "x", False),
        ("yes", "no", True),
        ("No", "I do not know", True),
        ("1", "In 1911", True),  # the published filter looks for the gold inside words
        ("blue barley", "It grows blue barley, I think.", False),
        ("salt", None, None),
    ],
)
def test_a_question_is_kept_if_the_model_does_not_know_its_short_answer(gold, prediction, kept):
    short = WORDS(gold) < 5
    client = Scripted(*[prediction] * short)
    assert Llm(client).closed_book([("Q?", gold)], WORDS) == [kept]
    assert len(client.requests) == short  # a long gold is not asked


def test_equal_questions_keep_their_own_verdicts():
    pairs = [("When?", "1911"), ("When?", "every winter")]
    assert Llm(Scripted("1911", "1911")).closed_book(pairs, WORDS) == [False, True]


def test_the_rule_drops_questions_that_answer_themselves():
    pairs = [("Was it built in 1911?", "1911"), ("Is Orvane a lake?", "yes")]
    pairs += [("What grows?", "blue barley"), ("How is it exported?", "it is exported by rail")]
    assert Stage().closed_book(pairs, WORDS) == [False, False, True, False]


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Nell, blue door, nell, , backwards clock", ("Nell", "blue door", "backwards clock")),
        ("- Nell\n- blue door\n2. backwards clock\n", ("Nell", "blue door", "backwards clock")),
        (None, None),
        (",, ,", None),
    ],
)
def test_keywords_of_a_reply_are_unique_in_any_case_and_never_an_empty_list(reply, found):
    assert Llm(Scripted(reply)).keywords([SUMMARY]) == [found]


def test_a_blank_summary_has_no_keywords_and_is_not_asked():
    client = Scripted("Nell")
    assert Llm(client).keywords(["  ", SUMMARY]) == [None, ("Nell",)]
    assert len(client.requests) == 1 and Stage().keywords(["  "]) == [None]


def test_keywords_follow_their_summary_wherever_it_stands(model, stub):
    """In the published code a rebuild in another order attaches them to another book."""
    says(stub, lambda question: question.split()[0])
    first = model.keywords(["Nell opens.", "Tom sails."])
    again = model.keywords(["Tom sails.", "Ada digs.", "Nell opens."])
    assert again == [first[1], ("Ada",), first[0]] and stub.n_requests == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Nell opens a blue door and winds a backwards clock.", "Nell|blue door|backwards clock"),
        ("Søren Frost is gone since 1911.", "Søren Frost|1911"),
        ("Mrs. Bennet visits Mr. Bingley.", "Mrs. Bennet|Mr. Bingley"),
        ("Mrs Bennet and Dr. Jane Hill", "Mrs Bennet|Dr. Jane Hill"),
        ("MRS. BENNET left St. John Rivers.", "MRS. BENNET|St. John Rivers"),
        ("They leave St. Petersburg. Mr. and Mrs. Hurst go too.", "St. Petersburg|Mrs. Hurst"),
        ("Yes, said the Dr., and sat by the blue lamp.", "blue lamp"),
    ],
)
def test_the_rule_finds_names_with_their_titles_and_phrases(text, found):
    assert set(found.split("|")) <= set(Stage().keywords([text])[0])
    assert not {"Mr", "Mrs", "Mr.", "Mrs.", "Dr.", "Bennet"} & set(Stage().keywords([text])[0])


def test_the_rule_finds_at_most_twenty():
    [found] = Stage().keywords([" ".join(f"Name{i} sat." for i in range(99))])
    assert len(found) == stages.MAX_KEYWORDS


SENTENCE = "She grows lemons and sells vans."


@pytest.mark.parametrize(
    ("replies", "short"),
    [
        (["Lemon grower; Van seller"], "Lemon grower; Van seller"),
        (["Lemon grower; Part-time van dealer in town", "van dealer"], "van dealer"),
        (["a b c d e"] * 3, None),
        ([" ; "] * 3, None),
        ([None], None),
    ],
)
def test_an_answer_is_shortened_to_keywords_or_stays_and_is_flagged(replies, short):
    client = Scripted(*replies)
    assert Llm(client).shorten([("What does Ila do?", SENTENCE)]) == [short]
    assert len(client.requests) == len(replies)
    if len(replies) == 2:
        reason = "'Part-time van dealer in town' has 5 words"
        assert reason in client.requests[1].messages[-1]["content"]


def test_only_what_was_invalid_is_asked_again():
    stage = Llm(Scripted("one", "a b c d", "three", "two"))
    short = stage.shorten([("1?", "x y"), ("2?", "x y"), ("3?", "x y")])
    assert short == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("question", "answer", "short"),
    [
        ("How old is Ila Brandt?", "Ila Brandt is 31 years old.", "31 years"),
        ("How much did the repair cost?", "It cost 410 crowns.", "410 crowns"),
        ("Who was the judge?", "The judge was Lena Orr.", "Lena Orr"),
        ("How many?", "Forty", "Forty"),
        ("Did Ila sell the van?", "Ila did sell the van.", None),
    ],
)
def test_the_rule_keeps_what_the_answer_adds(question, answer, short):
    assert Stage().shorten([(question, answer)]) == [short]


def test_an_answerable_gold_is_narrowed_to_what_the_reply_has():
    pairs = [("What?", "Forty; lemon trees; olive trees"), ("Who?", "Oskar"), ("Whom?", "Ila")]
    stage = Llm(Scripted("Forty lemon trees", "It was ila.", None))
    assert stage.answerable("text", pairs) == ["Forty;lemon trees", "", None]
    text = "Ila planted forty lemon trees with Oskar."
    pairs = [("How many?", "Forty; olive trees"), ("Who?", "Lena Orr"), ("Whom?", "Osk")]
    assert Stage().answerable(text, pairs) == ["Forty", "", ""]
