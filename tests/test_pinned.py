"""The base below an adapter: it drifts when merged and unmerged, and does not when pinned."""

from __future__ import annotations

import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.training.backends import pin_base

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(dtype=torch.bfloat16):
    """A tiny model with an adapter that has learned something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False)
    return get_peft_model(tiny.lm().model.to(dtype), config)


class Pushes:
    """What TRL's VLLMGeneration does to the model: merge, send, unmerge, and then maybe fail."""

    def __init__(self, model, error=None):
        self.model, self.error, self.sent = model, error, []

    def sync_weights(self):
        self.model.merge_adapter()
        self.sent.append(self.model(input_ids=IDS).logits.detach())
        self.model.unmerge_adapter()
        if self.error:
            raise self.error


def base(model):
    """Copies of the weights below the adapter."""
    return [w.detach().clone() for name, w in model.named_parameters() if "lora_" not in name]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("pinned", "dtype"), [(False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float32)]
)
def test_fifty_pushes_move_the_base_unless_it_is_pinned(pinned, dtype):
    model = adapted(dtype)
    before, pushes = base(model), Pushes(model)
    if pinned:
        pin_base(pushes, model)
    for _ in range(50):
        pushes.sync_weights()
    assert same(before, base(model)) == pinned
    if pinned:  # the policy went out, the same each time
        with model.disable_adapter():
            assert not torch.equal(pushes.sent[0], model(input_ids=IDS).logits)
        assert same(pushes.sent[1:], pushes.sent[:1] * 49)


def test_the_base_is_restored_after_a_push_that_failed():
    model = adapted()
    before, pushes = base(model), Pushes(model, ConnectionError("the engine is gone"))
    pin_base(pushes, model)
    with pytest.raises(ConnectionError):
        pushes.sync_weights()
    assert same(before, base(model))
