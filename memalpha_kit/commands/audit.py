"""`memalpha audit`: what scripted exploits earn under the release's rules and under ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit.errors import InputError
from memalpha_kit.notebooks import repository

if TYPE_CHECKING:
    import pandas as pd


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
    from memalpha_kit.lab.audit import audit

    if args.instances < 2:
        raise InputError(f"--instances: expected at least 2, found {args.instances}")
    out = args.out or repository() / "reports" / "recorded" / "reward_audit.csv"
    table = audit(args.instances, args.seed)
    save_table(out, table.round(4))
    print(as_text(table))
    print(out)
    return 0


def as_text(table: pd.DataFrame) -> str:
    """Total reward and gain of every exploit, a column per rules; * marks a gain above 0."""
    marks = table["pays"].map({True: "*", False: " "})
    shown = table.assign(
        earns=table["total"].map("{:.2f}".format) + " (" + table["gain"].map("{:+.2f}".format)
        + ")" + marks
    )  # fmt: skip
    wide = shown.pivot(index=["exploit", "mode"], columns="rules", values="earns")
    order = shown[["exploit", "mode"]].drop_duplicates()
    rules = list(dict.fromkeys(table["rules"]))
    return wide.loc[list(map(tuple, order.to_numpy()))][rules].to_string()
