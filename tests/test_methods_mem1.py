"""MEM1: the walk with its state in think tags, and its rollout files."""

from __future__ import annotations

import json

import pytest
from fake_chat import FakeChat, user
from test_methods import INSTANCE, INSTANCES, LABELLED, run

from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.methods import Backends, MethodSpec, build_method
from memalpha_kit.evaluation.methods.mem1 import load_rollouts
from memalpha_kit.tokens import counter

ROWS = ("other", INSTANCE.id, LABELLED.id)


def mem1(model, write=None, **options):
    return build_method(MethodSpec("mem1", options), Backends(model, write, rows=ROWS))


def summarise(asked) -> str:
    """The chunks' first words in think tags, with what MEM1 says around them."""
    said = user(asked)
    old = said.partition("<summary>\n")[2].partition("\n</summary>")[0]
    new = said.partition("<information>\n")[2].split()[0]
    return f"Fine. <think> {old} {new} </think><answer>no</answer><think>never</think>"


def test_the_walk_keeps_the_first_think_block_and_another_model_answers_from_it():
    writes, answers = FakeChat(summarise, name="mem1"), FakeChat()
    method = mem1(answers, writes)
    prepared, answered = run(method, {(INSTANCE.id, 0)})
    one = prepared[INSTANCE.id]
    assert one.steps == ("<think>  Nora </think>", "<think> Nora Ada </think>")
    assert one.text == "<think> Nora Ada </think>" and one.memory_tokens == 2
    assert one.requests == 2 and one.errors == 0
    assert "<think>" not in answers.texts[0]
    assert answers.texts[0] == "Read the articles.\n\nNora Ada\n\nWho keeps bees?"
    assert answered[INSTANCE.id, 0].memory_tokens == 2
    assert method.settings()["write_model"] == "mem1"


def test_the_walk_asks_with_its_own_budgets_and_consistent_tags():
    writes = FakeChat(summarise)
    run(mem1(FakeChat(), writes), (), [INSTANCE])
    first, second = writes.asked
    assert (first.max_tokens, first.temperature, first.top_p) == (1024, 0.0, 0.95)
    assert user(first).startswith("Read the articles.")
    assert "<summary>\n\n</summary>" in user(first) and "<summary>\nNora\n</summary>" in user(
        second
    )
    assert user(second).endswith("<information>\nAda paints boats. It rains.\n</information>")


def test_release_sends_the_plain_chunk_and_the_state_as_the_models_turn_with_tags():
    writes, answers = FakeChat(lambda _: "<think>Nora</think>"), FakeChat()
    method = mem1(answers, writes, behaviour="release", state_temperature=0.01)
    prepared, _ = run(method, {(INSTANCE.id, 0)}, [INSTANCE])
    second = writes.asked[1].plain()
    assert [m["role"] for m in second] == ["user", "assistant"]
    assert second[1]["content"] == "<think>Nora</think>"
    assert second[0]["content"].endswith("\n\nAda paints boats. It rains.")
    assert prepared[INSTANCE.id].memory_tokens == counter("wordpunct").count("<think>Nora</think>")
    assert "<think>Nora</think>" in answers.texts[0]


def test_a_reply_without_a_state_keeps_the_old_one_and_is_counted():
    replies = iter(["<think>Nora</think>", "no tags"])
    prepared, _ = run(mem1(FakeChat(lambda _: next(replies))), (), [INSTANCE])
    one = prepared[INSTANCE.id]
    assert (one.text, one.errors, one.error) == ("<think>Nora</think>", 1, "")


def test_too_many_replies_without_a_state_fail_the_instance():
    prepared, answered = run(mem1(FakeChat(), FakeChat(lambda _: "no tags")), instances=[INSTANCE])
    assert prepared[INSTANCE.id].error == "2 of 2 replies have no summary in think tags"
    assert all(one.prediction is None for one in answered.values())
    prepared, _ = run(mem1(FakeChat(), unusable=1.0), (), [INSTANCE])
    assert (prepared[INSTANCE.id].error, prepared[INSTANCE.id].errors) == ("", 2)


def test_a_failed_request_ends_its_instance_and_does_not_keep_the_old_state_silently():
    def failing(asked):
        return None if "Ada paints" in user(asked) else summarise(asked)

    prepared, _ = run(mem1(FakeChat(), FakeChat(failing)), ())
    assert prepared[INSTANCE.id].error == "piece 1: HTTP 500 six times"
    assert prepared[LABELLED.id].error == ""


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
    prepared, _ = run(method, {(LABELLED.id, 0)})
    assert prepared[LABELLED.id].text == "<think>Three.</think>"
    assert prepared[LABELLED.id].memory_tokens == 2 and prepared[LABELLED.id].requests == 0
    assert "Three." in answers.texts[0] and len(method.settings()["rollouts"]) == 64


def test_a_row_that_is_missing_is_said_before_any_answer(tmp_path):
    answers = FakeChat()
    method = mem1(answers, rollouts=str(rollouts(tmp_path, line(0), line(1))))
    with pytest.raises(InputError, match=rf"found none for 1: {LABELLED.id} \(row 2\)"):
        run(method)
    assert not answers.asked


def test_a_part_of_the_data_needs_only_its_own_rows(tmp_path):
    method = mem1(FakeChat(), rollouts=str(rollouts(tmp_path, line(1))))
    prepared, _ = run(method, (), [INSTANCE])
    assert list(prepared) == [INSTANCE.id]


def test_the_first_row_twice_is_an_error_and_the_last_line_wins_in_the_release(tmp_path):
    path = rollouts(tmp_path, line(0, "old"), line(1), line(0, "new"))
    with pytest.raises(InputError, match=r"results\.json:3: expected each index once, found 0"):
        load_rollouts(path)
    assert load_rollouts(path, "release") == {0: "new", 1: "<think>Nora</think>"}


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ('{"index": 1, "memory": "<think>No', {1: "<think>No"}),
        ('{"index": 1, "memory": "a\u2028b"}', {1: "a\u2028b"}),
    ],
)
def test_broken_lines_are_repaired_in_the_release_only(broken, repaired, tmp_path):
    path = rollouts(tmp_path, broken)
    assert load_rollouts(path, "release") == repaired
    if "}" not in broken:
        with pytest.raises(InputError, match=r"results\.json:1: expected a JSON object"):
            load_rollouts(path)


ODD = (
    "[1]",
    "7",
    '{"index": "1", "memory": "x"}',
    '{"index": 1}',
    '{"index": true, "memory": ""}',
    '{"index": -1, "memory": ""}',
)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("behaviour", ["fixed", "release"])
def test_lines_of_another_shape_are_errors(odd, behaviour, tmp_path):
    with pytest.raises(InputError, match=r"results\.json:1: expected an index and a memory"):
        load_rollouts(rollouts(tmp_path, odd), behaviour)


def test_rows_that_the_data_does_not_have_are_an_error(tmp_path):
    path = rollouts(tmp_path, *map(line, (0, 1, 2, 7)))
    with pytest.raises(InputError, match="expected rows below 3, found 7"):
        run(mem1(FakeChat(), rollouts=str(path)))
    run(mem1(FakeChat(), rollouts=str(path), behaviour="release"))
    assert len(INSTANCES) == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: expected a readable file"):
        mem1(FakeChat(), rollouts=str(tmp_path / "none.json")).settings()
    with pytest.raises(InputError, match=r"none\.json: expected a rollout file"):
        run(mem1(FakeChat(), rollouts=str(tmp_path / "none.json")))
