"""One of several training processes: `python grpo_process.py POLICY OUT`, started by a launcher.

Trains what `CONFIGS` says, each into a folder of its name in OUT/two, and resumes a cut copy,
OUT/cut. Not a test: test_grpo_processes.py is.
"""

from __future__ import annotations

import faulthandler
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import tiny_policy as tiny

from memalpha_kit.training import processes
from memalpha_kit.training.grpo import train_grpo

PATIENCE_S = 300
"""After this long a process says where it stands and ends. It needs about 15 s of a free core."""

CONFIGS = {
    "dapo": replace(tiny.GRPO, steps=3, dump_every=1),
    "grpo": replace(tiny.GRPO, steps=2, loss="grpo", slices=2, iterations=2, kl=0.1),
}
"""Instances have one chunk or two, so the processes' numbers of rows differ."""


def train(policy: Path, out: Path, resume: bool = False) -> None:
    """Every run of `CONFIGS`."""
    for name, config in CONFIGS.items():
        train_grpo(tiny.run(out / name, policy, config), resume)


def cut(whole: Path, out: Path) -> None:
    """A copy of the runs as if the machines had stopped while they saved their last checkpoint."""
    shutil.copytree(whole, out)
    for name in CONFIGS:
        shutil.rmtree(out / name / "policy")
        last = max((out / name / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
        (last / "complete.json").unlink()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    start, folder = map(Path, sys.argv[1:])
    train(start, folder / "two")
    if processes.is_main():
        cut(folder / "two", folder / "cut")
    processes.wait()
    train(start, folder / "cut", resume=True)
