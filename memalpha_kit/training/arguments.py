"""What a GRPO run asks of TRL: its arguments as a table, and the checks that everything fits.

How counts map (trl 1.15; W processes):

    per_device_train_batch_size * steps_per_generation = instances * copies / W   `dataset_copies`
    steps_per_generation = slices, gradient_accumulation_steps = slices / updates   of a process
    optimiser steps per step of ours = iterations * updates                      `updates_per_step`
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError
from memalpha_kit.models.local import CausalLM
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training import processes
from memalpha_kit.training.backends import vllm_arguments
from memalpha_kit.training.rollouts import Run

if TYPE_CHECKING:
    from trl import GRPOConfig

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
    import torch
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
    check_trackers(config)
    made = GRPOConfig(**wanted, report_to=list(config.report_to), run_name=run.out.name)
    if on_cpu:  # with several processes it is cpu:0, which torch.load refuses on resuming
        vars(made)["_setup_devices"] = torch.device("cpu")
    for name, value in wanted.items():
        if getattr(made, name) != value:
            raise InputError(f"trl {name}: expected {value!r}, found {getattr(made, name)!r}")
    return made


# --- Checks ---------------------------------------------------------------------------------------


def check(config: GrpoConfig, n_processes: int = 1) -> None:
    """Raises InputError, naming the setting, for numbers that do not go together.

    Every one of `n_processes` takes the same number of instances: whole groups, never parts.
    """
    problems = {
        f"rollouts: expected at least 2, found {config.rollouts}": config.rollouts < 2,
        "temperature: expected more than 0, found 0 (nothing to explore)": not config.temperature,
        f"slices: expected a multiple of updates ({config.updates}), found {config.slices}": (
            config.slices % config.updates
        ),
        f"instances: expected a multiple of the number of processes ({n_processes}), "
        f"found {config.instances}": config.instances % n_processes,
        "loss: expected another than bnpo with several processes (a mean of the processes' means "
        "would depend on their number)": config.loss == "bnpo" and n_processes > 1,
    }
    for message, wrong in problems.items():
        if wrong:
            raise InputError(f"grpo.{message}")


def check_trackers(config: GrpoConfig) -> None:
    """Raises InputError for a tracker in `grpo.report_to` that is not installed."""
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"grpo.report_to: expected {name} to be installed (pip install {name}), "
                "found no such package"
            )


def check_lm(lm: CausalLM) -> None:
    """Raises InputError unless the pad token exists and ends no reply."""
    pad = lm.tokenizer.pad_token_id
    if pad is None or pad in lm.stop_ids:
        raise InputError(
            f"{lm.name}: pad token: expected one that is no end token ({lm.stop_ids}), found {pad} "
            "and no spare special token; add one and save the folder again: "
            "tokenizer.add_special_tokens({'pad_token': '<|pad|>'})"
        )
