"""One GRPO step's episodes: written, asked, rewarded, and turned into rows and measures.

The one law: a step's rows follow from (seed, step), the weights, the reader and the judge. When the
questions are asked (`grpo.overlap`) and in how many processes changes none of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.method.episode import Environment, Played, play
from memalpha_kit.method.rewards import training_rows
from memalpha_kit.method.saved import save_episodes
from memalpha_kit.method.writers import ModelWriter
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.records import Episode, Instance, TrainingRow
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training import processes
from memalpha_kit.training.measures import joined, observe, summarise
from memalpha_kit.training.outage import patiently


class Rollouts:
    """Plays one step's episodes and turns them into rows and measures.

    With several processes the rows are this one's, the measures everybody's. `progress` is told how
    many replies were just written, or episodes answered.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        environment: Environment,
        config: GrpoConfig,
        seed: int,
        dumps: Path,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.instances, self.environment, self.config = instances, environment, config
        self.seed, self.dumps, self.progress = seed, dumps, progress

    def __call__(
        self, step: int, places: Sequence[int], lm: CausalLM
    ) -> tuple[list[TrainingRow], dict[str, float]]:
        """Rows of step `step` (from 0), and what to log about it; NaN is missing.

        Raises TrainingStopped, in all processes, if the reader or judge is gone for good.
        """
        env, config = self.environment, self.config
        instances = [self.instances[place] for place in places]
        played = played_by(
            lm,
            env,
            config,
            instances,
            config.temperature,
            rollouts=config.rollouts,
            seed=step_seed(self.seed, step),
            overlap=config.overlap,
            progress=self.progress,
        )
        rows = training_rows(played.episodes, played.rewards, env.reward, env.advantage)
        seen = observe(played.episodes, played.rewards, rows, env.memory.counter)
        self._dump(step, played.episodes)
        every = processes.gathered((seen, (played.write_s, played.read_s, played.reward_s)))
        longest = map(max, zip(*(times for _, times in every), strict=True))
        seconds = zip(("write_s", "read_s", "reward_s"), longest, strict=True)
        return rows, summarise(joined(seen for seen, _ in every)) | dict(seconds)

    def _dump(self, step: int, episodes: Sequence[Episode]) -> None:
        every, n = self.config.dump_every, self.config.dump_episodes
        if processes.is_main() and every and step % every == 0:
            sampled = episodes[:: max(1, len(episodes) // n)][:n]
            save_episodes(self.dumps / f"step_{step + 1:05d}.jsonl", sampled)


def played_by(
    lm: CausalLM,
    environment: Environment,
    config: GrpoConfig,
    instances: Sequence[Instance],
    temperature: float,
    **how: Any,
) -> Played:
    """`play` with the language model as writer; what is missing is asked for again."""
    sampling = Sampling(temperature, environment.protocol.max_reply_tokens)
    writer = ModelWriter(lm, environment.memory, environment.protocol, sampling)

    def retry(attempt: Callable[[], Played]) -> Played:
        return patiently(attempt, Played.missing, config)

    return play(instances, writer, environment, retry=retry, **how)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's rollouts: a function of both numbers only."""
    return random.Random(f"{seed}/rollouts/{step}").getrandbits(31)
