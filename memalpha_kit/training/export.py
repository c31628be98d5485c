"""A trained policy as one Hugging Face folder that any inference engine loads.

Three kinds of checkpoints are read: a Hugging Face folder (what our own training writes), a LoRA
adapter (merged into its base), and the published trainer's `global_step_<k>/` with one shard per
process (method.md 7). A run folder stands for its best policy, or its last if none was validated.

The one law: what is exported is what was trained. Every parameter that the architecture expects is
there exactly once, and after saving the folder is loaded again and compared: the same weights, or
for a merged adapter the same log-probabilities of a fixed prompt within what rounding allows.

Differs from the release: the model's own configuration decides whether embeddings are tied (it
passes a flag), a missing rank is an error before anything is loaded, and shards are read without
running code from them (`weights_only`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError
from memalpha_kit.models.tiny import quiet, save_policy, writing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
DTYPES = ("keep", "bfloat16", "float16", "float32")
FIXED_PROMPT = tuple(range(5, 37))
"""Ids whose log-probabilities are compared after a merge."""


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the kind of checkpoint, and how far the check was off.

    `difference` is the largest one in a log-probability between the trainer's model and the folder
    as loaded again; 0.0 where weights are compared bit for bit.
    """

    folder: Path
    kind: str
    parameters: int
    difference: float


def export(checkpoint: Path, out: Path, base: Path | None = None, dtype: str = "keep") -> Exported:
    """Writes `checkpoint` as a Hugging Face folder `out`, loads it again and compares.

    `base` is the adapter's base model, or the folder with configuration and tokenizer of a sharded
    checkpoint that lacks its own; by default the one that the checkpoint names. Raises InputError
    for a folder that is none of the three kinds or is not whole, and if the comparison fails.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    folder = _policy_folder(Path(checkpoint))
    if (folder / "actor").is_dir():
        return _shards(folder / "actor", out, base, dtype)
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, out, base, dtype)
    return _whole(folder, out, dtype)


def _policy_folder(folder: Path) -> Path:
    """The folder itself, or the best or last policy of a run."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with a checkpoint, found none")
    for name in ("best/policy", "best", "policy"):
        inner = folder / name
        if any((inner / file).is_file() for file in ("config.json", "adapter_config.json")):
            return inner
    return folder


def _whole(folder: Path, out: Path, dtype: str) -> Exported:
    from memalpha_kit.models.local import load_lm

    with quiet():
        lm = load_lm(folder)
    return _saved(_converted(lm.model, dtype), lm.tokenizer, out, "Hugging Face folder")


def _adapter(folder: Path, out: Path, base: Path | None, dtype: str) -> Exported:
    """The adapter merged into its base, in the base's precision."""
    from peft import PeftModel

    from memalpha_kit.models.local import load_lm

    settings = json.loads((folder / "adapter_config.json").read_text())
    with quiet():
        lm = load_lm(base or Path(settings["base_model_name_or_path"]))
        adapted = PeftModel.from_pretrained(lm.model, str(folder), is_trainable=False)
        before = _logprobs(adapted)
        merged = _converted(adapted.merge_and_unload(), dtype)
    made = _saved(merged, lm.tokenizer, out, "adapter, merged")
    difference = float((_logprobs(_loaded(out)) - before).abs().max())
    allowed = ROUNDING[str(merged.dtype).removeprefix("torch.")]
    if difference > allowed:
        shutil.rmtree(out)
        raise InputError(
            f"{folder}: expected the merged model's log-probabilities within {allowed} of the "
            f"adapted one's, found {difference:.3f}; export with a wider dtype, or evaluate the "
            "adapter itself"
        )
    return Exported(out, made.kind, made.parameters, difference)


ROUNDING = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
"""Largest difference of a log-probability that merging may make, by the merged weights' type."""


def _shards(actor: Path, out: Path, base: Path | None, dtype: str) -> Exported:
    """The published trainer's shards, one per process, joined along the sharded dimension."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    paths = _ranks(actor)
    config = base or actor / "huggingface"
    if not (config / "config.json").is_file():
        raise InputError(f"{config}: expected config.json (or name a base), found none")
    shards = [_load_shard(path) for path in paths]
    first = getattr(next(iter(shards[0].values())), "_local_tensor", next(iter(shards[0].values())))
    local = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        settings = AutoConfig.from_pretrained(config, **local)
        model = AutoModelForCausalLM.from_config(settings, dtype=first.dtype)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        _fill(model, join_shards(shards, shapes), actor)
        tokenizer = AutoTokenizer.from_pretrained(config, **local)
    # the published trainer shards fp32 master weights; its export is bfloat16
    kind = f"{len(paths)} shards"
    return _saved(_converted(model, "bfloat16" if dtype == "keep" else dtype), tokenizer, out, kind)


def _ranks(actor: Path) -> list[Path]:
    """The shard files in rank order. Raises InputError unless exactly all ranks are there."""
    found = {m: path for path in sorted(actor.glob("model_world_size_*.pt"))
             if (m := SHARD.fullmatch(path.name))}  # fmt: skip
    if not found:
        raise InputError(f"{actor}: expected model_world_size_W_rank_r.pt files, found none")
    sizes = {int(match[1]) for match in found}
    settings = actor / "fsdp_config.json"
    if settings.is_file():
        sizes.add(int(json.loads(settings.read_text())["world_size"]))
    if len(sizes) > 1:
        raise InputError(f"{actor}: expected shards of one world size, found {sorted(sizes)}")
    (size,) = sizes
    by_rank = {int(match[2]): path for match, path in found.items()}
    missing = sorted(set(range(size)) - by_rank.keys())
    if missing:
        raise InputError(f"{actor}: expected {size} shards, found none for ranks {missing}")
    return [by_rank[rank] for rank in range(size)]


def _load_shard(path: Path) -> Mapping[str, Any]:
    """Names to tensors of one shard; only tensors are read, no code of the file is run."""
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    plain = [DTensor, DTensorSpec, TensorMeta, DeviceMesh, Shard, Replicate, Partial]
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
    import torch

    names = list(shards[0])
    for rank, shard in enumerate(shards):
        if set(shard) != set(names):
            odd = sorted(set(shard) ^ set(names))[0]
            raise InputError(f"rank {rank}: expected the parameters of rank 0, differs in {odd}")
    joined = {}
    for name in names:
        pieces = [shard[name] for shard in shards]
        placements = getattr(pieces[0], "placements", None)
        local = [getattr(piece, "_local_tensor", piece) for piece in pieces]
        if placements is not None:
            if len(placements) != 1:
                raise InputError(f"{name}: expected one dimension of sharding, found {placements}")
            copies = placements[0].is_replicate()
            dim = 0 if copies else placements[0].dim
        else:
            copies, dim = tuple(local[0].shape) == shapes.get(name), 0
        joined[name] = local[0] if copies else torch.cat(local, dim=dim)
    return joined


def _fill(model: PreTrainedModel, joined: Mapping[str, torch.Tensor], where: Path) -> None:
    """Loads all parameters. Raises InputError naming the first that is missing, odd or too many."""
    expected = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name in sorted(expected.keys() - joined.keys() - tied):
        raise InputError(f"{where}: parameter {name}: expected it in the shards, found none")
    for name, value in joined.items():
        if name not in expected:
            raise InputError(f"{where}: parameter {name}: the configuration does not know it")
        if value.shape != expected[name].shape:
            raise InputError(
                f"{where}: parameter {name}: expected {tuple(expected[name].shape)}, "
                f"found {tuple(value.shape)}"
            )
    model.load_state_dict(dict(joined), strict=False)
    model.tie_weights()


def _converted(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    import torch

    return model if dtype == "keep" else model.to(getattr(torch, dtype))


def _saved(model: PreTrainedModel, tokenizer: Any, out: Path, kind: str) -> Exported:
    """Saves whole or not at all, loads again, compares every weight."""
    import torch

    out = Path(out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    save_policy(model.eval(), tokenizer, out)
    wanted, found = model.state_dict(), _loaded(out).state_dict()
    differing = [n for n in wanted if n not in found or not torch.equal(wanted[n], found[n])]
    if differing or wanted.keys() != found.keys():
        shutil.rmtree(out)
        raise InputError(f"{out}: expected the same weights when loaded again: {differing[:1]}")
    return Exported(out, kind, sum(p.numel() for p in model.parameters()), 0.0)


def _loaded(folder: Path) -> PreTrainedModel:
    from memalpha_kit.models.local import load_lm

    with quiet():
        return load_lm(folder).model


def _logprobs(model: Any) -> torch.Tensor:
    """Log-probabilities of all tokens after the fixed prompt, in float32. (1, T, V)"""
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[token % size for token in FIXED_PROMPT]])
    with torch.inference_mode():
        return torch.log_softmax(model.eval()(input_ids=ids).logits.float(), dim=-1)
