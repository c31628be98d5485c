"""Warm start and GRPO of a real model, from data folders to an exported model.

    profile, data = load_profile("small"), [Path("data/squad")]
    learned = warm_start(profile, data, Path("runs/small/warm_start"))
    folder = train(on_top(profile, learned), data, Path("runs/small/grpo"))

The folder of `train` holds the whole policy in Hugging Face's form, loaded again and compared.

Who answers and judges is `model.reader`:

    rule        label_vote where classes are asked for, best_entry else; nobody judges
    base        the policy's own base model, its adapter switched off (nothing else is served)
    endpoint    a served model: model.reader_url and reader_model, else QWEN_URL, QWEN_MODEL_NAME

The one law: what cannot work is said in one line before anything is loaded: a name or an address
that is missing, a card that is not there or too small, a server that does not answer, data that is
on both sides.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.chats import request
from memalpha_kit.data import dataset
from memalpha_kit.errors import InputError
from memalpha_kit.files import fingerprint, held, load_json, resume_or_refuse, run_card
from memalpha_kit.method.content_judge import CallJudge, ContentJudge
from memalpha_kit.method.episode import Environment, write
from memalpha_kit.method.model_readers import ModelReader
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.method.readers import reader
from memalpha_kit.method.retrieval import Retrieval
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.method.writers import WRITERS, ScriptedWriter
from memalpha_kit.models.chat import Client
from memalpha_kit.models.folders import check_pad, check_writer, found_folder, quiet
from memalpha_kit.models.get import hub_folder
from memalpha_kit.models.local import Sampling
from memalpha_kit.models.local_chat import AskedModel
from memalpha_kit.models.servers import endpoint_from_env
from memalpha_kit.progress import tell
from memalpha_kit.records import Instance, Memory, ToolCall
from memalpha_kit.settings import ModelConfig, Profile
from memalpha_kit.tokens import counter
from memalpha_kit.training import processes
from memalpha_kit.training.plan import fitting

if TYPE_CHECKING:
    from memalpha_kit.training.export import Exported


def base_folder(model: ModelConfig) -> Path:
    """The base model's folder, fetched from the hub if it is not one."""
    named = found_folder(model.name)
    return named if named.is_dir() else hub_folder(model.name, model.revision)


def check_tokenizer(profile: Profile, folder: Path) -> None:
    """Raises InputError for a model that cannot train; no weight is read."""
    if note := check_pad(folder):
        print(note)
    check_writer(folder, profile.memory, profile.protocol)


def seen_early(model: ModelConfig) -> bool:
    """Whether the tokenizer is at hand, and may be read before Unsloth is imported."""
    return found_folder(model.name).is_dir() and model.backend != "unsloth"


def checked_base(profile: Profile) -> Path:
    """`base_folder`, its tokenizer checked unless `checked` has done so."""
    base = base_folder(profile.model)
    if not seen_early(profile.model):
        check_tokenizer(profile, base)
    return base


def trained_on(path: Path) -> list[Path]:
    """The parquet files of a data set that are trained on: itself, or its training part."""
    return [path] if path.is_file() else dataset.part_files(path, "train")


def train(
    profile: Profile,
    data: Sequence[Path],
    out: Path,
    validation: Sequence[Path] = (),
    resume: bool = False,
) -> Path:
    """The exported policy of training `profile.model` on the training parts of `data`.

    `out` becomes a run folder (`training/grpo.py`) with `export/` and a card, `run.json`. Held-out
    are the test parts of `validation`, by default of `data`; the policy that was best on them is
    exported, or the last. Under `accelerate launch` every process calls it. Raises InputError.
    """
    started = time.time()
    check_out(out, profile.model, "grpo")
    profile, client = checked(profile)
    instances, held_out = dataset.train_and_held_out(data, validation)
    from memalpha_kit.training import backends

    backends.start(profile.model)  # imports Unsloth, if asked for, before what it patches
    cards, kind = cuda_cards(), device(profile)
    processes.start(on_cpu=kind == "cpu")
    from accelerate import PartialState

    from memalpha_kit.training.grpo import train_grpo
    from memalpha_kit.training.rollouts import Run

    if cards and processes.is_main():
        print(cost(profile, processes.count()))
    model, base = profile.model, checked_base(profile)
    asked = AskedModel(client.name if client else f"base of {model.name}", client)
    kind = str(PartialState().device) if cards else kind
    world = environment(profile, base, asked)

    # once the model has been loaded whole there is a run, and its card says so
    begun = replace(world, meet=lambda lm: (world.meet(lm), card(finished=False)))
    grpo = profile.grpo if client else replace(profile.grpo, outage_retries=0)  # nobody is out
    run = Run(base, instances, begun, grpo, out, profile.seed, held_out, model, kind)
    facts = {
        "data": [str(path) for path in data],
        "base": str(base),
        "served_reader": client.name if client else None,
        "processes": processes.count(),
        "device": kind,
        "instances": len(instances),
        "held_out": len(held_out),
    }

    def card(**found: Any) -> Any:
        if processes.is_main():
            files = [file for path in data for file in trained_on(path)]
            run_card(out, profile, started, files, facts | found)

    train_grpo(run, resume)
    folder, difference, step = exported(out, base, model)
    card(finished=True, export=str(folder), difference=difference, best=step)
    which = "last policy" if step is None else f"policy of step {step}"
    if processes.is_main():
        print(f"{folder}: {which}, difference of a log-probability {difference:.2g}")
    return folder


def on_top(profile: Profile, learned: Path) -> Profile:
    """The profile, beginning where a warm start ended: with its adapter, or with its weights."""
    folder = str(learned)
    if (learned / "adapter_config.json").is_file():
        return replace(profile, model=replace(profile.model, adapter=folder))
    return replace(profile, model=replace(profile.model, name=folder))


def warm_start(
    profile: Profile,
    data: Sequence[Path],
    out: Path,
    episodes: Sequence[Path] = (),
    resume: bool = False,
) -> Path:
    """The folder `out/policy` of the model, or of its adapter, after learning a teacher's calls.

    The teacher is the rule `warm_start.teacher`, which makes a share `keep` of its calls, or who
    wrote the `episodes` (files of `memalpha write` about the training parts of `data`). Prompts and
    calls are those of the profile. `resume` goes on from the last checkpoint (`save_every`). Raises
    InputError.
    """
    started, settings = time.time(), profile.warm_start
    check_out(out, profile.model, "warm_start")
    unread, unjudged = replace(profile.model, reader="rule"), replace(profile.reward, content=0.0)
    profile, _ = checked(replace(profile, model=unread, reward=unjudged))
    instances, _ = dataset.train_and_held_out(data)
    from memalpha_kit.training import backends

    backends.start(profile.model)
    from memalpha_kit.training.warm_start import Phase, encode_steps, train_warm_start

    model, base = profile.model, checked_base(profile)
    lm = backends.load_model(model, base, profile.seed, device(profile))
    writer = ModelWriter(lm, profile.memory, profile.protocol, Sampling(0.0, 1))
    rows = encode_steps(writer, islice(taught(profile, instances, episodes), settings.rows))
    most = profile.protocol.max_reply_tokens
    if cut := sum(len(row.completion_ids) > most for row in rows):
        limit = f"protocol.max_reply_tokens ({most}), where its writer will be cut off"
        tell(f"warm start: {cut} of {len(rows)} rows are longer than {limit}")
    files = [file for path in data for file in trained_on(path)] + list(episodes)
    with held(out):
        if not resume:
            for name in ("settings.json", "state.pt"):
                (out / name).unlink(missing_ok=True)
        names = ("model", "memory", "protocol", "warm_start")
        parts = {name: asdict(getattr(profile, name)) for name in names}
        asked = {"seed": profile.seed, "data": fingerprint(files), **parts}
        resume_or_refuse(out, asked, ("model.name", "warm_start.save_every"))
        phases = [Phase("teacher", settings.steps, rows)]
        with quiet():
            policy = train_warm_start(lm, phases, settings, profile.seed, out)
        run_card(out, profile, started, files, {"rows": len(rows), "base": str(base)})
    print(f"{policy}: {settings.steps} steps on {len(rows)} rows of {len(instances)} instances")
    return policy


def taught(
    profile: Profile, instances: Sequence[Instance], files: Sequence[Path]
) -> Iterator[tuple[Memory, str, Sequence[ToolCall]]]:
    """(memory before, chunk, calls) of the teacher's chunks, in a shuffled order of instances."""
    from memalpha_kit.training.warm_start import half_hearted, teacher_steps

    settings, wire = profile.warm_start, profile.protocol.wire
    if files:
        episodes = [episode for file in files for episode in load_episodes(file)]
    else:
        rule = WRITERS[settings.teacher]
        if hasattr(rule, "write"):
            raise InputError(f"warm_start.teacher: expected a rule, found {settings.teacher!r}")
        teacher = ScriptedWriter(settings.teacher, half_hearted(rule, settings.keep), wire)
        episodes = write(instances, teacher, profile.memory, profile.protocol, seed=profile.seed)
    random.Random(f"{profile.seed}/teacher").shuffle(episodes)
    return teacher_steps(episodes, instances, profile.memory)


def exported(out: Path, base: Path, model: ModelConfig) -> tuple[Path, float, int | None]:
    """The run's best policy, or its last, as a whole model: its folder, how far a log-probability
    is off after loading, and the best policy's step, None for the last.

    In the type that was trained, or in 32 bits where 16 would round a merged adapter away.
    """
    from memalpha_kit.training.export import export

    best, folder = out / "best" / "best.json", out / "export"
    dtype = model.dtype.replace("auto", "keep")  # as it was trained

    def whole() -> Exported:
        try:
            return export(out, folder, base if model.lora_rank else None, dtype)
        except InputError:
            if not model.lora_rank or dtype == "float32":
                raise
            return export(out, folder, base, "float32")

    made = processes.in_main(whole)
    return folder, made.difference, load_json(best)["step"] if best.is_file() else None


# --- What is refused before anything is loaded ----------------------------------------------------


def checked(profile: Profile) -> tuple[Profile, Client | None]:
    """The profile with the served reader's address filled in, and a client of that reader.

    Raises InputError for settings that contradict each other, a name, card or address that is
    missing, a server that does not answer, and a model that cannot train.
    """
    model = profile.model
    if not model.name:
        raise InputError(
            "model.name: expected a folder or the hub's name of a model (--profile gpu has one), "
            "found none; `memalpha run` trains the miniature"
        )
    needs = {
        "model.backend=unsloth": model.backend == "unsloth",
        f"model.vllm={model.vllm}": model.vllm != "none",
        "model.load_in_4bit=true": model.load_in_4bit,
    }
    if any(needs.values()) and not cuda_cards():
        names = " and ".join(name for name, needed in needs.items() if needed)
        raise InputError(
            f"profile {profile.name}: expected a CUDA card for {names}, found none "
            "(a small model trains on a CPU with model.backend=transformers, model.vllm=none)"
        )
    check_settings(profile)
    client = served_reader(model) if model.reader == "endpoint" else None
    if client:
        address = client.endpoint
        model = replace(model, reader_url=address.url, reader_model=address.model)
    counter(profile.memory.counter)  # loads its tokenizer, if it has one
    if seen_early(model):
        check_tokenizer(profile, found_folder(model.name))
    return replace(profile, model=model), client


def check_out(out: Path, model: ModelConfig, kind: str) -> None:
    """Raises InputError for a folder whose other run, or what this one begins with, would go."""
    begun = [Path(name).resolve() for name in (model.name, model.adapter) if name]
    inside, file = any(out.resolve() in path.parents for path in begun), out / "settings.json"
    if inside or (file.is_file() and kind not in load_json(file)):
        found = "what the run begins with" if inside else "a run of another kind"
        raise InputError(f"{out}: expected a folder of its own, found {found} in it")


def check_settings(profile: Profile) -> None:
    """Raises InputError for settings that contradict each other and names that nobody knows.

    Addresses may still be to come: a plan looks here, too.
    """
    from memalpha_kit.training.backends import check_model

    model, content = profile.model, profile.reward.content
    Environment(profile.memory, profile.protocol, reader("by_source"), reward=profile.reward)
    if model.reader == "base" and profile.grpo.overlap:
        raise InputError("grpo.overlap: expected false with model.reader base (one model, one use)")
    if model.reader == "rule" and content:
        expected = "expected 0 without a judge (model.reader rule has none)"
        raise InputError(f"reward.content: {expected}, found {content}")
    later = {"vllm_server_url": model.vllm == "server", "reader_url": model.reader == "endpoint"}
    named: Any = {n: getattr(model, n) or "later" for n, needed in later.items() if needed}
    check_model(replace(model, **named), profile.protocol)


def served_reader(model: ModelConfig) -> Client:
    """A client of the server that answers and judges, after it has answered a question.

    Raises InputError that names what is missing, or what the server says.
    """
    try:
        client = Client(endpoint_from_env(url=model.reader_url, model=model.reader_model))
    except InputError as error:
        raise InputError(
            f"model.reader endpoint: {error} (settings: model.reader_url, model.reader_model)"
        ) from error
    why = client.ready() or client.chat([request("", "Say OK.", max_tokens=8)])[0].error
    if why:
        url = client.endpoint.url
        raise InputError(f"{url}: expected an answer of {client.name!r}, found: {why}")
    return client


def cuda_cards() -> int:
    """CUDA cards of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device(profile: Profile) -> str:
    """cuda where there is a card, else cpu, on which torch gets the profile's threads."""
    import torch

    if cuda_cards():
        return "cuda"
    torch.set_num_threads(profile.threads)
    return "cpu"


def cost(profile: Profile, cards: int) -> str:
    """What the run will cost. Raises InputError if it does not fit the first card."""
    import torch

    found = torch.cuda.get_device_properties(0)
    plan = fitting(profile, cards, found.total_memory / 1e9, found.name)
    return str(plan or "plan: not checked (this card or model is in no table of the plan)")


# --- Who answers and judges -----------------------------------------------------------------------


def environment(profile: Profile, base: Path, asked: AskedModel) -> Environment:
    """What episodes are played in and scored by; `asked` is the model that answers, if one does.

    The base model has its own, smaller window and its own tokens.
    """
    model, answers, judge = profile.model, reader("by_source"), None
    if model.reader == "endpoint":
        limit, reply = Retrieval.budget_tokens, ModelReader.max_tokens
        retrieval = Retrieval(counter=profile.memory.counter)
    else:
        reply = min(ModelReader.max_tokens, model.max_seq_length // 4)
        limit = min(Retrieval.budget_tokens, model.max_seq_length - reply)
        retrieval = Retrieval(budget_tokens=limit, counter=f"hf:{base}")
    if model.reader != "rule":
        answers = ModelReader(asked, retrieval, reply)
        if profile.reward.content:
            judge = CallJudge(ContentJudge(asked, max_tokens=reply // 4))
    parts = profile.memory, profile.protocol, answers, judge, profile.reward, profile.advantage
    return Environment(*parts, meet=lambda lm: asked.meet(lm, model))
