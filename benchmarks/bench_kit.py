"""Loading, figures, starting: data sets, pictures, imports, and asking a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from conftest import interval
from little_world import instance, little_model, save_data
from stub_server import StubServer

from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.figures import curves
from memalpha_kit.figures.style import save_figure

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "reports" / "recorded" / "miniature"


def bench_loading(meter, tmp_path):
    """Instances from parquet, checked; plain: pyarrow alone, rows as dicts."""
    n, file = (20 if meter.quick else 400), tmp_path / "test.parquet"
    save_instances(file, [instance("squad", i, questions=50, chunks=10) for i in range(n)])
    meter.versus(
        "data set, checked and read (beside pyarrow's rows alone)",
        f"{n} instances of 50 questions",
        lambda: len(load_instances(file)),
        lambda: len(parquet.read_table(file).to_pylist()),
        per=n,
        rounds=7,
        growth=True,
    )


FIGURES = {
    "qa by length": lambda results: curves.plot_lengths(curves.table_lengths(results)),
    "behaviour": lambda results: curves.plot_behaviour(curves.table_behaviour(results)),
    "rewards of a run": lambda _: curves.plot_rewards(pd.read_csv(MINIATURE / "grpo.csv")),
}


@pytest.mark.parametrize("name", FIGURES)
def bench_figure(meter, name, tmp_path):
    """From the recorded table to a PNG file, intervals included; plain: an empty figure's file."""
    if meter.quick and name != "qa by length":
        pytest.skip("not in a look")
    results = pd.read_csv(MINIATURE / "results.csv")

    def drawn() -> None:
        figure = FIGURES[name](results)
        save_figure(figure, tmp_path / "figure.png")
        plt.close(figure)

    def blank() -> None:
        figure, _ = plt.subplots(figsize=(6, 4))
        save_figure(figure, tmp_path / "blank.png")
        plt.close(figure)

    meter.versus(f"figure: {name} (beside an empty one)", "", drawn, blank, rounds=3, growth=True)


def used(argv: list[str]) -> float:
    """Processor seconds of a command."""
    with open(os.devnull, "w") as nowhere:
        child = subprocess.Popen(argv, stdout=nowhere, cwd=ROOT)
        _, code, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(code)
    assert child.returncode == 0, argv
    return usage.ru_utime + usage.ru_stime


STARTS = {
    "import memalpha_kit": (["-c", "import memalpha_kit"], 0.3),
    "import memalpha_kit.method.episode": (["-c", "import memalpha_kit.method.episode"], None),
    "memalpha --help": (["-m", "memalpha_kit", "--help"], 0.5),
}


@pytest.mark.parametrize("name", STARTS)
def bench_start(meter, name):
    """A new process each time; Python's own start is in it."""
    arguments, most = STARTS[name]

    def measured() -> list[float]:
        return sorted(used([sys.executable, *arguments]) for _ in range(1 if meter.quick else 9))

    times = meter.once(measured)
    wanted = ("ours_s", "<=", most) if most else None
    meter.add(name, "a new process", ours_s=times[len(times) // 2], want=wanted)


# --- Asking a server ------------------------------------------------------------------------------

REPEATED = """
import contextlib, io, json, shutil, sys, time
from memalpha_kit import cli
seconds = []
for _ in range(int(sys.argv[2])):
    seconds.append([])
    for words in json.loads(sys.argv[1]):
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(words) == 0
        seconds[-1].append(time.process_time() - started)
print(json.dumps(seconds))
"""
"""Processor seconds of two commands, again and again; in the first round modules are imported."""


def bench_server(meter, tmp_path):
    """`memalpha evaluate` against a server that needs 100 ms for a reply, at once and one by one.

    Wall time from the first request to the last reply, at the server; processor time of the whole
    command, from prompts to tables, less that of a command with a single question.
    """
    n = 20 if meter.quick else 200
    save_data(tmp_path / "one", ("squad",), questions=1, chunks=5)
    save_data(tmp_path / "all", ("squad",), 2, questions=n // 2, chunks=5)

    def argv(stub: StubServer, data: str, at_once: int) -> list[str]:
        words = ["evaluate", "--method", "long-context", "--data", str(tmp_path / data)]
        words += ["--out", str(tmp_path / f"{data}-{at_once}"), "--url", stub.url]
        return [*words, "--model-name", "m", "--concurrency", str(at_once), "--name", "run"]

    def wall(stub: StubServer, at_once: int) -> float:
        stub.forget()
        used([sys.executable, "-m", "memalpha_kit", *argv(stub, "all", at_once)])
        return stub.busy_s

    def answers(at_once: int) -> list[tuple[str, str, str]]:
        file = tmp_path / f"all-{at_once}" / "run" / "answers.jsonl"
        lines = map(json.loads, file.read_text().splitlines())
        kept = (line for line in lines if "qa" in line)
        return sorted((line["instance"], line["qa"], line["prediction"]) for line in kept)

    def costs(stub: StubServer) -> list[float]:
        """Milliseconds of a request, repeated in one process: imports would be most of them."""
        pair = [argv(stub, "one", 32), argv(stub, "all", 32)]
        done = subprocess.run(
            [sys.executable, "-c", REPEATED, json.dumps(pair), "1" if meter.quick else "7"],
            capture_output=True,
            check=True,
            text=True,
            cwd=ROOT,
        )
        seconds = json.loads(done.stdout.splitlines()[-1])
        return [1e3 * (many - one) / (n - 1) for one, many in seconds[1:] or seconds]

    def both() -> tuple[float, float, list[float]]:
        with StubServer(little_model, latency_s=0.1) as stub:
            found = wall(stub, 32), wall(stub, 1)
            assert answers(32) == answers(1) and len(answers(1)) == n
            return *found, costs(stub)

    ours, single, each = meter.once(both)
    values = {"ours_s": ours, "plain_s": single, "ratio": single / ours}
    name, wanted = f"{n} questions, wall time (plain: one by one)", ("ratio", ">=", 8)
    meter.add(name, "100 ms a reply", want=wanted, **values)
    ms = dict(zip(("value", "low", "high"), interval(each), strict=True))
    want = ("value", "<=", 3)
    meter.add("the client's own cost", "", **ms, unit="processor ms a request", want=want)
