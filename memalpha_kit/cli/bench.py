"""Command `memalpha bench`: what the kit costs, measured here and now."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Option

from memalpha_kit.cli.options import NONE
from memalpha_kit.errors import InputError, closest
from memalpha_kit.notebooks import repository


def bench(
    quick: Annotated[
        bool, Option("--quick", help="small sizes and few rounds: a look, in half a minute")
    ] = False,
    out: Annotated[
        Path, Option(metavar="FOLDER", help="report.md and report.csv are written there")
    ] = Path("reports/bench"),
    only: Annotated[
        list[str], Option(metavar="NAME...", help="only these files, e.g. memory for bench_memory")
    ] = NONE,
) -> int:
    """Measure speed beside the plain way of doing the same, and write a report.

    Needs a clone of the kit with its development packages. Ours and the plain way run by turns and
    must give equal results. The whole takes half an hour and 2 GB of disk. The exit code is 1 if
    results differ, never because something was slow.
    """
    folder = repository() / "benchmarks"
    known = {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}
    for name in only:
        if name not in known:
            raise InputError(f"--only: expected one of {', '.join(known)}, found {name!r}"
                             f"{closest(name, known)}")  # fmt: skip
    if not find_spec("pytest_benchmark"):
        raise InputError('memalpha bench: needs pytest-benchmark: pip install -e ".[dev]"')
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini")]
    command += [str(known[name]) for name in only or known]
    command += ["--out", str(out), "--benchmark-json", str(out / "pytest.json")]
    command += ["--quick"] if quick else []
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # not a test's run
    done = subprocess.run(command, cwd=folder, env={**own, **one_thread})
    (out / "pytest.json").unlink(missing_ok=True)
    if done.returncode == 0:
        print(out / "report.md")
    return int(done.returncode != 0)
