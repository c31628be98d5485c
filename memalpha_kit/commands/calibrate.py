"""`memalpha calibrate`: a judge over labelled cases, to a table of agreement and variance."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit import files as store
from memalpha_kit.commands.endpoints import (
    add_endpoint_arguments,
    add_request_arguments,
    client_of,
)
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.calibration import (
    CASES,
    Case,
    Judgement,
    load_cases,
    model_judge,
    repeated,
    rule_judge,
    table_calibration,
)
from memalpha_kit.method.judges import Verdict
from memalpha_kit.models.local import load_lm
from memalpha_kit.models.local_chat import LocalChat
from memalpha_kit.records import ChatModel

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha calibrate`."""
    parser.add_argument("--judge", choices=("model", "rules"), default="model")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    parser.add_argument(
        "--replies", type=Path, metavar="FILE.jsonl", help="every verdict, if given"
    )
    parser.add_argument("--cases", type=Path, default=CASES, metavar="FILE.jsonl")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat (default: 0)")
    parser.add_argument(
        "--rubric",
        nargs="+",
        choices=("published", "by_type"),
        default=("published", "by_type"),
        help="of LongMemEval's cases (default: both)",
    )
    parser.add_argument("--behaviour", choices=("fixed", "release"), default="fixed")
    parser.add_argument("--temperature", type=float, help="default: each judge's own")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="default: each judge's own")
    parser.add_argument("--thinking", action="store_true", help="let the model reason first")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a local model, no server")
    parser.add_argument("--device", default="cpu", help="of --model, e.g. cuda (default: cpu)")
    add_endpoint_arguments(parser, "", "judges")
    add_request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Asks, prints the table and saves it. Raises InputError."""
    cases = load_cases(args.cases)
    tables, replies = [], []
    for rubric, name, judge, held in _parts(args, cases):
        verdicts = repeated(judge, held, args.repeats, args.seed)
        table = table_calibration(held, verdicts, args.seed)
        table.insert(1, "rubric", [rubric if j == "longmemeval" else "" for j in table["judge"]])
        table.insert(0, "model", name)
        tables.append(table)
        replies += _replies(rubric, held, verdicts, args.seed)
    table = _joined(tables)
    store.save_table(args.out, table)
    if args.replies:
        lines = "".join(f"{json.dumps(reply)}\n" for reply in replies)
        store.write_bytes(args.replies, lines.encode())
    print(as_text(table))
    print(args.out)
    if table["missing"].sum() == (table["n"] * table["repeats"]).sum():
        print(
            "memalpha: the judge gave no verdict at all; --replies FILE.jsonl keeps what it said",
            file=sys.stderr,
        )
        return 1
    return 0


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal, without columns that are empty or the same in every row."""
    same = [name for name in ("model", "rubric", "repeats") if table[name].nunique() == 1]
    shown = table.drop(columns=same).dropna(axis="columns", how="all")
    return shown.to_string(index=False, float_format="{:.3f}".format, na_rep="")


def _parts(
    args: argparse.Namespace, cases: Sequence[Case]
) -> list[tuple[str, str, Judgement, list[Case]]]:
    """(rubric, name of the model, judge, its cases): all cases, then LongMemEval's once more."""
    if args.judge == "rules":
        return [("", "rules", rule_judge, list(cases))]
    model = _model(args)
    parts = []
    for rubric in dict.fromkeys(args.rubric):
        judge = model_judge(
            model, rubric, args.behaviour, args.temperature, args.thinking, args.max_tokens
        )
        held = [case for case in cases if not parts or case.judge == "longmemeval"]
        if held:
            parts.append((rubric, model.name, judge, held))
    return parts


def _model(args: argparse.Namespace) -> ChatModel:
    if args.model is None:
        client = client_of(args)
        if client is None:
            raise InputError(
                "the judge: expected --url and --model-name, QWEN_URL, --model or --judge rules, "
                "found none of them"
            )
        return client
    if args.url or args.model_name:
        raise InputError("--model: expected no --url and no --model-name beside it")
    return LocalChat(load_lm(args.model, args.device))


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(tables, ignore_index=True)


def _replies(
    rubric: str, cases: Sequence[Case], verdicts: Sequence[Sequence[Verdict]], seed: int
) -> list[dict]:
    """One plain record per verdict."""
    return [
        {
            "case": case.id,
            "rubric": rubric if case.judge == "longmemeval" else "",
            "seed": seed + repeat,
            "label": case.valid,
            "valid": verdict.valid,
            "reply": verdict.reply,
            "error": verdict.error,
            "asked": verdict.asked,
        }
        for repeat, row in enumerate(verdicts)
        for case, verdict in zip(cases, row, strict=True)
    ]
