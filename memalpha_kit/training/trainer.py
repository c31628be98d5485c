"""trl.GRPOTrainer with one method replaced: a dataset row is an instance, an episode many rows.

TRL keeps its data order, slicing, loss, optimiser step, logging and checkpoints. Where it would
generate and score single replies we collect a step's episodes (`rollouts.py`) and return one batch
row per chunk. On a CPU we also compute the log-probabilities ourselves, for TRL's need a GPU
kernel. Import this module after `backends.start`: Unsloth rewrites the class that ours derives
from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import GRPOTrainer

from memalpha_kit.files import save_json
from memalpha_kit.models.folders import GENERATION
from memalpha_kit.models.local import CausalLM
from memalpha_kit.models.tiny import writing
from memalpha_kit.records import TrainingRow
from memalpha_kit.training import processes
from memalpha_kit.training.backends import (
    check_unsloth,
    load_adapter,
    pin_base,
    trl_arguments,
    updates_per_step,
)
from memalpha_kit.training.batch import (
    importance_ratio,
    narrowed,
    rows_to_batch,
    token_logprobs,
    trained,
)
from memalpha_kit.training.export import generation_defaults, save_trained
from memalpha_kit.training.optimizer import build_optimizer, rate
from memalpha_kit.training.rollouts import GO_ON, Run, TrainingStopped, changed, writer_lm

log = logging.getLogger(__name__)

Collect = Callable[[int, Sequence[int], Any], tuple[list[TrainingRow], Mapping[str, float]]]
"""(step, places of the instances, language model) -> rows and measures to log; NaN is missing."""


class EpisodeTrainer(GRPOTrainer):
    """Trains the model of `lm` on the rows that `collect` gives for every step of `run`.

    `order` lists the places of the instances, `grpo.instances` per step; checkpoints go to the
    run's folder. A checkpoint that cannot be written is a DiskError, and is removed by the call
    that resumes.
    """

    def __init__(self, run: Run, lm: CausalLM, collect: Collect, order: Sequence[int]) -> None:
        self.run, self.grpo, self.lm, self.collect = run, run.config, lm, collect
        self.progress: Callable[[int], object] = lambda n: None  # told how many replies are written
        self.bad_in_a_row = self.skipped = 0
        model = lm.model.train()
        ends = {"eos_token_id": list(lm.stop_ids), "pad_token_id": lm.tokenizer.pad_token_id}
        model.generation_config.update(**ends)  # what TRL stops at and fills up with
        super().__init__(
            model=model,
            reward_funcs=[_never_called],
            args=trl_arguments(run, model.device.type == "cpu"),
            train_dataset=Dataset.from_list([{"prompt": "", "instance": i} for i in order]),
            processing_class=lm.tokenizer,
        )
        self.remove_callback(PrinterCallback)
        whole, sharded = not run.model.lora_rank, self.is_fsdp_enabled or self.is_deepspeed_enabled
        if whole and next(model.parameters()).dtype == torch.bfloat16 and not sharded:
            log.warning("model.dtype bfloat16: all weights are trained, and steps below 1/256 of a "
                        "weight are rounded away (auto or float32 keeps them)")  # fmt: skip
        if run.model.backend == "unsloth":
            check_unsloth(type(self), self.model, run.model)
        elif self.use_vllm and run.model.lora_rank:
            pin_base(self.vllm_generation, model)

    # --- A step's rows ----------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What TRL trains on in one step: the batch, with old and reference log-probabilities."""
        step = self.state.global_step // updates_per_step(self.grpo)
        places = [row["instance"] for row in inputs[:: self.num_generations]]  # copies: adjacent
        rows, measures = self.collect(step, places, writer_lm(self.lm, self))
        batch = self._joint_batch(rows)
        mask = self._add_logprobs(batch)
        for name, value in measures.items():
            self._metrics["train"][name].append(value)
        n_fill = sum(processes.gathered(len(mask) - len(trained(rows))))
        self._metrics["train"]["fill_rows"].append(n_fill)
        self.state.num_input_tokens_seen += sum(processes.gathered(int(mask.sum())))
        return batch

    def _joint_batch(self, rows: Sequence[TrainingRow]) -> dict[str, Any]:
        """This process's rows as a batch whose loss, averaged over processes, is that of all rows.

        Every process brings equally many rows (TRL gathers one number per row); the count of loss
        tokens is everybody's. Losses that divide by the number of rows would be weakened by fill
        rows: advantages and KL weight are raised by as much, exactly unless `updates` > 1.
        """
        shares, device = processes.gathered(len(trained(rows))), self.accelerator.device
        pad_id = self.lm.tokenizer.pad_token_id
        batch = rows_to_batch(
            rows, pad_id, self.grpo.slices, device, max(shares), self._corrects_engine
        )
        n_tokens = sum(processes.gathered(int(batch["num_items_in_batch"])))
        batch["num_items_in_batch"] = torch.tensor(n_tokens, device=device)
        if self.grpo.loss == "bnpo":  # TRL does not read it; Unsloth would divide by it, as in dapo
            del batch["num_items_in_batch"]
        if self.grpo.loss in ("grpo", "dr_grpo"):  # their means count the rows that only fill up
            raised = len(batch["prompt_ids"]) * len(shares) / max(1, sum(shares))
            batch["advantages"] *= raised
            self.beta = self.grpo.kl * raised
        return batch

    def _add_logprobs(self, batch: dict[str, Any]) -> torch.Tensor:
        """Adds what the sampling and the reference policy gave the tokens; the mask of all tokens.

        With one update a step the policy is its own old policy, and nothing is computed.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        n_completion, n_rows = batch["completion_ids"].shape[1], len(ids) // self.grpo.slices
        models: dict[str, Any] = {"ref": self.ref_model} if self.grpo.kl else {}
        if updates_per_step(self.grpo) > 1 or self._corrects_engine:
            models["old"] = self.model
        for name, model in models.items():
            with torch.no_grad(), self._no_checkpointing(), self._as_reference(model):
                batch[f"{name}_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    model or self.model, ids, mask, n_completion, n_rows
                )[0]
        if self._corrects_engine and not self._unsloth:  # which computes the ratio itself
            self._add_importance(batch)
        return mask

    def _add_importance(self, batch: dict[str, Any]) -> None:
        """Adds the ratio that TRL's loss multiplies with, and logs how far the two are apart."""
        old, sampling = batch["old_per_token_logps"], batch["sampling_per_token_logps"]
        mask = batch["completion_mask"] * batch["tool_mask"]
        highest: Any = self.vllm_importance_sampling_clip_max
        ratio = importance_ratio(old, sampling, mask, highest)
        batch["importance_sampling_ratio"] = ratio
        own = mask.bool()
        apart = (old - sampling)[own].abs().nan_to_num()
        values = {"sampling_difference": apart, "sampling_cut": (ratio[own] >= highest).float()}
        for name, value in values.items():
            sums = processes.gathered((float(value.sum()), value.numel()))
            total, count = map(sum, zip(*sums, strict=True))
            self._metrics["train"][name].append(total / max(1, count))

    @property
    def _unsloth(self) -> bool:
        """Whether TRL's class was rewritten by Unsloth before ours was derived from it."""
        return any(parent.__name__.startswith("Unsloth") for parent in type(self).__mro__)

    @property
    def _corrects_engine(self) -> bool:
        """Whether the loss makes up for what vLLM's probabilities differ from the trainer's."""
        return self.use_vllm and self.vllm_importance_sampling_correction

    def _no_checkpointing(self) -> AbstractContextManager[Any]:
        """Without gradients nothing needs to be computed again."""
        from trl.models import utils  # looked up now: Unsloth replaces the function

        off: Callable[..., AbstractContextManager[Any]] = utils.disable_gradient_checkpointing
        known = self.model, self.args.gradient_checkpointing_kwargs
        return off(*known) if self.args.gradient_checkpointing else nullcontext()

    def _as_reference(self, model: Any) -> AbstractContextManager[Any]:
        """Without a reference model, the policy with its first adapter, or none, is it."""
        from trl.trainer.utils import use_adapter

        policy = self.accelerator.unwrap_model(self.model)
        if model is not None:
            return nullcontext()
        return use_adapter(policy, "ref" if "ref" in policy.peft_config else None)

    # --- Log-probabilities ------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]  # as TRL has it
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, *more, **named
    ):
        """TRL's three results: log-probabilities, entropies, no auxiliary loss.

        Unsloth's loss calls this with seven arguments by position and wants its own answer, which
        may be None; so what comes beside the tensors is passed on as it came.
        """
        theirs = super()._get_per_token_logps_and_entropies
        tensors = model, input_ids, attention_mask, logits_to_keep
        if self._unsloth:  # it packs rows by itself
            return theirs(*tensors, batch_size, *more, **named)
        if self.accelerator.device.type != "cpu":
            return narrowed(theirs, *tensors, batch_size, *more, **named)
        temperature = self.temperature

        def computed(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return token_logprobs(module, *tensors[1:], temperature)

        if not isinstance(model, DistributedDataParallel):
            return *computed(model), None
        module = model.module  # run as the wrapper's forward pass, so that gradients are averaged
        with changed(module, forward=lambda: computed(module)):
            return *model(), None

    # --- Updates ----------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW or Muon, made only now, for sharding refuses one that was made before."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model if model is None else model, self.grpo)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The rate of every update: rises, then falls to 0 or stays."""
        if self.lr_scheduler is None:
            decay = 1.0 if self.grpo.schedule == "linear" else 0.0
            self.lr_scheduler = LambdaLR(
                self.create_optimizer() if optimizer is None else optimizer,
                lambda step: rate(step, num_training_steps, self.grpo.warm_up_steps, decay),
            )
        return self.lr_scheduler

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm; gradients that are NaN or infinite are removed, and after some training stops.

        Without gradients the optimisers leave weights and moments alone; the schedule goes on.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(float(norm)):  # DeepSpeed may keep it for itself
            self.bad_in_a_row = 0
            return norm
        self.bad_in_a_row, self.skipped = self.bad_in_a_row + 1, self.skipped + 1
        model.zero_grad(set_to_none=True)
        log.warning("GRPO: an update with gradient norm %s is skipped", float(norm))
        if self.bad_in_a_row >= self.grpo.skip_limit:
            raise TrainingStopped(
                f"GRPO: expected finite gradients, found {float(norm)} in {self.bad_in_a_row} "
                f"updates in a row (grpo.skip_limit); {GO_ON}"
            )
        return norm

    # --- Records ----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with the number of updates that were skipped."""
        if "loss" in logs:
            self._tr_loss.zero_()  # it was just reset as x - x, which of a NaN is a NaN
            logs |= {"skipped_updates": self.skipped} if self.skipped else {}
            self.skipped = 0
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if len(getattr(self.model, "peft_config", ())) > 1:
            # beside a reference adapter transformers forgets the one that is trained
            load_adapter(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing(self.run.out / "checkpoints"):
            super()._save_checkpoint(*args, **kwargs)
            folder = self.run.out / "checkpoints" / f"checkpoint-{self.state.global_step}"
            if processes.is_main() and (folder / GENERATION).is_file():  # not an adapter's
                save_json(folder / GENERATION, generation_defaults(self.lm))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Leaves checkpoints without a text that says nothing about the run."""

    def save_live(self, folder: Path) -> None:
        """Writes the policy as it is. Every process calls this: sharded weights are gathered."""
        whole = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            whole = self.accelerator.get_state_dict(self.model_wrapped)
        if processes.is_main():
            save_trained(self.lm, folder, whole)


def _never_called(**_: Any) -> Any:
    """TRL wants a reward function; ours are computed from episodes, in `advantages.py`."""
    raise AssertionError("TRL asked for a reward; the kit computes rewards itself")
