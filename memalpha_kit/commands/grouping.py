"""`memalpha grouping`: the same rollouts under every grouping, recorded as small CSV files."""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.commands import add_profile_arguments, profile_of
from memalpha_kit.errors import InputError
from memalpha_kit.notebooks import repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha grouping`."""
    add_profile_arguments(parser)
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FOLDER",
        help="whose rollouts (default: the profile's warm start, and the same after --steps)",
    )
    parser.add_argument(
        "--steps", type=int, default=30, metavar="N", help="GRPO steps of the later policy; 0: none"
    )
    parser.add_argument(
        "--batches", type=int, default=16, metavar="N", help="GRPO steps' worth of rollouts"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="policies (default: runs/PROFILE/grouping)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="tables (default: reports/recorded/grouping)"
    )


def main(args: argparse.Namespace) -> int:
    """0 once tables and figure are written. Raises InputError."""
    from memalpha_kit.lab.grouping import run_grouping

    profile = profile_of(args)
    if args.steps < 0:
        raise InputError(f"--steps: expected at least 0, found {args.steps}")
    if args.policy and not args.policy.is_dir():
        raise InputError(f"--policy {args.policy}: expected a folder, found none")
    runs = args.runs or repository() / "runs" / profile.name / "grouping"
    out = args.out or repository() / "reports" / "recorded" / "grouping"
    for path in run_grouping(profile, args.batches, args.steps, runs, out, args.policy):
        print(path)
    return 0
