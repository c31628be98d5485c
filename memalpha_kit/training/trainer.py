"""trl.GRPOTrainer with one method replaced: a dataset row is an instance, an episode many rows.

TRL keeps its data order, slicing, loss, optimiser step, logging and checkpoints. We replace
`_generate_and_score_completions`, where it would generate and score single replies, by: write the
episodes, ask, reward, normalise, return one batch row per chunk. On a CPU we also replace the
log-probabilities, for TRL's need a GPU kernel. TRL is imported when a trainer is built, so that a
GPU backend may patch it first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.models.decode import fast
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.models.tiny import save_policy, writing
from memalpha_kit.records import Completion, TrainingRow
from memalpha_kit.settings import GrpoConfig, ModelConfig
from memalpha_kit.training import processes
from memalpha_kit.training.arguments import (
    check,
    check_lm,
    check_trl,
    trl_arguments,
    updates_per_step,
)
from memalpha_kit.training.backends import check_built, load_adapter
from memalpha_kit.training.batch import (
    importance_ratio,
    rows_to_batch,
    token_logprobs,
    trained,
)
from memalpha_kit.training.optimizer import build_optimizer, rate
from memalpha_kit.training.outage import GO_ON, TrainingStopped
from memalpha_kit.training.pinned import pin_base

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel
    from transformers import TrainerCallback
    from trl import GRPOTrainer

log = logging.getLogger(__name__)

ROW_MEANS = ("grpo", "dr_grpo")
"""Losses whose mean counts fill rows; advantages and the weight of the divergence make up for it.

Scaling both by rows / real rows scales the loss exactly, clipped or not, under every backend."""

Collect = Callable[[int, Sequence[int], CausalLM], tuple[list[TrainingRow], Mapping[str, float]]]
"""(step, places of the instances, language model) -> rows and measures to log; NaN is missing."""


def build_trainer(
    lm: CausalLM,
    collect: Collect,
    order: Sequence[int],
    config: GrpoConfig,
    max_reply_tokens: int,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    model_config: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
) -> GRPOTrainer:
    """A GRPOTrainer over the model of `lm` whose rows come from `collect`.

    `order` lists the places of the instances, `config.instances` per step; checkpoints go to
    `folder`. Raises InputError for settings or a tokenizer that do not fit; a checkpoint that
    cannot be written is a DiskError, and is removed by the call that resumes.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    check(config, processes.count())
    check_lm(lm)
    check_trl(GRPOTrainer)
    model = lm.model.train()
    stops = lm.stop_ids[0] if len(lm.stop_ids) == 1 else list(lm.stop_ids)
    model.generation_config.update(eos_token_id=stops, pad_token_id=lm.tokenizer.pad_token_id)
    guard = Guard(config.skip_limit)
    on_cpu = model.device.type == "cpu"
    arguments = trl_arguments(config, max_reply_tokens, seed, folder, on_cpu, model_config)

    class EpisodeTrainer(GRPOTrainer):
        """One dataset row is one instance; one episode becomes one row per chunk."""

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            return _generation(self, inputs, lm, collect, config)

        def _get_per_token_logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
        ):
            theirs = super()._get_per_token_logps_and_entropies
            if self.accelerator.device.type == "cpu":
                return _cpu_logprobs(
                    model, input_ids, attention_mask, logits_to_keep, self.temperature, batch_size
                )
            compute = theirs if _unsloth(self) else partial(narrowed, theirs)  # it packs rows
            return compute(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)

        def create_optimizer(self, model=None):
            if self.optimizer is None:  # now, for sharding refuses one that was made before
                self.optimizer = build_optimizer(
                    self.model if model is None else model,
                    config.optimizer,
                    config.learning_rate,
                    config.muon_rate,
                    config.adam_beta2,
                    config.weight_decay,
                )
            return self.optimizer

        def create_scheduler(self, num_training_steps, optimizer=None):
            if self.lr_scheduler is None:
                self.lr_scheduler = _schedule(
                    self.optimizer if optimizer is None else optimizer, config, num_training_steps
                )
            return self.lr_scheduler

        def _get_grad_norm(self, model, grad_norm=None):
            norm = super()._get_grad_norm(model, grad_norm)
            guard.check(model, norm)
            return norm

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                self._tr_loss.zero_()  # it was just reset as x - x, which of a NaN is a NaN
                logs |= guard.counts()
            super().log(logs, start_time)

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if len(getattr(self.model, "peft_config", ())) > 1:
                # beside a reference adapter transformers forgets the one that is trained
                load_adapter(self.model, Path(resume_from_checkpoint))

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            with writing(folder):
                super()._save_checkpoint(*args, **kwargs)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Leaves checkpoints without a text that says nothing about the run."""

    trainer = EpisodeTrainer(
        model=model,
        reward_funcs=[_never_called],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "", "instance": i} for i in order]),
        processing_class=lm.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    check_built(trainer, model_config)
    if model_config.vllm != "none" and model_config.lora_rank and model_config.backend != "unsloth":
        pin_base(trainer.vllm_generation, model)
    return trainer


def _schedule(optimizer: Any, config: GrpoConfig, n_updates: int) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    decay = 1.0 if config.schedule == "linear" else 0.0
    return LambdaLR(optimizer, lambda s: rate(s, n_updates, config.warm_up_steps, decay))


def save_live(trainer: GRPOTrainer, lm: CausalLM, folder: Path) -> None:
    """Writes the policy as it is now. Every process calls this: sharded weights are gathered."""
    whole = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if processes.is_main():
        save_policy(lm.model, lm.tokenizer, folder, whole)


class Guard:
    """Skips updates whose gradient is NaN or infinite, and stops training after some in a row.

    Without gradients the optimisers leave weights and moments alone; the schedule goes on.
    Source: method.md 6.4.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.in_a_row, self.skipped = limit, 0, 0

    def check(self, model: Any, norm: Any) -> None:
        """Removes the gradients of `model` if their `norm` is not finite."""
        if norm is None or math.isfinite(float(norm)):  # DeepSpeed may keep it for itself
            self.in_a_row = 0
            return
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        model.zero_grad(set_to_none=True)
        log.warning("GRPO: an update with gradient norm %s is skipped", float(norm))
        if self.in_a_row >= self.limit:
            raise TrainingStopped(
                f"GRPO: expected finite gradients, found {float(norm)} in {self.in_a_row} updates "
                f"in a row (grpo.skip_limit); {GO_ON}"
            )

    def counts(self) -> dict[str, int]:
        """Updates skipped since the last call, for the log; nothing if there were none."""
        skipped, self.skipped = self.skipped, 0
        return {"skipped_updates": skipped} if skipped else {}


def _never_called(**_: Any) -> list[float]:
    """TRL wants a reward function; ours are computed from episodes, in `rewards.py`."""
    raise AssertionError("TRL asked for a reward; the kit computes rewards itself")


def _generation(
    trainer: GRPOTrainer,
    inputs: Sequence[Mapping[str, Any]],
    lm: CausalLM,
    collect: Collect,
    config: GrpoConfig,
) -> dict[str, Any]:
    """What TRL trains on in one step: the batch, with old and reference log-probabilities."""
    import torch

    step = trainer.state.global_step // updates_per_step(config)
    places = [row["instance"] for row in inputs[:: trainer.num_generations]]  # copies are adjacent
    rows, measures = collect(step, places, writer_lm(lm, trainer))
    batch = _joint_batch(trainer, rows, lm.tokenizer.pad_token_id, config)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    n_completion, n_rows = batch["completion_ids"].shape[1], len(ids) // config.slices
    models = {"ref": trainer.ref_model} if config.kl else {}
    if updates_per_step(config) > 1 or _corrected(trainer):  # else it is its own old policy
        models["old"] = trainer.model
    for name, model in models.items():
        with torch.no_grad(), _no_checkpointing(trainer), _as_reference(trainer, model):
            batch[f"{name}_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                model or trainer.model, ids, mask, n_completion, n_rows
            )[0]
    if _corrected(trainer) and not _unsloth(trainer):
        _correct(trainer, batch)
    for name, value in measures.items():
        trainer._metrics["train"][name].append(value)
    n_fill = sum(processes.gathered(len(ids) - len(trained(rows))))
    trainer._metrics["train"]["fill_rows"].append(n_fill)
    trainer.state.num_input_tokens_seen += sum(processes.gathered(int(mask.sum())))
    return batch


def _joint_batch(
    trainer: GRPOTrainer, rows: Sequence[TrainingRow], pad_id: int, config: GrpoConfig
) -> dict[str, Any]:
    """This process's rows as a batch whose loss, averaged over processes, is that of all rows.

    Every process brings equally many rows (TRL gathers one number per row); the count of loss
    tokens is everybody's. Losses that divide by the number of rows would be weakened by fill rows:
    advantages and KL weight are raised by as much, which is exact unless `updates` > 1.
    Source: trl_unsloth_vllm.md 1.4, 1.8.
    """
    import torch

    shares = processes.gathered(len(trained(rows)))
    device, sampled = trainer.accelerator.device, _corrected(trainer)
    batch = rows_to_batch(rows, pad_id, config.slices, device, max(shares), sampled)
    n_tokens = sum(processes.gathered(int(batch["num_items_in_batch"])))
    batch["num_items_in_batch"] = torch.tensor(n_tokens, device=trainer.accelerator.device)
    if config.loss == "bnpo":  # TRL does not read it; Unsloth would divide by it, as in dapo
        del batch["num_items_in_batch"]
    raised = len(batch["prompt_ids"]) * len(shares) / max(1, sum(shares))
    if config.loss in ROW_MEANS:
        batch["advantages"] *= raised
        trainer.beta = config.kl * raised
    return batch


def _unsloth(trainer: GRPOTrainer) -> bool:
    """Whether the trainer derives from the class that Unsloth has rewritten."""
    return type(trainer).__mro__[1].__name__.startswith("Unsloth")


def _corrected(trainer: GRPOTrainer) -> bool:
    """Whether the loss makes up for what vLLM's probabilities differ from the trainer's."""
    return trainer.use_vllm and trainer.vllm_importance_sampling_correction


def _correct(trainer: GRPOTrainer, batch: dict[str, Any]) -> None:
    """Adds the ratio that TRL's loss multiplies with, and logs how far the two are apart.

    Unsloth computes its own from sampling_per_token_logps.
    """
    old, sampling = batch["old_per_token_logps"], batch["sampling_per_token_logps"]
    mask = batch["completion_mask"] * batch["tool_mask"]
    highest = trainer.vllm_importance_sampling_clip_max
    ratio = importance_ratio(old, sampling, mask, highest)
    batch["importance_sampling_ratio"] = ratio
    own = mask.bool()
    apart = (old - sampling)[own].abs().nan_to_num()
    values = {"sampling_difference": apart, "sampling_cut": (ratio[own] >= highest).float()}
    for name, value in values.items():
        sums = processes.gathered((float(value.sum()), value.numel()))
        total, count = map(sum, zip(*sums, strict=True))
        trainer._metrics["train"][name].append(total / max(1, count))


@contextmanager
def _no_checkpointing(trainer: GRPOTrainer) -> Iterator[None]:
    """Without gradients nothing needs to be computed again. Looked up now: Unsloth replaces it."""
    if not trainer.args.gradient_checkpointing:
        yield
        return
    from trl.models import utils

    options = trainer.args.gradient_checkpointing_kwargs
    with utils.disable_gradient_checkpointing(trainer.model, options):
        yield


@contextmanager
def _as_reference(trainer: GRPOTrainer, model: Any) -> Iterator[None]:
    """Without a reference model, the policy with its first adapter, or none, is the reference."""
    if model is not None:
        yield
        return
    from trl.trainer.utils import use_adapter

    policy = trainer.accelerator.unwrap_model(trainer.model)
    with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
        yield


def narrowed(compute, model, ids, mask, n_completion, batch_size=None, **kwargs):
    """`compute`'s results, `batch_size` rows at a time, each time without columns that nobody uses.

    A step's rows share one width, that of its longest prompt and reply; those that go through the
    model together rarely need it. `compute` is TRL's method; results are (B, C), 0 where masked.
    """
    from torch.nn.functional import pad

    width, size, parts = ids.shape[1] - n_completion, batch_size or len(ids), []
    for start in range(0, len(ids), size):
        some, seen = ids[start : start + size], mask[start : start + size]
        used = seen.any(0)
        first = int(used[:width].int().argmax())
        kept = int(used[width:].nonzero().max()) + 1 if used[width:].any() else 1
        columns = slice(first, width + kept)
        found = compute(model, some[:, columns], seen[:, columns], kept, len(some), **kwargs)
        spare = (0, n_completion - kept)
        parts.append([pad(v, spare) if getattr(v, "ndim", 0) == 2 else v for v in found])
    return tuple(_whole(values) for values in zip(*parts, strict=True))


def _whole(values: Sequence[Any]) -> Any:
    """Rows of all parts together; what there is none of, or once per call, as it came first."""
    import torch

    return torch.cat(values) if getattr(values[0], "ndim", 0) == 2 else values[0]


def _cpu_logprobs(model, ids, mask, n_completion, temperature, batch_size):
    """TRL's three results, `batch_size` rows at a time; there is no auxiliary loss."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    def computed(module):
        size = batch_size or len(ids)
        parts = [
            token_logprobs(module, ids[i : i + size], mask[i : i + size], n_completion, temperature)
            for i in range(0, len(ids), size)
        ]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    joint = isinstance(model, DistributedDataParallel)
    logprobs, entropies = _as_forward(model, computed) if joint else computed(model)
    return logprobs, entropies, None


def _as_forward(wrapper: DistributedDataParallel, computed: Callable[[Any], Any]) -> Any:
    """`computed(module)`, run as the wrapper's forward pass, so that gradients are averaged."""
    module = wrapper.module
    plain = module.forward
    module.forward = lambda: computed(module)
    try:
        return wrapper()
    finally:
        module.forward = plain


# --- Who generates --------------------------------------------------------------------------------


def writer_lm(lm: CausalLM, trainer: GRPOTrainer) -> CausalLM:
    """The language model that writes episodes: the live policy, decoded by us or by TRL."""
    quick = fast(lm)
    return quick if quick is not lm else TrainerLM(lm, trainer)


class TrainerLM:
    """The shape of a `CausalLM` over TRL's own generation (transformers or vLLM).

    TRL samples with the settings it was built with and its own random state, which checkpoints
    keep; of `sampling` only a temperature of 0 counts (validation), and `seeds` do not.

    Where processes share one engine or one set of weights, all of them must generate equally often
    and equally much: short lists are filled with a prompt whose reply is dropped, and `finish`
    takes part until everybody is done (trl_unsloth_vllm.md 1.8, 2.2, 4.1).
    """

    def __init__(self, lm: CausalLM, trainer: GRPOTrainer) -> None:
        self.name, self.tokenizer, self.stop_ids = lm.name, lm.tokenizer, lm.stop_ids
        self.lm, self.trainer = lm, trainer
        shared = trainer.use_vllm and trainer.vllm_generation.mode == "server"
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self.joint = processes.count() > 1 and bool(shared or sharded)
        self.spare = [self.stop_ids[0]]

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order."""
        greedy = not sampling.temperature
        if greedy and not self.trainer.use_vllm and not self.joint:
            return self.lm.generate(prompt_ids, sampling, seeds)
        prompts = [list(ids) for ids in prompt_ids]
        n = max(processes.gathered(len(prompts))) if self.joint else len(prompts)
        return self._replies(prompts, n, greedy)

    def finish(self, sampling: Sampling) -> None:
        """Takes part in the others' calls until nobody has a prompt left."""
        while self.joint and (n := max(processes.gathered(0))):
            self._replies([], n, not sampling.temperature)

    def _replies(self, prompts: list[list[int]], n: int, greedy: bool) -> list[Completion]:
        trainer = self.trainer
        self.spare = prompts[0] if prompts else self.spare
        filled = prompts + [self.spare] * (n - len(prompts))
        with _greedy(trainer) if greedy else nullcontext():
            replies, logprobs = trainer._generate_single_turn(filled, None, {}, 1)
        logprobs = logprobs or [None] * n
        known = zip(prompts, replies[: len(prompts)], logprobs[: len(prompts)], strict=True)
        return [self._completion(*row) for row in known]

    def _completion(
        self, prompt: Sequence[int], reply: Sequence[int], logprobs: Sequence[float | None] | None
    ) -> Completion:
        stopped = bool(reply) and reply[-1] in self.stop_ids
        known = None if logprobs is None else tuple(math.nan if p is None else p for p in logprobs)
        return Completion(
            text=self.tokenizer.decode(reply[:-1] if stopped else reply),
            prompt_ids=tuple(prompt),
            completion_ids=tuple(reply),
            mask=(1,) * len(reply),
            logprobs=known,
            finish="stop" if stopped else "length",
        )


@contextmanager
def _greedy(trainer: GRPOTrainer) -> Iterator[None]:
    """The likeliest token each time, whoever generates."""
    if trainer.use_vllm:
        with sampled_with(trainer.vllm_generation, temperature=0.0):
            yield
        return
    plain = trainer.generation_kwargs | {"do_sample": False}
    with (
        sampled_with(trainer, generation_kwargs=plain),
        sampled_with(trainer.generation_config, do_sample=False),
    ):
        yield


@contextmanager
def sampled_with(generation: Any, **settings: Any) -> Iterator[None]:
    """Other attributes for a while, as TRL's VLLMGeneration has; they come back in any case.

    It reads its sampling settings at each call. Source: trl_unsloth_vllm.md 2.5.
    """
    before = {name: getattr(generation, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(generation, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(generation, name, value)
