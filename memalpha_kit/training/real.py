"""GRPO on a real model, from data folders to an exported model.

    made = train(load_profile("gpu"), [Path("data/memalpha")], Path("runs/gpu/grpo"))
    made.folder                                   a Hugging Face folder, loaded again and compared

Who answers and judges is `model.reader`:

    rule        label_vote where classes are asked for, best_entry else; nobody judges
    base        the policy's own base model, its adapter switched off (nothing else is served)
    endpoint    a served model: model.reader_url and reader_model, else QWEN_URL, QWEN_MODEL_NAME

The one law: what cannot work is said in one line before anything is loaded: a name or an address
that is missing, a card that is not there or too small, a server that does not answer (D50), data
that is on both sides. Nothing here has been run on a GPU.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.data import dataset
from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json
from memalpha_kit.method.answering import ModelReader, Retrieval
from memalpha_kit.method.judges import content_judge
from memalpha_kit.method.readers import BestEntry, LabelVote, Reader, ReadRequest
from memalpha_kit.method.readers import Done as Answered
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.chat import LocalChat, vllm_chat
from memalpha_kit.models.endpoint import Client, Endpoint, endpoint_from_env
from memalpha_kit.records import (
    Answer,
    ChatModel,
    ChatReply,
    ChatRequest,
    Done,
    Episode,
    Instance,
    request,
)
from memalpha_kit.settings import ModelConfig, Profile
from memalpha_kit.tasks import metric_of
from memalpha_kit.training.plan import CARDS, SHAPES, Assumptions, Plan, Shape, plan, refuse

if TYPE_CHECKING:
    from memalpha_kit.method.episode import Environment
    from memalpha_kit.models.local import CausalLM

EXPORT = "export"
READ_ROWS = 8
"""Prompts that the base model of transformers reads together: their cache lies on the same card."""

PACKAGES = ("peft", "unsloth", "vllm", "accelerate")


@dataclass(frozen=True)
class Trained:
    """A finished run, its exported policy, and how far the export's check was off.

    `best_step` is the step of the policy that was best on held-out instances; None if the run did
    not look, and the last policy was exported.
    """

    run: Path
    folder: Path
    difference: float
    best_step: int | None

    def __str__(self) -> str:
        which = "last policy" if self.best_step is None else f"policy of step {self.best_step}"
        return f"{self.folder}: {which}, difference of a log-probability {self.difference:.2g}"


def train(
    profile: Profile,
    data: Sequence[Path],
    out: Path,
    validation: Sequence[Path] = (),
    resume: bool = False,
    say: Callable[[str], object] = print,
) -> Trained:
    """Trains `profile.model` on the training parts of the data sets `data`, and exports it.

    `out` becomes a run folder (`training/grpo.py`) with `export/` and a card, `run.json`, beside
    the rest. Held-out instances are the test parts of `validation`, by default those of `data`.
    Under `accelerate launch` every process calls this. Raises InputError for what cannot work.
    """
    started = time.time()
    profile, client = checked(profile)
    instances, held_out = load_data(profile, data, validation)
    from memalpha_kit.training import backends, processes

    backends.start(profile.model)  # imports Unsloth, if asked for, before what it patches
    processes.start(on_cpu=not _cards())
    cost = fitting(profile, processes.count(), *_card())
    if _cards() and processes.is_main():
        say(_cost_line(cost))
    base = model_folder(profile.model)
    facts = _facts(data, base, client) | {"instances": len(instances), "held_out": len(held_out)}
    files = [file for path in data for file in _files(path)]

    def card(**found: Any) -> None:
        if processes.is_main():
            out.mkdir(parents=True, exist_ok=True)
            files.run_card(out, profile, started, files, facts | found)

    card(finished=False)
    _train(profile, base, client, instances, held_out, out, resume)
    made = _exported(out, base if profile.model.lora_rank else None)
    card(finished=True, export=str(made.folder), difference=made.difference, best=made.best_step)
    if processes.is_main():
        say(str(made))
    return made


def _facts(data: Sequence[Path], base: Path, client: Client | None) -> dict[str, Any]:
    """What a run's card tells beside the settings."""
    from memalpha_kit.training import processes

    return {
        "data": [str(path) for path in data],
        "base": str(base),
        "served_reader": client.name if client else None,
        "processes": processes.count(),
        "device": _device(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _train(
    profile: Profile,
    base: Path,
    client: Client | None,
    instances: Sequence[Instance],
    held_out: Sequence[Instance],
    out: Path,
    resume: bool,
) -> None:
    from memalpha_kit.training import grpo

    asked = AskedModel(client.name if client else f"base of {profile.model.name}", client)
    surroundings = environment(profile, base, asked)
    grpo.train_grpo(
        base,
        instances,
        replace(surroundings, meet=lambda lm: asked.meet(lm, profile.model)),
        profile.grpo,
        out,
        profile.seed,
        resume,
        held_out if profile.grpo.validate_every else (),
        model=profile.model,
        device=_device(),
    )


def _exported(out: Path, base: Path | None) -> Trained:
    """The run's best policy, or its last, as a whole model; one process writes it."""
    from memalpha_kit.training import processes
    from memalpha_kit.training.export import export

    difference = 0.0
    if processes.is_main():
        difference = export(out, out / EXPORT, base).difference
    difference = processes.from_main(difference)
    best = out / "best" / "best.json"
    step = load_json(best)["step"] if best.is_file() else None
    return Trained(out, out / EXPORT, difference, step)


# --- What is refused before anything is loaded ----------------------------------------------------


def checked(profile: Profile) -> tuple[Profile, Client | None]:
    """The profile with the served reader's address filled in, and a client of that reader.

    Raises InputError for a missing name, address or card, settings that do not go together, and a
    server that does not answer.
    """
    model = profile.model
    if not model.name:
        raise InputError(
            "model.name: expected a folder or the hub's name of a model (--profile gpu has one), "
            "found none; `memalpha run` trains the miniature"
        )
    check_card(profile, _cards())
    if model.reader == "base" and profile.grpo.overlap:
        raise InputError("grpo.overlap: expected false with model.reader base (one model, one use)")
    if model.reader == "rule" and profile.reward.content:
        raise InputError(
            "reward.content: expected 0 with model.reader rule (nobody judges), "
            f"found {profile.reward.content}"
        )
    served = reader_endpoint(model) if model.reader == "endpoint" else None
    if served:
        model = replace(model, reader_url=served.url, reader_model=served.model)
    from memalpha_kit.training.backends import check_model

    check_model(model, profile.protocol)
    return replace(profile, model=model), ready(Client(served)) if served else None


def check_card(profile: Profile, cards: int) -> None:
    """Raises InputError if the profile needs a CUDA card and there is none."""
    model = profile.model
    needs = {
        "model.backend=unsloth": model.backend == "unsloth",
        f"model.vllm={model.vllm}": model.vllm != "none",
        "model.load_in_4bit=true": model.load_in_4bit,
    }
    asked = [name for name, needed in needs.items() if needed]
    if asked and not cards:
        raise InputError(
            f"profile {profile.name}: expected a CUDA card for {' and '.join(asked)}, found none "
            "(a small model trains on a CPU with model.backend=transformers, model.vllm=none)"
        )


def reader_endpoint(model: ModelConfig) -> Endpoint:
    """The server that answers and judges. Raises InputError that names what is missing (D50)."""
    try:
        return endpoint_from_env(url=model.reader_url, model=model.reader_model)
    except InputError as error:
        raise InputError(
            f"model.reader endpoint: {error} (settings: model.reader_url, model.reader_model)"
        ) from error


def ready(client: Client) -> Client:
    """The client, after its server has answered a question. Raises InputError if it does not."""
    why = client.ready()
    reply = None if why else client.chat([request("", "Say OK.", max_tokens=8)])[0]
    if reply is not None and reply.text is None:
        why = reply.error
    if why:
        url = client.endpoint.url
        raise InputError(f"{url}: expected an answer of {client.name!r}, found: {why}")
    return client


def planned(profile: Profile, given: Assumptions = Assumptions()) -> Plan | None:  # noqa: B008
    """`plan.plan`; a folder counts as the model of the plan's table that has its sizes.

    None for a model that is in no table.
    """
    name, folder = profile.model.name, Path(profile.model.name)
    if name and name not in SHAPES:
        name = known_shape(folder) if folder.is_dir() else None
    if name is None:
        return None
    return plan(replace(profile, model=replace(profile.model, name=name)), given)


def fitting(profile: Profile, cards: int, memory_gb: float, called: str = "") -> Plan | None:
    """The plan for cards with so much memory, `called` so by their maker; 0 GB is no card.

    None if card or model are in no table. Raises InputError, with the sum that shows it, for what
    cannot fit.
    """
    card = known_card(memory_gb, called)
    made = planned(profile, Assumptions(card=card, cards=cards)) if card else None
    if made:
        refuse(made)
    return made


def known_card(memory_gb: float, called: str = "") -> str | None:
    """The largest card of the plan's table that has no more memory; None if all have more.

    Of equal ones the one whose name is in `called`: "h100" in "NVIDIA H100 80GB HBM3".
    """
    known = {name: card for name, card in CARDS.items() if card.memory_gb <= 1.05 * memory_gb}

    def fit(name: str) -> tuple[float, bool]:
        series = name.partition("-")[0].removeprefix("rtx")
        return known[name].memory_gb, series in called.lower()

    return max(known, key=fit, default=None)


def _cost_line(cost: Plan | None) -> str:
    if cost is None:
        return "plan: not checked (this card or model is in no table of the plan)"
    return f"plan: {cost.value('total per card'):.0f} GB per card, {cost.value('total'):.1f} h"


def known_shape(folder: Path) -> str | None:
    """The name of the plan's model with the sizes of the one in this folder; None for others."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    names += ("head_dim", "intermediate_size", "tie_word_embeddings", "vocab_size")
    settings = load_json(folder / "config.json")
    if not all(name in settings for name in names):
        return None
    found = Shape(*(settings[name] for name in names))
    return next((name for name, shape in SHAPES.items() if shape == found), None)


def _cards() -> int:
    """CUDA cards of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _card() -> tuple[float, str]:
    """Memory in GB and name of the first card; 0 GB without one."""
    import torch

    if not _cards():
        return 0.0, ""
    found = torch.cuda.get_device_properties(0)
    return found.total_memory / 1e9, found.name


def _device() -> str:
    """Where this process computes: its own card, or the CPU."""
    if not _cards():
        return "cpu"
    from accelerate import PartialState

    return str(PartialState().device)


# --- Data and model -------------------------------------------------------------------------------


def load_data(
    profile: Profile, data: Sequence[Path], validation: Sequence[Path] = ()
) -> tuple[list[Instance], list[Instance]]:
    """Training instances, and the held-out ones in an order that mixes their sources.

    A parquet file counts as whole. Raises InputError for a folder without a training part, an
    instance that is there twice, and training and held-out instances that share a group.
    """
    train, held_out = [], []
    for path in data:
        found = dataset.read(path)
        part = found.train or (found.test if path.is_file() else ())
        if not part:
            raise InputError(f"{path}: expected a training part ({dataset.TRAIN}), found none")
        train += part
        held_out += () if validation or path.is_file() else found.test
    for path in validation:
        found = dataset.read(path)
        held_out += found.test or found.train
    for part in (train, held_out):
        [(name, times)] = Counter(instance.id for instance in part).most_common(1) or [("", 1)]
        if times > 1:
            raise InputError(f"data: expected each instance once, found {name} {times} times")
    if shared := dataset.shared_groups(train, held_out):
        raise InputError(
            "validation: expected nothing that is trained on, found a common group, "
            f"e.g. {shared[0]!r}"
        )
    random.Random("validation").shuffle(held_out)
    if profile.grpo.validate_every and not held_out:
        raise InputError(
            "grpo.validate_every: expected 0 or a data set with a test part (--validation), "
            f"found {profile.grpo.validate_every}"
        )
    return train, held_out


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else dataset.part_files(path, "train")


def model_folder(model: ModelConfig) -> Path:
    """The folder of the base model: `model.name` itself, or the hub's files, fetched if need be.

    Raises InputError if neither is there.
    """
    folder = Path(model.name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        found = snapshot_download(
            model.name, revision=model.revision or None, allow_patterns=wanted
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.name {model.name}: expected a folder, or a model that the hub gives, "
            f"found: {reason}"
        ) from error
    return Path(found)


# --- Who answers and judges -----------------------------------------------------------------------


def environment(profile: Profile, base: Path, asked: AskedModel) -> Environment:
    """What episodes are played in and scored by; `asked` is the model that answers, if one does."""
    from memalpha_kit.method.episode import Environment

    rule = profile.model.reader == "rule"
    judge = None
    if not rule and profile.reward.content:
        judge = content_judge(asked, max_tokens=_reply_tokens(profile.model) // 4)
    reader = RuleReader() if rule else model_reader(profile, base, asked)
    return Environment(
        profile.memory, profile.protocol, reader, judge, profile.reward, profile.advantage
    )


def model_reader(profile: Profile, base: Path, asked: ChatModel) -> ModelReader:
    """Asks once per question. The base model has its own, smaller window and its own tokens."""
    reply = _reply_tokens(profile.model)
    if profile.model.reader == "endpoint":
        return ModelReader(asked, Retrieval(counter=profile.memory.counter), reply)
    room = profile.model.max_seq_length - reply
    limit = min(Retrieval.budget_tokens, room)
    return ModelReader(asked, Retrieval(budget_tokens=limit, counter=f"hf:{base}"), reply)


def _reply_tokens(model: ModelConfig) -> int:
    """Room for an answer: the paper's 2048, of the base model at most a quarter of its window."""
    whole = ModelReader.max_tokens
    return whole if model.reader == "endpoint" else min(whole, model.max_seq_length // 4)


@dataclass(frozen=True)
class RuleReader:
    """Answers without a model, as the question's source is scored: by label, or by best entry."""

    name: str = "rule"

    def read(self, requests: Sequence[ReadRequest], done: Answered | None = None) -> list[Answer]:
        """One answer per request, in order; each is handed to `done`."""
        readers: dict[str, Reader] = {"label": LabelVote()}
        answers = []
        for place, asked in enumerate(requests):
            metric = metric_of(asked.source, judged=False)
            answers += readers.get(metric, BestEntry()).read([asked])
            if done:
                done(place, answers[-1])
        return answers


class AskedModel:
    """A chat model that is known by its name alone, and found when the policy is loaded.

    A run's settings keep the name; addresses and weights are not part of what was asked for.
    """

    def __init__(self, name: str, model: ChatModel | None = None) -> None:
        self.name, self.model = name, model

    def __repr__(self) -> str:
        return f"AskedModel({self.name!r})"

    def meet(self, lm: CausalLM, config: ModelConfig) -> None:
        """Takes the base model of the policy `lm`, unless there is a model already."""
        self.model = self.model or base_chat(lm, config)

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As its model's."""
        return self.model.chat(requests, done)


def base_chat(lm: CausalLM, config: ModelConfig) -> ChatModel:
    """The base model below the policy's adapter, on the same weights.

    Unsloth's engine is the base where it is asked without an adapter; TRL's holds merged weights,
    so there transformers answers. Source: trl_unsloth_vllm.md 2.4, 3.7.
    """
    engine = getattr(lm.model, "vllm_engine", None)
    if config.backend == "unsloth" and engine is not None:
        return vllm_chat(engine, f"base of {lm.name}")
    return LocalChat(replace(lm, batch_size=READ_ROWS), adapter_off=True)


# --- Reading a run --------------------------------------------------------------------------------


def first_and_last(run: Path, instances: Sequence[Instance]) -> dict[str, tuple[Instance, Episode]]:
    """A sampled episode of the first and of the last step that kept some, with its instance."""
    by_id = {instance.id: instance for instance in instances}
    files = sorted((run / "episodes").glob("step_*.jsonl"))
    found = {file.stem: load_episodes(file)[0] for file in dict.fromkeys(files[:1] + files[-1:])}
    return {step: (by_id[episode.instance], episode) for step, episode in found.items()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
