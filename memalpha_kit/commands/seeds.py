"""`memalpha seeds`: the miniature experiment with several seeds, recorded as small CSV files."""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.commands import add_profile_arguments, profile_of
from memalpha_kit.notebooks import repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha seeds`."""
    add_profile_arguments(parser)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 to 4"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the CSV files go (default: reports/recorded/miniature)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="where checkpoints go, and from where a stopped call goes on (default: runs/PROFILE)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes side by side (default: 1)"
    )


def main(args: argparse.Namespace) -> int:
    """0 after all seeds; a seed that is already there under these settings is not run again."""
    from memalpha_kit.lab.runner import record_seeds

    profile = profile_of(args)
    runs = args.runs or repository() / "runs" / profile.name
    out = args.out or repository() / "reports" / "recorded" / "miniature"
    for path in record_seeds(profile, args.seeds, runs, out, args.workers):
        print(path)
    return 0
