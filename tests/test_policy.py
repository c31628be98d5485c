"""The tiny policy: tokenizer, weights, folder, and decoding that is fast but changes nothing."""

from __future__ import annotations

import dataclasses
import random
from unittest.mock import Mock

import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.method.encoding import encode_text
from memalpha_kit.models.decode import FastLM, fast
from memalpha_kit.models.local import Sampling
from memalpha_kit.models.tiny import build_policy, build_tokenizer, load_policy, save_policy
from memalpha_kit.settings import PolicyConfig
from memalpha_kit.training.batch import token_logprobs
from memalpha_kit.training.export import ROUNDING

GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
SAMPLED = Sampling(temperature=0.8, max_new_tokens=12, seed=7)
TWO_LAYERS = dataclasses.replace(tiny.POLICY, layers=2, init_std=0.3)
KINDS = {
    "two layers": TWO_LAYERS,
    "shared keys": dataclasses.replace(TWO_LAYERS, heads=4, kv_heads=2),
    "own output layer": dataclasses.replace(TWO_LAYERS, tie=False, rope_theta=1e6),
}


def prompts(n=9, longest=40):
    rng = random.Random(0)
    return [[rng.randrange(2, 280) for _ in range(rng.randint(1, longest))] for _ in range(n)]


# --- tokenizer ------------------------------------------------------------------------------------


def test_the_same_texts_give_the_same_tokenizer_whose_end_token_cannot_be_written():
    one, other = tiny.tokenizer(), tiny.tokenizer()
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert one.eos_token_id not in encode_text(one, "a<|end|>b<|pad|>")
    assert one.pad_token_id != one.eos_token_id
    tok = build_tokenizer(["ab ab ab"] * 9, 300, r"[a-z]| ", ("<|pad|>", "<|end|>"))
    assert len(encode_text(tok, "ab ab")) == 5  # merges do not cross the words of the pattern


# --- weights --------------------------------------------------------------------------------------


def test_the_seed_decides_the_weights_and_the_global_random_state_stays():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (tiny.lm(seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    rows, default = len(tiny.tokenizer()), build_policy(PolicyConfig(), tiny.tokenizer(), seed=0)
    assert default.config.vocab_size == rows + -rows % 8 and default.num_parameters() < 300_000
    assert default.lm_head.weight is default.model.embed_tokens.weight
    assert {weight.dtype for weight in default.parameters()} == {torch.float32}


def test_a_head_start_makes_head_i_look_i_plus_one_tokens_back():
    config = PolicyConfig(start_shared=1.0, start_look_back=1.0, start_copy=0.5)
    model = build_policy(config, tiny.tokenizer(), seed=0).eval()
    model.set_attn_implementation("eager")
    ids = torch.tensor(prompts(1)[0] * 3)[None]
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0][0]  # (heads, T, T)
    last = attention[:, -20:].argmax(-1)  # where each of the last 20 positions looks
    back = torch.arange(ids.shape[1])[-20:] - last
    for head in range(config.heads):
        assert back[head].float().median() == head + 1
    with pytest.raises(InputError, match="policy.kv_heads: expected 4, one per head, found 2"):
        build_policy(dataclasses.replace(config, kv_heads=2), tiny.tokenizer(), seed=0)


# --- folder ---------------------------------------------------------------------------------------


def test_a_saved_policy_loads_equal_and_replaces_an_older_one(tmp_path):
    folder = tmp_path / "policy"
    tiny.saved(folder, seed=1)
    made = tiny.lm(seed=0)
    save_policy(made.model, made.tokenizer, folder)
    loaded = load_policy(folder)
    assert loaded.generate(prompts(), GREEDY) == made.generate(prompts(), GREEDY)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_save_that_fails_leaves_the_older_policy(tmp_path, monkeypatch):
    folder = tiny.saved(tmp_path / "policy", seed=1)
    made = tiny.lm(seed=0)
    full = Mock(side_effect=OSError("No space left on device"))
    monkeypatch.setattr(type(made.tokenizer), "save_pretrained", full)
    with pytest.raises(DiskError, match="policy: expected to write model files.*No space left"):
        save_policy(made.model, made.tokenizer, folder)
    monkeypatch.undo()
    old = tiny.lm(seed=1)
    assert load_policy(folder).generate(prompts(), GREEDY) == old.generate(prompts(), GREEDY)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_fast_draws_the_tokens_of_transformers(kind, sampling):
    lm = tiny.lm(config=KINDS[kind])
    quick = fast(lm)
    assert isinstance(quick, FastLM)
    for slow, done in zip(
        lm.generate(prompts(), sampling), quick.generate(prompts(), sampling), strict=True
    ):
        assert (slow.completion_ids, slow.text) == (done.completion_ids, done.text)
        assert slow.logprobs == pytest.approx(done.logprobs, abs=1e-5)


def test_rows_that_finish_early_leave_the_others_as_they_were():
    """With many end tokens rows stop at different places and leave the batch one by one."""
    lm = dataclasses.replace(tiny.lm(config=TWO_LAYERS), stop_ids=tuple(range(1, 40)))
    many = prompts(40)
    one, other = lm.generate(many, SAMPLED), fast(lm).generate(many, SAMPLED)
    assert [d.completion_ids for d in one] == [d.completion_ids for d in other]
    assert {done.finish for done in other} == {"stop", "length"}
    lm.model.to(torch.float16)
    assert fast(lm) is lm  # other models keep the general path


def test_a_seed_decides_a_reply_whoever_shares_its_batch():
    quick, seeds = fast(tiny.lm()), list(range(11, 17))
    together = [done.completion_ids for done in quick.generate(prompts(6), SAMPLED, seeds)]
    for prompt, seed, ids in zip(prompts(6), seeds, together, strict=True):
        assert quick.generate([prompt], SAMPLED, [seed])[0].completion_ids == ids


def llama(width=64):
    """A random Llama whose keys are shared by heads, with an adapter that changes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    lm = tiny.lm()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(lm.tokenizer), "hidden_size": width, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.2)
    targets = ["q_proj", "v_proj", "down_proj"]
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False
    )
    model = get_peft_model(LlamaForCausalLM(config), adapter).eval()
    return dataclasses.replace(lm, model=model)


@pytest.mark.parametrize("width", [64, 256])  # from the second on, a shared prompt is read once
def test_an_adapter_on_a_llama_is_decoded_fast_too(width):
    lm = llama(width)
    quick, many = fast(lm), [prompts()[0]] * 3 + prompts()
    assert isinstance(quick, FastLM)
    for slow, done in zip(lm.generate(many, SAMPLED), quick.generate(many, SAMPLED), strict=True):
        assert slow.completion_ids == done.completion_ids
        assert slow.logprobs == pytest.approx(done.logprobs, abs=1e-4)
    with lm.model.disable_adapter():
        one, other = (m.generate(many, SAMPLED) for m in (lm, fast(lm)))
    assert [d.completion_ids for d in one] == [d.completion_ids for d in other]
    assert [d.completion_ids for d in one] != [
        d.completion_ids for d in quick.generate(many, SAMPLED)
    ]


def test_sampled_probabilities_are_the_trainers_within_the_rounding_of_16_bits():
    lm = llama()
    lm.model.get_base_model().to(torch.bfloat16)
    for part in lm.model.modules():
        for name in ("lora_A", "lora_B"):
            if hasattr(part, name):
                getattr(part, name).float()
    for done in fast(lm).generate(prompts(), SAMPLED):
        ids = torch.tensor([[*done.prompt_ids, *done.completion_ids]])
        n = len(done.completion_ids)
        with torch.no_grad():
            found, _ = token_logprobs(lm.model, ids, torch.ones_like(ids), n, SAMPLED.temperature)
        apart = (found[0] - torch.tensor(done.logprobs)).abs()
        assert apart.mean() < 0.1 and apart.max() < ROUNDING["bfloat16"]
