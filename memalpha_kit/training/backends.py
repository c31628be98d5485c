"""What we ask of the libraries: who loads a model, who generates, and TRL's arguments as a table.

    transformers   all weights or a LoRA adapter (peft), base also in 4 bits; vLLM optional
    unsloth        the same through FastLanguageModel; one GPU, vLLM in the same process

The one law: what cannot work is refused before anything is loaded, with the setting's name.
Libraries rewrite settings and drop arguments in silence, so we look before and after.

Unsloth patches transformers, trl and peft when it is imported, so it comes first: call `start`
before anything else of a run.

How counts map (trl 1.15; W processes):

    per_device_train_batch_size * steps_per_generation = instances * copies / W   `dataset_copies`
    steps_per_generation = slices, gradient_accumulation_steps = slices / updates   of a process
    optimiser steps per step of ours = iterations * updates                      `updates_per_step`
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memalpha_kit.errors import InputError, closest
from memalpha_kit.files import load_json
from memalpha_kit.models.folders import check_pad, ends
from memalpha_kit.models.local import CausalLM, load_lm
from memalpha_kit.settings import GrpoConfig, ModelConfig, ProtocolConfig
from memalpha_kit.training import processes

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import GRPOConfig

    from memalpha_kit.training.rollouts import Run

# --- Checks before anything is loaded -------------------------------------------------------------


def check_model(model: ModelConfig, protocol: ProtocolConfig | None = None) -> None:
    """Raises InputError, naming the setting, for parts that do not go together."""
    unsloth, adapter, n = model.backend == "unsloth", model.lora_rank > 0, processes.count()
    both = unsloth and model.vllm == "colocate"
    longest = protocol.max_prompt_tokens + protocol.max_reply_tokens if protocol else 0
    other = _other_adapter(model) if model.adapter else ""
    problems = {
        "load_in_4bit: expected a lora_rank above 0 (weights of 4 bits cannot be trained)": (
            model.load_in_4bit and not adapter
        ),
        "load_in_4bit: expected vllm none or backend unsloth (every push of merged weights would "
        "round the base again)": model.load_in_4bit and not unsloth and model.vllm != "none",
        "lora_targets: expected layers, and neither embed_tokens nor lm_head": (
            not model.lora_targets or bool({"embed_tokens", "lm_head"} & {*model.lora_targets})
        ),
        other: bool(other),
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


def _other_adapter(model: ModelConfig) -> str:
    """How the adapter to go on from differs from what `model` says; "" if it does not.

    Under another alpha the same weights are another policy, and peft would not say so.
    """
    file = Path(model.adapter) / "adapter_config.json"
    if not (model.lora_rank and file.is_file()):
        return "adapter: expected a folder with adapter_config.json, and a lora_rank above 0"
    saved = load_json(file)
    for theirs, ours in {"r": "lora_rank", "lora_alpha": "lora_alpha"}.items():
        if saved.get(theirs) != (found := getattr(model, ours)):
            return f"{ours}: expected {saved.get(theirs)}, as in {file}, found {found}"
    named = saved.get("target_modules")  # or one pattern of names
    layers = [name.rpartition(".")[2] for name in named] if isinstance(named, list) else []
    if more := sorted({*layers} - {*model.lora_targets}):
        return f"lora_targets: expected {', '.join(more)} too, as in {file}"
    others = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
    odd = next((name for name in others if saved.get(name)), "")
    return odd and f"adapter: expected plain LoRA, found {odd} in {file}"


def check_installed(names: Iterable[str], setting: str) -> None:
    """Raises InputError for a package that the setting asks for and that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{setting}: expected {name} to be installed (pip install {name}), found none"
            )


def start(model: ModelConfig, modules: Mapping[str, Any] = sys.modules) -> None:
    """Checks `model`, and imports Unsloth, if it is the backend, before what it patches.

    Raises InputError if something of it was imported earlier: names taken then stay unpatched.
    """
    check_model(model)
    check_installed(["vllm"] if model.vllm == "colocate" else [], "model.vllm")
    check_installed({model.backend}, "model.backend")
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
    check_pad(folder)
    if model.backend == "unsloth":
        return _load_unsloth(model, folder, seed, batch_size)
    whole = model.dtype == "auto" and not model.lora_rank  # in 16 bits small changes are lost
    options: dict[str, Any] = {"dtype": "float32" if whole else model.dtype}
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
    from peft import LoraConfig, get_peft_model

    known = {name.rpartition(".")[2] for name, _ in lm.model.named_modules()}
    for target in model.lora_targets:
        if target not in known:
            raise InputError(f"model.lora_targets: found {target!r}{closest(target, known - {''})}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(lm.model, LoraConfig(task_type="CAUSAL_LM", **_lora(model)))
    if model.adapter:
        load_adapter(adapted, Path(model.adapter))
    return replace(lm, model=adapted)


def checkpointed(lm: CausalLM, folder: Path) -> CausalLM:
    """`lm` with the weights of a checkpoint; with an adapter, the adapter's."""
    if not hasattr(lm.model, "peft_config"):
        return load_lm(folder)
    load_adapter(lm.model, folder)
    return lm


def load_adapter(model: Any, folder: Path) -> None:
    """Gives the adapter that is trained the weights saved in `folder`."""
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    try:
        told: Any = set_peft_model_state_dict(model, weights, "default")
        strange = sorted(told.unexpected_keys)
    except RuntimeError as error:  # of another rank
        strange = str(error).splitlines()[1:]
    if strange or not weights:
        found = strange[0].strip() if strange else "nothing"
        raise InputError(f"{folder}: expected an adapter of this model and rank, found {found}")


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
    memory, rank = model.gpu_memory_utilization, model.lora_rank
    engine = {"gpu_memory_utilization": memory, "max_lora_rank": rank}
    return {
        "model_name": str(folder),
        "max_seq_length": model.max_seq_length,
        "dtype": None if model.dtype == "auto" else getattr(torch, model.dtype),
        "load_in_4bit": model.load_in_4bit,
        "full_finetuning": not model.lora_rank,
        "float32_mixed_precision": None if model.lora_rank else model.dtype != "bfloat16",
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
    stops, said = ends(folder, tokenizer)
    if model.lora_rank:
        loaded = FastLanguageModel.get_peft_model(loaded, **unsloth_adapter_arguments(model, seed))
    if model.adapter:
        load_adapter(loaded, Path(model.adapter))
    return CausalLM(str(folder), loaded, tokenizer, stops, batch_size, said)


def check_unsloth(trainer: Any, policy: Any, model: ModelConfig) -> None:
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


def pin_base(generation: Any, model: PeftModel) -> None:
    """Makes every `generation.sync_weights()` (TRL's VLLMGeneration) end with the base restored.

    To push a policy to vLLM, TRL merges the adapter into the base, sends the sum and subtracts it
    again. In bf16 a + b - b is not a: after 200 pushes half of the adapted weights had changed and
    the base's log-probabilities had moved by up to 0.32. So reader, judge and KL reference, which
    are the base, would drift. The copy is held in main memory, as large as what it restores.
    """
    weights = [p for name, p in model.named_parameters() if ".base_layer." in name]
    copies = [weight.detach().cpu().clone() for weight in weights]
    push = generation.sync_weights

    def sync_weights() -> None:
        try:
            push()
        finally:
            with torch.no_grad():
                for weight, copy in zip(weights, copies, strict=True):
                    weight.copy_(copy)

    generation.sync_weights = sync_weights


# --- TRL's settings -------------------------------------------------------------------------------

RENAMED = {  # our setting: TRL's argument
    "slices": "steps_per_generation",
    "iterations": "num_iterations",
    "loss": "loss_type",
    "clip": "epsilon",
    "clip_high": "epsilon_high",
    "dual_clip": "delta",
    "kl": "beta",
    "temperature": "temperature",
    "max_gradient": "max_grad_norm",
    "keep_checkpoints": "save_total_limit",
}
FIXED = {  # TRL's argument: value, and why; all are stated, for a GPU backend changes defaults
    "num_train_epochs": (1, "max_steps says when training ends"),
    "shuffle_dataset": (False, "the order of instances is ours"),
    "dataloader_num_workers": (0, "rows are made when they are needed"),
    "remove_unused_columns": (False, "`instance` is no argument of the model"),
    "ddp_find_unused_parameters": (False, "every weight takes part"),
    "use_bias_correction_kl": (False, "the plain k3 term, not weighted by the ratio"),
    "importance_sampling_level": ("token", "as published"),
    "scale_rewards": ("none", "advantages come normalised from `advantages.py`"),
    "top_entropy_quantile": (1.0, "every token is learned"),
    "entropy_coef": (0.0, "no term of that name in the paper"),
    "off_policy_mask_threshold": (None, "no row is left out"),
    "mask_truncated_completions": (False, "a reply that was cut off is learned from"),
    "disable_dropout": (True, "probabilities are those that sampled"),
    "top_p": (1.0, "sampling is not cut: the loss knows the whole distribution"),
    "top_k": (0, "the same"),
    "min_p": (None, "the same"),
    "repetition_penalty": (1.0, "the same"),
    "logging_nan_inf_filter": (False, "a NaN is seen, not replaced"),
    "log_completions": (False, "episodes are dumped by us"),
    "save_strategy": ("steps", "at the end of a step, for TRL's place inside one is not saved"),
    "disable_tqdm": (True, "our own bar"),
    "fp16": (False, "bf16 on a card, fp32 on a CPU"),
}


def updates_per_step(config: GrpoConfig) -> int:
    """Optimiser steps that one step (collect, reward, update) makes."""
    return config.iterations * config.updates


def dataset_copies(config: GrpoConfig) -> int:
    """How often TRL repeats an instance: `rollouts`, or more to be a multiple of the slices.

    Only TRL's bookkeeping knows the number: a row of its dataset is not a row of the loss.
    """
    return config.slices * -(-config.rollouts // config.slices)


def trl_arguments(run: Run, on_cpu: bool) -> GRPOConfig:
    """TRL's settings. Raises InputError if TRL or a backend put another value in place of ours."""
    from trl import GRPOConfig

    config, updates, copies = run.config, updates_per_step(run.config), dataset_copies(run.config)
    n_instances = config.instances // processes.count()  # of this process, in a step
    wanted: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in RENAMED.items()}
    wanted |= {name: value for name, (value, _) in FIXED.items()} | vllm_arguments(run.model)
    wanted |= {
        "output_dir": str(run.out / "checkpoints"),
        "seed": run.seed,
        "max_steps": config.steps * updates,
        "num_generations": copies,
        "per_device_train_batch_size": n_instances * copies // config.slices,
        "gradient_accumulation_steps": config.slices // config.updates,
        "max_completion_length": run.environment.protocol.max_reply_tokens,
        "logging_steps": updates,
        "save_steps": (config.save_every or max(1, config.steps)) * updates,
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "gradient_checkpointing": run.model.gradient_checkpointing and not on_cpu,
    }
    check_installed(config.report_to, "grpo.report_to")
    made = GRPOConfig(**wanted, report_to=list(config.report_to), run_name=run.out.name)
    if on_cpu:  # with several processes it is cpu:0, which torch.load refuses on resuming
        vars(made)["_setup_devices"] = torch.device("cpu")
    for name, value in wanted.items():
        if getattr(made, name) != value:
            raise InputError(f"trl {name}: expected {value!r}, found {getattr(made, name)!r}")
    return made


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
