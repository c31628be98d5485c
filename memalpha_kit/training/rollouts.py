"""The episodes of a run: a step's, which become rows, and held-out ones, which choose the best.

Also who writes them (our own fast decoder, transformers or vLLM), what is measured of them, and
what is done when a reader or judge is gone.

The one law: a step's rows follow from (seed, step), the weights, the reader and the judge. When the
questions are asked (`grpo.overlap`) and in how many processes changes none of them; looking at
held-out instances changes nothing at all.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

from memalpha_kit.entries import essence
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.files import load_json, save_json
from memalpha_kit.method.advantages import training_rows
from memalpha_kit.method.episode import Environment, Played, play
from memalpha_kit.method.memory import DELETE, INSERT, UPDATE, tokens
from memalpha_kit.method.model_writers import LanguageModel, ModelWriter
from memalpha_kit.method.rewards import reward_terms
from memalpha_kit.method.saved import save_episodes, save_rewards
from memalpha_kit.models.decode import fast
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.progress import bar
from memalpha_kit.records import Completion, Episode, Instance, Rewards, ToolCall, TrainingRow
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.tokens import counter
from memalpha_kit.training import processes
from memalpha_kit.training.batch import trained

if TYPE_CHECKING:
    from trl import GRPOTrainer

T = TypeVar("T")

log = logging.getLogger(__name__)

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
        self, lm: LanguageModel, instances: Sequence[Instance], temperature: float, **how: Any
    ) -> Played:
        """Episodes of the language model; what is missing in them is asked for again."""
        env = self.environment
        sampling = Sampling(temperature, env.protocol.max_reply_tokens)
        writer = ModelWriter(lm, env.memory, env.protocol, sampling)
        retry = partial(patiently, missing=Played.missing, config=self.config)
        return play(instances, writer, env, retry=retry, **how)


@dataclass(frozen=True)
class Rollouts:
    """Plays one step's episodes and turns them into rows and measures.

    With several processes the rows are this one's, the measures everybody's. `progress` is told how
    many replies were just written.
    """

    run: Run
    progress: Callable[[int], object] | None = None

    def __call__(
        self, step: int, places: Sequence[int], lm: LanguageModel
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
            n, name = config.dump_episodes, f"step_{step + 1:05d}"
            kept = played.episodes[:: max(1, len(played.episodes) // n)][:n]
            save_episodes(run.out / "episodes" / f"{name}.jsonl", kept)
            parts = {episode.id: played.rewards[episode.id] for episode in kept}
            save_rewards(run.out / "rewards" / f"{name}.json", parts)
        every = processes.gathered((seen, (played.write_s, played.read_s, played.reward_s)))
        longest = map(max, zip(*(times for _, times in every), strict=True))
        seconds = zip(("write_s", "read_s", "reward_s"), longest, strict=True)
        return rows, summarise([seen for seen, _ in every]) | dict(seconds)


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

    def __call__(self, step: int, lm: LanguageModel) -> dict[str, float]:
        """The measures of the policy after step `step`, by everybody; keeps it if it is the best.

        After a crash the best may be of a step behind the checkpoint: the resumed run gets there
        again, and equals are not better.
        """
        instances = self.run.validation[: self.run.config.validate_instances]
        mine = instances[processes.place() :: processes.count()]
        n_replies = sum(len(instance.chunks) for instance in mine)
        main = processes.is_main()
        with bar(n_replies, f"held-out, step {step}", disable=not main) as shown:
            played = self.run.play(lm, mine, temperature=0.0, progress=shown.advance)
        counter = self.run.environment.memory.counter
        every = summarise(processes.gathered(observe(played.episodes, played.rewards, (), counter)))
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
    result: Any = None
    tries = config.outage_retries + 1
    for number in range(tries):
        try:
            result = asked()
            share = missing(result)
            found = f"{share:.0%} missing" if share > config.missing_limit else ""
        except (ModelGone, ConnectionError, TimeoutError) as error:  # perhaps not for good
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


# --- Measures -------------------------------------------------------------------------------------

KINDS = {INSERT: "inserts", UPDATE: "updates", DELETE: "deletes"}
STATUSES = ("ok", "skipped", "rejected", "malformed")

Observed = dict[str, list[float | None]]
"""What was seen, by name of the measure; one number per episode, per step or per row."""


def observe(
    episodes: Sequence[Episode],
    parts: Mapping[str, Rewards],
    rows: Sequence[TrainingRow],
    counter_name: str,
) -> Observed:
    """Accuracy and compression by episode, format, content and reward by row, calls by chunk.

    `calls_repeated` are those that ask for what an earlier call of the same reply asked for;
    `same_replies` is by chunk that several rollouts read: whether all of them wrote the same.
    """
    steps = [step for episode in episodes for step in episode.steps]
    kinds = [Counter(KINDS.get(call.name, "other_calls") for call in s.calls) for s in steps]
    statuses = [Counter(call.status for call in step.calls) for step in steps]
    written: dict[tuple[str, int], list[str]] = {}
    for episode in episodes:
        for step in episode.steps:
            written.setdefault((episode.instance, step.chunk), []).append(step.completion.text)
    real, counts = trained(rows), counter(counter_name)
    terms = [reward_terms(part) for part in parts.values() or [Rewards(None, None, (), ())]]
    return {
        "reward": [row.reward for row in rows],
        **{name: [value for part in terms for value in part[name]] for name in terms[0]},
        "calls": [len(step.calls) for step in steps],
        **{kind: [seen[kind] for seen in kinds] for kind in (*KINDS.values(), "other_calls")},
        **{f"calls_{status}": [seen[status] for seen in statuses] for status in STATUSES},
        "calls_repeated": [len(step.calls) - len(set(map(_said, step.calls))) for step in steps],
        "memory_tokens": [tokens(episode.memory, counts) for episode in episodes],
        "prompt_tokens": [len(step.completion.prompt_ids) for step in steps],
        "reply_tokens": [len(step.completion.completion_ids) for step in steps],
        "cut_replies": [step.completion.finish == "length" for step in steps],
        "same_replies": [len(set(said)) == 1 for said in written.values() if len(said) > 1],
        "loss_tokens": [sum(row.loss_mask) for row in real],
        "flat_rows": [row.advantage == 0 for row in real],
    }


def _said(call: ToolCall) -> tuple[object, ...]:
    """What a call asks for; white space and invisible characters do not count."""
    values = ((name, essence(str(value))) for name, value in call.arguments.items())
    return call.name, *sorted(values)


def summarise(parts: Sequence[Observed]) -> dict[str, float]:
    """Means of what is known, NaN where nothing is, and counts of rows: a row of `metrics.csv`.

    Means are over what all processes saw, never over their means: several report what one would.
    rows_missing have no reward, flat_rows is the share of trained rows whose advantage is 0.
    """
    observed = {name: [v for part in parts for v in part[name]] for name in parts[0]}
    known = {name: [v for v in values if v is not None] for name, values in observed.items()}
    means = {name: fmean(values) if values else math.nan for name, values in known.items()}
    n_rows, n_rewarded = len(observed["reward"]), len(known["reward"])
    return {
        "reward": means.pop("reward"),
        "reward_std": stdev(known["reward"]) if n_rewarded > 1 else math.nan,
        **{name: mean for name, mean in means.items() if name not in ("loss_tokens", "flat_rows")},
        "rows": n_rows,
        "rows_missing": n_rows - n_rewarded,
        "rows_trained": len(observed["loss_tokens"]),
        "loss_tokens": sum(known["loss_tokens"]),
        "flat_rows": means["flat_rows"],
    }


# --- Who writes -----------------------------------------------------------------------------------


def writer_lm(lm: CausalLM, trainer: GRPOTrainer) -> CausalLM | TrainerLM:
    """The language model that writes episodes: the live policy, decoded by us or by TRL."""
    quick = fast(lm)
    return quick if quick is not lm else TrainerLM(lm, trainer)


class TrainerLM:
    """The shape of a `CausalLM` over TRL's own generation (transformers or vLLM).

    TRL samples with the settings it was built with and its own random state, which checkpoints
    keep; of `sampling` only a temperature of 0 counts (validation), and `seeds` do not.

    Where processes share one engine or one set of weights, all of them must generate equally often
    and equally much: short lists are filled with a prompt whose reply is dropped, and `finish`
    takes part until everybody is done.
    """

    def __init__(self, lm: CausalLM, trainer: GRPOTrainer) -> None:
        self.name, self.tokenizer, self.stop_ids = lm.name, lm.tokenizer, lm.stop_ids
        self.lm, self.trainer = lm, trainer
        shared = trainer.use_vllm and trainer.vllm_generation.mode == "server"
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self.joint = processes.count() > 1 and bool(shared or sharded)
        self.spare = [self.stop_ids[0]]

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order."""
        greedy = not sampling.temperature
        if greedy and not self.trainer.use_vllm and not self.joint:
            return self.lm.generate(prompt_ids, sampling, seeds)
        prompts = [list(ids) for ids in prompt_ids]
        n = max(processes.gathered(len(prompts))) if self.joint else len(prompts)
        return self._replies(prompts, n, greedy)

    def finish(self, sampling: Sampling) -> None:
        """Takes part in the others' calls until nobody has a prompt left."""
        while self.joint and (n := max(processes.gathered(0))):
            self._replies([], n, not sampling.temperature)

    def _replies(self, prompts: list[list[int]], n: int, greedy: bool) -> list[Completion]:
        self.spare = prompts[0] if prompts else self.spare
        filled = prompts + [self.spare] * (n - len(prompts))
        with _greedy(self.trainer) if greedy else nullcontext():
            replies, known = self.trainer._generate_single_turn(filled, None, {}, 1)
        logprobs = [[math.nan if p is None else p for p in said] for said in known or ()]
        parts = prompts, replies, logprobs if known else [None] * n
        return [self.lm.completion(*one) for one in zip(*parts, strict=False)]  # no spare ones


@contextmanager
def _greedy(trainer: GRPOTrainer) -> Iterator[None]:
    """The likeliest token each time, whoever generates."""
    if trainer.use_vllm:
        with changed(trainer.vllm_generation, temperature=0.0):
            yield
        return
    plain = trainer.generation_kwargs | {"do_sample": False}
    sampled = trainer.generation_config
    with changed(trainer, generation_kwargs=plain), changed(sampled, do_sample=False):
        yield


@contextmanager
def changed(thing: Any, **settings: Any) -> Iterator[None]:
    """Other attributes for a while; TRL reads its sampling settings at each call."""
    before = {name: getattr(thing, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)
