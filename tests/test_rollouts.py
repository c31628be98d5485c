"""One step's scores: who is asked, and how often."""

from __future__ import annotations

from dataclasses import replace

from memalpha_kit.lab import miniature
from memalpha_kit.method.episode import score, write
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


def played():
    teacher, instances = miniature.references(CI)[0], miniature.held_out(CI)["test_1x"]
    return write(instances, teacher, CI.memory, CI.protocol), instances


def test_a_model_s_judge_gets_all_calls_of_a_step_at_once():
    judge = Batched()
    episodes, instances = played()
    done = score(episodes, instances, replace(miniature.environment(CI), judge=judge))
    assert (judge.batches, judge.singles) == (1, 0)
    assert done.judged == sum(len(episode.calls) for episode in episodes) and not done.unjudged


def test_a_judge_without_weight_is_not_asked():
    judge = Batched()
    silent = replace(CI.reward, content=0.0)
    score(*played(), replace(miniature.environment(CI), judge=judge, reward=silent))
    assert judge.batches == judge.singles == 0
