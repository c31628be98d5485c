"""GRPO: rows as tensors, the trainer around them, and runs that resume."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_policy as tiny
import torch
from tiny_policy import row, same

from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json, save_json
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.local import Sampling, load_lm
from memalpha_kit.settings import AdvantageConfig, RewardConfig
from memalpha_kit.training.batch import narrowed, rows_to_batch, token_logprobs, trained
from memalpha_kit.training.grpo import (
    check,
    content_hash,
    latest_checkpoint,
    mark_complete,
    train_grpo,
    training_order,
)
from memalpha_kit.training.journal import Journal, flat_because
from memalpha_kit.training.rollouts import Rollouts, TrainerLM

PAD = 0
ROWS = (
    row((11, 12, 13), 1.5, (5,)),
    row((21,), -0.5),
    row((31, 32), 1.2, (8, 9)),
    row((41, 42, 43, 44), -1.0, (5, 6, 7, 8, 9)),
    row((51, 52), -0.7),
)
MISSING = row((61, 62), mask=(0, 0), reward=None)


# --- rows as tensors ------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    batch = rows_to_batch(ROWS[:3], PAD)
    assert batch["prompt_ids"].tolist() == [[0, 0, 5], [5, 6, 7], [0, 8, 9]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert batch["completion_ids"].tolist() == [[11, 12, 13], [21, 0, 0], [31, 32, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["advantages"].tolist() == pytest.approx([1.5, -0.5, 1.2])
    assert batch["num_items_in_batch"].item() == 6


def test_fill_rows_are_all_padding_and_rows_without_a_reward_are_left_out():
    batch, plain = rows_to_batch([*ROWS, MISSING], PAD, multiple=4), rows_to_batch(ROWS, PAD)
    assert trained([*ROWS, MISSING]) == list(ROWS)
    assert batch["completion_mask"].sum(1).tolist() == [3, 1, 2, 4, 2, 0, 0, 0]
    assert batch["completion_ids"][5:].eq(PAD).all() and batch["advantages"][5:].eq(0).all()
    assert batch["num_items_in_batch"].item() == plain["num_items_in_batch"].item() == 12
    only = rows_to_batch([MISSING], PAD, multiple=2)
    assert only["completion_ids"].shape == (2, 1) and only["num_items_in_batch"].item() == 0


def test_forced_tokens_are_seen_but_not_learned_and_a_prompt_holds_no_pad_token():
    batch = rows_to_batch([row((11, 12, 13), 1.0, mask=(1, 0, 1))], PAD)
    assert batch["completion_mask"].tolist() == [[1, 1, 1]]
    assert batch["tool_mask"].tolist() == [[1, 0, 1]]
    assert batch["num_items_in_batch"].item() == 2
    with pytest.raises(InputError, match="e: step 0: the prompt contains the pad token"):
        rows_to_batch([row((1,), prompt=(5, PAD))], PAD)


# --- log-probabilities ----------------------------------------------------------------------------


def tensors(batch):
    """Ids, mask and width of the completions."""
    parts = [
        torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask")
    ]
    return *parts, batch["completion_ids"].shape[1]


def test_rows_go_through_the_model_without_columns_that_nobody_uses():
    """The same log-probabilities as at full width, from narrower tensors."""
    model, batch = tiny.lm().model, rows_to_batch([*ROWS, row((), prompt=(5,))], PAD, at_least=8)
    ids, mask, n = tensors(batch)
    seen = []

    def compute(model, ids, mask, n_completion, batch_size=None, compute_entropy=False):
        seen.append((len(ids), ids.shape[1] - n_completion, n_completion))
        return *token_logprobs(model, ids, mask, n_completion, 0.7), None

    found = narrowed(compute, model, ids, mask, n, 2, compute_entropy=True)
    whole = token_logprobs(model, ids, mask, n, 0.7)
    assert seen == [(2, 3, 3), (2, 5, 4), (2, 3, 2), (2, 1, 1)]  # rows, prompt, completion
    assert found[2] is None
    for mine, theirs in zip(found, whole, strict=False):
        torch.testing.assert_close(mine, theirs)
    logprobs, entropies = whole
    scored = batch["completion_mask"].bool()
    assert logprobs[~scored].eq(0).all() and entropies[~scored].eq(0).all()
    assert entropies[scored].gt(0).all() and not entropies.requires_grad


def test_the_policy_is_trained_on_the_probabilities_it_sampled_with(tmp_path):
    """Decoding and training see one distribution: ids, mask, temperature and shift by one agree."""
    lm, config = tiny.lm(), replace(tiny.GRPO, temperature=0.7)
    rows, _ = Rollouts(tiny.run(tmp_path, config=config))(0, [0, 1], lm)
    (file,) = (tmp_path / "episodes").iterdir()
    sampled = {e.id: [s.completion.logprobs for s in e.steps] for e in load_episodes(file)}
    logprobs, _ = token_logprobs(lm.model, *tensors(rows_to_batch(rows, PAD)), temperature=0.7)
    compared = [place for place, one in enumerate(rows) if one.episode in sampled]
    assert compared
    for place in compared:
        expected = sampled[rows[place].episode][rows[place].step]
        assert logprobs[place, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


# --- the trainer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_equal_rewards_do_not_move_the_weights(tmp_path, optimizer):
    lm = tiny.lm()
    before = copy.deepcopy(lm.model)
    rows = [replace(one, advantage=0.0) for one in ROWS]
    tiny.trainer(tmp_path, rows, lm, steps=2, optimizer=optimizer).train()
    assert tiny.equal(before, lm.model)


def test_a_sharded_run_can_be_built_and_makes_its_optimiser_when_it_trains(tmp_path, monkeypatch):
    """transformers refuses an optimiser that was made before the weights are spread."""
    import transformers

    prepare = transformers.Trainer.create_accelerator_and_postprocess

    def sharded(self):
        prepare(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", sharded)
    trainer = tiny.trainer(tmp_path, ROWS, weight_decay=0.01)
    assert trainer.is_fsdp_enabled and trainer.optimizer is None
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays == [0.01, 0.0] and trainer.lr_scheduler.get_last_lr() == [1e-2] * 2


def test_a_sharded_policy_is_saved_from_its_gathered_weights(tmp_path):
    trainer = tiny.trainer(tmp_path, ROWS)
    gathered = {name: value + 1 for name, value in trainer.lm.model.state_dict().items()}
    trainer.is_fsdp_enabled = True
    trainer.accelerator.get_state_dict = lambda model: gathered
    trainer.save_live(tmp_path / "policy")
    assert tiny.equal(gathered, tiny.weights(tmp_path / "policy"))


def test_validation_is_greedy_also_where_all_processes_must_generate_together(tmp_path):
    trainer, lm = tiny.trainer(tmp_path, ROWS), tiny.lm()
    writer = TrainerLM(lm, trainer)
    writer.joint = True  # as with sharded weights and without vLLM
    state = torch.get_rng_state()
    found = writer.generate([(5, 6, 7), (8, 9)], Sampling(0.0, 6))
    assert torch.equal(torch.get_rng_state(), state)
    expected = lm.generate([(5, 6, 7), (8, 9)], Sampling(0.0, 6))
    assert [f.completion_ids for f in found] == [e.completion_ids for e in expected]
    assert trainer.generation_kwargs["do_sample"] and trainer.generation_config.do_sample


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory):
    """An uninterrupted run of four steps."""
    run = tiny.run(tmp_path_factory.mktemp("whole"), policy, replace(tiny.GRPO, dump_every=2))
    train_grpo(run)
    return run


@pytest.mark.parametrize(
    ("changes", "step", "by_trl"),
    [
        ({}, 2, False),
        ({"optimizer": "muon", "iterations": 2, "slices": 2}, 2, False),
        ({"save_every": 2}, 3, False),  # metrics of step 3 are behind the checkpoint
        ({"steps": 2}, 1, True),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    policy, tmp_path, monkeypatch, changes, step, by_trl
):
    if by_trl:
        monkeypatch.setattr("memalpha_kit.training.trainer.writer_lm", TrainerLM)
    config = replace(tiny.GRPO, **changes)
    whole, cut = (tiny.run(tmp_path / name, policy, config) for name in ("whole", "cut"))
    train_grpo(whole)
    with tiny.at_step(step, tiny.power_cut), pytest.raises(KeyboardInterrupt):
        train_grpo(cut)
    assert not (cut.out / "policy").exists()
    assert list(pd.read_csv(cut.out / "metrics.csv")["step"]) == list(range(1, step + 1))
    train_grpo(cut, resume=True)
    assert same(whole.out, cut.out, "metrics.csv")
    assert not tiny.equal(tiny.weights(policy), tiny.weights(cut.out / "policy"))


def test_a_checkpoint_that_is_cut_off_or_changed_is_not_trusted(tmp_path):
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


def test_resuming_a_finished_run_gives_its_policy_and_leaves_its_metrics(finished):
    before = (finished.out / "metrics.csv").read_bytes(), tiny.weights(finished.out / "policy")
    train_grpo(finished, resume=True)
    assert (finished.out / "metrics.csv").read_bytes() == before[0]
    assert tiny.equal(before[1], tiny.weights(finished.out / "policy"))


def test_a_run_with_other_settings_or_other_chunks_cannot_be_resumed(finished):
    faster = replace(finished.config, learning_rate=0.5)
    with pytest.raises(InputError, match="begun with grpo.learning_rate = 0.01, now it is 0.5"):
        train_grpo(replace(finished, config=faster), resume=True)
    first, *rest = tiny.INSTANCES
    edited = replace(first, chunks=("fact 99",))
    assert edited.id == first.id and content_hash([edited]) != content_hash([first])
    with pytest.raises(InputError, match="begun with other content of instances"):
        train_grpo(replace(finished, instances=(edited, *rest)), resume=True)


def test_a_constant_rate_may_go_on_for_more_steps_than_were_asked_for_and_not_for_fewer(
    policy, tmp_path
):
    config = replace(tiny.GRPO, schedule="constant", steps=2)
    run = tiny.run(tmp_path, policy, config)
    train_grpo(run)
    with pytest.raises(InputError, match=r"grpo.steps: expected at least .* \(2\), found 1"):
        train_grpo(replace(run, config=replace(config, steps=1)), resume=True)
    train_grpo(replace(run, config=replace(config, steps=3)), resume=True)
    assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == [1, 2, 3]


def test_metrics_have_a_row_per_step_with_rewards_calls_and_counts(finished):
    metrics = pd.read_csv(finished.out / "metrics.csv")
    assert list(metrics["step"]) == [1, 2, 3, 4]
    for name in ("reward", "reward_std", "accuracy", "format", "compression", "content"):
        assert metrics[name].notna().all()
    calls = metrics[["inserts", "updates", "deletes", "other_calls"]].sum(axis=1)
    assert np.allclose(calls, metrics["calls"])
    assert (metrics["rows"] == metrics["rows_trained"]).all()
    assert (metrics["rows_missing"] == 0).all() and (metrics["fill_rows"] == 0).all()
    timings = pd.read_csv(finished.out / "timings.csv")
    assert {"write_s", "read_s", "reward_s", "step_s"} <= set(timings) - set(metrics)
    files = sorted((finished.out / "episodes").iterdir())
    assert [path.name for path in files] == ["step_00001.jsonl", "step_00003.jsonl"]
    episodes = load_episodes(files[0])
    assert len(episodes) == 2 and all(answer.score is not None for answer in episodes[0].answers)


def test_several_updates_per_step_and_a_kl_term_use_old_and_reference_log_probabilities(
    policy, tmp_path
):
    config = replace(tiny.GRPO, steps=2, iterations=2, updates=2, slices=4, kl=0.01)
    train_grpo(tiny.run(tmp_path, policy, config))
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert list(metrics["step"]) == [1, 2]  # a row per step, not per optimiser step
    assert (metrics["kl"] > 0).all()
    assert latest_checkpoint(tmp_path / "checkpoints").folder.name == "checkpoint-8"


def test_a_judge_that_fails_leaves_the_reward_missing_and_no_steps_give_the_policy_back(
    policy, tmp_path
):
    config = replace(tiny.GRPO, steps=1, missing_limit=1.0)
    train_grpo(tiny.run(tmp_path, policy, config, judge=lambda *_: None))
    (row,) = pd.read_csv(tmp_path / "metrics.csv").itertuples()
    assert row.rows_missing > 0 and row.rows_trained == row.rows - row.rows_missing
    train_grpo(tiny.run(tmp_path / "none", policy, replace(tiny.GRPO, steps=0)))
    assert tiny.equal(tiny.weights(policy), tiny.weights(tmp_path / "none" / "policy"))


def test_every_step_uses_different_instances_and_every_pass_all_that_fit():
    config = replace(tiny.GRPO, steps=5, instances=2)
    order = training_order(5, config, seed=0)
    pairs = [order[i : i + 2] for i in range(0, 10, 2)]
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(set(order[:4])) == 4 and len(set(order[4:8])) == 4
    assert order == training_order(5, config, seed=0) != training_order(5, config, seed=1)


# --- steps that teach nothing ---------------------------------------------------------------------

FLAT = {"rows_trained": 8, "flat_rows": 1.0, "calls": 2.0, "calls_ok": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"calls_ok": 0.0}, "no call was valid"),
        ({"calls": 0.0, "calls_ok": 0.0, "cut_replies": 1.0}, "every reply was cut off"),
        ({"same_replies": 1.0, "accuracy": 0.0}, "all rollouts wrote the same"),
        ({"accuracy": 0.0}, "every answer was wrong"),
        ({"accuracy": 1.0}, "every answer was right"),
        ({"same_replies": 0.5, "content": 0.5}, "all rewards of a group were equal"),
    ],
)
def test_the_likely_cause_of_equal_rewards_is_named_the_first_that_holds(changes, cause):
    assert flat_because(FLAT | changes).startswith(cause)
    unjudged = flat_because(FLAT | changes | {"content": None})
    assert unjudged.startswith(cause) and unjudged.endswith("nobody judges (reward.content)")
    unweighed = flat_because(FLAT | changes | {"content": None}, judged=False)
    assert unweighed == flat_because(FLAT | changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, "all rewards of a group were equal"),
        ({"calls": 0.0, "calls_ok": 0.0}, "no reply had a call"),
        ({"rows_trained": 0}, "no row had a reward"),
        ({"flat_rows": 0.5, "grad_norm": 0.0}, "the gradient was zero"),
    ],
)
def test_steps_that_cannot_learn_are_told_and_some_in_a_row_are_a_warning(
    tmp_path, caplog, capsys, monkeypatch, changes, cause
):
    monkeypatch.setattr("memalpha_kit.progress.QUIET_S", 0.0)
    with caplog.at_level(logging.WARNING):
        journal = Journal(tmp_path, replace(tiny.GRPO, steps=6), 6)
        with journal.bar:
            for step in range(1, 7):
                moves = {"flat_rows": 0.0, "grad_norm": 1.0} if step == 2 else changes
                journal.log(step, FLAT | moves)
                assert (cause in journal.note) == (step != 2)
                assert f"{step - (step > 1)} of {step} steps taught nothing" in journal.note
                journal.advance(1)
    (warning,) = caplog.messages  # steps 3, 4 and 5
    assert warning.startswith(f"GRPO: the last 3 of 5 steps taught nothing: {cause}")
    assert cause in capsys.readouterr().err
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        last = Journal(tmp_path, replace(tiny.GRPO, steps=1), 2)  # no bar is shown any more
        last.log(1, FLAT)
    (warning,) = caplog.messages
    assert warning.startswith("GRPO: the last 1 of 1 steps taught nothing: all rewards")


def test_a_step_formats_its_own_row_and_all_rows_only_where_it_brings_a_column(
    tmp_path, monkeypatch
):
    sizes, to_csv = [], pd.DataFrame.to_csv
    monkeypatch.setattr(
        pd.DataFrame,
        "to_csv",
        lambda table, **how: sizes.append(len(table)) or to_csv(table, **how),
    )
    journal = Journal(tmp_path, replace(tiny.GRPO, steps=5), 5)
    rows = [{"loss": 0.5}, {"loss": 1 / 3}, {"loss": 2.0, "kl": 1e-9}, {"kl": 0.25}]
    for step, measures in enumerate(rows, 1):
        journal.log(step, measures)
    assert sizes[1::2] == [1, 1, 3, 1]  # every other one is of timings
    expected = to_csv(pd.DataFrame(rows, index=pd.Index([1, 2, 3, 4], name="step")))
    assert (tmp_path / "metrics.csv").read_text() == expected


def test_progress_is_told_chunk_by_chunk_inside_a_step(tmp_path):
    told = []
    Rollouts(tiny.run(tmp_path), told.append)(0, [0, 1], tiny.lm())
    assert told == [8, 4]  # two instances of one and of two chunks, four rollouts each


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 2, "slices": 3}, "slices: expected a multiple of updates"),
        ({"instances": 6}, r"grpo.instances: expected at most .* \(5\), found 6"),
        ({"validate_every": 1}, "grpo.validate_every: expected 0 without held-out instances"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train_grpo(tiny.run(tmp_path / "out", tmp_path, replace(tiny.GRPO, **changes)))
    assert not (tmp_path / "out").exists()


def test_what_two_processes_cannot_share_is_refused(tmp_path):
    for changes, message in (
        ({"instances": 3}, "grpo.instances: expected a multiple of the number of processes"),
        ({"loss": "bnpo"}, "grpo.loss: expected another than bnpo with several processes"),
    ):
        with pytest.raises(InputError, match=message):
            check(tiny.run(tmp_path, config=replace(tiny.GRPO, **changes)), n_processes=2)


def test_a_content_weight_without_a_judge_is_refused(policy, tmp_path):
    with pytest.raises(InputError, match="reward.content: expected 0 without a judge, found 0.1"):
        train_grpo(tiny.run(tmp_path, policy, judge=None))
    parts = {"reward": RewardConfig(content=0.0), "advantage": AdvantageConfig(grouping="chunk")}
    train_grpo(tiny.run(tmp_path, policy, replace(tiny.GRPO, steps=1), judge=None, **parts))
    assert pd.read_csv(tmp_path / "metrics.csv")["content"].isna().all()


def test_stop_ids_and_sampling_defaults_of_the_base_stay_with_the_trained_policy(tmp_path):
    """Loading blanks them, so that they do not sample for us."""
    policy = tiny.saved(tmp_path / "policy")
    told = {"eos_token_id": [1, 9], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    save_json(policy / "generation_config.json", told)
    train_grpo(tiny.run(tmp_path / "run", policy, replace(tiny.GRPO, steps=1)))
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    for folder in (tmp_path / "run" / "policy", checkpoint):
        kept = load_json(folder / "generation_config.json")
        assert kept == told | {"pad_token_id": 0} and load_lm(folder).stop_ids == (1, 9)
