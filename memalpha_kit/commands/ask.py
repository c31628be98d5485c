"""`memalpha ask`: a reader answers the questions about episodes that were written before.

The answers are a run like those of `memalpha evaluate`: scored, resumable, and read by
`memalpha score` and `memalpha report`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.commands import evaluate
from memalpha_kit.commands.files import check_written, load_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha ask`."""
    parser.add_argument("--episodes", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--k", type=int, metavar="N", help="entries that the reader looks at")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the run")
    evaluate.add_run_arguments(parser)
    unused = ("url", "model_name", "key_env", "price_in", "price_out")
    parser.set_defaults(method="memory", writer=None, **{f"writer_{name}": None for name in unused})


def main(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table. 1 if questions are left without an answer."""
    from memalpha_kit.evaluation.memories import asked_instances, load_written

    evaluate.check(args)
    check_written(args.episodes)
    instances = asked_instances(args.episodes, load_data([args.data]))
    args.written_by = next(iter(load_written(args.episodes).values())).writer
    args.options += [f"episodes={args.episodes}"] + ([f"k={args.k}"] if args.k is not None else [])
    args.out, args.name = args.out.parent, args.out.name
    return evaluate.evaluate(args, instances, [])
