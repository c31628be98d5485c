"""The miniature experiment: the whole idea of Mem-alpha on two CPU cores, from data to figures.

    build_data -> warm_start -> train -> evaluate          one seed; notebooks 01, 03 and 05

`lab/runner.py` does the same for several seeds and for sweeps.

A policy of well under a million parameters, trained from scratch, learns to write a memory chunk by
chunk. The warm start's teacher is imperfect on purpose (it leaves facts out, stores chit-chat and
misses corrections), so that GRPO has something to improve; the reward's r1 asks the frozen
reader, which is the evaluation's reader too. Names of the evaluation never occur in training.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import runs, scores
from memalpha_kit.evaluation.methods import Backends, MethodSpec, folder_hash
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.files import held
from memalpha_kit.lab import world
from memalpha_kit.method.episode import Environment, ask, write
from memalpha_kit.method.memory import tokens
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.readers import reader
from memalpha_kit.method.writers import ScriptedWriter, Writer
from memalpha_kit.models.local import Sampling
from memalpha_kit.progress import bar, progress
from memalpha_kit.records import Episode, Instance, ToolCall, WriteRequest
from memalpha_kit.settings import MemoryConfig, Profile, load_profile, profile_dict
from memalpha_kit.tokens import counter

if TYPE_CHECKING:
    from memalpha_kit.chats import ChatModel

log = logging.getLogger(__name__)

METRIC = "substring"
READER = "best_entry"
TRANSCRIBER_LIFE = world.Habits(keep=0.6, chat=0.3, update=0.9, insert_hidden=0.6)
TEACHER_LIFE = world.Habits(keep=0.75, chat=0.3, update=0.8, insert_hidden=0.7)
"""What goes into the memories that lessons are given with (see `world.transcripts`)."""


def own_settings(profile: Profile) -> Profile:
    """The profile itself, or, if it names a model, `laptop` under its name and with its seed.

    A profile of a real model says nothing about the miniature; that is told.
    """
    if not profile.model.name:
        return profile
    told = "the miniature has the settings of laptop; --set changes only its seed"
    log.warning("profile %s is of a real model, so %s", profile.name, told)
    return replace(load_profile("laptop"), name=profile.name, seed=profile.seed)


# --- Data -----------------------------------------------------------------------------------------


def data_files(profile: Profile, folder: Path) -> dict[str, Path]:
    """The files of `build_data` by name: train, test_1x, test_4x, ..."""
    names = ["train", *(f"test_{length}x" for length in profile.evaluation.lengths)]
    return {name: folder / f"{name}.parquet" for name in names}


def build_data(profile: Profile, folder: Path) -> dict[str, Path]:
    """Training instances of the profile's seed and the held-out ones, written as parquet.

    Held-out instances are the same for all seeds, so that seeds can be compared pair by pair.
    """
    files = data_files(profile, folder)
    save_instances(files["train"], training_instances(profile))
    for name, instances in held_out(profile).items():
        save_instances(files[name], instances)
    return files


def training_instances(profile: Profile) -> list[Instance]:
    """One instance for every place in a GRPO batch: none is seen twice."""
    people, _ = world.names(profile.world)
    n = profile.grpo.steps * profile.grpo.instances
    seed = f"train/{profile.seed}"
    return world.build_world(profile.world, people, n, profile.world.chunks, seed)


def validation_instances(profile: Profile) -> list[Instance]:
    """What `grpo.validate_every` looks at: training's names in worlds that it does not see."""
    people, _ = world.names(profile.world)
    n = profile.grpo.validate_instances
    return world.build_world(profile.world, people, n, profile.world.chunks, "validation")


def held_out(profile: Profile) -> dict[str, list[Instance]]:
    """The evaluation's instances by name of their file, about held-out names only."""
    config, (_, people) = profile.world, world.names(profile.world)
    sizes = zip(profile.evaluation.lengths, profile.evaluation.instances, strict=True)
    return {
        f"test_{length}x": world.build_world(config, people, n, length * config.chunks, "test")
        for length, n in sizes
    }


# --- Writers --------------------------------------------------------------------------------------


def teacher(
    name: str, habits: world.Habits, config: MemoryConfig, wire: str = "compact"
) -> ScriptedWriter:
    """A writer that reads the world's sentences and follows its habits; no model.

    The calls of a chunk are decided with the request's seed.
    """

    def rule(request: WriteRequest) -> list[ToolCall]:
        rng = random.Random(request.seed)
        return list(world.teach(request.chunk, request.memory, config, habits, rng))

    return ScriptedWriter(name, rule, wire)


def references(profile: Profile) -> list[ScriptedWriter]:
    """Writers by rule to hold a policy against: perfect, never updating, keeping everything."""
    habits = {
        "perfect": world.PERFECT,
        "never updates": world.NEVER_UPDATES,
        "keeps chit-chat too": world.KEEPS_ALL,
        "teacher of the warm start": world.imperfect(profile.warm_start),
    }
    return [teacher(name, habit, profile.memory) for name, habit in habits.items()]


def policy_writer(profile: Profile, policy: Path, temperature: float | None = None) -> ModelWriter:
    """The policy in that folder as a writer, at the evaluation's or another temperature."""
    from memalpha_kit.models.tiny import load_policy

    _set_threads(profile)
    chosen = profile.evaluation.temperature if temperature is None else temperature
    sampling = Sampling(chosen, profile.protocol.max_reply_tokens)
    return ModelWriter(load_policy(policy), profile.memory, profile.protocol, sampling)


# --- Training -------------------------------------------------------------------------------------


def environment(profile: Profile) -> Environment:
    """What episodes of the miniature are played in and scored by."""
    parts = profile.memory, profile.protocol, reader(READER), world.judge
    return Environment(*parts, profile.reward, profile.advantage, METRIC)


def _set_threads(profile: Profile) -> None:
    """Torch with the profile's number of threads: sums come out the same on every machine."""
    import torch

    torch.set_num_threads(profile.threads)


def warm_start(profile: Profile, folder: Path) -> Path:
    """The policy after supervised training from scratch, a folder; metrics.csv beside it."""
    from memalpha_kit.lab import lessons
    from memalpha_kit.models.local import CausalLM
    from memalpha_kit.models.tiny import build_policy
    from memalpha_kit.training.warm_start import Phase, train_warm_start

    if profile.protocol.prompt != "compact":
        raise InputError(f"profile {profile.name}: expected the miniature's, e.g. laptop or ci")
    _set_threads(profile)
    settings, seed = profile.warm_start, profile.seed
    tokenizer = lessons.tokenizer()
    model = build_policy(profile.policy, tokenizer, seed)
    lm = CausalLM("policy", model, tokenizer, (tokenizer.eos_token_id,))
    writer = ModelWriter(lm, profile.memory, profile.protocol, Sampling(0.0, 1))

    def phase(name: str, steps: int, habits: world.Habits, living: world.Habits, n: int) -> Phase:
        rows = lessons.transcript_rows(writer, profile.world, habits, living, n, f"{seed}/{name}")
        return Phase(name, steps, rows)

    poor, skills = world.imperfect(settings), settings.transcribe_steps
    every = world.Habits(chat=1.0)  # every sentence and shown correction: no choice yet
    phases = [
        Phase("copy", settings.copy_steps, draw=lessons.CopyRows(tokenizer)),
        phase("transcribe", skills, every, TRANSCRIBER_LIFE, skills * settings.batch),
        phase("teacher", settings.steps, poor, TEACHER_LIFE, settings.rows),
    ]
    with held(folder):
        return train_warm_start(lm, phases, settings, seed, folder)


def train(
    profile: Profile,
    policy: Path,
    instances: Sequence[Instance],
    folder: Path,
    resume: bool = False,
) -> Path:
    """The policy after GRPO on `instances`, a folder; metrics.csv beside it."""
    from memalpha_kit.training.grpo import train_grpo
    from memalpha_kit.training.rollouts import Run

    _set_threads(profile)
    config = profile.grpo
    held_out = validation_instances(profile) if config.validate_every else ()
    run = Run(policy, instances, environment(profile), config, folder, profile.seed, held_out)
    return train_grpo(run, resume)


# --- Evaluation -----------------------------------------------------------------------------------


def evaluate(
    profile: Profile, writer: Writer, instances: Mapping[str, Sequence[Instance]], label: str = ""
) -> pd.DataFrame:
    """One row per held-out instance: QA of the frozen reader, memory size, what the writer did.

    `instances` maps file names (test_4x) to instances. Columns: length (multiple of the training
    number of chunks), instance, qa, memory_tokens, chunk_tokens, compression, and the counts of
    `world.Behaviour`.
    """
    total = sum(len(i.chunks) for part in instances.values() for i in part)
    frames = []
    with bar(total, label or writer.name) as shown:
        for name, part in instances.items():
            episodes = write(part, writer, profile.memory, profile.protocol, progress=shown.advance)
            asked = ask(episodes, part, reader(READER), METRIC)
            length = int(name.removeprefix("test_").removesuffix("x"))
            rows = [_measured(profile, e, i) for e, i in zip(asked, part, strict=True)]
            frames.append(pd.DataFrame(rows).assign(length=length))
    return pd.concat(frames, ignore_index=True)


def _measured(profile: Profile, episode: Episode, instance: Instance) -> dict:
    counts = counter(profile.memory.counter)
    kept = tokens(episode.memory, counts)
    read = sum(counts.count(chunk) for chunk in instance.chunks)
    scores = [answer.score for answer in episode.answers if answer.score is not None]
    return {
        "instance": instance.id,
        "qa": sum(scores) / len(scores) if scores else None,
        "missing": len(episode.answers) - len(scores),
        "memory_tokens": kept,
        "chunk_tokens": read,
        "compression": 1 - kept / read,
        **vars(world.behaviour(episode, instance)),
    }


def before_and_after(
    profile: Profile, policies: Mapping[str, Path], instances: Mapping[str, Sequence[Instance]]
) -> pd.DataFrame:
    """`evaluate` for the policy of each stage (warm_start, grpo), with columns seed and stage."""
    frames = []
    for stage, folder in policies.items():
        found = evaluate(profile, policy_writer(profile, folder), instances, f"evaluating {stage}")
        frames.append(found.assign(stage=stage, seed=profile.seed))
    return pd.concat(frames, ignore_index=True)


def table_references(profile: Profile, instances: Mapping[str, Sequence[Instance]]) -> pd.DataFrame:
    """Mean QA of the writers by rule: columns writer, length, qa."""
    writers = references(profile)
    rules = [evaluate(profile, one, instances).assign(writer=one.name) for one in writers]
    means = pd.concat(rules).groupby(["writer", "length"], sort=False)["qa"].mean()
    return means.reset_index().round(4)


METHODS = {
    "memory, after GRPO": "grpo",
    "memory, before GRPO": "warm_start",
    "memory, perfect rule": "perfect",
    "memory, never updates": "never updates",
}
"""Names of memories and who writes them."""
RANDOM, NOTHING = "as many tokens, at random", "nothing"
ASKED = ("gold-chunk", "long-context", "bm25", "closed-book")
"""Methods without a memory that a model answers."""


def answer_methods(
    profile: Profile, policies: Mapping[str, Path], instances: Sequence[Instance], out: Path
) -> dict[str, Run]:
    """Finished runs below `out` by name of the method, the policy after GRPO first.

    Both policies, two writers by rule, as many tokens as the first of them keeps but drawn at
    random, and nothing. None needs a model to answer. What is in `out` already is not asked again.
    """
    trained = {stage: policy_writer(profile, folder) for stage, folder in policies.items()}
    backends = Backends(writers={**trained, **{one.name: one for one in references(profile)}})
    found: dict[str, Run] = {}
    for name in progress([*METHODS, RANDOM, NOTHING], label="methods"):
        if name in METHODS:
            spec = memory_spec(profile, METHODS[name], reader=READER)
        elif name == RANDOM:
            like = str(found[next(iter(METHODS))].folder / runs.ANSWERS)
            spec = MethodSpec("random-memory", {"like": like, "reader": READER})
        else:
            spec = MethodSpec("nothing")
        found[name] = _answered(spec, backends, instances, out)
    return found


def saved_memories(policies: Mapping[str, Path], out: Path) -> dict[str, list[Episode]]:
    """How the policies wrote in the runs of `answer_methods` below `out`, as `policies` names them.

    What is not there is left out; nothing is run.
    """
    hashes = {name: folder_hash(path) for name, path in policies.items() if path.is_dir()}
    found: dict[str, list[Episode]] = {}
    for run in map(runs.load_run, sorted(out.glob("memory-*"))):
        said = run.settings["method"]
        for name, weights in hashes.items():
            if said["writer"].endswith(weights) and said["reader"] == READER:
                found[name] = scores.episodes(run)
    return {name: found[name] for name in policies if name in found}


def ask_endpoint(
    profile: Profile, policy: Path, model: ChatModel, instances: Sequence[Instance], out: Path
) -> dict[str, Run]:
    """Runs in which this model answers, by name: from the policy's memory and without one.

    Questions that failed stay open and are asked in the next call. Raises ModelGone if the model
    does not answer any more; what it answered is kept.
    """
    backends = Backends(answer=model, writers={"grpo": policy_writer(profile, policy)})
    specs = {"memory": memory_spec(profile, "grpo", reader="model")}
    specs |= {name: MethodSpec(name) for name in ASKED}
    return {
        name: _answered(specs[name], backends, instances, out)
        for name in progress(list(specs), label="methods")
    }


def memory_spec(profile: Profile, writer: str, **options: Any) -> MethodSpec:
    """The memory of the miniature's writers: its own limits, what writers are shown and say."""
    plain = profile_dict(profile)
    own = {"memory": plain["memory"], "protocol": plain["protocol"], "writer": writer}
    return MethodSpec("memory", own | options)


def _answered(
    spec: MethodSpec, backends: Backends, instances: Sequence[Instance], out: Path
) -> Run:
    info = {"writer": spec.options.get("writer")}
    run, method = runs.begin(spec, backends, instances, out, "miniature", info=info)
    return runs.complete(run, method, instances)
