"""One set of rollouts under every grouping: statistics by hand, gradients against autograd."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.cli import main
from memalpha_kit.errors import InputError
from memalpha_kit.figures.grouping import plot_grouping
from memalpha_kit.lab import grouping, miniature
from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import AdvantageConfig, GrpoConfig, load_profile
from memalpha_kit.training.loss import grpo_loss

R = ((1.8950, 1.3450, 1.8700), (1.5875, 0.5375, 1.3875))  # as in test_rewards.py


def batch(rewards=R, instances=("q", "q")):
    """Rollouts with these rewards; the rows' tokens are different ones."""
    rows = [
        TrainingRow((5, 6), (10 + 10 * i + t, 11 + t), (1, 1), reward, 0.0, q, f"{q}#{i}", t)
        for i, (steps, q) in enumerate(zip(rewards, instances, strict=True))
        for t, reward in enumerate(steps)
    ]
    return grouping.Batch(tuple(instances), tuple(map(tuple, rewards)), tuple(rows))


# --- advantages -----------------------------------------------------------------------------------


def test_the_released_setting_is_that_of_the_worked_example():
    values = batch().advantages(grouping.RELEASED)
    assert values == pytest.approx([0.9195, -0.1849, 0.8693, 0.3021, -1.8065, -0.0996], abs=5e-5)
    found = grouping.statistics(batch(), grouping.RELEASED)
    assert found["sign_flips"] == found["zero_rows"] == 0.0
    assert found["variance"] == pytest.approx(5 / 6, abs=1e-5)  # unbiased 1, biased 5/6


def test_statistics_of_the_other_groupings_by_hand():
    (a, b), values = map(np.mean, R), batch().advantages(grouping.UNBIASED)
    assert values == pytest.approx([*(np.array(R[0]) - b), *(np.array(R[1]) - a)])
    by_chunk = grouping.statistics(batch(), AdvantageConfig(grouping="chunk"))
    assert by_chunk["by_chunk"] == pytest.approx(0.0, abs=1e-12)  # nothing but the comparison
    assert by_chunk["by_rollout"] == pytest.approx(1.0)  # two rollouts: A wins every chunk
    assert by_chunk["sign_flips"] == pytest.approx(2 / 6)  # rows A2 and B1
    by_rollout = grouping.statistics(batch(), AdvantageConfig(grouping="rollout"))
    assert by_rollout["by_rollout"] == pytest.approx(1.0)
    assert by_rollout["sign_flips"] == pytest.approx(2 / 6)


def test_shares_explained_by_chunk_and_rollout_are_sums_of_squares():
    values = np.array([1.0, 3.0, 1.0, 3.0])
    assert grouping.explained(values, ["a", "b", "a", "b"]) == 1.0
    assert grouping.explained(values, ["a", "a", "b", "b"]) == pytest.approx(16 / 20)
    assert np.isnan(grouping.explained(np.zeros(2), ["a", "b"]))


def test_rows_without_a_reward_are_left_out_and_flat_groups_are_zero():
    gap = batch(((1.0, None, 2.0), (2.0, 1.0, 4.0)))
    assert (
        grouping.statistics(gap, grouping.RELEASED)["zero_rows"] == 2 / 5
    )  # both rewards of 2.0 are the mean
    flat = batch(((1.0, 1.0), (1.0, 1.0)))
    found = grouping.statistics(flat, grouping.RELEASED)
    assert found["zero_rows"] == 1.0 and found["variance"] == 0.0
    assert np.isnan(found["sign_flips"])
    table = grouping.table_advantages([batch(), batch(((1.0, 0.0, 0.5), (0.0, 1.0, 0.2)))])
    assert len(table) == len(grouping.SETTINGS) * 5
    assert (table.batches == 2).all() and (table.low <= table["mean"]).all()


# --- gradients ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny.lm().model


@pytest.mark.parametrize("loss", ["dapo", "grpo"])
def test_a_step_s_gradient_is_that_of_the_loss(model, loss):
    config = GrpoConfig(loss=loss, temperature=0.7)
    found = grouping.step_gradients(model, [batch()], config)[0]
    for setting, gradient in zip(grouping.SETTINGS, found, strict=True):
        weights = batch().advantages(setting)
        pairs = zip(batch().rows, weights, strict=True)
        rows = [dataclasses.replace(row, advantage=w) for row, w in pairs]
        model.zero_grad()
        grpo_loss(model, rows, config, 6).backward()
        whole = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
        factor = 12 if loss == "dapo" else 6  # what all rows share: tokens, rows
        assert np.abs(gradient - factor * whole).max() < 1e-4 * np.abs(gradient).max()


def test_cosines_are_of_the_same_and_of_other_rollouts():
    east, north = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    gradients = np.stack([np.tile(east, (8, 1)), np.tile(east + north, (8, 1))])
    gradients[1, grouping.SETTINGS.index(grouping.UNBIASED)] = north
    table = grouping.table_cosine(gradients.astype(np.float32))
    raw = table[table["view"] == "as it is"]
    assert len(table) == 2 * (8 * 7 // 2 + 8 + 8)
    same = raw[raw.kind == "same rollouts"].set_index(["grouping", "scale", "other_grouping"])
    assert same.loc[("chunk", "std", "instance"), "mean"].tolist() == pytest.approx([1.0, 1.0])
    other = raw[raw.kind == "other rollouts"].set_index(["grouping", "scale"])
    assert other.loc[("chunk", "std"), "mean"] == pytest.approx(np.sqrt(0.5))
    assert other.loc[("leave_one_out", "none"), "mean"] == pytest.approx(0.0)
    towards = raw[raw.kind == "unbiased direction"].set_index(["grouping", "scale"])
    assert towards.loc[("instance", "std"), "mean"] == pytest.approx((0 + np.sqrt(0.5)) / 2)
    assert towards.loc[("instance", "std"), "gain"] == 0.0


def test_a_gradient_of_zero_has_no_direction():
    gradients = np.ones((3, 8, 4), dtype=np.float32)
    gradients[0, grouping.SETTINGS.index(AdvantageConfig(grouping="chunk"))] = 0.0
    table = grouping.table_cosine(gradients)
    chunk = table[(table.kind == "other rollouts") & (table.grouping == "chunk")]
    assert chunk[chunk.scale == "std"].batches.tolist() == [2, 2]
    assert chunk[chunk.scale == "std"]["mean"].tolist() == pytest.approx([1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also where no row has a gradient
        assert grouping.table_cosine(np.zeros((2, 8, 4), dtype=np.float32))["mean"].isna().all()
    with pytest.raises(InputError, match="expected at least 2 batches, found 1"):
        grouping.table_cosine(gradients[:1])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_measures_two_stages_and_trains_once(tmp_path, monkeypatch):
    out, runs = tmp_path / "out", tmp_path / "runs"
    command = ["grouping", "--profile", "ci", "--batches", "2", "--steps", "1"]
    command += ["--out", str(out), "--runs", str(runs)]
    assert main(command) == 0
    first = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    assert set(first) == {"advantages.csv", "cosine.csv"}
    with monkeypatch.context() as patch:
        patch.setattr(miniature, "warm_start", None)  # would fail if it were called
        patch.setattr(miniature, "train", None)
        assert main(command) == 0
    assert first == {path.name: path.read_bytes() for path in out.glob("*.csv")}
    table = pd.read_csv(out / "advantages.csv")
    assert list(dict.fromkeys(table.stage)) == ["warm start", "after 1 steps"]
    names = sorted(path.name for path in (runs / "episodes" / "warm_start").iterdir())
    assert names == ["batch_001.jsonl", "batch_002.jsonl"]  # not those it was trained on
    assert (out / "grouping.png").stat().st_size > 10_000 and (out / "run.json").is_file()
    figure = plot_grouping(table, pd.read_csv(out / "cosine.csv"))
    assert len(figure.axes) == 3
    profile, (policy,) = load_profile("ci"), runs.glob("seed_0/warm_start-*/policy")
    early, late = (grouping.collect(profile, policy, n, first) for n, first in ((2, 0), (1, 1)))
    assert early[1] == late[0]  # a batch depends on its place only
    assert len(early[0].rows) == sum(map(len, early[0].rewards))
    assert len(set(early[0].instances)) == profile.grpo.instances
    first = {row.completion_ids for row in early[0].rows if row.step == 0}
    assert len(first) > profile.grpo.instances  # rollouts are drawn, though evaluation is greedy


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batches", "1"], "'--batches': expected at least 2"),
        (["--steps", "-1"], "'--steps': expected at least 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(argv, message, capsys, tmp_path):
    assert main(["grouping", "--runs", str(tmp_path / "r"), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
