"""Long GRPO runs: NaN, outages, full disks, looks, overlap. Nothing made up, nothing lost."""

from __future__ import annotations

import itertools
import json
import logging
import math
import threading
from dataclasses import replace
from unittest.mock import Mock

import pandas as pd
import pytest
import tiny_policy as tiny
import torch
from tiny_policy import row, same

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.records import Answer
from memalpha_kit.training.backends import trl_arguments
from memalpha_kit.training.grpo import latest_checkpoint, train_grpo
from memalpha_kit.training.rollouts import Rollouts, TrainingStopped, patiently

QUICK = replace(tiny.GRPO, steps=2, outage_pause_s=0.0, dump_every=0)
HELD_OUT = tuple(tiny.instance(first) for first in (40, 50, 60))


@pytest.fixture(scope="module")
def healthy(policy, tmp_path_factory):
    """An undisturbed run of two steps."""
    return trained(policy, tmp_path_factory.mktemp("healthy"))


def trained(policy, out, config=QUICK, resume=False, **changes):
    """The folder of a run, with another reader, say."""
    train_grpo(tiny.run(out, policy, config, validation=HELD_OUT, **changes), resume)
    return out


class Reader(BestEntry):
    """The tiny world's reader, but the calls numbered in `bad` raise `error` or give no answer."""

    def __init__(self, bad=(), error=None):
        self.__dict__ |= {"bad": set(bad), "error": error, "calls": 0, "threads": set()}

    def __repr__(self):
        return repr(BestEntry())  # so that a run may be resumed with the one or the other

    def read(self, requests, done=None):
        self.__dict__["calls"] += 1
        self.threads.add(threading.current_thread().name)
        if self.calls in self.bad:
            if self.error:
                raise self.error
            return [Answer(request.id, None) for request in requests]
        return BestEntry().read(requests, done)


# --- NaN ------------------------------------------------------------------------------------------


def trainer_of(tmp_path, advantages, **changes):
    """A trainer whose steps have these advantages, and the weights before each of them."""
    lm, seen = tiny.lm(), []

    def rows(step):
        seen.append([p.detach().clone() for p in lm.model.parameters()])
        return [row((11, 12), advantages[step], (5, 6))]

    return tiny.trainer(tmp_path, rows, lm, steps=len(advantages), **changes), seen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_with_a_bad_gradient_is_skipped_and_counted(tmp_path, bad, optimizer):
    trainer, weights = trainer_of(tmp_path, [1.0, bad, 1.0, 1.0], optimizer=optimizer)
    trainer.train()
    still = [all(map(torch.equal, *pair)) for pair in itertools.pairwise(weights)]
    assert still == [False, True, False]
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log.get("skipped_updates", 0) for log in logs] == [0, 1, 0, 0]
    assert [math.isfinite(log["loss"]) for log in logs] == [True, False, True, True]


def test_training_stops_after_some_bad_updates_in_a_row(tmp_path):
    trainer, weights = trainer_of(tmp_path, [1.0, math.nan, 1.0, math.nan, math.nan], skip_limit=2)
    with pytest.raises(TrainingStopped, match="nan in 2 updates in a row .grpo.skip_limit.*resume"):
        trainer.train()
    assert len(weights) == 5
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


# --- Outages --------------------------------------------------------------------------------------


def test_what_is_missing_is_asked_for_again_after_pauses_that_double(caplog):
    config = replace(QUICK, missing_limit=0.1, outage_pause_s=2.0, outage_retries=3)
    pauses = []
    results = Mock(side_effect=[ModelGone("gone"), 0.5, ConnectionError("cut"), 0.1])
    with caplog.at_level(logging.WARNING):
        assert patiently(results, lambda share: share, config, pauses.append) == 0.1
    assert pauses == [2.0, 4.0, 8.0]
    told = [message.partition(": try ")[2] for message in caplog.messages]
    assert told == ["1 of 4: gone", "2 of 4: 50% missing", "3 of 4: cut"]


def test_training_stops_when_asking_again_does_not_help_and_waits_for_nothing_else():
    config = replace(QUICK, outage_retries=1)
    with pytest.raises(TrainingStopped, match="at most 20% .* found after 2 tries: 30% missing; "):
        patiently(lambda: 0.3, lambda share: share, config)
    with pytest.raises(KeyError):
        patiently(Mock(side_effect=KeyError("a bug")), lambda share: share, config)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [None, ModelGone("the server is down")])
def test_a_run_with_a_reader_that_comes_back_equals_a_healthy_one(
    policy, healthy, tmp_path, error, overlap
):
    flaky = Reader({1, 2}, error)
    trained(policy, tmp_path, replace(QUICK, overlap=overlap), reader=flaky)
    assert flaky.calls > 2 and same(healthy, tmp_path, "metrics.csv")


def test_a_reader_that_stays_away_stops_the_run_which_can_be_resumed(policy, healthy, tmp_path):
    gone = Reader(range(2, 1000), ModelGone("the server is down"))
    with pytest.raises(TrainingStopped, match="the server is down; what was trained so far is kep"):
        trained(policy, tmp_path, reader=gone)
    assert latest_checkpoint(tmp_path / "checkpoints").step == 1
    assert not (tmp_path / "policy").exists()
    trained(policy, tmp_path, resume=True)
    assert same(healthy, tmp_path, "metrics.csv")


def test_a_judge_that_fails_too_often_stops_the_run(policy, tmp_path):
    with pytest.raises(TrainingStopped, match="100% missing"):
        trained(policy, tmp_path, replace(QUICK, outage_retries=0), judge=lambda *_: None)


def test_asking_while_others_are_written_gives_the_same_rows(tmp_path):
    """Instances of one and of three chunks: the short ones are asked about in a thread."""
    instances, results = [tiny.instance(0, 1), tiny.instance(10, 3)], []
    for overlap in (False, True):
        reader, config = Reader(), replace(QUICK, overlap=overlap)
        run = tiny.run(tmp_path, config=config, instances=instances, reader=reader)
        rows, measures = Rollouts(run)(0, [0, 1], tiny.lm())
        results.append((rows, {k: v for k, v in measures.items() if not k.endswith("_s")}))
        assert (threading.current_thread().name in reader.threads) != overlap
    assert results[0] == results[1]


# --- Disk -----------------------------------------------------------------------------------------


# --- Validation -----------------------------------------------------------------------------------

LOOKING = replace(QUICK, steps=4, validate_every=1, validate_instances=3)


@pytest.fixture(scope="module")
def looked(policy, tmp_path_factory):
    return trained(policy, tmp_path_factory.mktemp("looked"), LOOKING)


def test_the_best_policy_on_held_out_instances_is_kept(looked):
    table = pd.read_csv(looked / "validation.csv")
    assert list(table["step"]) == [1, 2, 3, 4]
    best = json.loads((looked / "best" / "best.json").read_text())
    assert best["step"] == table["step"][table["accuracy"].idxmax()]
    assert best["accuracy"] == pytest.approx(table["accuracy"].max())
    assert tiny.weights(looked / "best" / "policy")


def test_looking_changes_no_weight(policy, looked, tmp_path):
    trained(policy, tmp_path, replace(LOOKING, validate_every=0))
    assert same(looked, tmp_path, "metrics.csv")
    assert not (tmp_path / "best").exists() and not (tmp_path / "validation.csv").exists()


def test_a_resumed_run_has_the_same_best_policy(policy, looked, tmp_path):
    gone = Reader(range(5, 1000), ModelGone("down"))  # in the third step: each asks twice
    with pytest.raises(TrainingStopped):
        trained(policy, tmp_path, LOOKING, reader=gone)
    trained(policy, tmp_path, LOOKING, resume=True)
    kept = ("metrics.csv", "validation.csv", "best/best.json", "best/policy/model.safetensors")
    assert same(looked, tmp_path, *kept)


# --- Trackers -------------------------------------------------------------------------------------


def test_trackers_are_passed_on_and_one_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    assert trl_arguments(tiny.run(tmp_path), on_cpu=True).report_to == []
    tracked = tiny.run(tmp_path / "run", config=replace(QUICK, report_to=("trackio",)))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match="grpo.report_to: expected trackio to be installed"):
            trl_arguments(tracked, on_cpu=True)
    monkeypatch.setattr("memalpha_kit.training.backends.check_installed", lambda *_: None)
    arguments = trl_arguments(tracked, on_cpu=True)
    assert arguments.report_to == ["trackio"] and arguments.run_name == "run"
