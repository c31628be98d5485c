"""GRPO: rows as tensors, the loss that TRL makes of them, and runs that resume."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import InputError
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.local import Sampling, load_lm
from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import AdvantageConfig, RewardConfig
from memalpha_kit.training.arguments import check_trl
from memalpha_kit.training.batch import rows_to_batch, token_logprobs, trained
from memalpha_kit.training.generation import TrainerLM
from memalpha_kit.training.grpo import Rollouts, train_grpo, training_order
from memalpha_kit.training.journal import latest_checkpoint, mark_complete
from memalpha_kit.training.trainer import EpisodeTrainer, narrowed

PAD = 0


def row(completion, advantage=0.0, prompt=(5, 6, 7), mask=None, reward=1.0, step=0):
    mask = (1,) * len(completion) if mask is None else mask
    return TrainingRow(
        tuple(prompt), tuple(completion), tuple(mask), reward, advantage, "g", "e", step
    )


ROWS = (
    row((11, 12, 13), 1.5, (5,)),
    row((21,), -0.5, (5, 6, 7)),
    row((31, 32), 1.2, (8, 9)),
    row((41, 42, 43, 44), -1.0, (5, 6, 7, 8, 9)),
    row((51, 52), -0.7),
)


def trainer_for(tmp_path, rows=ROWS, lm=None, **changes):
    """A trainer whose every step trains on `rows`."""
    config = dataclasses.replace(tiny.GRPO, save_every=0, **changes)
    made = lm or tiny.lm()
    measures = {"reward": 0.0, "accuracy": 0.0, "rows_trained": float(len(trained(rows)))}
    order = [0] * config.instances * config.steps
    return EpisodeTrainer(made, lambda *_: (list(rows), measures), order, config, 6, 0, tmp_path)


def one_step(trainer):
    """The trainer's loss and gradients over one step's slices, without moving the weights."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    slices = [
        trainer._prepare_inputs([{"instance": 0}] * trainer.num_generations)
        for trainer._step in range(trainer.args.steps_per_generation)
    ]
    loss = sum(trainer.compute_loss(trainer.model, part) for part in slices)
    loss.backward()
    grads = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    return loss.item(), grads


# --- rows as tensors ------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    batch = rows_to_batch(ROWS[:3], PAD)
    assert batch["prompt_ids"].tolist() == [[0, 0, 5], [5, 6, 7], [0, 8, 9]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert batch["completion_ids"].tolist() == [[11, 12, 13], [21, 0, 0], [31, 32, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["advantages"].tolist() == pytest.approx([1.5, -0.5, 1.2])
    assert batch["num_items_in_batch"].item() == 6


def test_fill_rows_are_all_padding_and_are_not_counted():
    batch = rows_to_batch(ROWS, PAD, multiple=4)
    assert len(batch["prompt_ids"]) == 8
    assert batch["completion_ids"][5:].eq(PAD).all()
    assert batch["completion_mask"][5:].sum() == 0
    assert batch["advantages"][5:].tolist() == [0.0] * 3
    assert batch["num_items_in_batch"].item() == 12


def test_rows_without_a_reward_are_left_out():
    missing = row((61, 62), mask=(0, 0), reward=None)
    assert trained([*ROWS, missing]) == list(ROWS)
    one, other = rows_to_batch([*ROWS, missing], PAD), rows_to_batch(ROWS, PAD)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_of_missing_rewards_only_is_fill_rows():
    batch = rows_to_batch([row((61,), mask=(0,), reward=None)], PAD, multiple=2)
    assert batch["completion_ids"].shape == (2, 1)
    assert batch["num_items_in_batch"].item() == 0


def test_forced_tokens_are_seen_but_not_learned():
    batch = rows_to_batch([row((11, 12, 13), 1.0, mask=(1, 0, 1))], PAD)
    assert batch["completion_mask"].tolist() == [[1, 1, 1]]
    assert batch["tool_mask"].tolist() == [[1, 0, 1]]
    assert batch["num_items_in_batch"].item() == 2


def test_a_prompt_with_the_pad_token_is_refused():
    with pytest.raises(InputError, match="e: step 0: the prompt contains the pad token"):
        rows_to_batch([row((1,), prompt=(5, PAD))], PAD)


# --- log-probabilities and loss -------------------------------------------------------------------


def direct_logprobs(model, prompt, completion, temperature):
    """Log-probabilities of a completion, one row, no padding, the plain way."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_token_logprobs_equal_a_direct_computation_and_are_zero_where_masked():
    model, batch = tiny.lm().model, rows_to_batch(ROWS, PAD, multiple=3)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logprobs, entropies = token_logprobs(model, ids, mask, 4, temperature=0.7)
    for place, one in enumerate(ROWS):
        n = len(one.completion_ids)
        direct = direct_logprobs(model, one.prompt_ids, one.completion_ids, 0.7)
        assert torch.allclose(logprobs[place, :n], direct, atol=1e-5)
        assert logprobs[place, n:].eq(0).all() and entropies[place, n:].eq(0).all()
    assert logprobs[5].eq(0).all()
    assert entropies[:5, 0].gt(0).all() and not entropies.requires_grad


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_the_dapo_loss_is_the_token_mean_whatever_the_slices(tmp_path, slices):
    """Five rows do not divide by 2 or 4, nor eight episodes by 3; TRL alone would drop some."""
    trainer = trainer_for(tmp_path, slices=slices, kl=0.0)
    loss, grads = one_step(trainer)
    model = trainer.model
    model.zero_grad()
    terms = [
        -r.advantage * direct_logprobs(model, r.prompt_ids, r.completion_ids, 0.7).sum()
        for r in ROWS
    ]
    by_hand = sum(terms) / 12  # gradient of -A rho at rho = 1
    by_hand.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    value = -sum(r.advantage * len(r.completion_ids) for r in ROWS) / 12
    assert loss == pytest.approx(value, abs=1e-6)
    assert torch.allclose(grads, expected, atol=1e-6)


def test_fill_rows_leave_loss_and_gradient_as_they_were(tmp_path):
    missing = row((61, 62, 63, 64, 65), mask=(0,) * 5, reward=None, prompt=(9,) * 12)
    loss, grads = one_step(trainer_for(tmp_path / "a"))
    for name, rows, slices in (
        ("b", ROWS, 8),
        ("c", [missing, *ROWS], 1),
        ("d", [*ROWS, missing], 4),
    ):
        other_loss, other = one_step(trainer_for(tmp_path / name, rows, slices=slices))
        assert other_loss == pytest.approx(loss, abs=1e-6)
        assert torch.allclose(grads, other, atol=1e-6)


EXAMPLE = (  # worked example 9.6: advantage, old, new and reference probabilities
    (1.0, (0.50, 0.40, 0.20), (0.55, 0.52, 0.10), (0.50, 0.50, 0.20)),
    (-1.0, (0.10, 0.50), (0.40, 0.30), (0.10, 0.50)),
)


@pytest.mark.parametrize(
    ("loss", "dual_clip", "kl", "expected"),
    [
        ("grpo", 3.0, 0.0, 0.483333),
        ("grpo", 3.0, 0.001, 0.483583),  # the release: mean of row means
        ("dapo", 3.0, 0.001, 0.200221),  # token mean
        ("grpo", None, 0.0, 0.733333),  # the first token of row 2 costs 4.0, not 3.0
        ("dapo", None, 0.0, 0.4),
    ],
)
def test_the_clipped_loss_is_that_of_the_worked_example(
    tmp_path, monkeypatch, loss, dual_clip, kl, expected
):
    rows = [row(range(11, 11 + len(old)), a) for a, old, _, _ in EXAMPLE]
    batch = rows_to_batch(rows, PAD)

    def logs(place):
        values = [example[place] for example in EXAMPLE]
        return torch.tensor([[math.log(p) for p in v] + [0.0] * (3 - len(v)) for v in values])

    batch |= {"old_per_token_logps": logs(1), "ref_per_token_logps": logs(3)}
    trainer = trainer_for(tmp_path, rows, loss=loss, dual_clip=dual_clip)
    trainer.beta, trainer.current_gradient_accumulation_steps = kl, 1
    new = (logs(2), torch.zeros(2, 3), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: new)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=1e-6)


def test_a_row_with_positive_advantage_becomes_likelier_and_one_with_negative_less(tmp_path):
    up, down = row((11, 12), 1.0), row((21, 22), -1.0)
    lm = tiny.lm()
    before = [
        direct_logprobs(lm.model, r.prompt_ids, r.completion_ids, 1).sum() for r in (up, down)
    ]
    trainer_for(tmp_path, [up, down], lm, steps=1).train()
    after = [direct_logprobs(lm.model, r.prompt_ids, r.completion_ids, 1).sum() for r in (up, down)]
    assert after[0] > before[0] and after[1] < before[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_equal_rewards_do_not_move_the_weights(tmp_path, optimizer):
    lm = tiny.lm()
    before = [p.detach().clone() for p in lm.model.parameters()]
    rows = [dataclasses.replace(r, advantage=0.0) for r in ROWS]
    trainer_for(tmp_path, rows, lm, steps=2, optimizer=optimizer).train()
    assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True))


def test_several_updates_per_step_and_a_kl_term_use_old_and_reference_log_probabilities(tmp_path):
    policy = tiny.saved(tmp_path / "policy")
    config = dataclasses.replace(
        tiny.GRPO, steps=2, iterations=2, updates=2, slices=4, kl=0.01, save_every=1
    )
    out = tmp_path / "run"
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, out, seed=0)
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics["step"]) == [1, 2]  # a row per step, not per optimiser step
    assert (metrics["kl"] > 0).all()
    assert latest_checkpoint(out / "checkpoints").folder.name == "checkpoint-8"


# --- runs -----------------------------------------------------------------------------------------


def weights(folder):
    return {name: value.clone() for name, value in load_lm(folder).model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory):
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("whole")
    config = dataclasses.replace(tiny.GRPO, dump_every=2)
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, out, seed=3)
    return out


class Crash(Exception):
    """The power went out."""


class FailingJudge:
    """The tiny judge, which fails for good after some calls."""

    def __init__(self, calls):
        self.calls, self.__qualname__ = calls, tiny.judge.__qualname__

    def __call__(self, *asked):
        self.calls -= 1
        if self.calls < 0:
            raise Crash
        return tiny.judge(*asked)


def calls_until(out, step):
    """How many calls the judge saw in the first `step` steps, and a few more."""
    metrics = pd.read_csv(out / "metrics.csv").head(step)
    return round((metrics["inserts"] * metrics["rows"]).sum()) + 2


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "iterations": 2, "slices": 2}])
def test_a_resumed_run_equals_an_uninterrupted_one(policy, tmp_path, changes):
    config = dataclasses.replace(tiny.GRPO, **changes)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, whole, seed=3)
    failing = tiny.environment(FailingJudge(calls_until(whole, 2)))
    with pytest.raises(Crash):
        train_grpo(policy, tiny.INSTANCES, failing, config, cut, seed=3)
    assert not (cut / "policy").exists()
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, cut, seed=3, resume=True)
    assert equal(weights(whole / "policy"), weights(cut / "policy"))
    assert not equal(weights(policy), weights(cut / "policy"))
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


def test_a_run_that_trl_generates_resumes_equal_too(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("memalpha_kit.training.trainer.writer_lm", TrainerLM)
    config = dataclasses.replace(tiny.GRPO, steps=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, whole, seed=3)
    failing = tiny.environment(FailingJudge(calls_until(whole, 1)))
    with pytest.raises(Crash):
        train_grpo(policy, tiny.INSTANCES, failing, config, cut, seed=3)
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, cut, seed=3, resume=True)
    assert equal(weights(whole / "policy"), weights(cut / "policy"))
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


def test_metrics_after_the_checkpoint_are_dropped_on_resume(policy, tmp_path):
    config = dataclasses.replace(tiny.GRPO, save_every=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, whole, seed=3)
    failing = tiny.environment(FailingJudge(calls_until(whole, 3)))
    with pytest.raises(Crash):
        train_grpo(policy, tiny.INSTANCES, failing, config, cut, seed=3)
    assert list(pd.read_csv(cut / "metrics.csv")["step"]) == [1, 2, 3]
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, cut, seed=3, resume=True)
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    assert equal(weights(whole / "policy"), weights(cut / "policy"))


def test_an_incomplete_checkpoint_is_not_trusted(finished, tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "weights").write_text("1234")
        if step != 3:  # a crash while it was saved
            mark_complete(path, step)
    (folder / "checkpoint-2" / "weights").write_text("123")  # shorter
    (folder / "checkpoint-4" / "weights").write_text("1324")  # as long, and another
    assert latest_checkpoint(folder).folder.name == "checkpoint-1"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-1"]
    assert latest_checkpoint(tmp_path / "none").step == 0


def test_resuming_a_finished_run_gives_its_policy_and_leaves_its_metrics(policy, finished):
    before = (finished / "metrics.csv").read_bytes(), weights(finished / "policy")
    config = dataclasses.replace(tiny.GRPO, dump_every=2)
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, finished, seed=3, resume=True)
    assert (finished / "metrics.csv").read_bytes() == before[0]
    assert equal(weights(finished / "policy"), before[1])


def test_a_run_with_other_settings_cannot_be_resumed(policy, finished):
    config = dataclasses.replace(tiny.GRPO, learning_rate=0.5)
    with pytest.raises(InputError, match="begun with grpo.learning_rate = 0.01, now it is 0.5"):
        train_grpo(
            policy, tiny.INSTANCES, tiny.environment(), config, finished, seed=3, resume=True
        )


def test_metrics_have_a_row_per_step_with_rewards_calls_and_counts(finished):
    metrics = pd.read_csv(finished / "metrics.csv")
    assert list(metrics["step"]) == [1, 2, 3, 4]
    for name in ("reward", "reward_std", "accuracy", "format", "compression", "content"):
        assert metrics[name].notna().all()
    calls = metrics[["inserts", "updates", "deletes", "other_calls"]].sum(axis=1)
    assert np.allclose(calls, metrics["calls"])
    assert (metrics["rows"] == metrics["rows_trained"]).all()
    assert (metrics["rows_missing"] == 0).all() and (metrics["fill_rows"] == 0).all()
    timings = pd.read_csv(finished / "timings.csv")
    assert {"write_s", "read_s", "reward_s", "step_s"} <= set(timings) - set(metrics)


def test_sampled_episodes_are_dumped_and_can_be_loaded(finished):
    files = sorted((finished / "episodes").iterdir())
    assert [path.name for path in files] == ["step_00001.jsonl", "step_00003.jsonl"]
    episodes = load_episodes(files[0])
    assert len(episodes) == 2
    assert all(answer.score is not None for answer in episodes[0].answers)


def test_a_judge_that_fails_leaves_the_reward_missing_and_the_weights_alone(policy, tmp_path):
    config = dataclasses.replace(tiny.GRPO, steps=1, missing_limit=1.0)
    silent = tiny.environment(lambda *_: None)
    train_grpo(policy, tiny.INSTANCES, silent, config, tmp_path, seed=3)
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["rows_missing"].item() > 0
    assert metrics["rows_trained"].item() == metrics["rows"].item() - metrics["rows_missing"].item()


def test_the_policy_is_trained_on_the_probabilities_it_sampled_with(tmp_path):
    """Decoding and training see one distribution: ids, mask, temperature and shift by one agree."""
    lm, config = tiny.lm(), dataclasses.replace(tiny.GRPO, temperature=0.7)
    rollouts = Rollouts(tiny.INSTANCES, tiny.environment(), config, 0, tmp_path)
    rows, _ = rollouts(0, [0, 1], lm)
    (file,) = tmp_path.iterdir()
    sampled = {e.id: [s.completion.logprobs for s in e.steps] for e in load_episodes(file)}
    batch = rows_to_batch(rows, PAD)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    logprobs, _ = token_logprobs(lm.model, ids, mask, width, temperature=0.7)
    compared = [place for place, one in enumerate(rows) if one.episode in sampled]
    assert compared
    for place in compared:
        expected = sampled[rows[place].episode][rows[place].step]
        assert logprobs[place, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


def test_no_steps_give_the_policy_back(policy, tmp_path):
    config = dataclasses.replace(tiny.GRPO, steps=0)
    train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, tmp_path, seed=3)
    assert equal(weights(policy), weights(tmp_path / "policy"))


def test_every_step_uses_different_instances_and_every_pass_all_that_fit():
    config = dataclasses.replace(tiny.GRPO, steps=5, instances=2)
    order = training_order(5, config, seed=0)
    pairs = [order[i : i + 2] for i in range(0, 10, 2)]
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(set(order[:4])) == 4 and len(set(order[4:8])) == 4
    assert order == training_order(5, config, seed=0) != training_order(5, config, seed=1)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": 1}, "grpo.rollouts: expected at least 2, found 1"),
        ({"temperature": 0.0}, "grpo.temperature: expected more than 0"),
        ({"updates": 2, "slices": 3}, "grpo.slices: expected a multiple of updates"),
        ({"instances": 6}, r"grpo.instances: expected at most .* \(5\), found 6"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path, changes, message):
    config = dataclasses.replace(tiny.GRPO, **changes)
    with pytest.raises(InputError, match=message):
        train_grpo(tmp_path, tiny.INSTANCES, tiny.environment(), config, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_a_content_weight_without_a_judge_is_refused(policy, tmp_path):
    with pytest.raises(InputError, match="reward.content: expected 0 without a judge, found 0.1"):
        train_grpo(policy, tiny.INSTANCES, tiny.environment(None), tiny.GRPO, tmp_path, 0)
    plain = tiny.environment(
        None, reward=RewardConfig(content=0.0), advantage=AdvantageConfig(grouping="chunk")
    )
    config = dataclasses.replace(tiny.GRPO, steps=1)
    train_grpo(policy, tiny.INSTANCES, plain, config, tmp_path, 0)
    assert pd.read_csv(tmp_path / "metrics.csv")["content"].isna().all()


def test_a_trl_without_the_methods_we_replace_is_refused():
    from trl import GRPOTrainer

    check_trl(GRPOTrainer)

    class Renamed:
        def _generate_and_score_completions(self, batch): ...

    with pytest.raises(InputError, match="GRPOTrainer._generate_and_score_completions with inputs"):
        check_trl(Renamed)


def test_a_pad_token_that_ends_replies_is_refused(tmp_path):
    lm = tiny.lm()
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    with pytest.raises(InputError, match="pad token: expected one that is no end token"):
        trainer_for(tmp_path, lm=lm)


# --- on a GPU, with a stand-in for TRL's kernel ---------------------------------------------------


def test_rows_go_through_the_model_without_columns_that_nobody_uses():
    """The same log-probabilities as at full width, from narrower tensors."""
    model, batch = tiny.lm().model, rows_to_batch([*ROWS, row((), prompt=(5,))], PAD, at_least=8)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    n, seen = batch["completion_ids"].shape[1], []

    def compute(model, ids, mask, n_completion, batch_size=None, compute_entropy=False):
        seen.append((len(ids), ids.shape[1] - n_completion, n_completion))
        return *token_logprobs(model, ids, mask, n_completion, 0.7), None

    found = narrowed(compute, model, ids, mask, n, 2, compute_entropy=True)
    whole = token_logprobs(model, ids, mask, n, 0.7)
    assert seen == [(2, 3, 3), (2, 5, 4), (2, 3, 2), (2, 1, 1)]  # rows, prompt, completion
    assert found[2] is None
    for mine, theirs in zip(found, whole, strict=False):
        torch.testing.assert_close(mine, theirs)


def test_a_sharded_run_can_be_built_and_makes_its_optimiser_when_it_trains(tmp_path, monkeypatch):
    """transformers refuses an optimiser that was made before the weights are spread."""
    import transformers

    prepare = transformers.Trainer.create_accelerator_and_postprocess

    def sharded(self):
        prepare(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", sharded)
    trainer = trainer_for(tmp_path, weight_decay=0.01)
    assert trainer.is_fsdp_enabled and trainer.optimizer is None
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays == [0.01, 0.0] and trainer.lr_scheduler.get_last_lr() == [1e-2] * 2


def test_a_sharded_policy_is_saved_from_its_gathered_weights(tmp_path):
    trainer, lm = trainer_for(tmp_path), tiny.lm()
    gathered = {name: value + 1 for name, value in lm.model.state_dict().items()}
    trainer.is_fsdp_enabled = True
    trainer.accelerator.get_state_dict = lambda model: gathered
    trainer.save_live(tmp_path / "policy")
    saved = load_lm(tmp_path / "policy").model.state_dict()
    assert all(torch.equal(saved[name], gathered[name]) for name in gathered)


def test_validation_is_greedy_also_where_all_processes_must_generate_together(tmp_path):
    trainer, lm = trainer_for(tmp_path), tiny.lm()
    writer = TrainerLM(lm, trainer)
    writer.joint = True  # as with sharded weights and without vLLM
    state = torch.get_rng_state()
    found = writer.generate([(5, 6, 7), (8, 9)], Sampling(0.0, 6))
    assert torch.equal(torch.get_rng_state(), state)
    expected = lm.generate([(5, 6, 7), (8, 9)], Sampling(0.0, 6))
    assert [f.completion_ids for f in found] == [e.completion_ids for e in expected]
    assert trainer.generation_kwargs["do_sample"] and trainer.generation_config.do_sample
