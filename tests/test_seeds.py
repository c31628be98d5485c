"""`memalpha seeds`: several seeds as small CSV files, and what a second call does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from memalpha_kit import cli, files
from memalpha_kit.figures.curves import table_lengths
from memalpha_kit.lab import miniature
from memalpha_kit.settings import load_profile

SMALL = {
    "warm_start.copy_steps": 2,
    "warm_start.transcribe_steps": 1,
    "warm_start.steps": 2,
    "warm_start.rows": 16,
    "grpo.steps": 2,
    "evaluation.lengths": [1, 2],
    "evaluation.instances": [2, 1],
}
TABLES = ("results.csv", "grpo.csv", "warm_start.csv", "references.csv")


def seeds(folder, *numbers: int, more=(), **changes):
    """The exit code of the command under the smallest settings; dots of keys are `__`."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    argv = ["seeds", "--profile", "ci", "--runs", folder / "runs", "--out", folder / "out", *more]
    for key, value in settings.items():
        argv += ["--set", f"{key}={value}"]
    return cli.main([str(word) for word in (*argv, "--seeds", *numbers)])


def contents(folder):
    return {name: (folder / "out" / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder in which seeds 0 and 1 were recorded."""
    folder = tmp_path_factory.mktemp("seeds")
    assert seeds(folder, 0, 1) == 0
    return folder


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(recorded, tmp_path / "copy")


@pytest.fixture
def no_training(monkeypatch):
    """Any training is an error."""

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(miniature, "warm_start", refuse)
    monkeypatch.setattr(miniature, "train", refuse)


def test_the_tables_hold_every_seed_and_load_into_the_report(recorded):
    tables = {name: pd.read_csv(recorded / "out" / name) for name in TABLES}
    for name in ("results.csv", "grpo.csv", "warm_start.csv"):
        assert set(tables[name].seed) == {0, 1}, name
    assert set(tables["results.csv"].stage) == {"warm_start", "grpo"}
    assert list(tables["references.csv"].columns) == ["writer", "length", "qa"]
    lengths = table_lengths(tables["results.csv"], resamples=50)
    assert list(lengths.length) == [1, 2] and (lengths.seeds == 2).all()
    assert (recorded / "out" / "qa_by_length.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_says_what_was_run(recorded):
    card = json.loads((recorded / "out" / "run.json").read_text())
    assert (card["profile"], card["seeds"]) == ("ci", [0, 1])
    assert card["settings"]["warm_start"]["copy_steps"] == 2
    assert set(card["inputs"]) == set(TABLES)
    assert len(card["data_sha256"]) == 64 and card["duration_s"] >= 0


def test_what_is_recorded_is_small(recorded):
    sizes = {path.name: path.stat().st_size for path in (recorded / "out").iterdir()}
    assert set(sizes) == {*TABLES, "run.json", "qa_by_length.png"}
    assert sum(sizes.values()) < 300_000, sizes


def test_a_second_call_trains_nothing_and_writes_the_same_bytes(copy, no_training, capsys):
    before = contents(copy)
    assert seeds(copy, 0, 1) == 0
    assert "seed 0: already there" in capsys.readouterr().out
    assert contents(copy) == before


def test_a_subset_of_the_seeds_can_be_collected_again(copy, no_training):
    assert seeds(copy, 1) == 0
    assert set(pd.read_csv(copy / "out" / "results.csv").seed) == {1}


def test_the_name_of_the_profile_is_no_setting():
    one, other = load_profile("ci"), load_profile("laptop")
    assert files.settings_hash(one) != files.settings_hash(other)
    assert files.settings_hash(one) == files.settings_hash(replace(one, name="another"))
    assert files.settings_hash(one) != files.settings_hash(replace(one, seed=1))


def test_other_settings_train_again(copy, no_training):
    with pytest.raises(AssertionError, match="trained again"):
        seeds(copy, 0, 1, grpo__learning_rate=0.01)


def test_other_settings_replace_what_was_there(copy):
    """GRPO once refused to go on from the checkpoints of the earlier settings."""
    assert seeds(copy, 0, grpo__steps=1) == 0
    assert list(pd.read_csv(copy / "out" / "grpo.csv").step) == [1]
    assert not (copy / "runs" / "seed_0" / "grpo" / "checkpoints" / "checkpoint-2").exists()


def test_a_seed_that_was_stopped_goes_on_and_ends_the_same(copy):
    before = contents(copy)
    for name in ("done.json", "results.csv", "grpo.csv", "warm_start.csv"):
        (copy / "runs" / "seed_1" / name).unlink()
    shutil.rmtree(copy / "runs" / "seed_1" / "grpo" / "checkpoints" / "checkpoint-2")
    assert (copy / "runs" / "seed_1" / "grpo" / "checkpoints" / "checkpoint-1").is_dir()
    assert seeds(copy, 0, 1) == 0
    assert contents(copy) == before


def test_seeds_trained_side_by_side_are_collected_by_a_last_call(tmp_path, recorded, monkeypatch):
    assert seeds(tmp_path, 0, more=["--train-only"]) == 0
    assert not (tmp_path / "out").exists()
    shutil.copytree(recorded / "runs" / "seed_1", tmp_path / "runs" / "seed_1")
    monkeypatch.setattr(miniature, "warm_start", None)
    assert seeds(tmp_path, 0, 1) == 0
    assert contents(tmp_path) == contents(recorded)


@pytest.mark.parametrize(
    ("numbers", "more", "message"),
    [
        ((0, 0), (), "seeds: expected different numbers, found [0, 0]"),
        ((0,), ("--set", "grpo.step=1"), "unknown key 'grpo.step'; did you mean 'grpo.steps'?"),
        ((0,), ("--profile", "labtop"), "did you mean 'laptop'?"),
        (("one",), (), "invalid int value: 'one'"),
        ((), (), "expected at least one argument"),
    ],
)
def test_a_wrong_request_is_one_line_and_trains_nothing(
    tmp_path, no_training, capsys, numbers, more, message
):
    try:
        code = seeds(tmp_path, *numbers, more=more)
    except SystemExit as stopped:
        code = stopped.code
    shown = capsys.readouterr().err
    assert code == 2 and message in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())
