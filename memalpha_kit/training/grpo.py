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

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, flat, save_json
from memalpha_kit.models.local import CausalLM
from memalpha_kit.models.tiny import BATCH_ROWS, quiet, save_policy
from memalpha_kit.records import Instance
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.training import processes
from memalpha_kit.training.arguments import check, check_lm, updates_per_step
from memalpha_kit.training.backends import check_model, checkpointed, load_model
from memalpha_kit.training.journal import TABLES, Checkpoint, Journal, latest_checkpoint
from memalpha_kit.training.rollouts import Environment, Rollouts
from memalpha_kit.training.trainer import build_trainer, save_live, writer_lm
from memalpha_kit.training.validation import BEST, Validation, check_validation

__all__ = ["Environment", "Rollouts", "train_grpo", "training_order"]

FREE = (
    *("save_every", "keep_checkpoints", "dump_every", "dump_episodes", "report_to"),
    *("validate_every", "validate_instances", "skip_limit", "overlap"),
    *("missing_limit", "outage_retries", "outage_pause_s"),
)
"""GRPO settings that a resumed run may change: no weight depends on them."""

PLACES = ("name", "vllm_server_url", "gpu_memory_utilization", "reader_url")
"""Model settings that a resumed run may change: where things are. The base's files have a hash."""


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
    _check(instances, environment, config)
    check_validation(validation, config)
    with quiet():
        lm = load_model(model, policy, seed, device, BATCH_ROWS)
        check_lm(lm)
        if environment.meet:
            environment.meet(lm)
        settings = _settings(policy, instances, environment, config, seed, model)
        start = _begun(out, settings, resume)
        if start.step < config.steps:
            _train(lm, instances, environment, config, out, seed, start, validation, model)
        else:
            lm = checkpointed(lm, start.folder) if start.folder else lm
            if processes.is_main():
                save_policy(lm.model, lm.tokenizer, out / "policy")
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
    journal = Journal(out, config.steps, done=start.step)
    trainer = build_trainer(
        lm,
        Rollouts(instances, environment, config, seed, out / "episodes"),
        training_order(len(instances), config, seed),
        config,
        environment.protocol.max_reply_tokens,
        seed,
        out / "checkpoints",
        model_config=model,
    )

    look = Validation(
        validation, environment, config, out, lambda folder: save_live(trainer, lm, folder)
    )
    trainer.add_callback(
        journal.callback(
            updates_per_step(config),
            lambda step: look(step, writer_lm(lm, trainer)) if look.due(step) else None,
        )
    )
    with journal.bar:
        trainer.train(resume_from_checkpoint=start.folder and str(start.folder))
    save_live(trainer, lm, out / "policy")


def training_order(n: int, config: GrpoConfig, seed: int) -> list[int]:
    """Places of the instances that each step uses, `config.instances` of them per step.

    Every pass over the data is shuffled and an incomplete last batch dropped, so a step never has
    an instance twice. Source: method.md 4.2.
    """
    places: list[int] = []
    whole = n - n % config.instances
    while len(places) < config.steps * config.instances:
        rng = random.Random(f"{seed}/order/{len(places)}")
        places += rng.sample(range(n), n)[:whole]
    return places[: config.steps * config.instances]


# --- Starting and resuming ------------------------------------------------------------------------


def _check(instances: Sequence[Instance], env: Environment, config: GrpoConfig) -> None:
    if len(instances) < config.instances:
        raise InputError(
            f"grpo.instances: expected at most the number of training instances "
            f"({len(instances)}), found {config.instances}"
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
    grpo = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    names = "\n".join(instance.id for instance in instances)
    parts = {"memory": env.memory, "protocol": env.protocol, "reward": env.reward}
    loaded = {k: v for k, v in dataclasses.asdict(model).items() if k not in PLACES}
    return {
        "seed": seed,
        "policy": fingerprint(path for path in sorted(policy.iterdir()) if path.is_file()),
        "instances": hashlib.sha256(names.encode()).hexdigest(),
        "grpo": grpo,
        **{name: dataclasses.asdict(part) for name, part in parts.items()},
        "advantage": dataclasses.asdict(env.advantage),
        "reader": repr(env.reader),
        "judge": getattr(env.judge, "__qualname__", type(env.judge).__name__),
        "metric": env.metric,
        **({"model": loaded} if model != ModelConfig() else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }


def _begun(out: Path, settings: Mapping[str, Any], resume: bool) -> Checkpoint:
    """`_prepare` by the main process; what it found, or why it did not start, is everybody's."""
    problem, start = None, None
    if processes.is_main():
        try:
            start = _prepare(out, settings, resume)
        except InputError as error:
            problem = error
    start, problem = processes.from_main((start, problem))
    if problem:
        raise problem
    return start


def _prepare(out: Path, settings: Mapping[str, Any], resume: bool) -> Checkpoint:
    """The checkpoint to start from, after removing what must not be trusted."""
    file = out / "settings.json"
    if resume and file.is_file():
        _compare(file, settings)
    else:
        for name in ("checkpoints", "episodes", "policy", BEST):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in TABLES:
            (out / name).unlink(missing_ok=True)
    save_json(file, settings)
    return latest_checkpoint(out / "checkpoints")


def _compare(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError naming the first setting in which the run in `file` differs."""
    before, now = flat(json.loads(file.read_text())), flat(json.loads(json.dumps(settings)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{file}: {name}: expected {now.get(name)!r} to resume, found {before.get(name)!r}"
            )
