"""`memalpha report`: runs side by side, with intervals, paired tests and the paper's numbers.

memalpha report RUN... [--paper table1] [--out FOLDER]      runs of `memalpha evaluate`
memalpha report --data D --answers A --out FILE.csv         answered episodes of `memalpha ask`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memalpha_kit import files as store
from memalpha_kit.commands import evaluate as evaluate_command
from memalpha_kit.commands.files import finished_card, load_data
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.answered import Bootstrap, evaluate
from memalpha_kit.evaluation.answered import Run as AnsweredEpisodes
from memalpha_kit.method.saved import load_episodes
from memalpha_kit.tasks import SCORING

if TYPE_CHECKING:
    import pandas as pd

    from memalpha_kit.evaluation.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha report`."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="the first is the base")
    parser.add_argument(
        "--profile", default="fixed", metavar="NAME", help=", ".join(SCORING.names())
    )
    parser.add_argument("--paper", metavar="TABLE", help="table1, table2, table3, table4, table9")
    parser.add_argument("--data", nargs="+", type=Path, metavar="PATH", help="of --answers")
    parser.add_argument("--answers", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--out", type=Path, metavar="PATH", help="a folder; with --answers a CSV")
    parser.add_argument("--counter", default="wordpunct", help="of --answers' token columns")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N")


def main(args: argparse.Namespace) -> int:
    """Prints the tables and saves them. Raises InputError."""
    bootstrap = Bootstrap(args.seed, args.resamples)
    if bool(args.runs) == bool(args.answers):
        raise InputError("report: expected folders of runs, or --answers with --data")
    if args.answers:
        return _report_answers(args, bootstrap)
    return _report_runs(args, bootstrap)


# ---- runs ---


def _report_runs(args: argparse.Namespace, bootstrap: Bootstrap) -> int:
    from memalpha_kit.evaluation import runs
    from memalpha_kit.evaluation import tables as comparison

    found = labelled([runs.load_run(folder) for folder in args.runs])
    answers, built = runs.frames(found, args.profile)
    tables = {"table_sources": comparison.table_sources(answers, built, bootstrap)}
    if len(found) > 1:
        tables["table_pairs"] = comparison.table_pairs(answers, bootstrap)
    if args.paper:
        tables["table_paper"] = paper_table(found, args.paper, bootstrap)
    text = "\n".join([_head(found, args.profile), *(_section(*item) for item in tables.items())])
    print(text)
    if args.out:
        for name, table in tables.items():
            store.save_table(args.out / f"{name}.csv", table)
        store.write_bytes(args.out / "report.md", text.encode())
        print(args.out)
    return 0


def labelled(found: list[Run]) -> dict[str, Run]:
    """Runs by a name for tables: the method's, or the folder's where a method comes twice."""
    methods = [run.settings["method"]["method"] for run in found]
    names = [
        method if methods.count(method) == 1 else run.folder.name
        for method, run in zip(methods, found, strict=True)
    ]
    if len(set(names)) < len(names):
        raise InputError(f"report: expected each run once, found {', '.join(names)}")
    return dict(zip(names, found, strict=True))


def paper_table(found: Mapping[str, Run], name: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Runs beside the paper's rows, each scored as the paper scored that row."""
    import pandas as pd

    from memalpha_kit.evaluation import runs
    from memalpha_kit.evaluation import tables as comparison

    paper, parts = comparison.paper_results(name), []
    for label, run in found.items():
        claim = comparison.claim(run.settings, run.info.get("writer", ""))
        if claim is None or claim.method not in set(paper["method"]):
            continue
        answers, built = runs.frames({label: run}, comparison.paper_profile(claim))
        table = comparison.table_sources(answers, built, bootstrap)
        doubts = comparison.doubts(answers, {label: claim}, int(paper["table"].iloc[0]))
        parts.append(comparison.table_paper(table, paper, {label: claim}, doubts))
    if not parts:
        names = ", ".join(paper["method"].unique())
        raise InputError(f"report: {name} has {names}; none of the runs stands beside one of them")
    return pd.concat(parts, ignore_index=True)


def _head(found: Mapping[str, Run], profile: str) -> str:
    """What was run, and what is missing."""
    lines = [f"# Report\n\nProfile `{profile}`; intervals are 95 %, clustered by instance.\n"]
    if len({run.settings["data_sha256"] for run in found.values()}) > 1:
        lines.append(
            "**The runs were not asked the same questions** (other data or another draw): their "
            "scores are not comparable; paired differences are over what both answered.\n"
        )
    for name, run in found.items():
        state = "complete" if run.complete else f"INCOMPLETE: {len(run.open)} without an answer"
        counted = f"tokens by {run.settings['method']['counter']}"
        lines.append(
            f"- {name}: `{run.folder.name}`, {len(run.questions)} questions, {counted}, {state}"
        )
    return "\n".join(lines) + "\n"


SHOWN = {
    "table_sources": ("Scores by source", ("method", *evaluate_command.SHOWN)),
    "table_pairs": (
        "Paired differences to the first run",
        (
            *("method", "source", "questions", "units", "score", "score_against"),
            *("difference", "low", "high", "p", "p_holm", "detectable"),
        ),
    ),
    "table_paper": (
        "Beside the paper",
        (
            *("method", "paper_method", "dataset", "ours", "low", "high", "printed"),
            *("compared_with", "memory_ktok", "memory_ktok_printed", "verdict", "why"),
        ),
    ),
}
"""Title and columns of each table in the report; the CSV files have all columns."""


def _section(name: str, table: pd.DataFrame) -> str:
    from memalpha_kit.evaluation.tables import markdown

    title, columns = SHOWN[name]
    return f"## {title}\n\n{markdown(table[list(columns)])}"


# ---- answered episodes ---


def _report_answers(args: argparse.Namespace, bootstrap: Bootstrap) -> int:
    for option in ("data", "out"):
        if not getattr(args, option):
            raise InputError(f"--answers: expected --{option} too")
    found = [_answered(path) for path in args.answers]
    table = evaluate(load_data(args.data), found, args.counter, bootstrap)
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


def _answered(path: Path) -> AnsweredEpisodes:
    card = finished_card(path, "ask")
    return AnsweredEpisodes(
        load_episodes(path), card["reader"], card.get("metric"), card.get("duration_s")
    )
