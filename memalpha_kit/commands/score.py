"""`memalpha score`: scores finished runs again. No answering model is called.

A judge is asked only if `--judge-url` or `--judge-model-name` names one; what it said before is
kept with the run and not asked twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.commands import evaluate
from memalpha_kit.commands.endpoints import add_endpoint_arguments, add_request_arguments
from memalpha_kit.tasks import SCORING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha score`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--profile", default="fixed", metavar="NAME", help=", ".join(SCORING.names())
    )
    parser.add_argument(
        "--rubric", default="published", choices=("published", "by_type"), help="of the judge"
    )
    add_endpoint_arguments(parser, "judge", "judges answers, where a source needs one")
    add_request_arguments(parser)
    parser.set_defaults(url=None, model_name=None, key_env=None)


def main(args: argparse.Namespace) -> int:
    """Scores every run and prints its table. 1 if some question has no answer or no verdict."""
    from memalpha_kit.evaluation import runs

    return max([evaluate.finish(runs.load_run(folder), args) for folder in args.runs])
