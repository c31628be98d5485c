"""GRPO of whole episodes: instances -> episodes -> rewards -> rows -> loss -> checkpoint -> policy.

The one law: a resumed run equals an uninterrupted one (on a CPU bit for bit). Whatever a step does
follows from (seed, step), the weights and the state that checkpoints keep; checkpoints are made
between steps and trusted only once complete: `complete.json` holds the hashes of their files.

A run folder holds:

    settings.json     what was asked for; a resumed run must ask for the same
    metrics.csv       a row per step: rewards, calls, tokens, loss
    timings.csv       a row per step: seconds per phase (these differ from run to run)
    episodes/         sampled episodes, a JSONL file every few steps
    checkpoints/      TRL's checkpoints; `complete.json` is written last
    validation.csv    a row per look at held-out instances, if `grpo.validate_every` asks for some
    best/             the policy that was best on them
    policy/           the trained policy, a Hugging Face folder, written last of all

Neither transformers nor TRL is imported before a run starts: Unsloth has to come first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, held, resume_or_refuse, save_json, sha256
from memalpha_kit.models.folders import quiet
from memalpha_kit.models.local import CausalLM
from memalpha_kit.models.tiny import BATCH_ROWS
from memalpha_kit.records import Instance
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.training import processes
from memalpha_kit.training.backends import check_model, checkpointed, load_model
from memalpha_kit.training.export import save_trained
from memalpha_kit.training.rollouts import BEST, Rollouts, Run, Validation, writer_lm

if TYPE_CHECKING:
    from memalpha_kit.training.trainer import EpisodeTrainer

log = logging.getLogger(__name__)

SETTINGS, MARK = "settings.json", "complete.json"
TABLES = ("metrics.csv", "timings.csv", "validation.csv")
FREE = (
    *("grpo.save_every", "grpo.keep_checkpoints", "grpo.dump_every", "grpo.dump_episodes"),
    *("grpo.validate_every", "grpo.validate_instances", "grpo.skip_limit", "grpo.overlap"),
    *("grpo.missing_limit", "grpo.outage_retries", "grpo.outage_pause_s", "grpo.report_to"),
    *("model.name", "model.adapter", "model.vllm_server_url", "model.reader_url"),
    "model.gpu_memory_utilization",
)
"""Settings that a resumed run may change: no weight depends on them, or the base has a hash."""


def train_grpo(run: Run, resume: bool = False, trainer: EpisodeTrainer | None = None) -> Path:
    """The folder of the trained policy, `policy` in the run's folder.

    With an adapter the trained policy is the adapter alone. `resume` goes on from the last complete
    checkpoint, or starts afresh where there is none; without it, what an earlier run left in the
    folder is removed. `trainer` is one of `build_trainer` for this run, with its model loaded.

    Under `accelerate launch` each process plays its share of a step's instances, all take the same
    update, and the first one writes the files. Raises InputError for settings that do not fit
    together, or not to the run that is resumed, and for a folder that another process trains in.
    """
    processes.start(on_cpu=run.device == "cpu")
    check(run, processes.count())
    with quiet(), ExitStack() as stack:
        parts = run.model, run.policy, run.seed, run.device, BATCH_ROWS
        lm = trainer.lm if trainer else load_model(*parts)
        processes.in_main(lambda: stack.enter_context(held(run.out)))
        run.environment.meet(lm)
        start = processes.in_main(lambda: _begin(run, resume))
        if start.step < run.config.steps:
            _train(trainer or build_trainer(run, lm), start)
        else:
            lm = checkpointed(lm, start.folder) if start.folder else lm
            if processes.is_main():
                save_trained(lm, run.out / "policy")
    processes.wait()
    return run.out / "policy"


def build_trainer(run: Run, lm: CausalLM) -> EpisodeTrainer:
    """The trainer of the run for the model of `lm`, which it trains in place.

    `collect` may be wrapped, to look at the rows of a step.
    """
    from memalpha_kit.training.trainer import EpisodeTrainer

    order = training_order(len(run.instances), run.config, run.seed)
    trainer = EpisodeTrainer(run, lm, Rollouts(run, lambda n: trainer.progress(n)), order)
    return trainer


def _train(trainer: EpisodeTrainer, start: Checkpoint) -> None:
    """Trains from `start` to the last step, and saves the policy."""
    from memalpha_kit.training.journal import Journal

    run, lm = trainer.run, trainer.lm
    order = training_order(len(run.instances), run.config, run.seed)
    ahead = order[start.step * run.config.instances + processes.place() :: processes.count()]
    n_replies = run.config.rollouts * sum(len(run.instances[place].chunks) for place in ahead)
    journal = Journal(run.out, run.config, n_replies, start.step)
    journal.judged = run.environment.reward.content > 0
    trainer.progress = journal.advance
    validate = Validation(run, trainer.save_live)
    journal.look = lambda step: validate(step, writer_lm(lm, trainer)) if validate.due(step) else {}
    trainer.add_callback(journal)
    with journal.bar:
        trainer.train(resume_from_checkpoint=str(start.folder) if start.folder else None)
    trainer.save_live(run.out / "policy")


def training_order(n: int, config: GrpoConfig, seed: int) -> list[int]:
    """Places of the instances that each step uses, `config.instances` of them per step.

    Every pass over the data is shuffled and an incomplete last batch dropped, so a step never has
    an instance twice.
    """
    places: list[int] = []
    whole = n - n % config.instances
    while len(places) < config.steps * config.instances:
        places += random.Random(f"{seed}/order/{len(places)}").sample(range(n), n)[:whole]
    return places[: config.steps * config.instances]


# --- What does not fit together -------------------------------------------------------------------


def check(run: Run, n_processes: int = 1) -> None:
    """Raises InputError, naming the setting, for what does not fit, or asks for more than there is.

    Every one of `n_processes` takes the same number of instances: whole groups, never parts.
    """
    grpo, env, n = run.config, run.environment, len(run.instances)
    check_model(run.model, env.protocol if run.model.name else None)
    problems = {
        f"grpo.instances: expected a multiple of the number of processes ({n_processes}), "
        f"found {grpo.instances}": grpo.instances % n_processes,
        f"grpo.instances: expected at most the number of training instances ({n}), "
        f"found {grpo.instances}": n < grpo.instances,
        "grpo.loss: expected another than bnpo with several processes (a mean of the processes' "
        "means would depend on their number)": grpo.loss == "bnpo" and n_processes > 1,
        "grpo.validate_every: expected 0 without held-out instances, "
        f"found {grpo.validate_every}": grpo.validate_every and not run.validation,
        f"reward.content: expected 0 without a judge, found {env.reward.content}": (
            env.judge is None and env.reward.content
        ),
    }
    for message, wrong in problems.items():
        if wrong:
            raise InputError(message)


# --- Starting and resuming ------------------------------------------------------------------------


def _begin(run: Run, resume: bool) -> Checkpoint:
    """The checkpoint to start from, after removing what must not be trusted."""
    out, env = run.out, run.environment
    if not (resume and (out / SETTINGS).is_file()):
        for name in ("checkpoints", "episodes", "rewards", "policy", BEST):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (SETTINGS, *TABLES):
            (out / name).unlink(missing_ok=True)
    asked: dict[str, Any] = {  # everything the weights depend on
        "seed": run.seed,
        "policy": _fingerprint(run.policy),
        "instances": content_hash(run.instances),
        "grpo": asdict(run.config),
        **{name: asdict(getattr(env, name)) for name in ("memory", "protocol", "reward")},
        "advantage": asdict(env.advantage),
        "reader": repr(env.reader),
        "judge": getattr(env.judge, "__qualname__", type(env.judge).__name__),
        "metric": env.metric,
        **({"model": asdict(run.model)} if run.model != ModelConfig() else {}),
        **({"adapter": _fingerprint(Path(run.model.adapter))} if run.model.adapter else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    longer = ("grpo.steps",) if run.config.schedule == "constant" else ()  # no rate depends on it
    start = latest_checkpoint(out / "checkpoints")
    if longer and (wanted := run.config.steps) < start.step:
        done = f"as many as it was trained for ({start.step})"
        raise InputError(f"{out}: grpo.steps: expected at least {done}, found {wanted}")
    resume_or_refuse(out, asked, (*FREE, *longer), SETTINGS)
    return start


def _fingerprint(folder: Path) -> str:
    return fingerprint([path for path in folder.iterdir() if path.is_file()])


def content_hash(instances: Sequence[Instance]) -> str:
    """A name of exactly these chunks, questions and answers, whatever the ids say."""
    digest = hashlib.sha256()
    for one in instances:
        digest.update(repr((one.id, one.source, one.chunks, one.questions)).encode())
    return digest.hexdigest()


class Checkpoint(NamedTuple):
    """A complete checkpoint: its folder and the number of steps done; no folder at the start."""

    folder: Path | None
    step: int


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest complete checkpoint; those that a crash cut off, or that changed, are removed."""
    found = [Checkpoint(None, 0)]
    for path in sorted(folder.glob("checkpoint-*")):
        try:
            mark = json.loads((path / MARK).read_text())
            whole = mark["files"] == _hashes(path)
        except (FileNotFoundError, json.JSONDecodeError):
            whole = False
        if whole:
            found.append(Checkpoint(path, mark["step"]))
        else:
            log.warning("%s: is not what was saved, and is removed", path)
            shutil.rmtree(path)
    return max(found, key=lambda checkpoint: checkpoint.step)


def mark_complete(folder: Path, step: int) -> None:
    """Declares a checkpoint complete."""
    save_json(folder / MARK, {"step": step, "files": _hashes(folder)})


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARK]
    return {path.name: sha256(path) for path in files}
