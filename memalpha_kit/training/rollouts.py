"""The episodes of a run: a step's, which become rows, and held-out ones, which choose the best.

The one law: a step's rows follow from (seed, step), the weights, the reader and the judge. When the
questions are asked (`grpo.overlap`) and in how many processes changes none of them; looking at
held-out instances changes nothing at all.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.files import load_json, save_json
from memalpha_kit.method.advantages import training_rows
from memalpha_kit.method.episode import Environment, Played, play
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.saved import save_episodes
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.records import Instance, TrainingRow
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.training import processes
from memalpha_kit.training.measures import joined, observe, summarise

T = TypeVar("T")

log = logging.getLogger(__name__)

GONE = (ModelGone, ConnectionError, TimeoutError)
"""What a reader or judge raises that may be there again later."""
GO_ON = "what was trained so far is kept: resume the run to go on from its last checkpoint"
BEST = "best"
MEASURES = (
    *("accuracy", "format", "compression", "content"),
    *("calls", "memory_tokens", "reply_tokens", "cut_replies"),
)
"""Columns of `validation.csv`."""


@dataclass(frozen=True)
class Run:
    """A GRPO run: which policy learns from what, under which settings, and where it is kept.

    `policy` is a Hugging Face folder, which `model` says how to load and train. `validation` are
    the held-out instances that `grpo.validate_every` asks for.
    """

    policy: Path
    instances: Sequence[Instance]
    environment: Environment
    config: GrpoConfig
    out: Path
    seed: int = 0
    validation: Sequence[Instance] = ()
    model: ModelConfig = ModelConfig()
    device: str = "cpu"

    def play(
        self, lm: CausalLM, instances: Sequence[Instance], temperature: float, **how: Any
    ) -> Played:
        """Episodes of the language model; what is missing in them is asked for again."""
        env = self.environment
        sampling = Sampling(temperature, env.protocol.max_reply_tokens)
        writer = ModelWriter(lm, env.memory, env.protocol, sampling)

        def retry(attempt: Callable[[], Played]) -> Played:
            return patiently(attempt, Played.missing, self.config)

        return play(instances, writer, env, retry=retry, **how)


@dataclass(frozen=True)
class Rollouts:
    """Plays one step's episodes and turns them into rows and measures.

    With several processes the rows are this one's, the measures everybody's. `progress` is told how
    many replies were just written.
    """

    run: Run
    progress: Callable[[int], None] | None = None

    def __call__(
        self, step: int, places: Sequence[int], lm: CausalLM
    ) -> tuple[list[TrainingRow], dict[str, float]]:
        """Rows of step `step` (from 0), and what to log about it; NaN is missing.

        Raises TrainingStopped, in all processes, if the reader or judge is gone for good.
        """
        run, config, env = self.run, self.run.config, self.run.environment
        played = run.play(
            lm,
            [run.instances[place] for place in places],
            config.temperature,
            rollouts=config.rollouts,
            seed=step_seed(run.seed, step),
            overlap=config.overlap,
            progress=self.progress,
        )
        rows = training_rows(played.episodes, played.rewards, env.reward, env.advantage)
        seen = observe(played.episodes, played.rewards, rows, env.memory.counter)
        if processes.is_main() and config.dump_every and step % config.dump_every == 0:
            n, file = config.dump_episodes, run.out / "episodes" / f"step_{step + 1:05d}.jsonl"
            save_episodes(file, played.episodes[:: max(1, len(played.episodes) // n)][:n])
        every = processes.gathered((seen, (played.write_s, played.read_s, played.reward_s)))
        longest = map(max, zip(*(times for _, times in every), strict=True))
        seconds = zip(("write_s", "read_s", "reward_s"), longest, strict=True)
        return rows, summarise(joined(seen for seen, _ in every)) | dict(seconds)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's rollouts: a function of both numbers only."""
    return random.Random(f"{seed}/rollouts/{step}").getrandbits(31)


class Validation:
    """Looks at the policy after some of the steps; `save(folder)` writes the policy as it is.

    The best policy, the earliest of equals, is kept in `best/policy`, its step and measures in
    `best/best.json`, which is written after it. Replies are greedy and no global random number is
    drawn. As published, the score is r1 alone; our means are over instances, theirs over chunks.
    """

    def __init__(self, run: Run, save: Callable[[Path], object]) -> None:
        self.run, self.folder, self.save = run, run.out / BEST, save
        file = self.folder / "best.json"
        # other nodes may not see the file, and all must agree on what is better
        found = load_json(file)["accuracy"] if processes.is_main() and file.is_file() else None
        self.best: float | None = processes.from_main(found)

    def due(self, step: int) -> bool:
        """Whether to look after step `step` (from 1)."""
        every = self.run.config.validate_every
        return bool(every) and (step % every == 0 or step == self.run.config.steps)

    def __call__(self, step: int, lm: CausalLM) -> dict[str, float]:
        """The measures of the policy after step `step`, by everybody; keeps it if it is the best.

        After a crash the best may be of a step behind the checkpoint: the resumed run gets there
        again, and equals are not better.
        """
        instances = self.run.validation[: self.run.config.validate_instances]
        mine = instances[processes.place() :: processes.count()]
        played = self.run.play(lm, mine, temperature=0.0)
        counter = self.run.environment.memory.counter
        seen = processes.gathered(observe(played.episodes, played.rewards, (), counter))
        every = summarise(joined(seen))
        values = {name: every[name] for name in MEASURES}
        found = values["accuracy"]
        if found == found and (self.best is None or found > self.best):  # NaN: nobody knows
            self.best = found
            self.save(self.folder / "policy")
            if processes.is_main():
                known = {name: value if value == value else None for name, value in values.items()}
                save_json(self.folder / "best.json", {"step": step, **known})
        return values


# --- When a reader or judge is gone ---------------------------------------------------------------


class TrainingStopped(InputError):
    """Training ended before its last step because going on would have done harm."""


def patiently(
    asked: Callable[[], T],
    missing: Callable[[T], float],
    config: GrpoConfig,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `asked` returns, once the share `missing` in it is within `grpo.missing_limit`.

    Nobody's silence becomes a number: a step is not trained on with zeros in the place of what is
    missing. It is asked for again after a pause that doubles each time. Raises TrainingStopped, in
    all processes, after `grpo.outage_retries` more calls in vain in one of them.
    """
    result, tries = None, config.outage_retries + 1
    for number in range(tries):
        try:
            result = asked()
            share = missing(result)
            found = f"{share:.0%} missing" if share > config.missing_limit else ""
        except GONE as error:
            found = str(error) or type(error).__name__
        if not found:
            break
        log.warning("reader or judge: try %d of %d: %s", number + 1, tries, found)
        if number + 1 < tries:
            sleep(config.outage_pause_s * 2**number)
    for problem in filter(None, processes.gathered(found)):
        raise TrainingStopped(
            f"reader or judge: expected at most {config.missing_limit:.0%} of the answers and "
            f"verdicts missing (grpo.missing_limit), found after {tries} tries: {problem}; {GO_ON}"
        )
    return result
