"""`memalpha report`: answered episodes to a table with intervals, printed and saved as CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit import store
from memalpha_kit.commands.files import finished_card, load_data
from memalpha_kit.evaluation import Bootstrap, Run, evaluate

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha report`."""
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--answers", required=True, nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    parser.add_argument("--counter", default="wordpunct", help="of the token columns")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N")


def main(args: argparse.Namespace) -> int:
    """Prints the table and saves it. Raises InputError."""
    runs = [_run(path) for path in args.answers]
    bootstrap = Bootstrap(args.seed, args.resamples)
    table = evaluate(load_data(args.data), runs, args.counter, bootstrap)
    store.save_table(args.out, table)
    print(as_text(table))
    print(args.out)
    return 0


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal: shares with three digits, tokens whole, unknown cells blank."""
    whole = {name: "{:,.0f}".format for name in ("memory_tokens", "chunk_tokens", "calls")}
    one = {"duration_s": "{:.1f}".format}
    return table.to_string(
        index=False, formatters=whole | one, float_format="{:.3f}".format, na_rep=""
    )


def _run(path: Path) -> Run:
    card = finished_card(path, "ask")
    return Run(
        store.load_episodes(path), card["reader"], card.get("metric"), card.get("duration_s")
    )
