"""Who writes episodes while a model is trained: our own fast decoder, transformers or vLLM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from memalpha_kit.models.decode import fast
from memalpha_kit.models.local import CausalLM, Sampling
from memalpha_kit.records import Completion
from memalpha_kit.training import processes

if TYPE_CHECKING:
    from trl import GRPOTrainer


def writer_lm(lm: CausalLM, trainer: GRPOTrainer) -> CausalLM | TrainerLM:
    """The language model that writes episodes: the live policy, decoded by us or by TRL."""
    quick = fast(lm)
    return quick if quick is not lm else TrainerLM(lm, trainer)


class TrainerLM:
    """The shape of a `CausalLM` over TRL's own generation (transformers or vLLM).

    TRL samples with the settings it was built with and its own random state, which checkpoints
    keep; of `sampling` only a temperature of 0 counts (validation), and `seeds` do not.

    Where processes share one engine or one set of weights, all of them must generate equally often
    and equally much: short lists are filled with a prompt whose reply is dropped, and `finish`
    takes part until everybody is done.
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
        self.spare = prompts[0] if prompts else self.spare
        filled = prompts + [self.spare] * (n - len(prompts))
        with _greedy(self.trainer) if greedy else nullcontext():
            replies, logprobs = self.trainer._generate_single_turn(filled, None, {}, 1)
        known = zip(prompts, replies, logprobs or [None] * n, strict=False)  # without the spare
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
        with changed(trainer.vllm_generation, temperature=0.0):
            yield
        return
    plain = trainer.generation_kwargs | {"do_sample": False}
    sampled = trainer.generation_config
    with changed(trainer, generation_kwargs=plain), changed(sampled, do_sample=False):
        yield


@contextmanager
def changed(thing: Any, **settings: Any) -> Iterator[None]:
    """Other attributes for a while; TRL reads its sampling settings at each call."""
    before = {name: getattr(thing, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)
