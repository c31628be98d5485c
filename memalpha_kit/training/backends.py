"""Real models for GRPO: who loads them, who generates, and the checks before a run starts.

    transformers   all weights or a LoRA adapter (peft), base also in 4 bits; vLLM optional
    unsloth        the same through FastLanguageModel; one GPU, vLLM in the same process

The one law: what cannot work is refused before anything is loaded, with the setting's name.
Libraries rewrite settings and drop arguments in silence, so we look before and after.

Unsloth patches transformers, trl and peft when it is imported, so it comes first: call `start`
before anything else of a run.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.specifiers import SpecifierSet

from memalpha_kit.errors import InputError, closest
from memalpha_kit.models.local import CausalLM, load_lm, pad_id, stop_ids
from memalpha_kit.settings import ModelConfig, ProtocolConfig
from memalpha_kit.training import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSIONS = {
    "trl": ">=1.15,<1.17",
    "transformers": ">=5.0",
    "peft": ">=0.20",
    "vllm": ">=0.21,<0.33",
}
UNSLOTH_VERSIONS = {"trl": ">=1.15,<1.16", "transformers": ">=5.0,<5.17.1"}


# --- Checks before anything is loaded -------------------------------------------------------------


def check_model(model: ModelConfig, protocol: ProtocolConfig | None = None) -> None:
    """Raises InputError, naming the setting, for parts that do not go together."""
    unsloth, adapter, n = model.backend == "unsloth", model.lora_rank > 0, processes.count()
    both = unsloth and model.vllm == "colocate"
    longest = protocol.max_prompt_tokens + protocol.max_reply_tokens if protocol else 0
    problems = {
        "load_in_4bit: expected a lora_rank above 0 (weights of 4 bits cannot be trained)": (
            model.load_in_4bit and not adapter
        ),
        "load_in_4bit: expected vllm none or backend unsloth (every push of merged weights would "
        "round the base again)": model.load_in_4bit and not unsloth and model.vllm != "none",
        "lora_targets: expected none but lm_head's": "lm_head" in model.lora_targets,
        f"backend: unsloth: expected one process, found {n}": unsloth and n > 1,
        "vllm: expected none or colocate with backend unsloth (it overwrites server)": (
            unsloth and model.vllm == "server"
        ),
        "lora_rank: expected above 0 with backend unsloth and vllm colocate": both and not adapter,
        "revision: expected a folder as name instead, with backend unsloth and vllm colocate": (
            both and model.revision
        ),
        "vllm_server_url: expected the server's address with vllm server, and only there": (
            (model.vllm == "server") != bool(model.vllm_server_url)
        ),
        "reader: base: expected a lora_rank above 0 (without an adapter the base is trained)": (
            model.reader == "base" and not adapter
        ),
        "reader_url: expected the server's address with reader endpoint, and only there": (
            (model.reader == "endpoint") != bool(model.reader_url)
        ),
        f"max_seq_length: expected at least {longest} (protocol.max_prompt_tokens + "
        f"protocol.max_reply_tokens), found {model.max_seq_length}": longest > model.max_seq_length,
    }
    for message, wrong in problems.items():
        if wrong:
            raise InputError(f"model.{message}")


def check_versions(model: ModelConfig, installed: Callable[[str], str] = version) -> None:
    """Raises InputError unless the packages that `model` needs are there, in versions that fit."""
    unsloth = model.backend == "unsloth"
    needed = ["trl", "transformers", *(["peft"] if model.lora_rank else [])]
    needed += ["vllm"] if model.vllm == "colocate" else []
    needed += ["unsloth", "unsloth_zoo"] if unsloth else []
    limits, found = VERSIONS | (UNSLOTH_VERSIONS if unsloth else {}), {}
    for name in needed:
        try:
            found[name] = installed(name)
        except PackageNotFoundError as error:
            raise InputError(f"{name}: expected to be installed, found no such package") from error
        limit = limits.get(name, "")
        if not SpecifierSet(limit).contains(found[name], prereleases=True):
            raise InputError(f"{name}: expected version {limit}, found {found[name]}")
    if unsloth and found["unsloth"] != found["unsloth_zoo"]:
        raise InputError(
            f"unsloth_zoo: expected unsloth's version {found['unsloth']}, "
            f"found {found['unsloth_zoo']}"
        )


def start(model: ModelConfig, modules: Mapping[str, Any] = sys.modules) -> None:
    """Checks `model`, and imports Unsloth, if it is the backend, before what it patches.

    Raises InputError if something of it was imported earlier: names taken then stay unpatched.
    """
    check_model(model)
    check_versions(model)
    if model.backend == "unsloth" and "unsloth" not in modules:
        early = [name for name in ("trl", "transformers", "peft") if name in modules]
        if early:
            raise InputError(
                f"backend unsloth: expected to be started first, found {', '.join(early)} imported "
                "already; call training.backends.start in a new process"
            )
        importlib.import_module("unsloth")


# --- Loading --------------------------------------------------------------------------------------


def load_model(
    model: ModelConfig, folder: Path, seed: int, device: str = "cpu", batch_size: int = 8
) -> CausalLM:
    """The language model in `folder` as `model` wants it, with a new adapter if it wants one.

    The adapter starts as no change at all; its weights depend on `seed` only. Raises InputError for
    a folder or setting that does not fit.
    """
    if model.backend == "unsloth":
        return _load_unsloth(model, folder, seed, batch_size)
    options: dict[str, Any] = {} if model.dtype == "auto" else {"dtype": model.dtype}
    if model.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    lm = load_lm(folder, device, batch_size, **options)
    if not model.lora_rank:
        return lm
    return CausalLM(lm.name, _adapted(lm.model, model, seed), lm.tokenizer, lm.stop_ids, batch_size)


def checkpointed(lm: CausalLM, folder: Path) -> CausalLM:
    """`lm` with the weights of a checkpoint; with an adapter, the adapter's."""
    if not hasattr(lm.model, "peft_config"):
        return load_lm(folder)
    load_adapter(lm.model, folder)
    return lm


def load_adapter(model: Any, folder: Path) -> None:
    """Gives the adapter that is trained the weights saved in `folder`."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), "default")


def _adapted(base: PreTrainedModel, model: ModelConfig, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    known = {name.rpartition(".")[2] for name, _ in base.named_modules()}
    for target in model.lora_targets:
        if target not in known:
            raise InputError(f"model.lora_targets: found {target!r}{closest(target, known - {''})}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **_lora(model)))


def _lora(model: ModelConfig) -> dict[str, Any]:
    """What peft and Unsloth both call by these names."""
    return {
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(model.lora_targets),
    }


def unsloth_arguments(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.from_pretrained`."""
    engine = {
        "gpu_memory_utilization": model.gpu_memory_utilization,
        "max_lora_rank": model.lora_rank,
    }
    return {
        "model_name": str(folder),
        "max_seq_length": model.max_seq_length,
        "dtype": None if model.dtype == "auto" else getattr(torch, model.dtype),
        "load_in_4bit": model.load_in_4bit,
        "full_finetuning": not model.lora_rank,
        "fast_inference": model.vllm == "colocate",
        **(engine if model.vllm == "colocate" else {}),
    }


def unsloth_adapter_arguments(model: ModelConfig, seed: int) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.get_peft_model` beside the model."""
    checkpointing = "unsloth" if model.gradient_checkpointing else False
    return _lora(model) | {"use_gradient_checkpointing": checkpointing, "random_state": seed}


def _load_unsloth(model: ModelConfig, folder: Path, seed: int, batch_size: int) -> CausalLM:
    from unsloth import FastLanguageModel

    loaded, tokenizer = FastLanguageModel.from_pretrained(**unsloth_arguments(model, folder))
    stops = stop_ids(loaded.generation_config.eos_token_id, tokenizer.eos_token_id)
    tokenizer.pad_token_id = pad_id(tokenizer, stops)
    if model.lora_rank:
        loaded = FastLanguageModel.get_peft_model(loaded, **unsloth_adapter_arguments(model, seed))
    return CausalLM(str(folder), loaded, tokenizer, stops, batch_size)


# --- Generation by vLLM ---------------------------------------------------------------------------


def vllm_arguments(model: ModelConfig) -> dict[str, Any]:
    """TRL's settings of vLLM, every one stated.

    The importance-sampling correction is on, per token and cut at 3: a product over a long row
    would be 0. Sleep mode is off: it would push all weights again at every chunk.
    """
    if model.vllm == "none":
        return {"use_vllm": False}
    server = {"vllm_server_base_url": model.vllm_server_url}
    here = {
        "vllm_gpu_memory_utilization": model.gpu_memory_utilization,
        "vllm_max_model_length": model.max_seq_length,
        "vllm_tensor_parallel_size": 1,
    }
    return {
        "use_vllm": True,
        "vllm_mode": model.vllm,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_enable_sleep_mode": False,
        **(server if model.vllm == "server" else here),
    }


def check_unsloth(trainer: type, policy: Any, model: ModelConfig) -> None:
    """Raises InputError unless `trainer` derives from Unsloth's class and shares its weights."""
    names = [parent.__name__ for parent in trainer.__mro__]
    if not any(name.startswith("Unsloth") for name in names):
        raise InputError(
            f"backend unsloth: expected a trainer on its rewritten class, found {names[1]} (its "
            "rewriting of TRL failed, or TRL was imported first)"
        )
    if model.vllm == "none":
        return
    source = inspect.getsource(trainer._generate_single_turn)
    engine = getattr(policy, "vllm_engine", None)
    if "shared_weights" not in source or not getattr(engine, "shared_weights", False):
        raise InputError(
            "backend unsloth: expected an engine that shares the model's weights "
            "(fast_inference), found none: merged pushes would change the live base"
        )
    from trl.generation.vllm_generation import VLLMGeneration

    if not hasattr(VLLMGeneration.generate, "__wrapped__"):
        raise InputError("backend unsloth: expected VLLMGeneration.generate to send the adapter")
