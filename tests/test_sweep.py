"""`memalpha sweep`: points from one file, shared warm starts, resuming, tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.lab import sweep

SMALL = """
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
        path.write_text(SMALL + more)
        return path

    return write


@pytest.mark.parametrize("name", sweep.sweep_names())
def test_the_kit_s_sweeps_load_and_their_points_differ(name):
    found = sweep.load_sweep(name)
    profiles = [replace(found.profile_of(point, 0), name="") for point in found.points]
    assert all(a != b for i, a in enumerate(profiles) for b in profiles[:i])
    assert found.base in {point.name for point in found.points}


def test_a_grid_is_every_combination_and_values_keep_their_types(file):
    path = file("grid: {reward.content: [0.1, 0.2], advantage.scale: [std, none]}")
    found = sweep.load_sweep(path)
    assert [point.name for point in found.points] == [
        *("content=0.1 scale=std", "content=0.1 scale=none"),
        *("content=0.2 scale=std", "content=0.2 scale=none"),
    ]
    profile = found.profile_of(found.points[1], 5)
    assert (profile.reward.content, profile.advantage.scale, profile.seed) == (0.1, "none", 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "expected points or a grid"),
        ("grid: {reward.contents: [1]}", "unknown key 'reward.contents'; did you mean"),
        ("grid: {reward.content: 1}", "expected a list of values"),
        ("gird: {}", "unknown key 'gird'; did you mean 'grid'"),
        ("points: {a: {}}\nbase: {reward.content: 3}", "base: expected one of the points"),
        ("points: []", "points: expected settings"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(file, more, message):
    with pytest.raises(InputError, match=message):
        sweep.load_sweep(file(more))


def test_an_unknown_sweep_is_refused_with_the_closest():
    with pytest.raises(InputError, match="did you mean 'rewards'"):
        sweep.load_sweep("reward")


def test_points_share_warm_starts_and_a_second_call_or_more_workers_change_nothing(
    file, tmp_path, monkeypatch
):
    path = file("grid: {reward.content: [0.1, 0.2], advantage.scale: [std, none]}")
    argv = ["sweep", str(path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--workers", "2"]) == 0
    assert len(list((tmp_path / "runs" / "warm_starts").iterdir())) == 2  # one a seed
    names = ("results.csv", "curves.csv", "table.csv", "sweep.png")
    first = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(sweep.miniature, "train", None)  # would fail if it were called
        patch.setattr(sweep.miniature, "warm_start", None)
        assert cli.main(argv) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == first
    last = tmp_path / "runs" / "content=0.2_scale=none" / "seed_1"
    (last / "done.json").unlink()  # as if stopped there
    assert cli.main(argv) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == first


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
    table = sweep.table_sweep(frame, "a", resamples=50).set_index("point")
    assert table.loc["b", "qa"] == 0.75 and table.loc["b", "n"] == 8
    assert np.allclose(table.loc["b", ["gap", "gap_low", "gap_high"]].astype(float), 0.25)
    assert table.loc["a", "gap"] == 0 and table.loc["a", "updated"] == 1
