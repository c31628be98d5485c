"""GRPO of whole episodes: instances -> episodes -> rewards -> rows -> loss -> checkpoint -> policy.

The one law: a resumed run equals an uninterrupted one (on a CPU bit for bit). Whatever a step does
follows from (seed, step), the weights and the state that checkpoints keep; checkpoints are made
between steps and trusted only once complete.

A run folder holds:

    settings.json     what was asked for; a resumed run must ask for the same
    metrics.csv       a row per step: rewards, calls, tokens, loss
    timings.csv       a row per step: seconds per phase (these differ from run to run)
    episodes/         sampled episodes, a JSONL file every few steps
    checkpoints/      TRL's checkpoints; `complete.json` is written last
    validation.csv    a row per look at held-out instances, if `grpo.validate_every` asks for some
    best/             the policy that was best on them (`validation.py`)
    policy/           the trained policy, a Hugging Face folder, written last of all
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, resume_or_refuse
from memalpha_kit.method.episode import Environment
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.local import CausalLM
from memalpha_kit.models.tiny import BATCH_ROWS, quiet
from memalpha_kit.records import Episode, Instance
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.training import processes
from memalpha_kit.training.arguments import check, check_lm, updates_per_step
from memalpha_kit.training.backends import check_model, checkpointed, load_model
from memalpha_kit.training.export import save_trained
from memalpha_kit.training.generation import writer_lm
from memalpha_kit.training.journal import TABLES, Checkpoint, Journal, latest_checkpoint
from memalpha_kit.training.rollouts import Rollouts
from memalpha_kit.training.validation import BEST, Validation

SETTINGS = "settings.json"
FREE = (
    *("grpo.save_every", "grpo.keep_checkpoints", "grpo.dump_every", "grpo.dump_episodes"),
    *("grpo.validate_every", "grpo.validate_instances", "grpo.skip_limit", "grpo.overlap"),
    *("grpo.missing_limit", "grpo.outage_retries", "grpo.outage_pause_s", "grpo.report_to"),
    *("model.name", "model.vllm_server_url", "model.gpu_memory_utilization", "model.reader_url"),
)
"""Settings that a resumed run may change: no weight depends on them, or the base has a hash."""


def train_grpo(
    policy: Path,
    instances: Sequence[Instance],
    environment: Environment,
    config: GrpoConfig,
    out: Path,
    seed: int,
    resume: bool = False,
    validation: Sequence[Instance] = (),
    model: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
    device: str = "cpu",
) -> Path:
    """The folder of the trained policy, `out/policy`.

    `policy` is a Hugging Face folder, which `model` says how to load and train; with an adapter
    the trained policy is the adapter alone. `resume` goes on from the last complete checkpoint in
    `out`, or starts afresh where there is none; without it, what an earlier run left in `out` is
    removed. `validation` are the held-out instances of `grpo.validate_every`; the best policy on
    them is kept in `out/best`.

    Under `accelerate launch` each process plays its share of a step's instances, all take the same
    update, and the first one writes the files. Raises InputError for settings that do not fit
    together, or not to the run that is resumed.
    """
    processes.start(on_cpu=device == "cpu")
    check(config, processes.count())
    check_model(model, environment.protocol if model.name else None)
    _check_instances(instances, validation, environment, config)
    with quiet():
        lm = load_model(model, policy, seed, device, BATCH_ROWS)
        check_lm(lm)
        if environment.meet:
            environment.meet(lm)
        settings = _settings(policy, instances, environment, config, seed, model)
        start = processes.in_main(lambda: _begin(out, settings, resume))
        if start.step < config.steps:
            _train(lm, instances, environment, config, out, seed, start, validation, model)
        else:
            lm = checkpointed(lm, start.folder) if start.folder else lm
            if processes.is_main():
                save_trained(lm, out / "policy", policy)
    processes.wait()
    return out / "policy"


def _train(
    lm: CausalLM,
    instances: Sequence[Instance],
    environment: Environment,
    config: GrpoConfig,
    out: Path,
    seed: int,
    start: Checkpoint,
    validation: Sequence[Instance],
    model: ModelConfig,
) -> None:
    """Trains the model of `lm` in place, from `start` to the last step, and saves it."""
    from memalpha_kit.training.trainer import EpisodeTrainer, Reporter

    order = training_order(len(instances), config, seed)
    ahead = order[start.step * config.instances + processes.place() :: processes.count()]
    n_replies = config.rollouts * sum(len(instances[place].chunks) for place in ahead)
    journal = Journal(out, config.steps, n_replies, done=start.step)
    rollouts = Rollouts(instances, environment, config, seed, out / "episodes", journal.advance)
    trainer = EpisodeTrainer(
        lm,
        rollouts,
        order,
        config,
        environment.protocol.max_reply_tokens,
        seed,
        out / "checkpoints",
        model,
    )
    validate = Validation(validation, environment, config, out, trainer.save_live)

    def look(step: int) -> dict[str, float] | None:
        return validate(step, writer_lm(lm, trainer)) if validate.due(step) else None

    trainer.add_callback(Reporter(journal, updates_per_step(config), look))
    with journal.bar:
        trainer.train(resume_from_checkpoint=start.folder and str(start.folder))
    trainer.save_live(out / "policy")


def training_order(n: int, config: GrpoConfig, seed: int) -> list[int]:
    """Places of the instances that each step uses, `config.instances` of them per step.

    Every pass over the data is shuffled and an incomplete last batch dropped, so a step never has
    an instance twice.
    """
    places: list[int] = []
    whole = n - n % config.instances
    while len(places) < config.steps * config.instances:
        rng = random.Random(f"{seed}/order/{len(places)}")
        places += rng.sample(range(n), n)[:whole]
    return places[: config.steps * config.instances]


def first_and_last(run: Path, instances: Sequence[Instance]) -> dict[str, tuple[Instance, Episode]]:
    """A sampled episode of the first and of the last step that kept some, with its instance."""
    by_id = {instance.id: instance for instance in instances}
    files = sorted((run / "episodes").glob("step_*.jsonl"))
    found = {file.stem: load_episodes(file)[0] for file in dict.fromkeys(files[:1] + files[-1:])}
    return {step: (by_id[episode.instance], episode) for step, episode in found.items()}


# --- Starting and resuming ------------------------------------------------------------------------


def _check_instances(
    instances: Sequence[Instance],
    validation: Sequence[Instance],
    env: Environment,
    config: GrpoConfig,
) -> None:
    """Raises InputError if the settings ask for more than there is."""
    if len(instances) < config.instances:
        raise InputError(
            f"grpo.instances: expected at most the number of training instances "
            f"({len(instances)}), found {config.instances}"
        )
    if config.validate_every and not validation:
        raise InputError(
            f"grpo.validate_every: expected 0 without held-out instances, "
            f"found {config.validate_every}"
        )
    if env.judge is None and env.reward.content:
        raise InputError(f"reward.content: expected 0 without a judge, found {env.reward.content}")


def _settings(
    policy: Path,
    instances: Sequence[Instance],
    env: Environment,
    config: GrpoConfig,
    seed: int,
    model: ModelConfig,
) -> dict[str, Any]:
    """Everything the weights depend on, as plain values."""
    parts = ("memory", "protocol", "reward", "advantage")
    return {
        "seed": seed,
        "policy": fingerprint(path for path in sorted(policy.iterdir()) if path.is_file()),
        "instances": _content_hash(instances),
        "grpo": asdict(config),
        **{name: asdict(getattr(env, name)) for name in parts},
        "reader": repr(env.reader),
        "judge": getattr(env.judge, "__qualname__", type(env.judge).__name__),
        "metric": env.metric,
        **({"model": asdict(model)} if model != ModelConfig() else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }


def _content_hash(instances: Sequence[Instance]) -> str:
    """A name of exactly these chunks, questions and answers, whatever the ids say."""
    digest = hashlib.sha256()
    for one in instances:
        digest.update(repr((one.id, one.source, one.chunks, one.questions)).encode())
    return digest.hexdigest()


def _begin(out: Path, settings: Mapping[str, Any], resume: bool) -> Checkpoint:
    """The checkpoint to start from, after removing what must not be trusted."""
    if not (resume and (out / SETTINGS).is_file()):
        for name in ("checkpoints", "episodes", "policy", BEST):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (SETTINGS, *TABLES):
            (out / name).unlink(missing_ok=True)
    resume_or_refuse(out, settings, FREE, SETTINGS)
    return latest_checkpoint(out / "checkpoints")
