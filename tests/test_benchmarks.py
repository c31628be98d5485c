"""The benchmark scripts run at toy size; what they measure is not asserted."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd

from memalpha_kit.pipeline import repository


def test_the_data_benchmark_writes_a_row_per_source_counter_and_input(tmp_path):
    script, out = repository() / "benchmarks" / "data_speed.py", tmp_path / "speed.csv"
    command = [sys.executable, script, "--scale", "0.01", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out)
    assert len(table) == 8
    assert (table[["tokens", "build_s", "bare_s", "peak_mb"]] > 0).all(axis=None)
    recorded = pd.read_csv(repository() / "reports" / "recorded" / "data_speed.csv")
    assert list(table) == list(recorded)
