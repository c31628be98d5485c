"""`memalpha audit`: what scripted exploits earn under the release's rules and under ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit.errors import InputError
from memalpha_kit.notebooks import repository

if TYPE_CHECKING:
    pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha audit`."""
    parser.add_argument(
        "--instances", type=int, default=16, metavar="N", help="of the miniature's world"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the instances (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.csv",
        help="the table (default: reports/recorded/reward_audit.csv)",
    )


def main(args: argparse.Namespace) -> int:
    """Prints what each exploit earns and saves the whole table. Raises InputError."""
    from memalpha_kit.files import save_table
    from memalpha_kit.lab.audit import audit, show_audit

    if args.instances < 2:
        raise InputError(f"--instances: expected at least 2, found {args.instances}")
    out = args.out or repository() / "reports" / "recorded" / "reward_audit.csv"
    table = audit(args.instances, args.seed)
    save_table(out, table.round(4))
    print(show_audit(table))
    print(out)
    return 0
