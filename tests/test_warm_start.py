"""Warm start: what is learned, in which order, and that a seed repeats it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pandas as pd
import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import InputError
from memalpha_kit.files import save_json
from memalpha_kit.method.calls import parse_reply
from memalpha_kit.method.model_writers import ModelWriter
from memalpha_kit.models.local import Sampling, load_lm
from memalpha_kit.records import Entry, Memory, WriteRequest
from memalpha_kit.settings import GrpoConfig, WarmStartConfig
from memalpha_kit.training import warm_start as module
from memalpha_kit.training.optimizer import Joint, build_optimizer, rate
from memalpha_kit.training.warm_start import (
    Phase,
    Row,
    completion_loss,
    encode_steps,
    train_warm_start,
    warm_start,
)

CONFIG = WarmStartConfig(
    batch=4, bucket_batches=2, learning_rate=1e-2, warm_up_steps=2, log_every=5
)
PAD = 0
MUON = GrpoConfig(optimizer="muon", learning_rate=1e-3, muon_rate=0.02)


def rows(n=10):
    """Rows of different lengths; the completion repeats the prompt's first token and ends."""
    rng = random.Random(0)
    made = [[rng.randrange(2, 90) for _ in range(rng.randint(1, 6))] for _ in range(n)]
    return [Row(prompt, [prompt[0], prompt[0], 1]) for prompt in made]


# --- loss -----------------------------------------------------------------------------------------


def token_loss(model, row):
    """-log p of a row's completion tokens, one row, no padding, the plain way."""
    ids, start = torch.tensor([[*row.prompt_ids, *row.completion_ids]]), len(row.prompt_ids)
    logits = model(ids).logits[0, start - 1 : -1]
    return -logits.log_softmax(-1)[range(len(row.completion_ids)), row.completion_ids]


def test_the_loss_is_a_mean_over_completion_tokens_whatever_the_padding():
    model, batch = tiny.lm().model, [*rows(3), Row([5] * 30, [6] * 9)]
    by_hand = torch.cat([token_loss(model, row) for row in batch]).mean()
    assert completion_loss(model, batch, PAD).item() == pytest.approx(by_hand.item(), abs=1e-5)
    row = Row([5, 6], [7, 8, 9], [1.0, 0.0, 3.0])  # weights weigh its tokens
    first, _, last = token_loss(model, row).tolist()
    loss = completion_loss(model, [row], PAD)
    assert loss.item() == pytest.approx((first + 3 * last) / 4, abs=1e-5)


# --- batches --------------------------------------------------------------------------------------


def test_every_row_is_visited_once_per_pass_and_lengths_are_sorted_into_buckets():
    given = rows(24)
    batches = list(Phase("all", 12, given).batches(CONFIG, seed=0))
    assert len(batches) == 12 and {len(batch) for batch in batches} == {4}
    for part in (batches[:6], batches[6:]):
        assert sorted(row for batch in part for row in batch) == sorted(given)
    assert batches[:6] != batches[6:]
    first = sorted(batches[:2], key=lambda batch: len(batch[0].prompt_ids))  # one bucket
    longest = max(len(row.prompt_ids) for row in first[0])
    assert longest <= min(len(row.prompt_ids) for row in first[1])
    drawn = Phase("drawn", 2, draw=lambda rng: Row([rng.randint(2, 9)], [1]))
    one, same, other = (list(drawn.batches(CONFIG, seed)) for seed in (0, 0, 1))
    assert one == same != other and all(len(batch) == 4 for batch in one)


def test_a_phase_without_rows_is_refused():
    with pytest.raises(InputError, match="phase p: expected rows, found none"):
        warm_start(tiny.lm().model, [Phase("p", 1)], CONFIG, PAD, seed=0)


# --- training -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_it_before_a_weight_moves(monkeypatch):
    lm, untouched = tiny.lm(), tiny.lm()
    nothing = lambda model, batch, pad: completion_loss(model, batch, pad) * float("nan")  # noqa: E731
    monkeypatch.setattr(module, "completion_loss", nothing)
    with pytest.raises(InputError, match="phase p, step 1: expected a finite loss, found nan"):
        warm_start(lm.model, [Phase("p", 1, [Row([1], [2])])], CONFIG, PAD, seed=0)
    assert tiny.equal(lm.model, untouched.model)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"clip": 0.0}])
def test_training_learns_its_rows_and_a_seed_repeats_it_also_of_a_model_with_dropout(changes):
    config = replace(CONFIG, **changes)
    runs = []
    for seed in (0, 0, 1):
        model = tiny.lm().model
        model.model.layers[0].self_attn.attention_dropout = 0.1
        metrics = warm_start(model, [Phase("learn", 40, rows())], config, PAD, seed)
        runs.append((model, metrics))
    assert runs[0][1]["loss"].iloc[-1] < 0.3 * runs[0][1]["loss"].iloc[0]
    assert tiny.equal(runs[0][0], runs[1][0])
    pd.testing.assert_frame_equal(runs[0][1], runs[1][1])
    assert not tiny.equal(runs[0][0], runs[2][0])


def test_metrics_say_phase_step_loss_rate_and_tokens_and_stand_beside_the_policy(tmp_path):
    phases = [Phase("copy", 7, draw=lambda rng: Row([5, 6], [7])), Phase("teach", 5, rows())]
    lm = tiny.lm()
    folder = train_warm_start(lm, phases, CONFIG, 0, tmp_path / "warm")
    assert folder == tmp_path / "warm" / "policy"
    assert tiny.equal(tiny.weights(folder), lm.model)
    metrics = pd.read_csv(tmp_path / "warm" / "metrics.csv")
    assert list(metrics.columns) == ["phase", "step", "loss", "smoothed", "rate", "tokens"]
    assert list(metrics["phase"]) == ["copy", "copy", "teach", "teach"]
    assert list(metrics["step"]) == [5, 7, 10, 12]
    assert metrics["tokens"].iloc[0] == 5 * 4 * 3
    assert metrics["rate"].iloc[0] == 1.0 and metrics["rate"].iloc[-1] < 0.3


def test_stop_ids_and_sampling_defaults_of_what_was_loaded_stay_with_the_policy(tmp_path):
    told = {"pad_token_id": PAD, "eos_token_id": [1, 9], "do_sample": True, "temperature": 0.6}
    save_json(tiny.saved(tmp_path / "base") / "generation_config.json", told)
    phases = [Phase("a", 1, rows())]
    learned = train_warm_start(load_lm(tmp_path / "base"), phases, CONFIG, 0, tmp_path / "warm")
    assert load_lm(learned).said == told and load_lm(learned).stop_ids == (1, 9)


def test_a_warm_start_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    config, phases = replace(CONFIG, save_every=4), [Phase("a", 5, rows()), Phase("b", 6, rows(7))]
    whole, cut = tiny.lm(), tiny.lm()
    train_warm_start(whole, phases, config, 0, tmp_path / "whole")

    def stopped(model, batch, pad, loss=completion_loss):
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(batch)
        return loss(model, batch, pad)

    seen = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "completion_loss", stopped)
        train_warm_start(cut, phases, config, 0, tmp_path / "cut")
    fresh = tiny.lm()
    train_warm_start(fresh, phases, config, 0, tmp_path / "cut")
    assert tiny.equal(whole.model, fresh.model)
    tables = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "cut")]
    assert tables[0] == tables[1]


def test_a_teachers_step_becomes_the_writers_prompt_and_the_calls_tokens():
    lm = tiny.lm()
    writer = ModelWriter(lm, tiny.MEMORY, tiny.PROTOCOL, Sampling())
    memory = Memory(core=None, semantic=(Entry("1", "fact 3"),), next_id=2)
    calls = (tiny.call(7), tiny.call(8))
    (row,) = encode_steps(writer, [(memory, "fact 7\nfact 8", calls)])
    assert row.prompt_ids == writer.prompt_ids(WriteRequest(memory, "fact 7\nfact 8"))
    assert row.completion_ids[-1] == lm.tokenizer.eos_token_id
    read = parse_reply(lm.tokenizer.decode(row.completion_ids[:-1]), "stop", "compact")
    assert [c.arguments for c in read] == [c.arguments for c in calls]


# --- optimiser ------------------------------------------------------------------------------------


def test_the_rate_rises_from_the_first_update_on_and_falls_at_the_end():
    shares = [rate(step, 10, warm_up=2, decay_share=0.4, floor=0.1) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]  # the published code starts with 0
    assert shares[5:] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25])
    assert rate(9, 10, 0, 1.0) == pytest.approx(0.1)  # linear over everything
    assert [rate(step, 10, 0, 0.0) for step in range(10)] == [1.0] * 10  # constant
    assert rate(99, 100, 0, 1.0, floor=0.03) == 0.03
    assert rate(0, 0, 0, 0.4) == 1.0  # of no update at all


def test_muon_moves_hidden_matrices_and_adamw_the_rest():
    model = tiny.lm().model
    joint = build_optimizer(model, MUON)
    muon, adamw = ([w for g in part.param_groups for w in g["params"]] for part in joint.parts)
    layer = model.model.layers[0]
    assert any(w is layer.mlp.up_proj.weight for w in muon)
    assert any(w is model.model.embed_tokens.weight for w in adamw)
    assert any(w is layer.self_attn.q_norm.weight for w in adamw)
    assert len(muon) == 7 and len(muon) + len(adamw) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_and_embeddings_and_nothing_else(name):
    model = tiny.lm().model
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    config = GrpoConfig(optimizer=name, learning_rate=0.1, muon_rate=0.1, weight_decay=0.01)
    build_optimizer(model, config).step()
    for key, weight in model.named_parameters():
        share = 1 - 0.1 * 0.01 if weight.ndim > 1 else 1.0
        torch.testing.assert_close(weight.detach(), before[key] * share, rtol=1e-6, atol=0)


def test_a_joint_optimiser_continues_from_its_saved_state():
    def step(model, optimizer):
        optimizer.zero_grad()
        completion_loss(model, rows(4), PAD).backward()
        optimizer.step()

    one, other = tiny.lm().model, tiny.lm().model
    first = build_optimizer(one, MUON)
    step(one, first)
    second = build_optimizer(other, replace(MUON, learning_rate=5.0, muon_rate=5.0))
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # loading shares tensors
    assert isinstance(second, Joint)
    assert [g["lr"] for g in second.param_groups] == [0.02, 1e-3]
    for model, optimizer in ((one, first), (other, second)):
        optimizer.param_groups[0]["lr"] = 0.5  # as a schedule does it
        step(model, optimizer)
    assert tiny.equal(one, other)
