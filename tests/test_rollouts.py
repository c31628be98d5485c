"""One step's scores: who is asked, and how often; repeats are seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from memalpha_kit.lab import miniature
from memalpha_kit.method.episode import play
from memalpha_kit.records import ToolCall
from memalpha_kit.settings import load_profile
from memalpha_kit.training.rollouts import observe, summarise

CI = load_profile("ci")


class Batched:
    """A judge that counts batches and single calls; it says yes to what it was shown in a batch."""

    def __init__(self) -> None:
        self.batches, self.singles, self.known = 0, 0, set()

    def prepare(self, episodes, instances) -> None:
        self.batches += 1
        self.known |= {id(call) for episode in episodes for call in episode.calls}

    def __call__(self, call, chunk, memory) -> bool:
        self.singles += id(call) not in self.known
        return True


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_a_model_s_judge_gets_all_calls_of_a_step_at_once_or_none_without_a_weight(weight):
    judge, teacher = Batched(), miniature.references(CI)[0]
    rules = miniature.environment(CI)
    rules = replace(rules, judge=judge, reward=replace(rules.reward, content=weight))
    done = play(miniature.held_out(CI)["test_1x"], teacher, rules)
    calls = sum(len(episode.calls) for episode in done.episodes)
    assert (judge.batches, judge.singles) == (bool(weight), 0)
    assert done.judged == (calls if weight else 0) and not done.unjudged


def perfect():
    """What the perfect writer's one episode of the miniature gave."""
    data, teacher = miniature.held_out(CI)["test_1x"][:1], miniature.references(CI)[0]
    done = play(data, teacher, miniature.environment(CI))
    return done, done.episodes[0]


def test_calls_that_ask_for_the_same_again_are_a_measure_of_their_own():
    def update(text):
        arguments = {"memory_type": "semantic_memory", "memory_id": "1", "new_content": text}
        return ToolCall("memory_update", arguments, status="ok")

    done, episode = perfect()
    again = (update("a"), update("b"), update("a"), update(" a\u200b"), ToolCall("", raw="x"))
    steps = tuple(replace(step, calls=again) for step in episode.steps)
    for seen_steps, repeated in ((episode.steps, 0), (steps, 2)):
        seen = observe([replace(episode, steps=seen_steps)], done.rewards, [], "words")
        assert summarise([seen])["calls_repeated"] == repeated


def test_chunks_about_which_all_rollouts_wrote_the_same_are_counted():
    done, episode = perfect()
    first, *rest = episode.steps
    other = replace(first, completion=replace(first.completion, text="something else"))
    pair = [episode, replace(episode, rollout=1, steps=(other, *rest))]
    known = summarise([observe(pair, done.rewards, [], "words")])["same_replies"]
    assert known == pytest.approx(len(rest) / len(episode.steps))
    alone = summarise([observe([episode], done.rewards, [], "words")])["same_replies"]
    assert math.isnan(alone)  # nobody to compare with
