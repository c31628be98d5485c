"""`memalpha seeds` and `memalpha sweep`: what they record, and what a second call does."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.figures.curves import table_lengths
from memalpha_kit.files import held
from memalpha_kit.lab import miniature, runner, world
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
    for name in ("warm_start", "train"):
        refuse = Mock(side_effect=AssertionError("trained again"))
        monkeypatch.setattr(miniature, name, refuse)


def weights(folder):
    """The trained policies' weights by seed and stage."""
    files = (folder / "runs").glob("*/*/policy/model.safetensors")
    return {file.relative_to(folder).parts[1:3]: file.read_bytes() for file in files}


def test_the_tables_hold_every_seed_and_load_into_the_report(recorded):
    results, grpo, warm, references = (pd.read_csv(recorded / "out" / name) for name in TABLES)
    assert set(results.seed) == set(grpo.seed) == set(warm.seed) == {0, 1}
    keys = results.set_index(["seed", "stage", "length", "instance"]).index
    assert keys.is_unique and len(keys) == 2 * 2 * 3
    assert list(results.stage.unique()) == ["warm_start", "grpo"]
    assert results.qa.between(0, 1).all() and (results.missing == 0).all()
    assert {"memory_tokens", *vars(world.Behaviour())} <= set(results)
    assert list(warm) == ["phase", "step", "loss", "smoothed", "rate", "tokens", "seed"]
    assert list(dict.fromkeys(warm.phase)) == ["copy", "transcribe", "teacher"]
    assert warm.step[warm.seed == 0].iloc[-1] == 2 + 1 + 2 and list(grpo.step) == [1, 2] * 2
    assert {"reward", "accuracy", "format", "compression", "content", "loss"} <= set(grpo)
    assert list(references) == ["writer", "length", "qa"]
    lengths = table_lengths(results, resamples=50)
    assert list(lengths.length) == [1, 2] and (lengths.seeds == 2).all()
    assert (recorded / "out" / "qa_by_length.png").read_bytes().startswith(b"\x89PNG")
    policies = weights(recorded)
    assert len(policies) == 4 and len(set(policies.values())) >= 2  # seeds differ
    assert max(map(len, policies.values())) < 4_000_000


def test_the_card_says_what_was_run_and_what_is_recorded_is_small(recorded):
    card = json.loads((recorded / "out" / "run.json").read_text())
    assert (card["profile"], card["seeds"]) == ("ci", [0, 1])
    assert card["settings"]["warm_start"]["copy_steps"] == 2
    assert set(card["inputs"]) == set(TABLES)
    assert len(card["data_sha256"]) == 64 and card["duration_s"] >= 0
    sizes = {path.name: path.stat().st_size for path in (recorded / "out").iterdir()}
    assert set(sizes) == {*TABLES, "run.json", "qa_by_length.png", "qa_by_length.pdf"}
    assert sum(sizes.values()) < 300_000, sizes


def test_a_second_call_trains_nothing_and_writes_the_same_bytes(copy, no_training, capsys):
    before = contents(copy)
    assert seeds(copy, 0, 1) == 0
    assert "grpo, seed 0: 0 s" in capsys.readouterr().out
    assert contents(copy) == before
    assert seeds(copy, 1) == 0  # a subset of the seeds can be collected again
    assert set(pd.read_csv(copy / "out" / "results.csv").seed) == {1}
    with pytest.raises(AssertionError, match="trained again"):  # other settings
        seeds(copy, 0, 1, grpo__learning_rate=0.01)


def test_a_policy_lies_where_its_settings_say_and_the_profiles_name_is_none(tmp_path):
    ci = load_profile("ci")
    stage = runner.Stage(ci, tmp_path)
    steps = runner.Stage(replace(ci, grpo=replace(ci.grpo, steps=7)), tmp_path)
    assert stage.folder == runner.Stage(replace(ci, name="another"), tmp_path).folder
    assert stage.folder != steps.folder and stage.warm.folder == steps.warm.folder
    assert stage.warm.folder != runner.Stage(replace(ci, seed=1), tmp_path).warm.folder


@pytest.mark.parametrize("stage", ["warm_start", "grpo"])
def test_a_stage_is_trained_by_one_process_at_a_time(copy, capsys, stage):
    (folder,) = (copy / "runs" / "seed_0").glob(f"{stage}-*")
    before = contents(copy)
    shutil.rmtree(folder)
    with held(folder):
        assert seeds(copy, 0) == 2
        assert f"{folder.name}: expected to be alone" in capsys.readouterr().err
    assert seeds(copy, 0, 1) == 0 and contents(copy) == before


def test_a_seed_that_was_stopped_goes_on_and_ends_the_same(copy):
    before = contents(copy)
    (folder,) = (copy / "runs" / "seed_1").glob("grpo-*")
    for name in ("done.json", "results.csv"):
        (folder / name).unlink()
    shutil.rmtree(folder / "policy")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
    assert (folder / "checkpoints" / "checkpoint-1").is_dir()
    assert seeds(copy, 0, 1) == 0
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("numbers", "more", "message"),
    [
        ((0, 0), (), "seeds: expected different numbers, found [0, 0]"),
        ((0,), ("--set", "grpo.step=1"), "unknown key 'grpo.step'; did you mean 'grpo.steps'?"),
        ((0,), ("--set", "seed=1"), "--set seed: has no effect here; expected --seeds N..."),
        (("one",), (), "'--seeds': Input should be a valid integer"),
        ((), (), "Option '--seeds' requires an argument"),
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


# --- Sweeps --------------------------------------------------------------------------------------

SWEEP = """
profile: ci
seeds: [0, 1]
settings:
  warm_start.copy_steps: 2
  warm_start.transcribe_steps: 1
  warm_start.steps: 2
  warm_start.rows: 16
  grpo.steps: 1
  evaluation.lengths: [1]
  evaluation.instances: [2]
"""


@pytest.fixture
def file(tmp_path):
    """Writes a sweep file with the smallest settings and `more`; its path."""

    def write(more: str):
        path = tmp_path / "small.yaml"
        path.write_text(SWEEP + more)
        return path

    return write


@pytest.mark.parametrize("name", runner.sweep_names())
def test_the_kit_s_sweeps_load_and_their_points_differ(name):
    found = runner.load_sweep(name)
    profiles = [replace(found.profile_of(point, 0), name="") for point in found.points]
    assert all(a != b for i, a in enumerate(profiles) for b in profiles[:i])
    assert found.base in found.points


def test_a_grid_is_every_combination_and_values_keep_their_types(file):
    path = file("grid: {reward.content: [0.1, 0.2], advantage.scale: [std, none]}")
    found = runner.load_sweep(path)
    assert list(found.points) == [
        *("content=0.1 scale=std", "content=0.1 scale=none"),
        *("content=0.2 scale=std", "content=0.2 scale=none"),
    ]
    profile = found.profile_of("content=0.1 scale=none", 5)
    assert (profile.reward.content, profile.advantage.scale, profile.seed) == (0.1, "none", 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "expected points or a grid"),
        ("grid: {reward.contents: [1]}", "unknown key 'reward.contents'; did you mean"),
        ("grid: {reward.content: 1}", "grid.reward.content: expected a list, found 1"),
        ("grid: {reward.content: []}", "grid.reward.content: expected more values, found"),
        ("grid: {reward.content: [1, 1]}", "found a name twice"),
        ("seed: 1", "unknown key 'seed'; did you mean 'seeds'"),
        ("gird: {}", "unknown key 'gird'; did you mean 'grid'"),
        ("points: {a: {}}\nbase: {reward.content: 3}", "base: expected one of the points"),
        ("points: []", "points: expected settings"),
        ("grid: {seed: [1, 2]}", "point seed=1: seed: expected in `seeds`"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(file, more, message):
    with pytest.raises(InputError, match=message):
        runner.load_sweep(file(more))
    with pytest.raises(InputError, match="did you mean 'rewards'"):
        runner.load_sweep("reward")


def test_a_worker_that_is_killed_is_one_line(monkeypatch, capsys):
    killed = SimpleNamespace(folder="a", run=partial(os._exit, 9))
    monkeypatch.setattr(runner, "record_seeds", lambda *_: runner.run_stages([killed], 2))
    assert cli.main(["seeds", "--profile", "ci", "--seeds", "0"]) == 1
    said = capsys.readouterr().err
    assert "workers: a process was killed" in said and said.count("\n") == 1


def test_points_share_warm_starts_and_a_second_call_or_more_workers_change_nothing(
    file, tmp_path, monkeypatch
):
    path = file("grid: {reward.content: [0.1, 0.2], advantage.scale: [std, none]}")
    argv = ["sweep", str(path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    names = ("results.csv", "curves.csv", "table.csv", "measures.csv", "sweep.png")

    def written():
        return {name: (tmp_path / "out" / name).read_bytes() for name in names}

    assert cli.main([*argv, "--workers", "2"]) == 0
    folders = [path.parent.name + "/" + path.name for path in (tmp_path / "runs").glob("*/*")]
    assert sum("warm_start" in name for name in folders) == 2  # one a seed
    assert sum("grpo" in name for name in folders) == 8
    first = written()
    with monkeypatch.context() as patch:
        patch.setattr(runner.miniature, "train", None)  # would fail if it were called
        patch.setattr(runner.miniature, "warm_start", None)
        assert cli.main(argv) == 0
    assert written() == first
    last = next((tmp_path / "runs" / "seed_1").glob("grpo-*"))
    (last / "done.json").unlink()  # as if stopped there
    assert cli.main(argv) == 0
    assert written() == first


def test_the_table_has_means_and_paired_differences():
    rows = [
        {"point": point, "seed": seed, "instance": i, "length": 1, "stage": stage, "qa": qa}
        for seed in (0, 1)
        for i in range(4)
        for point, stage, qa in (("a", "grpo", 0.5), ("b", "grpo", 0.75), ("a", "warm_start", 0))
    ]
    frame = pd.DataFrame(rows)
    counts = ("facts", "facts_stored", "chat", "chat_stored", "compression", "calls")
    frame[[*counts, "corrections_stale", "corrections_updated"]] = 1
    table = runner.table_sweep(frame, "a", resamples=50).set_index("point")
    assert table.loc["b", "qa"] == 0.75 and table.loc["b", "n"] == 8
    assert np.allclose(table.loc["b", ["gap", "gap_low", "gap_high"]].astype(float), 0.25)
    assert table.loc["a", "gap"] == 0 and table.loc["a", "updated"] == 1
