"""MemAgent and MEM1: their walks, budgets, mistakes and failures, and MEM1's rollout files."""

import json
import re

import pytest
from fake_chat import FakeChat, user
from test_methods import INSTANCE, LABELLED, WANTED, run

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.evaluation.methods import Backends, MethodSpec, build_method
from memalpha_kit.method.prompts import query_prompt
from memalpha_kit.tokens import counter


def part(text: str, name: str) -> str | None:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    return found and found[1]


def say(asked) -> str:
    """Adds the section's first word to the memory; answers with the memory."""
    memory, section = part(user(asked), "memory"), part(user(asked), "section")
    old = "" if "Nothing" in memory else memory
    return f"<think>Hm.</think>{old} {section.split()[0]}" if section else f"\\boxed{{{memory}}}"


def memagent(model, name="memagent", **options):
    return build_method(MethodSpec(name, options), Backends(answer=model))


def test_it_walks_once_per_instance_over_its_chunks_with_the_task_as_the_problem():
    model = FakeChat(say)
    prepared, answered = run(memagent(model), {(INSTANCE.id, "q0"), (INSTANCE.id, "q1")})
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
    run(memagent(model), {(LABELLED.id, "q0")}, [LABELLED])
    problem = part(model.texts[-1], "problem")
    assert problem.startswith(query_prompt("trec_coarse", "context"))
    assert problem.endswith(LABELLED.questions[0].question)


def test_budgets_and_no_system_message():
    options = memagent(FakeChat()).options
    assert (options.memory_tokens, options.max_tokens) == (1024, 1024)
    model = FakeChat(say)
    run(memagent(model, memory_tokens=1024, max_tokens=512, temperature=0.1, top_p=0.95))
    assert {request.max_tokens for request in model.asked} == {512, 1024}
    for request in model.asked:
        assert (request.temperature, request.top_p, len(request.messages)) == (0.1, 0.95, 1)
        assert request.max_tokens == (1024 if part(user(request), "section") else 512)


def test_release_keeps_thoughts_in_the_memory():
    prepared, _ = run(memagent(FakeChat(say), "release-memagent-14b"), instances=[INSTANCE])
    assert prepared[INSTANCE.id].steps[0] == "<think>Hm.</think> Nora"


def test_a_walk_that_was_killed_goes_on_where_it_was(tmp_path):
    whole = FakeChat(say)
    expected = run(memagent(whole))
    calls, lost = 0, []
    for dies_after in (1, 1, 2, None):
        model = FakeChat(say, dies_after)
        method = build_method(MethodSpec("memagent"), Backends(answer=model, journal=tmp_path))
        try:
            found = run(method)
        except ModelGone:
            lost.append(len(model.asked))
        method.journal.close()
        calls += len(model.asked)
    assert found == expected and len(lost) == 3
    walked = sum("<section>" in text for text in whole.texts)
    assert calls <= walked + 2 * len(WANTED)  # no piece twice; the run keeps answers, not this


ROWS = ("other", INSTANCE.id, LABELLED.id)


def mem1(model, write=None, name="mem1", **options):
    return build_method(MethodSpec(name, options), Backends(model, write, rows=ROWS))


def summarise(asked) -> str:
    """The chunks' first words in think tags, with what MEM1 says around them."""
    said = user(asked)
    old = said.partition("<summary>\n")[2].partition("\n</summary>")[0]
    new = said.partition("<information>\n")[2].split()[0]
    return f"Fine. <think> {old} {new} </think><answer>no</answer><think>never</think>"


def test_the_walk_keeps_the_first_think_block_and_another_model_answers_from_it():
    writes, answers = FakeChat(summarise, name="mem1"), FakeChat()
    method = mem1(answers, writes)
    prepared, answered = run(method, {(INSTANCE.id, "q0")})
    one = prepared[INSTANCE.id]
    assert one.steps == ("<think>  Nora </think>", "<think> Nora Ada </think>")
    assert one.text == "<think> Nora Ada </think>" and one.memory_tokens == 2
    assert one.requests == 2 and one.unusable == 0
    assert "<think>" not in answers.texts[0]
    assert answers.texts[0] == "Read the articles.\n\nNora Ada\n\nWho keeps bees?"
    assert answered[INSTANCE.id, "q0"].memory_tokens == 2
    assert method.settings()["write_model"] == "mem1"


def test_the_walk_asks_with_its_own_budgets_and_consistent_tags():
    writes = FakeChat(summarise)
    run(mem1(FakeChat(), writes), (), [INSTANCE])
    first, second = writes.asked
    assert (first.max_tokens, first.temperature, first.top_p) == (1024, 0.0, 0.95)
    assert user(first).startswith("Read the articles.")
    assert "<summary>\n\n</summary>" in user(first)
    assert "<summary>\nNora\n</summary>" in user(second)
    assert user(second).endswith("<information>\nAda paints boats. It rains.\n</information>")


def test_release_sends_the_plain_chunk_and_the_state_as_the_models_turn_with_tags():
    writes, answers = FakeChat(lambda _: "<think>Nora</think>"), FakeChat()
    method = mem1(answers, writes, "release-mem1", cut="context", thinking=False)
    prepared, _ = run(method, {(INSTANCE.id, "q0")}, [INSTANCE])
    second = writes.asked[1].messages
    assert [m["role"] for m in second] == ["user", "assistant"]
    assert second[1]["content"] == "<think>Nora</think>"
    assert second[0]["content"].endswith("\n\nAda paints boats. It rains.")
    assert prepared[INSTANCE.id].memory_tokens == counter("wordpunct").count("<think>Nora</think>")
    assert "<think>Nora</think>" in answers.texts[0]


@pytest.mark.parametrize(
    ("made", "first", "second"),
    [(memagent, "Nora", "<think>Now"), (mem1, "<think>Nora</think>", "no tags")],
)
def test_a_reply_without_a_state_keeps_the_old_one_and_is_counted(made, first, second):
    replies = iter([first, second])
    prepared, _ = run(made(FakeChat(lambda _: next(replies))), (), [INSTANCE])
    one = prepared[INSTANCE.id]
    assert (one.text, one.steps, one.unusable, one.error) == (first, (first, first), 1, "")


def test_a_model_that_never_keeps_the_format_is_asked_all_the_same():
    """It is the model's mistake, so it is data with a score; asking again would not help."""
    prepared, answered = run(mem1(FakeChat(), FakeChat(lambda _: "no tags")), instances=[INSTANCE])
    one = prepared[INSTANCE.id]
    assert (one.error, one.text, one.unusable, one.memory_tokens) == ("", "", 2, 0)
    assert all(answer.prediction == "Nora" for answer in answered.values())


@pytest.mark.parametrize(("made", "says"), [(memagent, say), (mem1, summarise)])
def test_a_failed_piece_ends_its_instance_with_the_reason_and_no_other(made, says):
    def failing(asked):
        chunk = part(user(asked), "section") or part(user(asked), "information") or ""
        return None if "Ada paints" in chunk else says(asked) if chunk else "Oslo"

    prepared, answered = run(made(FakeChat(failing)))
    one = prepared[INSTANCE.id]
    assert one.error == "piece 1: HTTP 500 six times" and len(one.steps) == 1
    assert answered[INSTANCE.id, "q0"].prediction is None
    assert answered[INSTANCE.id, "q0"].error == f"instance: {one.error}"
    assert prepared[LABELLED.id].error == "" and answered[LABELLED.id, "q0"].prediction == "Oslo"


# ---- rollout files ----------------------------------------------------------------------------


def rollouts(tmp_path, *lines):
    path = tmp_path / "squad_results.json"
    said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(said) + "\n", encoding="utf-8")
    return path


def line(index, memory="<think>Nora</think>"):
    return {"index": index, "memory": memory}


def test_a_rollout_file_gives_the_memories_by_row_of_the_data(tmp_path):
    path = rollouts(tmp_path, line(2, "<think>Three.</think>"), line(0), line(1))
    answers = FakeChat()
    method = mem1(answers, rollouts=str(path))
    prepared, _ = run(method, {(LABELLED.id, "q0")})
    assert prepared[LABELLED.id].text == "<think>Three.</think>"
    assert prepared[LABELLED.id].memory_tokens == 2 and prepared[LABELLED.id].requests == 0
    assert "Three." in answers.texts[0] and len(method.settings()["rollouts"]) == 64


def test_every_instance_needs_its_row_which_is_said_before_any_answer(tmp_path):
    answers = FakeChat()
    method = mem1(answers, rollouts=str(rollouts(tmp_path, line(0), line(1))))
    with pytest.raises(InputError, match=rf"found none for 1: {LABELLED.id} \(row 2\)"):
        run(method)
    assert not answers.asked
    assert list(run(method, (), [INSTANCE])[0]) == [INSTANCE.id]  # a part needs only its own


def loaded(path, name="mem1", rows=3):
    backends = Backends(FakeChat(), rows=[f"r{i}" for i in range(rows)])
    return build_method(MethodSpec(name, {"rollouts": str(path)}), backends).rollouts(path)


def test_an_index_twice_is_an_error_and_the_last_line_wins_in_the_release(tmp_path):
    path = rollouts(tmp_path, line(0, "old"), line(1), line(0, "new"))
    with pytest.raises(InputError, match=r"results\.json:3: expected each index once, found 0"):
        loaded(path)
    assert loaded(path, "release-mem1") == {0: "new", 1: "<think>Nora</think>"}


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ('{"index": 1, "memory": "<think>No', {1: "<think>No"}),
        ('{"index": 1, "memory": "a\u2028b"}', {1: "a\u2028b"}),
    ],
)
def test_broken_lines_are_repaired_in_the_release_only(broken, repaired, tmp_path):
    path = rollouts(tmp_path, broken)
    assert loaded(path, "release-mem1") == repaired
    if "}" not in broken:
        with pytest.raises(InputError, match=r"results\.json:1: expected JSON"):
            loaded(path)


@pytest.mark.parametrize("odd", ["[1]", "7", line("1", "x"), {"index": 1}, line(True), line(-1)])
@pytest.mark.parametrize("name", ["mem1", "release-mem1"])
def test_lines_of_another_shape_are_errors(odd, name, tmp_path):
    with pytest.raises(InputError, match=r"results\.json:1: expected an index and a memory"):
        loaded(rollouts(tmp_path, odd), name)


def test_rows_that_the_data_does_not_have_are_an_error(tmp_path):
    path = rollouts(tmp_path, *map(line, (0, 1, 2, 7)))
    with pytest.raises(InputError, match="expected rows below 3, found 7"):
        run(mem1(FakeChat(), rollouts=str(path)))
    run(mem1(FakeChat(), name="release-mem1", rollouts=str(path)))


def test_a_missing_file_is_named(tmp_path):
    method = mem1(FakeChat(), rollouts=str(tmp_path / "none.json"))
    for use in (method.settings, lambda: run(method)):
        with pytest.raises(InputError, match=r"none\.json: expected a readable file"):
            use()
