"""A frozen base stays frozen: the weights below an adapter, held against merging and unmerging.

To push a policy to vLLM, TRL merges the adapter into the base, sends the sum and subtracts it
again. In bf16 a + b - b is not a: after 200 pushes half of the adapted weights had changed and the
base's log-probabilities had moved by up to 0.32. So reader, judge and KL reference, which are the
base, would drift while the policy trains. The one law: the base has the same bytes at the end of a
run as at its start.

    pin_base(trainer.vllm_generation, model)     every push restores the base afterwards
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel


def pin_base(generation: Any, model: PeftModel) -> None:
    """Makes every `generation.sync_weights()` (TRL's VLLMGeneration) end with the base restored.

    Also when the push fails. The copy is held in main memory and is as large as the weights below
    the adapter. Raises InputError if no layer has an adapter.
    """
    weights = {name: p for name, p in model.named_parameters() if ".base_layer." in name}
    if not weights:
        raise InputError("base: expected a model with an adapter, found no layer that has one")
    copy = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
    push = generation.sync_weights

    def sync_weights() -> None:
        try:
            push()
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(copy[name])

    generation.sync_weights = sync_weights
