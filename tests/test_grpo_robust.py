"""Long GRPO runs: NaN, outages, full disks, looks, overlap. Nothing made up, nothing lost."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading

import pandas as pd
import pytest
import tiny_policy as tiny
import torch

from memalpha_kit import files as store
from memalpha_kit.errors import DiskError, InputError, ModelGone
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.models.local import load_lm
from memalpha_kit.records import Answer, TrainingRow
from memalpha_kit.training.arguments import trl_arguments
from memalpha_kit.training.grpo import Rollouts, train_grpo
from memalpha_kit.training.journal import latest_checkpoint
from memalpha_kit.training.outage import TrainingStopped, patiently
from memalpha_kit.training.trainer import EpisodeTrainer

QUICK = dataclasses.replace(tiny.GRPO, steps=2, outage_pause_s=0.0, dump_every=0)
HELD_OUT = tuple(tiny.instance(first) for first in (40, 50, 60))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="module")
def healthy(policy, tmp_path_factory):
    """An undisturbed run of two steps."""
    return run(policy, tmp_path_factory.mktemp("healthy"))


def run(policy, out, config=QUICK, resume=False, **changes):
    """A run in `out`, with another reader, say."""
    environment = tiny.environment(**changes)
    train_grpo(policy, tiny.INSTANCES, environment, config, out, 3, resume, HELD_OUT)
    return out


def same(one, other, *files):
    """Whether two runs have the same policy, and the same bytes in these files."""
    before, after = (load_lm(out / "policy").model.state_dict() for out in (one, other))
    equal = all(torch.equal(before[name], after[name]) for name in before)
    return equal and all((one / f).read_bytes() == (other / f).read_bytes() for f in files)


class Reader:
    """The tiny world's reader, but the calls numbered in `bad` raise `error` or give no answer."""

    def __init__(self, bad=(), error=None):
        self.bad, self.error, self.calls, self.threads = set(bad), error, 0, set()

    name = "flaky"

    def __repr__(self):
        return repr(BestEntry())  # so that a run may be resumed with the one or the other

    def read(self, requests, done=None):
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        if self.calls in self.bad:
            if self.error:
                raise self.error
            return [Answer(request.qa, None) for request in requests]
        return BestEntry().read(requests)


# --- NaN ------------------------------------------------------------------------------------------


def trained(tmp_path, advantages, **changes):
    """The trainer, the weights after each step and the logs of training with these advantages."""
    lm, seen = tiny.lm(), []
    config = dataclasses.replace(QUICK, steps=len(advantages), save_every=0, **changes)

    def collect(step, places, _):
        seen.append([p.detach().clone() for p in lm.model.parameters()])
        row = TrainingRow((5, 6), (11, 12), (1, 1), 1.0, advantages[step], "g", "e", 0)
        return [row], {"reward": 1.0}

    order = [0] * config.instances * len(advantages)
    trainer = EpisodeTrainer(lm, collect, order, config, 6, 0, tmp_path)
    return trainer, seen


def moved(one, other):
    return not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_with_a_bad_gradient_is_skipped_and_counted(tmp_path, bad, optimizer):
    trainer, weights = trained(tmp_path, [1.0, bad, 1.0, 1.0], optimizer=optimizer)
    trainer.train()
    assert moved(weights[0], weights[1])
    assert not moved(weights[1], weights[2])
    assert moved(weights[2], weights[3])
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log.get("skipped_updates", 0) for log in logs] == [0, 1, 0, 0]
    assert [math.isfinite(log["loss"]) for log in logs] == [True, False, True, True]


def test_training_stops_after_some_bad_updates_in_a_row(tmp_path):
    trainer, weights = trained(tmp_path, [1.0, math.nan, 1.0, math.nan, math.nan], skip_limit=2)
    with pytest.raises(TrainingStopped, match="nan in 2 updates in a row .grpo.skip_limit.*resume"):
        trainer.train()
    assert len(weights) == 5
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


# --- Outages --------------------------------------------------------------------------------------


def asked(*results):
    """A function that gives these one after the other; errors are raised."""
    left = list(results)

    def ask():
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return ask


def test_what_is_missing_is_asked_for_again_after_pauses_that_double(caplog):
    config = dataclasses.replace(QUICK, missing_limit=0.1, outage_pause_s=2.0, outage_retries=3)
    pauses = []
    results = asked(ModelGone("gone"), 0.5, ConnectionError("cut"), 0.1)
    with caplog.at_level(logging.WARNING):
        assert patiently(results, lambda share: share, config, pauses.append) == 0.1
    assert pauses == [2.0, 4.0, 8.0]
    assert [r.message.partition(": try ")[2] for r in caplog.records] == [
        "1 of 4: gone",
        "2 of 4: 50% missing",
        "3 of 4: cut",
    ]


def test_training_stops_when_asking_again_does_not_help():
    config = dataclasses.replace(QUICK, outage_retries=1)
    with pytest.raises(TrainingStopped, match="at most 20% .* found after 2 tries: 30% missing; "):
        patiently(asked(0.3, 0.3), lambda share: share, config)


def test_other_errors_are_not_waited_for():
    with pytest.raises(KeyError):
        patiently(asked(KeyError("a bug")), lambda share: share, QUICK)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [None, ModelGone("the server is down")])
def test_a_run_with_a_reader_that_comes_back_equals_a_healthy_one(
    policy, healthy, tmp_path, error, overlap
):
    """One call a step, of which the first two fail."""
    flaky = Reader({1, 2}, error)
    run(policy, tmp_path, dataclasses.replace(QUICK, overlap=overlap), reader=flaky)
    assert flaky.calls >= 2 + 2
    assert same(healthy, tmp_path, "metrics.csv")


def test_a_reader_that_stays_away_stops_the_run_which_can_be_resumed(policy, healthy, tmp_path):
    gone = Reader(range(2, 1000), ModelGone("the server is down"))
    with pytest.raises(TrainingStopped, match="the server is down; what was trained so far is kep"):
        run(policy, tmp_path, reader=gone)
    assert latest_checkpoint(tmp_path / "checkpoints").step == 1
    assert not (tmp_path / "policy").exists()
    run(policy, tmp_path, resume=True)
    assert same(healthy, tmp_path, "metrics.csv")


def test_a_judge_that_fails_too_often_stops_the_run(policy, tmp_path):
    config = dataclasses.replace(QUICK, outage_retries=0)
    with pytest.raises(TrainingStopped, match="100% missing"):
        run(policy, tmp_path, config, judge=lambda *_: None)


# --- Overlap --------------------------------------------------------------------------------------


def test_asking_while_others_are_written_gives_the_same_rows(tmp_path):
    """Instances of one and of two chunks: the short ones are asked about in a thread."""
    instances, results = [tiny.instance(0, 1), tiny.instance(10, 3)], []
    for overlap in (False, True):
        reader = Reader()
        config = dataclasses.replace(QUICK, overlap=overlap)
        rollouts = Rollouts(instances, tiny.environment(reader=reader), config, 0, tmp_path)
        rows, measures = rollouts(0, [0, 1], tiny.lm())
        times = {name for name in measures if name.endswith("_s")}
        results.append((rows, {k: v for k, v in measures.items() if k not in times}))
        assert (threading.current_thread().name in reader.threads) != overlap
    assert results[0] == results[1]


def test_short_episodes_are_answered_before_long_ones_are_written(tmp_path):
    """The writer waits at its last chunk until the reader has been asked: it would hang else."""
    reader, lm = Reader(), tiny.lm()
    answered = threading.Event()

    class Slow:
        name, tokenizer, stop_ids, chunks = lm.name, lm.tokenizer, lm.stop_ids, 0

        def generate(self, *args, **kwargs):
            self.chunks += 1
            assert self.chunks < 3 or answered.wait(20)
            return lm.generate(*args, **kwargs)

    class Telling(Reader):
        def read(self, requests, done=None):
            answered.set()
            return super().read(requests)

    reader = Telling()
    instances = [tiny.instance(0, 1), tiny.instance(10, 3)]
    config = dataclasses.replace(QUICK, overlap=True)
    Rollouts(instances, tiny.environment(reader=reader), config, 0, tmp_path)(0, [0, 1], Slow())
    assert reader.calls == 2


# --- Disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_later(
    policy, healthy, tmp_path, monkeypatch, room
):
    """Flushes: settings, then the tables and the mark of each step."""
    flush, left = store.os.fsync, iter(range(room))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", fsync)
        with pytest.raises(DiskError, match="No space left on device"):
            run(policy, tmp_path)
    run(policy, tmp_path, resume=True)
    assert same(healthy, tmp_path, "metrics.csv")


# --- Validation -----------------------------------------------------------------------------------

LOOKING = dataclasses.replace(QUICK, steps=4, validate_every=1, validate_instances=3)


@pytest.fixture(scope="module")
def looked(policy, tmp_path_factory):
    return run(policy, tmp_path_factory.mktemp("looked"), LOOKING)


def test_the_best_policy_on_held_out_instances_is_kept(looked):
    table = pd.read_csv(looked / "validation.csv")
    assert list(table["step"]) == [1, 2, 3, 4]
    best = json.loads((looked / "best" / "best.json").read_text())
    assert best["step"] == table["step"][table["accuracy"].idxmax()]
    assert best["accuracy"] == pytest.approx(table["accuracy"].max())
    assert load_lm(looked / "best" / "policy").model.num_parameters() > 0


def test_looking_changes_no_weight(policy, looked, tmp_path):
    run(policy, tmp_path, dataclasses.replace(LOOKING, validate_every=0))
    assert same(looked, tmp_path, "metrics.csv")
    assert not (tmp_path / "best").exists() and not (tmp_path / "validation.csv").exists()


def test_a_resumed_run_has_the_same_best_policy(policy, looked, tmp_path):
    gone = Reader(range(5, 1000), ModelGone("down"))  # in the third step
    with pytest.raises(TrainingStopped):
        run(policy, tmp_path, LOOKING, reader=gone)
    run(policy, tmp_path, LOOKING, resume=True)
    files = ("metrics.csv", "validation.csv", "best/best.json", "best/policy/model.safetensors")
    assert same(looked, tmp_path, *files)


def test_validation_without_held_out_instances_is_refused(policy, tmp_path):
    with pytest.raises(InputError, match="grpo.validate_every: expected 0 without held-out"):
        train_grpo(policy, tiny.INSTANCES, tiny.environment(), LOOKING, tmp_path, 3)


# --- Trackers -------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_refused_by_name(tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, report_to=("trackio",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="grpo.report_to: expected trackio to be installed"):
        trl_arguments(config, 6, 0, tmp_path, on_cpu=True)


def test_trackers_are_passed_on_and_none_is_the_default(tmp_path, monkeypatch):
    assert trl_arguments(QUICK, 6, 0, tmp_path, on_cpu=True).report_to == []
    monkeypatch.setattr("memalpha_kit.training.arguments.check_trackers", lambda config: None)
    config = dataclasses.replace(QUICK, report_to=("tensorboard", "wandb"))
    arguments = trl_arguments(config, 6, 0, tmp_path / "run" / "checkpoints", on_cpu=True)
    assert arguments.report_to == ["tensorboard", "wandb"] and arguments.run_name == "run"
