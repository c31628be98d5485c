"""`memalpha sweep`: a grid of settings of the miniature, from one file, resumable."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from memalpha_kit.notebooks import repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha sweep`."""
    parser.add_argument("sweep", help="name of a sweep of the kit, or a YAML file")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes side by side (default: 1)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="instead of those in the file"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="policies (default: runs/sweeps/NAME)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="tables (default: reports/recorded/NAME)"
    )


def main(args: argparse.Namespace) -> int:
    """0 after all points; what is already there under the same settings is not run again."""
    from memalpha_kit.lab.runner import load_sweep, run_sweep

    sweep = load_sweep(args.sweep)
    if args.seeds:
        sweep = replace(sweep, seeds=tuple(dict.fromkeys(args.seeds)))
    runs = args.runs or repository() / "runs" / "sweeps" / sweep.name
    out = args.out or repository() / "reports" / "recorded" / sweep.name
    for path in run_sweep(sweep, runs, out, args.workers):
        print(path)
    return 0
