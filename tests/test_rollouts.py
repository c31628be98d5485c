"""One step's scores: who is asked, and how often."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memalpha_kit.lab import miniature
from memalpha_kit.method.episode import play
from memalpha_kit.settings import load_profile

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
