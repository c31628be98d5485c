"""A trained policy as one Hugging Face folder that any inference engine loads.

Three kinds of checkpoints are read: a Hugging Face folder (what our own training writes), a LoRA
adapter (merged into its base), and the published trainer's `global_step_<k>/` with one shard per
process. A run folder stands for its best policy, or its last if none was validated.

The one law: what is exported is what was trained. Every parameter that the architecture expects is
there exactly once, stop ids, pad id and sampling defaults are the base's, and after saving the
folder is loaded again and compared: the same weights, or for a merged adapter log-probabilities
within what rounding allows; what it says about generation; and the greedy reply to a question, its
text and where it stops.

Differs from the published code: the model's own configuration decides whether embeddings are tied
(it passes a flag), a missing rank is an error before anything is loaded, and shards are read
without running code from them (`weights_only`).
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json
from memalpha_kit.method.encoding import encode_chat
from memalpha_kit.models.folders import LOCAL, ends, found_folder, quiet, readable
from memalpha_kit.models.local import CausalLM, load_lm
from memalpha_kit.models.tiny import save_policy, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
ADAPTER = "expected a whole adapter of its base that can be merged into it"
QUESTION = "What is the capital of France?"
ROUNDING = {"float32": 1e-2, "float16": 0.05, "bfloat16": 0.3}
"""Largest difference of a log-probability that merging may make, by the merged weights' type. After
four steps of warm start of SmolLM2-135M it was 0.0001 in float32 and 1.7 in bfloat16."""


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the kind of checkpoint, and how far the check was off.

    `difference` is the largest one in a log-probability between the trainer's model and the folder
    as loaded again; 0.0 where nothing was merged or rounded.
    """

    folder: Path
    kind: str
    parameters: int
    difference: float


def export(checkpoint: Path, out: Path, base: Path | None = None, dtype: str = "keep") -> Exported:
    """Writes `checkpoint` as a Hugging Face folder `out`, loads it again and compares.

    `base` is the adapter's base model, or the folder with configuration and tokenizer of a sharded
    checkpoint that lacks its own; by default the one that the checkpoint names. Raises InputError
    for a folder that is none of the three kinds or is not whole, for an `out` whose files would be
    lost, and if the comparison fails.
    """
    folder, out = _policy_folder(Path(checkpoint)), Path(out)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        named = load_json(adapter).get("base_model_name_or_path")
        if not (base or named):
            raise InputError(f"{adapter}: expected the name of its base (or --base), found none")
        base = base or found_folder(named)
    _check_target(out, folder, base)
    with quiet():
        if (folder / "actor").is_dir():
            lm, kind = _shards(folder / "actor", base)
            dtype = "bfloat16" if dtype == "keep" else dtype  # as its own export; shards are fp32
        elif base and adapter.is_file():
            lm, kind = load_lm(base), "adapter, merged"
        else:
            lm, kind = load_lm(folder), "Hugging Face folder"
        return _checked(lm, kind, folder, out, dtype)


def _check_target(out: Path, *read: Path | None) -> None:
    """Raises InputError if files would be lost with `out`: what is exported, or no model."""
    places = [path.resolve() for path in read if path]
    holds = any(out.resolve() in (path, *path.parents) for path in places)
    filled = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if holds or (filled and not (out / "config.json").is_file()):
        found = "the checkpoint or its base" if holds else "other files"
        raise InputError(f"{out}: expected a new folder or an earlier export, found {found}")


def _policy_folder(folder: Path) -> Path:
    """The folder itself, or the best or last policy of a run."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with a checkpoint, found none")
    for name in ("best/policy", "best", "policy"):
        inner = folder / name
        if any((inner / file).is_file() for file in ("config.json", "adapter_config.json")):
            return inner
    return folder


# --- Saving ---------------------------------------------------------------------------------------


def save_trained(lm: CausalLM, folder: Path, weights: Mapping[str, Any] | None = None) -> Path:
    """`save_policy`, with the stop ids, pad id and sampling defaults of the model that was loaded.

    An adapter has none: its base has them. `weights` are those of a sharded model.
    """
    said = None if hasattr(lm.model, "peft_config") else generation_defaults(lm)
    return save_policy(lm.model, lm.tokenizer, folder, weights, said)


def generation_defaults(lm: CausalLM) -> dict[str, Any]:
    """What the folder of `lm` said about generation, with all tokens that end its replies.

    That is how transformers, vLLM and `models/local.py` stop alike: at each of a list of ids.
    """
    stops = lm.stop_ids[0] if len(lm.stop_ids) == 1 else list(lm.stop_ids)
    pad = lm.tokenizer.pad_token_id
    own = {} if pad is None else {"pad_token_id": pad}
    return {**own, **lm.said, "eos_token_id": stops}


def _checked(lm: CausalLM, kind: str, folder: Path, out: Path, dtype: str) -> Exported:
    """Saves whole or not at all, loads again, and compares weights, probabilities and replies."""
    from transformers import GenerationConfig

    adapter = kind.startswith("adapter")
    model: Any = lm.model
    prompt = _prompt(lm)
    logprobs = _logprobs(model, prompt)  # before another type rounds them
    if dtype != "keep":
        model = model.to(getattr(torch, dtype))  # before a merge, which would round
    model.generation_config = GenerationConfig.from_dict(generation_defaults(lm))
    if adapter:
        model = _adapted(model, folder)
        logprobs = _logprobs(model, prompt)
    reply = _reply(model, prompt)
    with readable(folder, ADAPTER):
        model = model.merge_and_unload() if adapter else model
    model.generation_config = GenerationConfig()  # a file of its own says it, as the base's does
    saved, new = replace(lm, model=model.eval()), out.with_name(f"{out.name}.new")
    save_trained(saved, new)
    allowed = ROUNDING[str(model.dtype).removeprefix("torch.")] if adapter else 0.0
    try:
        again = _loaded_again(saved, new)
        difference = float((_logprobs(again, prompt) - logprobs).abs().max())
        if adapter and difference > allowed:
            raise InputError(
                f"{folder}: expected the merged model's log-probabilities within {allowed} of the "
                f"adapted one's, found {difference:.3f}; export with --dtype float32"
            )
        _same_reply(again, prompt, reply, 2 * allowed, out)
    except InputError:
        shutil.rmtree(new)
        raise
    with writing(out):  # only now does an earlier export go
        shutil.rmtree(out, ignore_errors=True)
        new.replace(out)
    return Exported(out, kind, sum(p.numel() for p in model.parameters()), difference)


def _adapted(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder`. Raises InputError for one that is not whole."""
    from peft import PeftModel

    if not any(folder.glob("adapter_model.*")):  # peft would look for it on the hub
        raise InputError(f"model {folder}: {ADAPTER}, found no adapter_model.safetensors")
    with readable(folder, ADAPTER), warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


def _loaded_again(lm: CausalLM, out: Path) -> PreTrainedModel:
    """The model in `out`. Raises InputError for other weights, stop ids or sampling defaults."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto", **LOCAL)
    wanted, found = lm.model.state_dict(), again.state_dict()
    odd = sorted(wanted.keys() ^ found.keys())
    odd += [name for name in wanted.keys() & found if not torch.equal(wanted[name], found[name])]
    if odd:
        raise InputError(f"{out}: expected the same weights when loaded again, differs in {odd[0]}")
    told = ends(out, AutoTokenizer.from_pretrained(out, **LOCAL))
    if told != (asked := (lm.stop_ids, generation_defaults(lm))):
        raise InputError(f"{out}: stop ids and defaults: expected {asked}, found {told}")
    return again


def _prompt(lm: CausalLM) -> Sequence[int]:
    try:
        return encode_chat(lm.tokenizer, [{"role": "user", "content": QUESTION}])
    except InputError:  # there is no template, or one that wants more than a question
        return range(5, 37)


def _logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the tokens after each of `ids`, (T, V)."""
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits.float().log_softmax(-1)


def _reply(model: Any, prompt: Sequence[int]) -> list[int]:
    """The greedy reply, ended where transformers ends it."""
    ids = torch.tensor([list(prompt)])
    how = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    with torch.inference_mode():
        whole = model.eval().generate(input_ids=ids, max_new_tokens=24, **how)
    return whole[0, ids.shape[1] :].tolist()


def _same_reply(
    again: PreTrainedModel, prompt: Sequence[int], reply: list[int], allowed: float, out: Path
) -> None:
    """Raises InputError if the exported model's reply is another one, or goes on.

    Where two tokens are as likely as `allowed` says, rounding may choose the other one.
    """
    found = _reply(again, prompt)
    pairs = zip(reply, found, strict=False)
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    if place is None and len(reply) != len(found):
        raise InputError(f"{out}: expected a reply of {len(reply)} tokens, found {len(found)}")
    if place is not None:
        logprobs = _logprobs(again, [*prompt, *reply[:place]])[-1]
        if logprobs[found[place]] - logprobs[reply[place]] > allowed:
            raise InputError(f"{out}: expected the trained model's reply, found another")


# --- Shards ---------------------------------------------------------------------------------------


def _shards(actor: Path, base: Path | None) -> tuple[CausalLM, str]:
    """The model of the published trainer's shards, which are one per process."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    paths, config = _ranks(actor), base or actor / "huggingface"
    if not (config / "config.json").is_file():
        raise InputError(f"{config}: expected config.json (or name a base), found none")
    shards = [_load_shard(path) for path in paths]
    first = next(iter(shards[0].values()))
    dtype = getattr(first, "_local_tensor", first).dtype
    settings = AutoConfig.from_pretrained(config, **LOCAL)
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _fill(model, join_shards(shards, shapes), actor)
    tokenizer = AutoTokenizer.from_pretrained(config, **LOCAL)
    stops, said = ends(config, tokenizer)
    return CausalLM(str(actor), model, tokenizer, stops, said=said), f"{len(paths)} shards"


def _ranks(actor: Path) -> list[Path]:
    """The shard files in rank order. Raises InputError unless exactly all ranks are there."""
    files = {match: path for path in sorted(actor.glob("model_world_size_*.pt"))
             if (match := SHARD.fullmatch(path.name))}  # fmt: skip
    if not files:
        raise InputError(f"{actor}: expected model_world_size_W_rank_r.pt files, found none")
    sizes, settings = {int(match[1]) for match in files}, actor / "fsdp_config.json"
    if settings.is_file():
        sizes.add(int(load_json(settings)["world_size"]))
    if len(sizes) > 1:
        raise InputError(f"{actor}: expected shards of one world size, found {sorted(sizes)}")
    (size,) = sizes
    by_rank = {int(match[2]): path for match, path in files.items()}
    missing = sorted(set(range(size)) - by_rank.keys())
    if missing:
        raise InputError(f"{actor}: expected {size} shards, found none for ranks {missing}")
    return [by_rank[rank] for rank in range(size)]


def _load_shard(path: Path) -> Mapping[str, Any]:
    """Names to tensors of one shard; only tensors are read, no code of the file is run."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    plain: list[Any] = [DTensor, DTensorSpec, TensorMeta, DeviceMesh, Shard, Replicate, Partial]
    try:
        with torch.serialization.safe_globals(plain):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors of many kinds: the file is not a shard
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: expected a file of tensors, found: {reason}") from error
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: expected names and tensors, found {type(state).__name__}")
    return state


def join_shards(
    shards: Sequence[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Every parameter once: pieces joined in rank order along their sharded dimension.

    A piece is a DTensor, which says how it is sharded (in one dimension of the mesh), or a plain
    tensor: a copy if it has the parameter's whole shape (in `shapes`), else a piece of the first
    dimension. Raises InputError if the ranks hold different parameters.
    """
    for rank, shard in enumerate(shards):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            raise InputError(f"rank {rank}: expected the parameters of rank 0, differs in {odd[0]}")
    joined = {}
    for name in shards[0]:
        placements = getattr(shards[0][name], "placements", None)
        pieces = [getattr(shard[name], "_local_tensor", shard[name]) for shard in shards]
        if placements is None:
            copies, dim = tuple(pieces[0].shape) == shapes.get(name), 0
        elif len(placements) == 1:
            copies = placements[0].is_replicate()
            dim = 0 if copies else placements[0].dim
        else:
            raise InputError(f"{name}: expected one dimension of sharding, found {placements}")
        joined[name] = pieces[0] if copies else torch.cat(pieces, dim=dim)
    return joined


def _fill(model: PreTrainedModel, joined: Mapping[str, torch.Tensor], where: Path) -> None:
    """Loads all parameters. Raises InputError naming the first that is missing, odd or too many."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    try:
        missing, unknown = model.load_state_dict(dict(joined), strict=False)
    except RuntimeError as error:  # of another shape
        raise InputError(f"{where}: {str(error).splitlines()[-1].strip()}") from error
    for name in sorted({*missing} - tied):
        raise InputError(f"{where}: parameter {name}: expected it in the shards, found none")
    for name in unknown:
        raise InputError(f"{where}: parameter {name}: the configuration does not know it")
    model.tie_weights()
