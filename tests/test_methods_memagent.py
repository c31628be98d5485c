"""MemAgent's walk in both modes, its budgets, and what happens to thoughts and failures."""

from __future__ import annotations

import re

import pytest
from fake_chat import FakeChat, user
from test_methods import INSTANCE, INSTANCES, LABELLED, WANTED, run

from memalpha_kit.errors import ModelGone
from memalpha_kit.evaluation.methods import Backends, MethodSpec, build_method
from memalpha_kit.method.prompts import query_prompt


def part(text: str, name: str) -> str | None:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    return found and found[1]


def say(asked) -> str:
    """Adds the section's first word to the memory; answers with the memory."""
    memory, section = part(user(asked), "memory"), part(user(asked), "section")
    old = "" if "Nothing" in memory else memory
    return f"<think>Hm.</think>{old} {section.split()[0]}" if section else f"\\boxed{{{memory}}}"


def memagent(model, **options):
    return build_method(MethodSpec("memagent", options), Backends(answer=model))


def test_agnostic_walks_once_per_instance_over_its_chunks_with_the_task_as_the_problem():
    model = FakeChat(say)
    prepared, answered = run(memagent(model), {(INSTANCE.id, 0), (INSTANCE.id, 1)})
    reads = [text for text in model.texts if part(text, "section") and "Nora keeps" in text]
    assert [part(text, "problem") for text in reads] == ["Read the articles."]
    assert prepared[INSTANCE.id].steps == ("Nora", "Nora Ada")
    assert prepared[INSTANCE.id].text == "Nora Ada" and prepared[INSTANCE.id].memory_tokens == 2
    assert prepared[INSTANCE.id].requests == 2 and prepared[INSTANCE.id].completion_tokens == 4
    assert {one.prediction for one in answered.values()} == {"\\boxed{Nora Ada}"}
    assert {one.memory_tokens for one in answered.values()} == {2}
    asked = [text for text in model.texts if not part(text, "section")]
    assert sorted(part(text, "problem") for text in asked) == ["Who keeps bees?", "Who paints?"]


def test_the_question_comes_with_the_output_format_of_every_other_method():
    model = FakeChat(say)
    run(memagent(model), {(LABELLED.id, 0)}, [LABELLED])
    problem = part(model.texts[-1], "problem")
    assert problem.startswith(query_prompt("trec_coarse", "context"))
    assert problem.endswith(LABELLED.questions[0].question)


def test_budgets_and_no_system_message():
    model = FakeChat(say)
    run(memagent(model, memory_tokens=1024, max_tokens=512, temperature=0.1, top_p=0.95))
    assert {request.max_tokens for request in model.asked} == {512, 1024}
    for request in model.asked:
        assert (request.temperature, request.top_p, len(request.messages)) == (0.1, 0.95, 1)
        assert request.max_tokens == (1024 if part(user(request), "section") else 512)


def test_defaults_are_1024_in_both_stages_and_5000_a_piece():
    options = memagent(FakeChat()).options
    assert (options.memory_tokens, options.max_tokens, options.piece_tokens) == (1024, 1024, 5000)


def test_release_keeps_thoughts_in_the_memory():
    prepared, _ = run(memagent(FakeChat(say), behaviour="release"), instances=[INSTANCE])
    assert prepared[INSTANCE.id].steps[0] == "<think>Hm.</think> Nora"


def test_thoughts_that_do_not_end_leave_the_old_memory_and_are_counted():
    replies = iter(["Nora", "<think>Now"])
    prepared, _ = run(memagent(FakeChat(lambda _: next(replies))), (), [INSTANCE])
    one = prepared[INSTANCE.id]
    assert (one.text, one.steps, one.errors, one.error) == ("Nora", ("Nora", "Nora"), 1, "")


def test_a_failed_piece_ends_its_instance_with_the_reason_and_no_other():
    def failing(asked):
        return None if "Ada paints" in user(asked) else say(asked)

    model = FakeChat(failing)
    prepared, answered = run(memagent(model))
    assert prepared[INSTANCE.id].error == "piece 1: HTTP 500 six times"
    assert prepared[INSTANCE.id].steps == ("Nora",)
    assert answered[INSTANCE.id, 0].prediction is None
    assert answered[INSTANCE.id, 0].error == "instance: piece 1: HTTP 500 six times"
    assert answered[LABELLED.id, 0].prediction == "\\boxed{Sentence:}"


def test_per_question_walks_once_per_question_over_pieces_cut_anew():
    model = FakeChat(say)
    method = memagent(model, mode="per_question", piece_tokens=5)
    prepared, answered = run(method, {(INSTANCE.id, 0), (INSTANCE.id, 1)}, [INSTANCE])
    assert prepared[INSTANCE.id].memory_tokens is None and prepared[INSTANCE.id].requests == 0
    one = answered[INSTANCE.id, 1]
    sections = [part(t, "section") for t in model.texts if part(t, "problem") == "Who paints?"]
    assert "".join(filter(None, sections)) == "\n\n".join(INSTANCE.chunks)
    assert one.memory == "Nora Tom Ada ." or one.memory.startswith("Nora")
    assert one.requests == 4 and one.memory_tokens == method.counter.count(one.memory)
    assert one.prediction == f"\\boxed{{{one.memory}}}"
    spent = [r for r in model.asked if part(user(r), "problem") == "Who paints?"]
    assert one.prompt_tokens == sum(len(user(request).split()) for request in spent)
    assert not one.truncated and method.settings()["mode"] == "per_question"


def test_per_question_a_long_text_loses_its_middle_and_says_so():
    model = FakeChat(say)
    method = memagent(model, mode="per_question", piece_tokens=100, text_tokens=6)
    _, answered = run(method, {(INSTANCE.id, 0)}, [INSTANCE])
    assert answered[INSTANCE.id, 0].truncated
    assert part(model.texts[0], "section") == "Nora keeps beesIt rains."


def test_per_question_a_failed_piece_is_an_error_of_its_question_alone():
    def failing(asked):
        return None if "Who paints?" in user(asked) else say(asked)

    method = memagent(FakeChat(failing), mode="per_question")
    _, answered = run(method, {(INSTANCE.id, 0), (INSTANCE.id, 1)}, [INSTANCE])
    assert answered[INSTANCE.id, 0].prediction and answered[INSTANCE.id, 1].prediction is None
    assert answered[INSTANCE.id, 1].error == "piece 0: HTTP 500 six times"


@pytest.mark.parametrize("mode", ["agnostic", "per_question"])
def test_a_walk_that_was_killed_goes_on_where_it_was(mode, tmp_path):
    anew = {"piece_tokens": 5} if mode == "per_question" else {}
    spec = MethodSpec("memagent", {"mode": mode} | anew)
    whole = FakeChat(say)
    expected = run(build_method(spec, Backends(answer=whole)))
    calls, lost = 0, []
    for dies_after in (1, 1, 2, None):
        model = FakeChat(say, dies_after)
        method = build_method(spec, Backends(answer=model, journal=tmp_path))
        try:
            found = run(method)
        except ModelGone:
            lost.append(len(model.asked))
        calls += len(model.asked)
    assert found == expected and len(lost) == 3
    walked = sum("<section>" in text for text in whole.texts)
    answers = len(WANTED)
    assert calls <= walked + 2 * answers  # no piece twice; answers are kept by the run, not here
    assert len(INSTANCES) == 2
