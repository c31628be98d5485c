"""`memalpha report`: runs side by side, with floors, intervals, tests and the paper's numbers.

memalpha report RUN... [--paper table1] [--out FOLDER or FILE.csv]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.tasks import SCORING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="of evaluate or ask; the first is the base",
    )
    names = ", ".join(SCORING.names())
    parser.add_argument("--profile", default="fixed", metavar="NAME", help=names)
    parser.add_argument("--paper", metavar="TABLE", help="table1, table2, table3, table4, table9")
    parser.add_argument("--out", type=Path, metavar="PATH", help="a folder, or a CSV file")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N")


def main(args: argparse.Namespace) -> int:
    """Prints the tables and saves them. Raises InputError."""
    from memalpha_kit.evaluation import report
    from memalpha_kit.evaluation.runs import load_run
    from memalpha_kit.evaluation.tables import Bootstrap

    found = report.labelled([load_run(folder) for folder in args.runs])
    made = report.report(found, args.profile, args.paper, Bootstrap(args.seed, args.resamples))
    text = report.page(found, args.profile, made)
    print(text)
    if args.out:
        report.save(made, text, args.out)
        print(args.out)
    return 0
