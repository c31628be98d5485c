"""The report of several runs: tables side by side, and a page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from memalpha_kit import files
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import paper, scores, tables
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.evaluation.tables import Bootstrap, markdown

Labelled = Mapping[str, Sequence[Run]]
"""Runs by the name of their method in tables; a method may have one run per source."""

SHOWN = (
    *("source", "metric", "instances", "questions", "error_rate", "score", "low", "high"),
    *("if_all_0", "if_all_1", "memory_tokens", "chunk_tokens", "compression"),
    *("calls_per_chunk", "call_success", "prompt_tokens", "completion_tokens", "cost_usd"),
)
"""Columns of `table_sources` that are printed; the CSV files have all."""
SECTIONS = {
    "table_sources": ("Scores by source", ("method", *SHOWN)),
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
"""Title and printed columns of each table."""


def labelled(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by a name for tables: the method's, or `writer + reader` for a memory.

    Runs of one method about different sources are one row each of that method; where they have a
    source in common, folders are told apart by their names.
    """
    names = [_label(run) for run in found]
    asked = [(name, s) for name, run in zip(names, found, strict=True) for s in _sources(run)]
    if len(set(asked)) < len(asked):
        twice = {name for name, source in asked if asked.count((name, source)) > 1}
        names = [
            run.folder.name if name in twice else name
            for name, run in zip(names, found, strict=True)
        ]
    labels: dict[str, list[Run]] = {}
    for name, run in zip(names, found, strict=True):
        labels.setdefault(name, []).append(run)
    if len({run.folder.resolve() for run in found}) < len(found):
        raise InputError(f"report: expected each run once, found {', '.join(names)}")
    return labels


def _label(run: Run) -> str:
    method, writer = run.settings["method"], run.info.get("writer")
    return f"{writer} + {method['reader']}" if writer and "reader" in method else method["method"]


def _sources(run: Run) -> set[str]:
    return {question.source for question in run.questions}


def report(
    found: Labelled, profile: str, table: str | None, bootstrap: Bootstrap
) -> dict[str, pd.DataFrame]:
    """The tables of some runs by name: floors and methods, pairs, and one beside the paper."""
    answers, built = scores.frames(found, profile)
    floors = scores.floors([run for runs in found.values() for run in runs], profile)
    every = pd.concat([answers, floors], ignore_index=True)
    made = {"table_sources": tables.table_sources(every, built, bootstrap)}
    if len(found) > 1:
        made["table_pairs"] = tables.table_pairs(answers, bootstrap)
    if table:
        made["table_paper"] = _beside_the_paper(found, table, bootstrap)
    return made


def _beside_the_paper(found: Labelled, name: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Runs beside the paper's rows, each scored as the paper scored that row."""
    printed, parts = paper.paper_results(name), []
    for label, runs in found.items():
        claim = paper.claim(runs[0].settings, runs[0].info.get("writer", ""))
        if claim is None or claim.method not in set(printed["method"]):
            continue
        answers, built = scores.frames({label: runs}, paper.paper_profile(claim))
        table = tables.table_sources(answers, built, bootstrap)
        doubts = paper.doubts(answers, {label: claim}, int(printed["table"].iloc[0]))
        parts.append(paper.table_paper(table, printed, {label: claim}, doubts))
    if not parts:
        names = ", ".join(printed["method"].unique())
        raise InputError(f"report: {name} has {names}; none of the runs stands beside one of them")
    return pd.concat(parts, ignore_index=True)


def page(found: Labelled, profile: str, made: Mapping[str, pd.DataFrame]) -> str:
    """What was run, what is missing, and the tables, as Markdown."""
    lines = [f"# Report\n\nProfile `{profile}`; intervals are 95 %, clustered by instance.\n"]
    if len({frozenset(run.settings["data_sha256"] for run in runs) for runs in found.values()}) > 1:
        lines.append(
            "**The runs were not asked the same questions** (other data or another draw): their "
            "scores are not comparable; paired differences are over what both answered.\n"
        )
    for name, run in ((name, run) for name, runs in found.items() for run in runs):
        state = "complete" if run.complete else f"INCOMPLETE: {len(run.open)} without an answer"
        counted = f"tokens by {run.settings['method']['counter']}"
        lines.append(
            f"- {name}: `{run.folder.name}`, {len(run.questions)} questions, {counted}, {state}"
        )
    sections = []
    for name, table in made.items():
        title, columns = SECTIONS[name]
        sections.append(f"## {title}\n\n{markdown(table[list(columns)])}")
    return "\n".join(["\n".join(lines) + "\n", *sections])


def save(made: Mapping[str, pd.DataFrame], text: str, out: Path) -> None:
    """Writes the tables and the page into a folder, or the table of sources into a CSV file."""
    if out.suffix == ".csv":
        files.save_table(out, made["table_sources"])
        return
    for name, table in made.items():
        files.save_table(out / f"{name}.csv", table)
    files.write_bytes(out / "report.md", text.encode())
