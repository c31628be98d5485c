"""`memalpha export`: a checkpoint as one Hugging Face folder, checked by loading it again."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha export`."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a run's folder, a policy, a LoRA adapter, or a global_step_<k> folder with shards",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what is written")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="an adapter's base model, or the configuration and tokenizer of shards",
    )
    parser.add_argument(
        "--dtype",
        default="keep",
        help="keep, bfloat16, float16 or float32 (keep: as it is; shards become bfloat16)",
    )


def main(args: argparse.Namespace) -> int:
    """0 after the folder was loaded again and compared."""
    from memalpha_kit.training.export import export

    made = export(args.checkpoint, args.out, args.base, args.dtype)
    print(f"{made.folder}: {made.kind}, {made.parameters:,} parameters, ", end="")
    print(f"largest difference of a log-probability {made.difference:.2g}")
    return 0
