"""Rewards and advantages: worked examples, and the edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha_kit.errors import InputError
from memalpha_kit.method.advantages import advantages, episode_advantages, training_rows
from memalpha_kit.method.rewards import judged, reward_content, rewards, step_rewards, total
from memalpha_kit.records import (
    QA,
    Answer,
    Completion,
    Entry,
    Episode,
    Memory,
    Rewards,
    Step,
    ToolCall,
    make_instance,
)
from memalpha_kit.settings import AdvantageConfig, MemoryConfig, RewardConfig
from memalpha_kit.tokens import Counter, counter

PLAIN = AdvantageConfig()


def call(name="new_memory_insert", status="ok", **arguments):
    return ToolCall(name, arguments, status=status)


def insert(text, kind="semantic_memory", status="ok"):
    return call(status=status, memory_type=kind, content=text)


def episode(instance, calls_per_step, scores, memory, rollout=0):
    steps = tuple(
        Step(t, Completion("", (1, 2), (3, 4, 5), (1, 1, 1)), tuple(calls), memory)
        for t, calls in enumerate(calls_per_step)
    )
    answers = tuple(Answer(q.id, "x", s) for q, s in zip(instance.questions, scores, strict=True))
    name = f"{instance.id}/{rollout}"
    config = MemoryConfig(counter="words")
    return Episode(name, instance.id, "toy", rollout, 0, "test", "qwen", config, steps, answers)


# --- a worked example -----------------------------------------------------------------------------

A = Rewards(0.75, 0.90, (1.0, 0.5, 1.0), (1.0, 0.5, 0.75))
B = Rewards(0.50, 0.75, (1.0, 0.0, 0.75), (0.5, 0.0, 1.0))
R = [1.8950, 1.3450, 1.8700, 1.5875, 0.5375, 1.3875]
EXPECTED = [0.9195, -0.1849, 0.8693, 0.3021, -1.8065, -0.0996]


def test_rewards_and_advantages_are_those_of_the_worked_example():
    found = [*step_rewards(A, RewardConfig()), *step_rewards(B, RewardConfig())]
    assert found == pytest.approx(R, abs=1e-12)
    values = advantages(found, ["q"] * 6, AdvantageConfig(epsilon=0.0))
    assert values == pytest.approx(EXPECTED, abs=5e-5)
    assert sum(values) == pytest.approx(0, abs=1e-12)
    assert np.std(values, ddof=1) == pytest.approx(1.0), "the unbiased deviation"


def test_a_threshold_turns_accuracy_into_one_or_zero():
    config = RewardConfig(accuracy_threshold=0.75)
    assert step_rewards(A, config)[0] == pytest.approx(1.8950 + 0.25)
    assert step_rewards(B, config)[0] == pytest.approx(1.5875 - 0.50)


# --- advantages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "groups", "config", "expected"),
    [
        ([1.234], "q", PLAIN, [0.0]),
        ([1.234], "q", AdvantageConfig(single="raw"), [1.234]),
        ([1.234], "q", AdvantageConfig(single="release"), [pytest.approx(1.233999, abs=5e-7)]),
        ([1.0, 2.0, 6.0], "qqq", AdvantageConfig(scale="none"), [-2.0, -1.0, 3.0]),
        ([None, None], "qq", PLAIN, [0.0, 0.0]),
        ([None, 2.0], "qq", PLAIN, [0.0, 0.0]),  # a group of one again
        ([0.1 + 0.2, 0.3, 0.3], "qqq", PLAIN, pytest.approx([0, 0, 0], abs=1e-9)),
    ],
)
def test_advantages_of_small_groups(found, groups, config, expected):
    assert advantages(found, list(groups), config) == expected


@given(st.floats(-10, 10), st.integers(2, 40), st.sampled_from(["none", "std"]))
def test_equal_rewards_give_exactly_zero(reward, n, scale):
    config = AdvantageConfig(scale=scale, epsilon=0.0)
    assert advantages([reward] * n, ["q"] * n, config) == [0.0] * n


def test_a_missing_reward_is_in_no_mean_and_groups_do_not_see_each_other():
    with_gap = advantages([1.0, None, 3.0, 8.0], ["q"] * 4, PLAIN)
    assert with_gap[1] == 0.0
    assert with_gap[:1] + with_gap[2:] == advantages([1.0, 3.0, 8.0], ["q"] * 3, PLAIN)
    mixed = advantages([1.0, 5.0, 2.0, 9.0], ["a", "b", "a", "b"], PLAIN)
    assert mixed[::2] == advantages([1.0, 2.0], ["a", "a"], PLAIN)
    assert mixed[1::2] == advantages([5.0, 9.0], ["b", "b"], PLAIN)


STEPS = [(1.0, 4.0), (3.0, 4.0), (2.0, None)]


def test_a_grouping_says_which_rewards_are_compared():
    """All steps of all rollouts, the same chunk across rollouts, or the means of rollouts."""
    a, b, c, d, e = advantages([1.0, 4.0, 3.0, 4.0, 2.0], ["q"] * 5, PLAIN)
    f, g, h = advantages([1.0, 3.0, 2.0], ["q"] * 3, PLAIN)
    i, j, k = advantages([2.5, 3.5, 2.0], ["q"] * 3, PLAIN)
    for grouping, expected in {
        "instance": [(a, b), (c, d), (e, 0.0)],
        "chunk": [(f, 0.0), (g, 0.0), (h, 0.0)],
        "rollout": [(i, i), (j, j), (k, 0.0)],
    }.items():
        config = AdvantageConfig(grouping=grouping)
        assert episode_advantages(STEPS, ["q"] * 3, config) == expected


# --- the four terms -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "n_calls", "all_calls", "judged_calls"),
    [
        ([], 0, 0.0, 0.0),  # silence
        ([], 2, 0.0, 0.0),  # two deletions: nothing to rate
        ([True], 2, 0.5, 1.0),  # an insert and a deletion
        ([True, False], 2, 0.5, 0.5),
        ([True] * 6, 8, 0.75, 1.0),  # six writes and two deletions
        ([True, None], 2, 1.0, 1.0),  # the judge failed once
        ([True, None], 3, 0.5, 1.0),
        ([None, None], 2, None, None),
        ([None], 2, 0.0, None),  # the deletion is known to count 0
    ],
)
def test_content_is_the_mean_verdict(verdicts, n_calls, all_calls, judged_calls):
    assert reward_content(verdicts, n_calls, "all_calls") == all_calls
    assert reward_content(verdicts, n_calls, "judged_calls") == judged_calls


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (insert("a"), True),
        (insert("a", "core"), True),
        (insert("a", status="rejected"), True),
        (call("memory_update", memory_type="episodic_memory", new_content="b"), True),
        (call("memory_update", memory_type="episodic_memory", memory_id="1"), False),
        (call("memory_delete", memory_type="semantic_memory", memory_id="1"), False),
        (insert("  "), False),
        (insert(7), False),
        (insert("a", "procedural_memory"), False),
        (insert("a", ["semantic"]), False),
        (call("new_memory_insert", status="malformed"), False),
        (call("x executed successfully", memory_type="semantic", content="a"), False),
    ],
)
def test_a_judge_rates_writes_of_text_only(asked, expected):
    assert judged(asked) is expected


def test_a_missing_term_with_a_weight_makes_the_reward_missing():
    config = RewardConfig()
    unscored, unjudged = Rewards(None, 1.0, (1.0,), (1.0,)), Rewards(1.0, 1.0, (1.0,), (None,))
    assert total(unscored, 0, config) is None
    assert total(unjudged, 0, config) is None
    assert total(unjudged, 0, dataclasses.replace(config, content=0.0)) == pytest.approx(2.05)


# --- of an episode --------------------------------------------------------------------------------

TOY = make_instance(
    "toy", ["one two three", "four five six seven"], [QA("q0", "?", ("a",)), QA("q1", "?", ("b",))]
)
STORED = Memory(semantic=(Entry("1", "one two"),))
WORDS = counter("words")


@pytest.mark.parametrize(
    ("scores", "mean"), [((1.0, 0.0), 0.5), ((1.0, None), 1.0), ((None, None), None)]
)
def test_accuracy_leaves_out_answers_without_a_score(scores, mean):
    assert rewards(episode(TOY, [[], []], scores, STORED), TOY, WORDS).accuracy == mean


@pytest.mark.parametrize(
    ("statuses", "share"),
    [
        ([], 0.0),
        (["ok"], 1.0),
        (["ok", "rejected", "malformed", "ok"], 0.5),
        (["malformed"], 0.0),
        (["ok", "skipped", "ok", "rejected", "rejected", "rejected", "ok", "rejected"], 0.375),
    ],  # the last one: eight calls, three of which run
)
def test_format_is_the_share_of_calls_that_succeeded(statuses, share):
    calls = [call(status=status) for status in statuses]
    done = episode(TOY, [calls, []], [1.0, 0.0], STORED)
    assert rewards(done, TOY, WORDS).format == (share, 0.0)


@pytest.mark.parametrize(
    ("stored", "floor", "saved"),
    [("", None, 1.0), ("one two", None, 1 - 2 / 7), ("w " * 14, None, -1.0), ("w " * 14, 0.0, 0.0)],
)
def test_compression_is_one_minus_memory_over_chunks(stored, floor, saved):
    config = RewardConfig(compression_floor=floor)
    done = episode(TOY, [[], []], [1.0, 0.0], Memory(core=stored))
    assert rewards(done, TOY, WORDS, config=config).compression == pytest.approx(saved)


def test_a_counter_that_finds_no_token_in_the_chunks_is_an_error_and_no_reward():
    done = episode(TOY, [[], []], [1.0, 0.0], STORED)
    with pytest.raises(InputError, match="chunks: expected a token, the counter deaf found 0"):
        rewards(done, TOY, Counter("deaf", lambda text: ()))


def test_rewards_of_an_episode_are_its_four_parts():
    seen = []

    def judge(asked, chunk, before):
        seen.append((asked.arguments["content"], chunk, before))
        return asked.arguments["content"] in chunk

    done = episode(TOY, [[insert("one two"), insert("nine")], []], [1.0, 0.0], STORED)
    parts = rewards(done, TOY, WORDS, judge)
    assert parts == Rewards(0.5, pytest.approx(1 - 2 / 7), (1.0, 0.0), (0.5, 0.0))
    nothing = Memory()  # as the writer saw it
    assert seen == [(text, TOY.chunks[0], nothing) for text in ("one two", "nine")]
    assert rewards(done, TOY, WORDS).content == (None, None), "missing without a judge, not zero"
    rewards(episode(TOY, [[], [insert("x")]], [1.0, 0.0], STORED), TOY, WORDS, judge)
    assert seen[-1] == ("x", TOY.chunks[1], STORED), "the memory that the step started with"


def test_rewards_refuse_an_episode_that_was_not_asked_or_belongs_elsewhere():
    done = episode(TOY, [[], []], [1.0, 0.0], STORED)
    with pytest.raises(InputError, match="answers: expected one per question"):
        rewards(dataclasses.replace(done, answers=()), TOY, WORDS)
    with pytest.raises(InputError, match="expected instance"):
        rewards(done, dataclasses.replace(TOY, id="other"), WORDS)


def test_training_rows_keep_sampled_ids_and_leave_missing_rewards_untrained():
    pair = [
        episode(TOY, [[insert("x")], []], [1.0, s], STORED, i) for i, s in enumerate((1.0, 0.0))
    ]
    found = (Rewards(1.0, 0.0, (1.0, 0.0), (1.0, None)), Rewards(0.5, 0.0, (1.0, 0.0), (1.0, 0.0)))
    parts = dict(zip((one.id for one in pair), found, strict=True))
    rows = training_rows(pair, parts, RewardConfig(), PLAIN)
    assert [(row.episode, row.step) for row in rows] == [(p.id, t) for p in pair for t in range(2)]
    assert {row.completion_ids for row in rows} == {(3, 4, 5)}
    assert [row.loss_mask for row in rows] == [(1, 1, 1), (0, 0, 0), (1, 1, 1), (1, 1, 1)]
    assert rows[1].reward is None and rows[1].advantage == 0.0
    kept = advantages([2.1, 1.6, 0.5], ["q"] * 3, PLAIN)
    assert [rows[i].advantage for i in (0, 2, 3)] == pytest.approx(kept)


def test_rows_and_groups_have_the_shape_of_the_worked_step():
    """Two instances with 3 and 1 chunks, two rollouts each: 8 rows."""
    qa = [QA("q", "?", ("a",))]
    long, short = (make_instance("toy", [f"c{i}" for i in range(n)], qa) for n in (3, 1))
    episodes = [
        episode(one, [[]] * len(one.chunks), [1.0], Memory(), rollout)
        for one in (long, short)
        for rollout in range(2)
    ]
    parts = {
        e.id: Rewards(1.0, 1.0, (0.0,) * len(e.steps), (0.0,) * len(e.steps)) for e in episodes
    }
    rows = training_rows(episodes, parts, RewardConfig(), PLAIN)
    assert [row.step for row in rows] == [0, 1, 2, 0, 1, 2, 0, 0]
    groups = [row.group for row in rows]
    assert groups.count(long.id) == 6 and groups.count(short.id) == 2
    by_chunk = training_rows(episodes, parts, RewardConfig(), AdvantageConfig(grouping="chunk"))
    assert len({row.group for row in by_chunk}) == 4


# --- Leave one out --------------------------------------------------------------------------------


def test_leave_one_out_compares_a_step_with_the_other_rollouts_only():
    config = AdvantageConfig(grouping="leave_one_out", scale="none")
    steps = [(1.0, 0.0), (0.5, None), (0.0, 0.0), (3.0,)]
    found = episode_advantages(steps, ["a", "a", "a", "b"], config)
    others = (0.5 + 0.0 + 0.0) / 3  # what rollouts 2 and 3 of instance a earned
    assert found[0] == pytest.approx((1.0 - others, 0.0 - others))
    assert found[1] == pytest.approx((0.5 - 0.25, 0.0)) and found[1][1] == 0.0
    assert found[2] == pytest.approx((-0.5, -0.5))
    assert found[3] == (0.0,)  # nobody to compare with


def test_leave_one_out_divides_by_the_instance_s_deviation_and_equal_rewards_give_exactly_zero():
    config = AdvantageConfig(grouping="leave_one_out", epsilon=0.0)
    first, second = episode_advantages([(1.0,), (0.0,)], ["a", "a"], config)
    assert first == pytest.approx((1 / 0.5**0.5,)) and second == pytest.approx((-1 / 0.5**0.5,))
    equal = episode_advantages([(0.1, 0.1), (0.1,)], ["a", "a"], config)
    assert equal == [(0.0, 0.0), (0.0,)]
