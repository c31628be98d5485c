"""The loss that TRL computes for us, held against one page of plain torch, gradient by gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny_policy as tiny
import torch
from tiny_policy import row

from memalpha_kit.models.local import load_lm
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training.loss import grpo_loss, row_logprobs, token_losses, total_loss

MAX_REPLY = tiny.PROTOCOL.max_reply_tokens
LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo")
ROWS = (
    row((11, 12, 13), 1.5, (5,)),
    row((21,), -0.5),
    row((31, 32, 33, 34), 1.2, (8, 9), mask=(1, 0, 0, 1)),  # two forced tokens
    row((41, 42, 43, 44), -1.0, (5, 6, 7, 8, 9)),
    row((51, 52), -0.7),
)
MISSING = row((61, 62, 63, 64, 65), 0.0, (9,) * 12, mask=(0,) * 5, reward=None)


# --- the page itself ------------------------------------------------------------------------------

EXAMPLE = (  # worked by hand: advantage, old, new and reference probabilities
    (1.0, (0.50, 0.40, 0.20), (0.55, 0.52, 0.10), (0.50, 0.50, 0.20)),
    (-1.0, (0.10, 0.50), (0.40, 0.30), (0.10, 0.50)),
)
RELEASE = GrpoConfig(loss="grpo", dual_clip=3.0, kl=0.001)


def example_losses(config):
    logs = [(a, *(torch.tensor(p).log() for p in parts)) for a, *parts in EXAMPLE]
    return [token_losses(new, old, a, config, reference) for a, old, new, reference in logs]


def test_token_losses_and_the_divergence_are_those_of_the_worked_example():
    up, down = plain = example_losses(replace(RELEASE, kl=0.0))
    assert up.tolist() == pytest.approx([-1.1, -1.2, -0.5], abs=1e-6)
    assert down.tolist() == pytest.approx([3.0, 0.8], abs=1e-6)
    (_, free) = example_losses(replace(RELEASE, kl=0.0, dual_clip=None))
    assert free.tolist() == pytest.approx([4.0, 0.8], abs=1e-6)
    with_kl = example_losses(replace(RELEASE, kl=1.0))
    up, down = ((one - other).tolist() for one, other in zip(with_kl, plain, strict=True))
    assert up == pytest.approx([0.004401, 0.000759, 0.306853], abs=1e-6)
    assert down == pytest.approx([0.636294, 0.155841], abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("grpo", 0.483583),  # the release
        ("dapo", 0.200221),
        ("bnpo", 0.200221),
        ("dr_grpo", 5 * 0.200221 / (2 * MAX_REPLY)),
    ],
)
def test_the_mean_over_tokens_is_the_named_one(loss, expected):
    config = replace(RELEASE, loss=loss)
    found = total_loss(example_losses(config), config, MAX_REPLY).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_forced_tokens_are_read_but_have_no_loss():
    model, forced = tiny.lm().model, ROWS[2]
    free = replace(forced, loss_mask=(1, 1, 1, 1))
    values = row_logprobs(model, forced, 0.7)
    assert torch.equal(values, row_logprobs(model, free, 0.7)[[0, 3]])


# --- the trainer and the page ---------------------------------------------------------------------


def lora(lm):
    """The tiny policy with adapters that already do something; only they are trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    chosen = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(lm.model, chosen)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return replace(lm, model=model)


def trainer_for(tmp_path, rows=ROWS, lm=None, **changes):
    """A trainer whose every step trains on `rows`, and its settings."""
    # from a folder: TRL loads the reference model from where the policy came from
    trainer = tiny.trainer(
        tmp_path, rows, lm or load_lm(tiny.saved(tmp_path / "policy")), **changes
    )
    return trainer, trainer.grpo


def slices_of(trainer):
    """What TRL would train on in one step, slice by slice."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return [
        trainer._prepare_inputs([{"instance": 0}] * trainer.num_generations)
        for trainer._step in range(trainer.args.steps_per_generation)
    ]


def gradient(loss, model):
    """All gradients of the trained weights as one vector."""
    model.zero_grad()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([p.grad.flatten() for p in trained])


def move(model, size=0.05):
    """Moves the trained weights, as an optimiser step would: the old policy is another one now."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)


def logprobs_of(model, rows, config):
    with torch.no_grad():
        return [row_logprobs(model, r, config.temperature) for r in rows]


def assert_equal(trainers, reference):
    """Loss to six digits, gradient to a hundred-thousandth of its length."""
    (loss, grads), (expected, wanted) = trainers, reference
    assert loss == pytest.approx(expected, abs=1e-6, rel=1e-5)
    assert wanted.norm() > 1e-3
    assert (grads - wanted).norm() <= 1e-5 * wanted.norm()


def by_trl(trainer, parts):
    loss = sum(trainer.compute_loss(trainer.model, part) for part in parts)
    return loss.item(), gradient(loss, trainer.model)


def by_reference(model, rows, config, **known):
    loss = grpo_loss(model, rows, config, MAX_REPLY, **known)
    return loss.item(), gradient(loss, model)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES)
def test_trl_and_the_reference_agree_in_loss_and_gradient(tmp_path, loss, adapters):
    lm = lora(tiny.lm()) if adapters else tiny.lm()
    trainer, config = trainer_for(tmp_path, lm=lm, loss=loss)
    expected = by_reference(trainer.model, ROWS, config)
    assert_equal(by_trl(trainer, slices_of(trainer)), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_they_agree_with_clipping_a_dual_clip_and_a_divergence(tmp_path, loss):
    """Second pass over a step's rows: the policy has moved since it sampled."""
    trainer, config = trainer_for(
        tmp_path, loss=loss, iterations=2, kl=0.05, clip=0.1, clip_high=0.15, dual_clip=1.3
    )
    parts = slices_of(trainer)
    before = logprobs_of(trainer.model, ROWS, config)
    move(trainer.model)
    after = logprobs_of(trainer.model, ROWS, config)
    ratios = torch.cat([(new - old).exp() for new, old in zip(after, before, strict=True)])
    assert (ratios < 0.9).any() and (ratios > 1.3).any()  # every branch is taken
    expected = by_reference(trainer.model, ROWS, config, old=before, reference=before)
    assert_equal(by_trl(trainer, parts), expected)


@pytest.mark.parametrize("kl", [0.0, 0.05])
@pytest.mark.parametrize("slices", [2, 8])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_slices_and_fill_rows_change_nothing(tmp_path, loss, slices, kl):
    """Five rows become 6 or 8; every mean is still over five."""
    rows = [MISSING, *ROWS]
    trainer, config = trainer_for(tmp_path, rows, loss=loss, slices=slices, kl=kl)
    parts = slices_of(trainer)
    assert len(parts) == slices and sum(len(part["prompt_ids"]) for part in parts) > len(ROWS)
    known = logprobs_of(trainer.model, rows, config)
    move(trainer.model)
    expected = by_reference(trainer.model, rows, config, reference=known)
    assert_equal(by_trl(trainer, parts), expected)


def test_bnpo_is_a_token_mean_of_every_slice(tmp_path):
    """So it depends on how rows fall into slices, and only one slice leaves fill rows out."""
    trainer, config = trainer_for(tmp_path, loss="bnpo", slices=2)
    parts = slices_of(trainer)
    loss, _ = by_trl(trainer, parts)
    means = []
    for part in parts:
        tokens = part["completion_mask"] * part["tool_mask"]
        weighted = (-part["advantages"][:, None] * tokens).sum() / tokens.sum()
        means.append(weighted.item())
    assert loss == pytest.approx(sum(means) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_good_rows_become_likelier_and_bad_rows_less_likely(tmp_path, loss):
    rows, lm = [row((11, 12), 1.0), row((21, 22, 23), -1.0), row((31,), 0.0)], tiny.lm()
    config = GrpoConfig(temperature=1.0)
    before = [values.sum().item() for values in logprobs_of(lm.model, rows, config)]
    trainer_for(tmp_path, rows, lm, steps=1, loss=loss, learning_rate=1e-3)[0].train()
    after = [values.sum().item() for values in logprobs_of(lm.model, rows, config)]
    assert after[0] > before[0] and after[1] < before[1]
    assert not math.isclose(after[0], before[0], abs_tol=1e-6)
