"""Two processes (gloo, CPU) take the update that one takes.

Each of them is `python test_grpo_processes.py POLICY OUT`, started as a launcher would. It trains
what `CONFIGS` says, each into a folder of its name in OUT/two, and resumes a cut copy, OUT/cut.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_policy as tiny
from tiny_policy import same

from memalpha_kit.method.saved import load_episodes
from memalpha_kit.training import processes
from memalpha_kit.training.grpo import train_grpo

HERE = Path(__file__).parent
PATIENCE_S = 300
"""After this long a process says where it stands and ends. It needs about 15 s of a free core."""

CONFIGS = {
    "dapo": replace(tiny.GRPO, steps=3, dump_every=1),
    "grpo": replace(tiny.GRPO, steps=2, loss="grpo", slices=2, iterations=2, kl=0.1),
}
"""Instances have one chunk or two, so the processes' numbers of rows differ."""


def train(policy, out, resume=False):
    """Every run of `CONFIGS`."""
    for name, config in CONFIGS.items():
        train_grpo(tiny.run(out / name, policy, config), resume)


def cut(whole, out):
    """A copy of the runs as if the machines had stopped while they saved their last checkpoint."""
    shutil.copytree(whole, out)
    for name in CONFIGS:
        shutil.rmtree(out / name / "policy")
        last = max((out / name / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
        (last / "complete.json").unlink()


def launch(n, *arguments):
    """Runs this file in `n` processes, as a launcher would; all end, or all are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **{"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}, **pipes)
        for i in range(n)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE_S + 30)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * n, "\n".join(said)[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    policy = tiny.saved(folder / "policy")
    train(policy, folder / "one")
    launch(2, policy, folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_give_the_weights_and_the_metrics_of_one(runs, name):
    one, two = (tiny.weights(runs / n / name / "policy") for n in ("one", "two"))
    start = tiny.weights(runs / "policy")
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


def test_only_the_first_process_writes_and_two_resume_to_the_same_weights(runs):
    """Both go on from the checkpoint before the last, as if the machines had stopped after it."""
    folder = runs / "two" / "dapo"
    assert set(pd.read_csv(folder / "timings.csv")["step"]) == {1, 2, 3}
    assert len(load_episodes(folder / "episodes" / "step_00001.jsonl")) == 2
    assert json.loads((folder / "settings.json").read_text())["processes"] == 2
    for name in CONFIGS:
        assert same(runs / "two" / name, runs / "cut" / name, "metrics.csv")


def test_alone_every_process_is_the_first_and_gathers_its_own_value():
    assert processes.count() == 1 and processes.is_main()
    assert processes.gathered("mine") == ["mine"] and processes.from_main(3) == 3


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    start, folder = map(Path, sys.argv[1:])
    train(start, folder / "two")
    if processes.is_main():
        cut(folder / "two", folder / "cut")
    processes.wait()
    train(start, folder / "cut", resume=True)
