"""`memalpha run`: the notebooks in order, executed copies and HTML into reports/."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memalpha_kit.commands import add_profile_arguments
from memalpha_kit.notebooks import NotebookError, run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha run`."""
    add_profile_arguments(parser)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PREFIX",
        help="only notebooks whose name starts so, e.g. 03; may be repeated",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="where data/, runs/ and reports/ are (default: the repository)",
    )


def main(args: argparse.Namespace) -> int:
    """0, or 1 with one line on standard error if a cell failed."""
    try:
        run(args.profile, args.only, args.overrides, args.root)
    except NotebookError as error:
        print(f"memalpha: error: {error}", file=sys.stderr)
        return 1
    return 0
