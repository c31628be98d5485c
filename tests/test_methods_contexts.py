"""Long context, BM25 over chunks, the gold chunk, closed book."""

import pytest
from fake_chat import FakeChat
from test_methods import INSTANCE, LABELLED, run

from memalpha_kit.chats import ChatReply
from memalpha_kit.evaluation.methods import Backends, MethodSpec, build_method
from memalpha_kit.method.prompts import query_prompt, system_prompt_baseline
from memalpha_kit.records import QA, make_instance


def asked(method: str, instance=INSTANCE, model=None, **options):
    """The requests of one instance's questions and its answers, both in their order."""
    questions = instance.questions
    model = model or FakeChat()
    made = build_method(MethodSpec(method, options), Backends(answer=model))
    wanted = {(instance.id, qa.id) for qa in questions}
    prepared, answered = run(made, wanted, [instance])
    texts = sorted(model.texts, key=lambda text: [not text.endswith(q.question) for q in questions])
    return texts, prepared[instance.id], [answered[key] for key in sorted(wanted)]


def test_long_context_shows_task_chunks_and_question_under_the_sources_system_message():
    model = FakeChat()
    texts, prepared, answers = asked("long-context", model=model)
    assert texts[1] == (
        "Read the articles.\n\nNora keeps bees. Tom rows.\n\nAda paints boats. It rains.\n\n"
        "Who paints?"
    )
    system = model.asked[0].messages[0]
    assert system == {"role": "system", "content": system_prompt_baseline("squad")}
    assert (prepared.memory_tokens, prepared.input_tokens) == (14, 14)
    assert answers[0].prompt_tokens > 14 and answers[0].latency_s == 0.5
    assert not answers[0].truncated


def test_classification_is_asked_without_a_word_about_a_memory_that_is_not_there():
    texts, _, _ = asked("long-context", LABELLED)
    assert query_prompt("trec_coarse", "context") in texts[0] and "memory" not in texts[0]
    texts, _, _ = asked("long-context", LABELLED, wording="memory")
    assert query_prompt("trec_coarse", "memory") in texts[0]


def test_a_small_window_keeps_task_question_and_the_end_of_the_chunks():
    texts, prepared, answers = asked("long-context", window=50)
    assert all(text.startswith("Read the articles.\n\n") for text in texts)
    assert texts[1].endswith("It rains.\n\nWho paints?") and "Nora" not in texts[1]
    assert all(answer.truncated for answer in answers)
    assert prepared.memory_tokens == 14  # what the window holds, never more than the chunks
    _, prepared, _ = asked("long-context", window=12)
    assert prepared.memory_tokens == 12


def test_a_question_that_does_not_fit_alone_is_an_error_of_that_question():
    bees = QA("q0", "Who keeps bees, and " + "why " * 50 + "?", ("Nora",))
    instance = make_instance("squad", ["Nora keeps bees."], [bees, QA("q1", "Who?", ("Nora",))])
    texts, _, answers = asked("long-context", instance, window=60)
    assert len(texts) == 1 and answers[1].prediction == "Nora"
    assert answers[0].prediction is None and "at most 60 tokens" in answers[0].error


@pytest.mark.parametrize("cut", ["prompt", "user"])
def test_release_cuts_lose_the_task_too(cut):
    long = make_instance(
        "squad", ["Nora keeps bees. " * 900], [QA("q0", "Who?", ("Nora",))], "Read."
    )
    texts, _, answers = asked("long-context", long, cut=cut, window=2_000)
    assert "Read." not in texts[0] and texts[0].endswith("Who?") and answers[0].truncated


def test_bm25_shows_the_best_chunks_best_first_and_asks_the_bare_question():
    chunks = ["It rains.", "Ada keeps bees.", "Nora keeps bees and bees.", "Tom rows."]
    instance = make_instance("squad", chunks, [QA("q0", "Who keeps bees? bees", ("Nora",))])
    texts, prepared, answers = asked("bm25", instance)
    assert texts == [f"{chunks[2]}\n\n{chunks[1]}\n\nWho keeps bees? bees"]
    assert answers[0].retrieved == ("chunk:2", "chunk:1")
    assert prepared.memory_tokens == prepared.input_tokens == 16  # all chunks, uncapped


def test_bm25_shows_few_chunks_in_their_order_and_the_release_ranks_them():
    _, _, answers = asked("bm25")
    assert answers[1].retrieved == ("chunk:0", "chunk:1")
    chunks = ["Tom rows.", "Nora keeps bees.", "Ada paints."]
    instance = make_instance("squad", chunks, [QA("q0", "Who keeps bees?", ("Nora",))])
    _, _, answers = asked("release-qwen3-32b-bm25", instance, top_k=3)
    assert answers[0].retrieved == ("chunk:1", "chunk:0", "chunk:2")
    wordless = make_instance("squad", ["a", "b", "c"], [QA("q0", "???", ("a",))])
    for name in ("bm25", "release-qwen3-32b-bm25"):
        assert asked(name, wordless)[2][0].retrieved == ("chunk:0", "chunk:1")


def test_the_gold_chunk_is_shown_alone_and_without_a_label_the_question_is_skipped():
    texts, prepared, answers = asked("gold-chunk")
    assert texts[1] == "Read the articles.\n\nAda paints boats. It rains.\n\nWho paints?"
    assert prepared.memory_tokens == 14 and answers[1].retrieved == ("chunk:1",)
    texts, prepared, answers = asked("gold-chunk", LABELLED)
    assert texts == [] and prepared.memory_tokens == 0
    assert answers[0].prediction is None and answers[0].error == ""
    assert answers[0].skipped == "the data does not say which chunk holds the evidence"


def test_closed_book_asks_the_question_alone():
    model = FakeChat()
    texts, prepared, _ = asked("closed-book", model=model)
    assert texts == ["Who keeps bees?", "Who paints?"] and prepared.memory_tokens == 0
    assert all(len(request.messages) == 1 for request in model.asked)


def test_all_methods_ask_with_the_same_settings():
    for method in ("long-context", "bm25", "gold-chunk", "closed-book"):
        model = FakeChat()
        asked(method, model=model, max_tokens=9, temperature=0.5, seed=3, thinking=True)
        said = model.asked[0]
        assert (said.max_tokens, said.temperature, said.seed, said.thinking) == (9, 0.5, 3, True)
    model = FakeChat()
    asked("bm25", model=model)
    assert (model.asked[0].temperature, model.asked[0].thinking) == (0.0, False)


def test_a_reply_cut_by_its_length_is_an_answer_that_says_so():
    reply = ChatReply("<think>Let me", "length", (), 10, 2048, 1.5)
    _, _, answers = asked("bm25", model=FakeChat(lambda _: reply))
    assert answers[0].prediction == "<think>Let me" and answers[0].finish == "length"
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (10, 2048)
