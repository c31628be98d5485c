"""Commands of the miniature laboratory: notebooks, seeds, sweeps, grouping, audit; and bench."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from memalpha_kit import notebooks
from memalpha_kit.cli.options import NONE, Overrides, ProfileName, Seed
from memalpha_kit.errors import InputError, closest
from memalpha_kit.settings import load_profile

if TYPE_CHECKING:
    import pandas as pd

Runs = Annotated[
    Path | None,
    Option(metavar="FOLDER", help="checkpoints, where a stopped call goes on [default: in runs/]"),
]
Recorded = Annotated[
    Path | None, Option("--out", metavar="FOLDER", help="tables [default: in reports/recorded/]")
]
Workers = Annotated[int, Option(metavar="N", help="processes side by side")]


def run(
    context: Context,
    profile: ProfileName = "laptop",
    overrides: Overrides = NONE,
    only: Annotated[
        list[str], Option(metavar="PREFIX", help="only notebooks whose name starts so, e.g. 03")
    ] = NONE,
    root: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="where data/, runs/ and reports/ are [default: repository]"),
    ] = None,
) -> None:
    """Run the notebooks in order; executed copies and HTML go to reports/."""
    overrides = list(overrides)
    if context.parent and (more := context.parent.params["extend"]):  # for the kernels
        own = load_profile(profile, overrides).extensions
        overrides.append(f"extensions=[{', '.join(dict.fromkeys((*own, *more)))}]")
    notebooks.run(profile, list(only), overrides, root)


SEEDS = [0, 1, 2, 3, 4]


def seeds(
    profile: ProfileName = "laptop",
    overrides: Overrides = NONE,
    seeds: Annotated[list[int], Option(metavar="N...", help="one experiment each")] = SEEDS,
    out: Recorded = None,
    runs: Runs = None,
    workers: Workers = 1,
) -> None:
    """The miniature experiment with several seeds, recorded as small CSV files.

    A seed that is already there under these settings is not run again.
    """
    from memalpha_kit.lab.runner import record_seeds

    loaded = load_profile(profile, overrides)
    if any(text.partition("=")[0].strip() == "seed" for text in overrides):
        raise InputError("--set seed: has no effect here; expected --seeds N...")
    runs = runs or notebooks.repository() / "runs" / loaded.name
    out = out or notebooks.repository() / "reports" / "recorded" / "miniature"
    print(*record_seeds(loaded, list(seeds), runs, out, workers), sep="\n")


def sweep(
    sweep: Annotated[str, Argument(help="name of a sweep of the kit, or a YAML file")],
    workers: Workers = 1,
    seeds: Annotated[list[int], Option(metavar="N...", help="instead of those in the file")] = NONE,
    runs: Runs = None,
    out: Recorded = None,
) -> None:
    """A grid of settings of the miniature, from one file, resumable."""
    from memalpha_kit.lab.runner import load_sweep, run_sweep

    loaded = load_sweep(sweep)
    if seeds:
        loaded = replace(loaded, seeds=tuple(dict.fromkeys(seeds)))
    runs = runs or notebooks.repository() / "runs" / "sweeps" / loaded.name
    out = out or notebooks.repository() / "reports" / "recorded" / loaded.name
    print(*run_sweep(loaded, runs, out, workers), sep="\n")


def grouping(
    profile: ProfileName = "laptop",
    overrides: Overrides = NONE,
    steps: Annotated[int, Option(min=0, help="GRPO steps of the later policy; 0: none")] = 30,
    batches: Annotated[int, Option(min=2, help="GRPO steps' worth of rollouts")] = 16,
    runs: Runs = None,
    out: Recorded = None,
) -> None:
    """The same rollouts under every grouping of rewards, recorded as small CSV files."""
    from memalpha_kit.lab.grouping import run_grouping

    loaded = load_profile(profile, overrides)
    runs = runs or notebooks.repository() / "runs" / loaded.name / "grouping"
    out = out or notebooks.repository() / "reports" / "recorded" / "grouping"
    print(*run_grouping(loaded, batches, steps, runs, out), sep="\n")


def audit(
    instances: Annotated[int, Option(min=2, help="of the miniature's world")] = 16,
    seed: Seed = 0,
    out: Annotated[
        Path | None, Option(metavar="FILE.csv", help="[default: reports/recorded/reward_audit.csv]")
    ] = None,
) -> None:
    """What scripted exploits earn under the release's rules and under ours."""
    from memalpha_kit.files import save_table
    from memalpha_kit.lab.audit import audit

    out = out or notebooks.repository() / "reports" / "recorded" / "reward_audit.csv"
    table = audit(instances, seed)
    save_table(out, table.round(4))
    print(_audit_text(table))
    print(out)


def _audit_text(table: pd.DataFrame) -> str:
    """Total reward and gain of every exploit, a column per rules; * marks a gain above 0."""
    marks = table["pays"].map({True: "*", False: " "})
    gain = " (" + table["gain"].map("{:+.2f}".format) + ")"
    shown = table.assign(earns=table["total"].map("{:.2f}".format) + gain + marks)
    wide = shown.pivot(index=["exploit", "mode"], columns="rules", values="earns")
    order = shown[["exploit", "mode"]].drop_duplicates()
    rules = list(dict.fromkeys(table["rules"]))
    return wide.loc[list(map(tuple, order.to_numpy()))][rules].to_string()


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
    folder = notebooks.repository() / "benchmarks"
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
