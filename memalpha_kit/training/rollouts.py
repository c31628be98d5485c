"""One GRPO step's episodes: written, asked, rewarded, and turned into rows and measures.

The one law: a step's rows follow from (seed, step), the weights, the reader and the judge. When the
questions are asked (`grpo.overlap`) and in how many processes changes none of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path

from memalpha_kit.files import save_episodes
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.readers import Reader
from memalpha_kit.method.rewards import Judge, rewards, training_rows
from memalpha_kit.method.writers import ModelWriter
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.records import Episode, Instance, Rewards, TrainingRow
from memalpha_kit.settings import (
    AdvantageConfig,
    GrpoConfig,
    MemoryConfig,
    ProtocolConfig,
    RewardConfig,
)
from memalpha_kit.text import counter
from memalpha_kit.training import processes
from memalpha_kit.training.measures import joined, observe, summarise
from memalpha_kit.training.outage import Counted, patiently, unanswered


@dataclass(frozen=True)
class Environment:
    """What an episode is played in and scored by. `metric` None is the source's own."""

    memory: MemoryConfig
    protocol: ProtocolConfig
    reader: Reader
    judge: Judge | None
    reward: RewardConfig
    advantage: AdvantageConfig
    metric: str | None = None
    meet: Callable[[CausalLM], object] | None = None  # told the language model that is trained


class Rollouts:
    """Plays one step's episodes and turns them into rows and measures.

    With several processes the rows are this one's, the measures everybody's.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        environment: Environment,
        config: GrpoConfig,
        seed: int,
        dumps: Path,
    ) -> None:
        self.instances, self.environment, self.config = instances, environment, config
        self.seed, self.dumps = seed, dumps

    def __call__(
        self, step: int, places: Sequence[int], lm: CausalLM
    ) -> tuple[list[TrainingRow], dict[str, float]]:
        """Rows of step `step` (from 0), and what to log about it; NaN is missing.

        Raises TrainingStopped, in all processes, if the reader or judge is gone for good.
        """
        env, config = self.environment, self.config
        instances = [self.instances[place] for place in places]
        sampling = Sampling(config.temperature, env.protocol.max_reply_tokens)
        writer = ModelWriter(lm, env.memory, env.protocol, sampling)
        started = time.perf_counter()
        with scoring(env, instances, config.overlap) as (scored, early):
            written = write(
                instances,
                writer,
                env.memory,
                env.protocol,
                config.rollouts,
                step_seed(self.seed, step),
                finished=early,
            )
            finish(lm, sampling)
            wrote = time.perf_counter()
            done = patiently(lambda: scored(written), Scored.missing, config)
        rows = training_rows(done.episodes, done.parts, env.reward, env.advantage)
        seen = observe(done.episodes, done.parts, rows, env.memory.counter)
        self._dump(step, done.episodes)
        rewarded = time.perf_counter() - wrote - done.read_s
        every = processes.gathered((seen, (wrote - started, done.read_s, rewarded)))
        longest = map(max, zip(*(times for _, times in every), strict=True))
        seconds = zip(("write_s", "read_s", "reward_s"), longest, strict=True)
        return rows, summarise(joined(seen for seen, _ in every)) | dict(seconds)

    def _dump(self, step: int, episodes: Sequence[Episode]) -> None:
        every, n = self.config.dump_every, self.config.dump_episodes
        if processes.is_main() and every and step % every == 0:
            sampled = episodes[:: max(1, len(episodes) // n)][:n]
            save_episodes(self.dumps / f"step_{step + 1:05d}.jsonl", sampled)


def finish(lm: CausalLM, sampling: Sampling) -> None:
    """Lets other processes finish writing, where the language model is one for all of them."""
    wait = getattr(lm, "finish", None)
    if wait:
        wait(sampling)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's rollouts: a function of both numbers only."""
    return random.Random(f"{seed}/rollouts/{step}").getrandbits(31)


# --- Scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Answered episodes and their rewards by episode; how often the judge was asked and failed."""

    episodes: list[Episode]
    parts: dict[str, Rewards]
    judged: int = 0
    unjudged: int = 0
    read_s: float = 0.0

    def missing(self) -> float:
        """Share of the answers or of the verdicts that failed, whichever is larger."""
        return max(unanswered(self.episodes), self.unjudged / max(1, self.judged))


def score(episodes: Sequence[Episode], instances: Sequence[Instance], env: Environment) -> Scored:
    """The episodes, asked and rewarded. The judge is not called for a term of weight 0 (D65)."""
    started = time.perf_counter()
    together = len(signature(env.reader.read).parameters) > 1  # a model's reader: all at once
    asked = ask(episodes, instances, env.reader, env.metric, together=together)
    read_s = time.perf_counter() - started
    by_id = {instance.id: instance for instance in instances}
    judge = Counted(env.judge) if env.judge and env.reward.content else None
    if judge and hasattr(env.judge, "prepare"):  # a model's judge: all calls at once
        env.judge.prepare(asked, instances)
    counts = counter(env.memory.counter)
    parts = {e.id: rewards(e, by_id[e.instance], counts, judge, env.reward) for e in asked}
    judged, unjudged = (judge.asked, judge.failed) if judge else (0, 0)
    return Scored(asked, parts, judged, unjudged, read_s)


@contextmanager
def scoring(
    env: Environment, instances: Sequence[Instance], overlap: bool
) -> Iterator[tuple[Callable[[Sequence[Episode]], Scored], Finished | None]]:
    """How to score all episodes, and what to tell about some as soon as they are written.

    With `overlap` a thread asks about finished episodes while the others are still being written;
    the questions and the results are the same. What it could not get is asked for again by the
    next call.
    """
    if not overlap:
        yield lambda episodes: score(episodes, instances, env), None
        return
    with ThreadPoolExecutor(1) as pool:
        early = _Early(lambda episodes: pool.submit(score, episodes, instances, env))
        try:
            yield early.scored, early.start
        finally:
            pool.shutdown(cancel_futures=True)


Finished = Callable[[list[Episode]], None]


@dataclass
class _Early:
    """Groups of episodes and their scores to come, in the order in which they were finished."""

    submit: Callable[[list[Episode]], Future[Scored]]
    groups: list[tuple[list[Episode], Future[Scored]]] = field(default_factory=list)
    asked_before: bool = False

    def start(self, episodes: list[Episode]) -> None:
        """Has these episodes scored."""
        self.groups.append((episodes, self.submit(episodes)))

    def scored(self, episodes: Sequence[Episode]) -> Scored:
        """The scores of all `episodes`; from the second call on, what failed is asked for again."""
        started = time.perf_counter()
        if self.asked_before:
            self.groups = [(group, self._again(group, future)) for group, future in self.groups]
        self.asked_before = True
        parts = [future.result() for _, future in self.groups]  # raises what the thread met
        asked = {episode.id: episode for part in parts for episode in part.episodes}
        return Scored(
            [asked[episode.id] for episode in episodes],
            {e.id: part.parts[e.id] for part in parts for e in part.episodes},
            sum(part.judged for part in parts),
            sum(part.unjudged for part in parts),
            time.perf_counter() - started,
        )

    def _again(self, episodes: list[Episode], future: Future[Scored]) -> Future[Scored]:
        whole = not future.exception() and not future.result().missing()
        return future if whole else self.submit(episodes)
