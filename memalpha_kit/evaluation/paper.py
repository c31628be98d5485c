"""Our runs beside the paper's tables: which row a run stands beside, and a verdict on each number.

Averages are recomputed from a table's columns, for the paper's rows too, as some printed averages
are not the mean of their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from memalpha_kit.errors import InputError, closest
from memalpha_kit.evaluation import scores
from memalpha_kit.evaluation.methods import METHODS
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.evaluation.tables import AVERAGE, Bootstrap, table_sources
from memalpha_kit.tasks import metric_of

PAPER = Path(__file__).parents[1] / "paper_tables" / "results.csv"
STATISTICS = PAPER.with_name("statistics.csv")


@dataclass(frozen=True)
class Claim:
    """Which row of the paper a run stands beside, and what keeps it from being the same thing."""

    method: str  # as the paper's tables call it
    doubt: str = ""  # e.g. another answering model; then no verdict is possible
    beta: float | None = None
    gamma: float | None = None


BASELINES = {
    "long-context": ("Long-Context", "qwen3-32b"),
    "bm25": ("RAG-Top2", "qwen3-32b"),
    "memagent": ("MemAgent", "rl-memoryagent-14b"),
    "mem1": ("MEM1", "qwen3-32b"),
}
"""Our methods: the paper's name for them, and the model that answered there."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "long-context": {"window": 30_000},
    "bm25": {"window": 30_000, "top_k": 2},
    "memagent": {"memory_tokens": 1024, "max_tokens": 1024},
    "mem1": {"window": 30_000, "state_tokens": 1024},
    "memory": {
        **{"reader": "model", "retrieval": "bm25", "top_k": 20},
        **{f"memory.{part}": True for part in ("core", "semantic", "episodic")},
    },
}
"""What a method is in the paper; anything else is another method. How its models are asked
(wording, temperature, thinking) is not among it: ours is the same for all methods, on purpose; the
`release-` methods ask as the published code does.
"""
MEM1_WRITER = "qwen2.5-7b-rl-rag-q2-em-release"
WRITERS = {"memalpha-4b": "Mem-alpha", "qwen3-4b": "Qwen3-4B", "gpt-4.1-mini": "gpt-4.1-mini"}
"""The writers of a memory: the paper's name for each. Qwen3-32B answers."""


def claim(settings: Mapping[str, Any], writer: str = "") -> Claim | None:
    """Which row of the paper a run with these settings (`Run.settings`) stands beside, if any.

    `writer` is the model that wrote the memory; names are compared without owner and capitals. A
    run with another model, or that is not what is `PUBLISHED`, stands beside the row with a doubt,
    so it gets no verdict.
    """
    said = settings["method"]
    method, model = METHODS[said["method"]].base or said["method"], _bare(said.get("model"))
    if method != "memory" and method not in BASELINES:
        return None
    row, wanted = BASELINES.get(method) or (WRITERS.get(_bare(writer)), "qwen3-32b")
    if row is None:
        doubt = f"memory written by {writer or 'a rule'}"
    elif model != wanted:
        doubt = f"answered by {model or 'no model'}, the paper's by {wanted}"
    else:
        doubt = _unlike(said, method)
    found = Claim(row or "Mem-alpha", doubt)
    return replace(found, beta=0.05, gamma=0.1) if found.method == "Mem-alpha" else found


def _unlike(said: Mapping[str, Any], method: str) -> str:
    """The first setting that is not the published method's, "" if there is none."""
    for name, wanted in PUBLISHED[method].items():
        outer, _, inner = name.partition(".")
        value = said.get(outer, wanted)
        value = value.get(inner, wanted) if inner and isinstance(value, Mapping) else value
        if value != wanted:
            return f"{name} is {value}, the paper's {wanted}"
    writer = _bare(said.get("write_model") or said.get("model"))
    if method == "mem1" and not said.get("rollouts") and writer != MEM1_WRITER:
        return f"summaries by {writer}, the paper's by {MEM1_WRITER}"
    return ""


def _bare(model: str | None) -> str:
    return (model or "").rstrip("/").rpartition("/")[2].lower()


def paper_profile(found: Claim) -> str:
    """The scorer behind the paper's row: it has one for agents and another for baselines."""
    baseline = found.method in (name for name, _ in BASELINES.values())
    return "release-baseline" if baseline else "release-agent"


def doubts(answers: pd.DataFrame, claim: Claim, table: int) -> dict[str, str]:
    """By source, what keeps a method's `answers` from being what the paper's table measured.

    Another metric than the paper's own scorer used, or another number of instances than its
    statistics say (10 % more or less is accepted, as a rebuild may differ).
    """
    counted = pd.read_csv(STATISTICS, comment="#")
    counted = counted[(counted.split == "test") & (counted.table == (8 if table in (2, 9) else 6))]
    instances = counted.set_index("source")["instances"].to_dict()
    found = {}
    for source, part in answers[answers["source"].isin(instances)].groupby("source", sort=False):
        ours, theirs = part["metric"].iloc[0], metric_of(str(source), paper_profile(claim))
        n, expected = part["instance"].nunique(), instances[source]
        if ours != theirs:
            found[str(source)] = f"scored by {ours}, the paper by {theirs}"
        elif abs(n - expected) > 0.1 * expected:
            found[str(source)] = f"{n} instances, the paper had {expected}"
    return found


MIN_UNITS = 5  # fewer instances (or questions) say too little about spread for a verdict
MAX_HALF = 0.1  # an interval wider than this on either side cannot support "reproduced"
ROUNDING = 0.0005  # printed scores have three decimals


def verdict(
    ours: float | None,
    low: float | None,
    high: float | None,
    printed: float | None,
    n: int,
    missing: int = 0,
    doubt: str = "",
) -> tuple[str, str]:
    """Whether our score reproduces the printed one, and why this is said.

    `low` and `high` are the ends of our 95 % interval, `n` the number of instances (or questions)
    that were drawn for it. In this order:

    1. `cannot tell` if something else than chance can make the difference (`doubt`: another model,
       metric or setting), if a number or the interval is not there, if questions are missing, or
       if n < 5.
    2. `not reproduced` if the printed score is outside our interval widened by the square root of
       two: it was measured once, on a sample of its own, so it is as uncertain as ours is. If ours
       has no width (all n alike), by 3/n, the rule of three.
    3. `reproduced` if the printed score is inside our interval and that is narrow, at most 0.1
       (ten points) from our score to either end.
    4. `cannot tell` otherwise: the interval is too wide, or the printed score is just outside.

    >>> verdict(0.60, 0.55, 0.65, 0.62, n=100)
    ('reproduced', 'printed score inside our interval')
    """
    if doubt:
        return "cannot tell", doubt
    if ours is None or printed is None:
        return "cannot tell", "no score of ours" if ours is None else "not in the paper"
    if missing:
        return "cannot tell", f"{missing} questions have no score"
    if low is None or high is None or n < MIN_UNITS:
        return "cannot tell", f"{n} units: too few for an interval"
    gap, end = printed - ours, (high if printed > ours else low) - ours
    if abs(gap) > (2**0.5 * abs(end) if high - low > 1e-9 else 3 / n) + ROUNDING:
        return "not reproduced", f"printed {gap:+.3f} away, our interval {end:+.3f}"
    if abs(gap) > abs(end) + ROUNDING:
        return "cannot tell", "printed score just outside our interval"
    if max(high - ours, ours - low) > MAX_HALF:
        return "cannot tell", f"interval wider than {MAX_HALF} on a side"
    return "reproduced", "printed score inside our interval"


def paper_results(table: str | int | None = None) -> pd.DataFrame:
    """The rows of tables 1 to 4 and 9 as printed, or of one of them ("table1" or 1)."""
    blank = {"beta": "", "gamma": ""}
    rows = pd.read_csv(PAPER, comment="#", keep_default_na=False, na_values=blank)
    if table is None:
        return rows
    name = f"table{str(table).removeprefix('table')}"
    names = "table" + rows["table"].astype(str)
    if name not in set(names):
        hint = closest(name, sorted(set(names)))
        raise InputError(f"paper: expected a table with results, found {name!r}{hint}")
    return rows[names == name].reset_index(drop=True)


def paper_averages(rows: pd.DataFrame) -> pd.DataFrame:
    """Printed and recomputed averages of score and memory, one row per table and method.

    `differs` where the recomputed score, rounded as printed, is another one by more than 0.001, or
    nothing was printed.
    """
    keys, names = ["table", "method", "beta", "gamma"], ["score", "memory_ktok"]
    average = rows["dataset"] == AVERAGE
    means = rows[~average].groupby(keys, sort=False, dropna=False)[names].mean().round(3)
    table = means.reset_index().merge(
        rows.loc[average, [*keys, *names]],
        how="left",
        on=keys,
        suffixes=("_recomputed", "_printed"),
    )
    gap = (table["score_printed"].astype(float) - table["score_recomputed"]).abs()
    return table.assign(differs=~(gap <= 0.001 + 1e-9))


def table_paper(
    table: pd.DataFrame, paper: pd.DataFrame, claim: Claim, doubts: Mapping[str, str] = {}
) -> pd.DataFrame:
    """A method's rows of `table_sources` beside the paper's (`paper_results`), with verdicts.

    `claim` says which row of the paper it stands beside, `doubts` by source what else is not alike.
    The average is compared with the mean of the paper's columns, not with what was printed for it,
    and only if ours has the same columns. Columns that the paper has and we have not are listed
    without a score of ours.
    """
    ours, theirs = table.set_index("source"), paper[paper["method"] == claim.method]
    for name in ("beta", "gamma"):
        if (value := getattr(claim, name)) is not None:
            theirs = theirs[theirs[name] == value]
    columns = theirs[theirs["dataset"] != AVERAGE]
    rows = []
    for _, cell in theirs.iterrows():
        name, compared = cell["source"], cell["score"]
        doubt = claim.doubt or doubts.get(name, "")
        if cell["dataset"] == AVERAGE:
            name, compared = AVERAGE, round(columns["score"].mean(), 4)
            doubt = doubt or _average_doubt(ours, columns, doubts)
        mine = ours.loc[name] if name in ours.index else None
        named = {"table": cell["table"], "method": table["method"].iloc[0]}
        rows.append(named | _paper_row(claim, cell, compared, mine, doubt))
    return pd.DataFrame(rows)


def _average_doubt(ours: pd.DataFrame, columns: pd.DataFrame, doubts: Mapping[str, str]) -> str:
    """What keeps our average from being one of the paper's columns."""
    if doubts:
        return "some columns are not alike"
    if not columns["source"].isin(ours.index).all():
        return "not all columns of the paper were run"
    return "other columns than the paper's" if len(ours) - 1 != len(columns) else ""


def _paper_row(
    claim: Claim, cell: pd.Series, compared: float, mine: Any, doubt: str
) -> dict[str, Any]:
    ours: dict[str, Any] = {} if mine is None else mine.where(mine.notna(), None).to_dict()
    n = ours.get("instances") or 0
    n = n if n > 1 else ours.get("questions") or 0
    score, low, high = (ours.get(name) for name in ("score", "low", "high"))
    missing, doubt = int(ours.get("missing") or 0), doubt if ours else ""
    said, why = verdict(score, low, high, compared, n, missing, doubt)
    tokens = ours.get("memory_tokens")
    return {
        "paper_method": claim.method,
        "dataset": cell["dataset"],
        "source": cell["source"],
        **{"ours": score, "low": low, "high": high},
        "printed": cell["score"],
        "compared_with": compared,
        "verdict": said,
        "why": why,
        "memory_ktok": None if tokens is None else tokens / 1000,
        "memory_ktok_printed": cell["memory_ktok"],
    }


def beside_the_paper(
    found: Mapping[str, Sequence[Run]], name: str, bootstrap: Bootstrap
) -> pd.DataFrame:
    """Runs beside the paper's rows, each scored as the paper scored that row."""
    printed, parts = paper_results(name), []
    for label, runs in found.items():
        stands = claim(runs[0].settings, runs[0].info.get("writer", ""))
        if stands is None or stands.method not in set(printed["method"]):
            continue
        answers, built = scores.frames({label: runs}, paper_profile(stands))
        ours = table_sources(answers, built, bootstrap)
        unlike = doubts(answers, stands, int(printed["table"].iloc[0]))
        parts.append(table_paper(ours, printed, stands, unlike))
    if not parts:
        names = ", ".join(printed["method"].unique())
        raise InputError(f"report: {name} has {names}; none of the runs stands beside one of them")
    return pd.concat(parts, ignore_index=True)
