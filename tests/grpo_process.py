"""One of several training processes: `python grpo_process.py POLICY OUT`, started by a launcher.

Trains what `RUNS` says, each into a folder of its name. Not a test: test_grpo_processes.py is.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tiny_policy as tiny

from memalpha_kit.training.grpo import train_grpo

RUNS = {
    "dapo": dataclasses.replace(tiny.GRPO, steps=3, dump_every=1),
    "grpo": dataclasses.replace(tiny.GRPO, steps=2, loss="grpo", slices=2, iterations=2, kl=0.1),
}
"""Instances have one chunk or two, so the processes' numbers of rows differ."""


def run(policy: Path, out: Path, resume: bool = False) -> None:
    """Every run of `RUNS`."""
    for name, config in RUNS.items():
        train_grpo(policy, tiny.INSTANCES, tiny.environment(), config, out / name, 3, resume)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), resume="resume" in sys.argv)
