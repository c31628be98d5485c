"""The base below an adapter: it drifts when merged and unmerged, and does not when pinned."""

from __future__ import annotations

import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import InputError
from memalpha_kit.models.chat import LocalChat
from memalpha_kit.models.local import CausalLM
from memalpha_kit.records import request
from memalpha_kit.training.pinned import PinnedBase, adapter_off, base_hash, pin_base

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(dtype=torch.bfloat16):
    """A tiny model with an adapter that has learned something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False)
    return get_peft_model(tiny.lm().model.to(dtype), config)


class Pushes:
    """What TRL's VLLMGeneration does to the model: merge, send, unmerge."""

    def __init__(self, model):
        self.model, self.sent = model, []

    def sync_weights(self):
        self.model.merge_adapter()
        self.sent.append(self.model(input_ids=IDS).logits.detach())
        self.model.unmerge_adapter()


def base_logits(model):
    with adapter_off(model):
        return model(input_ids=IDS).logits


def test_fifty_pushes_move_a_base_that_is_not_pinned():
    model = adapted()
    before, name = base_logits(model), base_hash(model)
    pushes = Pushes(model)
    for _ in range(50):
        pushes.sync_weights()
    assert base_hash(model) != name
    assert not torch.equal(base_logits(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fifty_pushes_leave_a_pinned_base_as_it_was_to_the_bit(dtype):
    model = adapted(dtype)
    before, name = base_logits(model), base_hash(model)
    pushes = Pushes(model)
    pin_base(pushes, model)
    for _ in range(50):
        pushes.sync_weights()
    assert base_hash(model) == name
    assert torch.equal(base_logits(model), before)
    assert all(torch.equal(sent, pushes.sent[0]) for sent in pushes.sent)  # the policy went out
    assert not torch.equal(pushes.sent[0], before)


def test_the_base_is_restored_after_a_push_that_failed():
    model = adapted()
    name = base_hash(model)

    class Breaks(Pushes):
        def sync_weights(self):
            super().sync_weights()
            raise ConnectionError("the engine is gone")

    pushes = Breaks(model)
    pin_base(pushes, model)
    with pytest.raises(ConnectionError):
        pushes.sync_weights()
    assert base_hash(model) == name


def test_the_hash_sees_the_base_and_not_the_adapter():
    model = adapted()
    name = base_hash(model)
    weights = dict(model.named_parameters())
    adapter = next(w for key, w in weights.items() if "lora_A" in key)
    base = next(w for key, w in weights.items() if ".base_layer." in key)
    with torch.no_grad():
        adapter += 1
        assert base_hash(model) == name
        base += 1
    assert base_hash(model) != name


def test_without_the_adapter_the_model_is_the_base_and_afterwards_the_policy_again():
    plain, model = tiny.lm().model.to(torch.bfloat16), adapted()
    policy = model(input_ids=IDS).logits
    model.train()
    with adapter_off(model):
        out = model(input_ids=IDS).logits
        assert not out.requires_grad and not model.training
    assert torch.equal(out, plain(input_ids=IDS).logits)
    assert model.training
    assert torch.equal(model.eval()(input_ids=IDS).logits, policy)


def test_the_policys_base_reads_while_the_policy_trains():
    """`LocalChat(adapter_off=True)` is the reader of one card: what it says is the base's."""
    from peft import LoraConfig, get_peft_model
    from tiny_models import tiny_qwen3, tiny_tokenizer

    tok = tiny_tokenizer()
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["v_proj"], init_lora_weights=False)
    asked = [request("", "Who keeps bees?", max_tokens=8)]
    base = LocalChat(CausalLM("base", tiny_qwen3(tok), tok, (tok.eos_token_id,)))
    model = get_peft_model(tiny_qwen3(tok), config)
    reader = LocalChat(CausalLM("policy", model, tok, (tok.eos_token_id,)), adapter_off=True)
    policy = LocalChat(CausalLM("policy", model, tok, (tok.eos_token_id,)))
    assert reader.chat(asked)[0].text == base.chat(asked)[0].text != policy.chat(asked)[0].text


def test_a_model_without_an_adapter_has_no_base():
    with pytest.raises(InputError, match="expected a model with an adapter"):
        PinnedBase(tiny.lm().model)
