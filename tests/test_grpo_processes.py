"""Two processes (gloo, CPU) take the update that one takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpo_process
import numpy as np
import pandas as pd
import pytest
import tiny_policy as tiny
import torch

from memalpha_kit.errors import InputError
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.models.local import load_lm
from memalpha_kit.training import processes
from memalpha_kit.training.arguments import check

HERE = Path(__file__).parent
TIMEOUT_S = grpo_process.PATIENCE_S + 30
"""For a process that does not even end itself."""


def launch(n, *arguments):
    """Runs grpo_process.py in `n` processes, as a launcher would; all end, or all are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **{"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(HERE)},
    }
    command = [sys.executable, str(HERE / "grpo_process.py"), *map(str, arguments)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * n, "\n".join(said)[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    policy = tiny.saved(folder / "policy")
    grpo_process.run(policy, folder / "one")
    launch(2, policy, folder)
    return folder


@pytest.mark.parametrize("name", grpo_process.RUNS)
def test_two_processes_give_the_weights_and_the_metrics_of_one(runs, name):
    one, two = (load_lm(runs / n / name / "policy").model.state_dict() for n in ("one", "two"))
    start = load_lm(runs / "policy").model.state_dict()
    moved = max((one[key] - start[key]).abs().max() for key in one)
    apart = max((one[key] - two[key]).abs().max() for key in one)
    assert moved > 1e-3 and apart < 1e-3 * moved
    by_slice = ["clip_ratio/low_min", "clip_ratio/high_max"]  # means over slices of extremes
    alone, joint = (
        pd.read_csv(runs / n / name / "metrics.csv").drop(columns=by_slice) for n in ("one", "two")
    )
    fill = joint.pop("fill_rows")
    assert fill.sum() > alone.pop("fill_rows").sum()  # their numbers of rows did differ
    assert list(alone) == list(joint)
    assert np.allclose(alone.to_numpy(float), joint.to_numpy(float), atol=1e-4, equal_nan=True)


def test_only_the_first_process_writes(runs):
    assert set(pd.read_csv(runs / "two" / "dapo" / "timings.csv")["step"]) == {1, 2, 3}
    assert len(load_episodes(runs / "two" / "dapo" / "episodes" / "step_00001.jsonl")) == 2
    assert json.loads((runs / "two" / "dapo" / "settings.json").read_text())["processes"] == 2


def test_two_processes_resume_to_the_same_weights(runs):
    """Both go on from the checkpoint before the last, as if the machines had stopped after it."""
    cut = runs / "cut"
    for name in grpo_process.RUNS:
        one, other = (
            load_lm(folder / name / "policy").model.state_dict() for folder in (runs / "two", cut)
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
        both = [(folder / name / "metrics.csv").read_bytes() for folder in (runs / "two", cut)]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instances": 3}, "grpo.instances: expected a multiple of the number of processes"),
        ({"loss": "bnpo"}, "grpo.loss: expected another than bnpo with several processes"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes, message):
    config = tiny.GRPO.__class__(**{**vars(tiny.GRPO), **changes})
    with pytest.raises(InputError, match=message):
        check(config, n_processes=2)


def test_alone_every_process_is_the_first_and_gathers_its_own_value():
    assert processes.count() == 1 and processes.is_main()
    assert processes.gathered("mine") == ["mine"] and processes.from_main(3) == 3
