"""A frozen base stays frozen: the weights below an adapter, held against merging and unmerging.

To push a policy to vLLM, TRL merges the adapter into the base, sends the sum and subtracts it
again. In bf16 a + b - b is not a: after 200 pushes half of the adapted weights had changed and the
base's log-probabilities had moved by up to 0.32. So reader, judge and KL reference, which are the
base, would drift while the policy trains (trl_unsloth_vllm.md 2.4).

The one law: the base's hash is the same at the end of a run as at its start.

    pin_base(trainer.vllm_generation, model)     every push restores the base afterwards
    with adapter_off(model): ...                 the base reads and judges
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memalpha_kit.errors import InputError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def base_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The weights that a merge changes: those of the layers below an adapter, by name.

    Raises InputError if no layer has an adapter.
    """
    found = {name: p for name, p in model.named_parameters() if ".base_layer." in name}
    if not found:
        raise InputError("base: expected a model with an adapter, found no layer that has one")
    return found


def base_hash(model: PeftModel) -> str:
    """A name of exactly these base weights: equal for equal bytes, whatever the adapter is."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(base_weights(model).items()):
        raw = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


class PinnedBase:
    """A copy of the base weights in main memory (as large as they are) that can be put back."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.copy = {name: w.detach().cpu().clone() for name, w in base_weights(model).items()}

    def restore(self) -> None:
        """Puts the copy back, bit for bit. The adapter must not be merged now."""
        import torch

        with torch.no_grad():
            for name, weight in base_weights(self.model).items():
                weight.copy_(self.copy[name])


def pin_base(generation: Any, model: PeftModel) -> PinnedBase:
    """Makes every `generation.sync_weights()` (TRL's VLLMGeneration) end with the base restored.

    Also when the push fails. Returns the pin.
    """
    pin, push = PinnedBase(model), generation.sync_weights

    def sync_weights() -> None:
        try:
            push()
        finally:
            pin.restore()

    generation.sync_weights = sync_weights
    return pin


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """The base model alone, without gradients; the adapter and the training mode come back."""
    import torch

    training = model.training
    with torch.no_grad(), model.disable_adapter():
        model.eval()
        try:
            yield
        finally:
            model.train(training)
