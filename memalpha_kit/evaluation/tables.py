"""Tables of runs: a row per method and source, floors, and methods against each other.

Every number comes from one tidy table with a row per question and method. A question without a
score is counted as missing and never as 0. A score is the mean over instances of their mean over
questions (one instance, one voice); an average is the plain mean over the columns of the table.

Columns of `answers`, one row per question (`scores.frames` makes both tables):

| column | meaning |
| --- | --- |
| `method`, `source`, `instance`, `qa` | what was asked, of whom; together unique |
| `metric`, `profile`, `score`, `status` | the rule, the score or None and why (`scoring.Scored`) |
| `finish`, `truncated` | "length" is a reply that was cut off; whether its input was |
| `memory_tokens`, `chunk_tokens` | what the method kept of the instance, and what it read |
| `prompt_tokens`, `completion_tokens`, `cost_usd` | of answering; None where unknown |

Columns of `built`, one row per instance: `method`, `source`, `chunks`, `calls`, `calls_ok`,
`unusable`, `prompt_tokens`, `completion_tokens`, `cost_usd`, of making the memory. Further rows
hold what was paid for and thrown away, and what a judge cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from memalpha_kit import files
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import scores
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.stats import detectable, holm, mean_interval, sign_flip, stratified_interval

AVERAGE = "Avg."  # the source in rows of averages, as in the paper's tables


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    seed: int = 0
    resamples: int = 2000
    level: float = 0.95


BOOTSTRAP = Bootstrap()
SPENT = ("prompt_tokens", "completion_tokens", "cost_usd")
ASKED = ("instances", "questions", "skipped", "missing", "unfinished", "truncated")
COUNTS = (*ASKED, "calls", "unusable")
MEANS = ("if_all_0", "if_all_1", "memory_tokens", "chunk_tokens", "compression")
Row = dict[str, Any]


# ---- one table of all runs ----------------------------------------------------------------------


def table_sources(
    answers: pd.DataFrame, built: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """One row per method and source, in the order they come in, then one `Avg.` row per method.

    `low` and `high` are the ends of the interval: whole instances are drawn, or questions where
    there is one instance (`interval` says which). `skipped` questions cannot be asked by the
    method; `missing` ones have no score though they can, `error_rate` is their share of the asked,
    and `if_all_0`, `if_all_1` are the score if all of them were wrong or right. `unfinished`
    replies were cut off at their limit; `unusable` ones brought no new state of a memory. Tokens of
    memory and chunks are means over instances; `calls_per_chunk` and `call_success` are the memory
    operations that a writer tried in each chunk and the share of them that worked. Prompt and
    completion tokens are sums over all replies that were paid for, also those that were thrown
    away; `cost_usd` has the judge's beside them. None is unknown. The average of a method without a
    score in some column is None: it would be the average of other columns. Raises InputError if
    two profiles are mixed.
    """
    profiles = sorted(answers["profile"].unique())
    if len(profiles) > 1:
        raise InputError(f"table: expected one profile for all runs, found {', '.join(profiles)}")
    rows = []
    for method, mine in answers.groupby("method", sort=False):
        made = built[built["method"] == method]
        sources = [
            _source_row(part, made[made["source"] == source], bootstrap)
            for source, part in mine.groupby("source", sort=False)
        ]
        rows += [*sources, _average_row(mine, sources, bootstrap)]
    return pd.DataFrame(rows)


def _source_row(part: pd.DataFrame, made: pd.DataFrame, bootstrap: Bootstrap) -> Row:
    first, asked = part.iloc[0], part[part["status"] != "skipped"]
    drawn = bootstrap.seed, bootstrap.resamples, bootstrap.level
    score = mean_interval(part["score"].tolist(), *drawn, units(part))
    instances = _clusters(part).nunique()
    sizes = asked.groupby("instance")[["memory_tokens", "chunk_tokens"]].mean()
    calls, calls_ok, chunks = (_total(made[name]) for name in ("calls", "calls_ok", "chunks"))
    missing = asked["score"].isna()
    return {
        "method": first["method"],
        "source": first["source"],
        "metric": first["metric"],
        "instances": instances,
        "questions": len(part),
        "skipped": len(part) - len(asked),
        "missing": int(missing.sum()),
        "error_rate": float(missing.mean()) if len(asked) else None,
        "unfinished": int((part["finish"] == "length").sum()),
        "score": score.mean,
        "if_all_0": _bound(asked, 0.0),
        "if_all_1": _bound(asked, 1.0),
        "low": score.low,
        "high": score.high,
        "interval": "instances" if instances > 1 else "questions",
        "memory_tokens": _mean(sizes["memory_tokens"]),
        "chunk_tokens": _mean(sizes["chunk_tokens"]),
        "compression": _mean(1 - sizes["memory_tokens"] / sizes["chunk_tokens"]),
        "truncated": int(part["truncated"].eq(True).sum()),
        "calls": calls,
        "calls_per_chunk": calls / chunks if calls is not None and chunks else None,
        "call_success": calls_ok / calls if calls_ok is not None and calls else None,
        "unusable": _total(made["unusable"]),
        **{name: _spent(part, made, name) for name in SPENT},
    }


def _average_row(mine: pd.DataFrame, sources: list[Row], bootstrap: Bootstrap) -> Row:
    """The plain mean over columns of score and sizes, the sums of the rest."""
    columns = pd.DataFrame(sources)
    row: Row = dict.fromkeys(map(str, columns)) | {
        "method": sources[0]["method"],
        "source": AVERAGE,
        "metric": f"{len(sources)} columns",
        "interval": "within columns",
    }
    row |= {name: _mean(columns[name]) for name in MEANS}
    row |= {name: _total(columns[name]) for name in (*COUNTS, *SPENT)}
    if columns["score"].notna().all():
        drawn = mine["score"].tolist(), mine["source"].tolist(), units(mine)
        score = stratified_interval(*drawn, *astuple(bootstrap))
        row |= {"score": score.mean, "low": score.low, "high": score.high}
    asked = row["questions"] - row["skipped"]
    return row | {"error_rate": row["missing"] / asked if asked else None}


def _bound(asked: pd.DataFrame, value: float) -> float | None:
    """The score if every question that was asked and has none had this one."""
    filled = asked["score"].astype(float).fillna(value).tolist()
    return mean_interval(filled, seed=0, n=1, clusters=units(asked)).mean


def units(part: pd.DataFrame) -> list[str]:
    """What stands for itself in a bootstrap: an instance, or a question of a source's only one."""
    clusters = _clusters(part)
    alone = clusters.groupby(part["source"]).transform("nunique") == 1
    return clusters.where(~alone, clusters + "#" + part["qa"].astype(str)).tolist()


def _clusters(part: pd.DataFrame) -> pd.Series:
    """The instances; rollouts of one instance (`squad/0a#0`, `squad/0a#1`) share its voice."""
    return part["instance"].astype(str).str.replace(r"#\d+$", "", regex=True)


def _mean(values: pd.Series) -> float | None:
    """The mean, or None if any is unknown: a mean of the rest would be of other instances."""
    return None if values.empty or values.isna().any() else float(values.mean())


def _total(values: pd.Series) -> int | float | None:
    """The sum, 0 of nothing, None if any is unknown."""
    if values.isna().any():
        return None
    total = float(values.sum())
    return int(total) if total.is_integer() else total


def _spent(part: pd.DataFrame, made: pd.DataFrame, name: str) -> int | float | None:
    """What answering and making the memories took; what failed has rows of its own in `made`."""
    answered = part.loc[~part["status"].isin(["infra_error", "skipped"]), name]
    return _total(pd.concat([answered, made[name]]).astype(float))


# ---- methods against each other -----------------------------------------------------------------


PAIR = [
    *("method", "against", "source", "questions", "units", "score", "score_against"),
    *("difference", "low", "high", "p", "detectable"),
]


def table_pairs(answers: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> pd.DataFrame:
    """Every other method against the first one, source by source and on average.

    A method that has no question in common with the first one is left out. `p_holm` is p corrected
    for the number of tests in this table (Holm).
    `difference` is `method` minus the first one, with its interval; p is of a paired sign-flip test
    over whole units (`units` of them: instances, or questions of a single instance); `detectable`
    is the smallest true difference that a test of this size finds in 80 % of the cases. The last
    row of a method is the mean over sources, if there are several.
    """
    first, *others = answers["method"].drop_duplicates()
    parts = [part for other in others if len(part := _pairs(answers, other, first, bootstrap))]
    if not parts:
        return pd.DataFrame(columns=[*PAIR, "p_holm"])
    table = pd.concat(parts, ignore_index=True)
    table["p_holm"] = pd.Series(holm(table["p"].tolist()), table.index)
    return table.astype(dict.fromkeys([*PAIR[PAIR.index("score") :], "p_holm"], float))


def _pairs(answers: pd.DataFrame, method: str, against: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """One method against another, on the questions that both have a score of one metric for."""
    left, right = (answers[answers["method"] == name] for name in (method, against))
    both = left.merge(right, on=["source", "instance", "qa"], suffixes=("", "_against"))
    both = both.dropna(subset=["score", "score_against"])
    both = both[both["metric"] == both["metric_against"]]  # a judge's verdict is no substring
    parts = list(both.groupby("source", sort=False))
    parts += [(AVERAGE, both)] if len(parts) > 1 else []
    named = {"method": method, "against": against}
    rows = [named | _pair_row(str(name), part, bootstrap) for name, part in parts]
    return pd.DataFrame(rows, columns=PAIR)


def _pair_row(source: str, part: pd.DataFrame, bootstrap: Bootstrap) -> Row:
    """One comparison; over several sources each has the same weight."""
    gains = (part["score"] - part["score_against"]).astype(float).tolist()
    drawn = part["source"].tolist(), units(part)
    ours, theirs = (
        stratified_interval(part[name].tolist(), *drawn, bootstrap.seed, n=1).mean
        for name in ("score", "score_against")
    )
    gain = stratified_interval(gains, *drawn, *astuple(bootstrap))
    return {
        "source": source,
        "questions": gain.n,
        "units": gain.n_clusters,
        "score": ours,
        "score_against": theirs,
        "difference": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "p": sign_flip(gains, *drawn, bootstrap.seed),
        "detectable": detectable(gains, *drawn, bootstrap.level),
    }


# ---- reports -----------------------------------------------------------------------------------


Labelled = Mapping[str, Sequence[Run]]
"""Runs by the name of their method in tables; a method may have one run per source."""
SHOWN = [  # of the columns of `table_sources`; the CSV files have all
    *("source", "metric", "instances", "questions", "error_rate", "score", "low", "high"),
    *("if_all_0", "if_all_1", "memory_tokens", "chunk_tokens", "compression"),
    *("calls_per_chunk", "call_success", "prompt_tokens", "completion_tokens", "cost_usd"),
]
PAPER = [
    *("method", "paper_method", "dataset", "ours", "low", "high", "printed"),
    *("compared_with", "memory_ktok", "memory_ktok_printed", "verdict", "why"),
]
SECTIONS = {  # title and printed columns of each table
    "table_sources": ("Scores by source", ["method", *SHOWN]),
    "table_pairs": (
        "Paired differences to the first run",
        [*(name for name in PAIR[:-1] if name != "against"), "p_holm", "detectable"],
    ),
    "table_paper": ("Beside the paper", PAPER),
}


def summary(run: Run, profile: str) -> tuple[str, list[str], bool]:
    """The table of a scored run, what is to be warned of, and whether nothing is missing."""
    table = markdown(table_sources(*scores.frames({"it": run}, profile))[SHOWN])
    written = [made.episode for made in run.prepared.values() if made.requests and made.episode]
    warnings = [warning] if (warning := scores.silent(written)) else []
    if skipped := run.skipped:
        n = f"{len(skipped)} of {len(run.questions)} questions"
        warnings.append(f"{n} were skipped and are in no mean: {skipped[0]}")
    rows = scores.scores_of(run, profile)
    if cut := sum(row["status"] == "no_answer" and row["finish"] == "length" for row in rows):
        warnings.append(
            f"{cut} of {len(rows)} replies were cut off before they answered, which counts 0: set "
            "more max_tokens, or let the model reason less"
        )
    if not run.complete:
        return table, [*warnings, f"incomplete: {run.why_open()}"], False
    if failed := [row for row in rows if row["status"] == "judge_error"]:
        unread = sum(bool(row["judge_reply"]) for row in failed)
        warnings.append(
            f"{len(failed)} of {len(rows)} answers have no verdict of the judge and are in no "
            "mean, see if_all_0 and if_all_1; `memalpha score` with the judge asks again (where it "
            f"replied without a verdict, {unread} times, only another judge helps)"
        )
    return table, warnings, not failed


def labelled(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by a name for tables: the method's, or `writer + reader` for a memory.

    Runs of one method about different sources are one row each of that method; where they have a
    source in common or other settings, folders are told apart by their names, or by their paths.
    """
    named, asked, kinds = [], [], dict[str, set[str]]()
    for run in found:
        method, writer = run.settings["method"], run.info.get("writer")
        own = writer and "reader" in method
        named.append(f"{writer} + {method['reader']}" if own else method["method"])
        asked += [(named[-1], source) for source in {item.source for item in run.questions}]
        own_files = dict.fromkeys(("episodes", "like", "rollouts"))  # of the data, not the method
        kinds.setdefault(named[-1], set()).add(str({**method, **own_files}))
    twice = {name for name, source in asked if asked.count((name, source)) > 1}
    twice |= {name for name, others in kinds.items() if len(others) > 1}
    labels: dict[str, list[Run]] = {}
    folders = [run.folder.name for run in found]
    for name, folder, run in zip(named, folders, found, strict=True):
        apart = folder if folders.count(folder) == 1 else str(run.folder)
        labels.setdefault(apart if name in twice else name, []).append(run)
    if len({run.folder.resolve() for run in found}) < len(found):
        raise InputError(f"report: expected each run once, found {', '.join(labels)}")
    return labels


def report(found: Labelled, profile: str, bootstrap: Bootstrap) -> dict[str, pd.DataFrame]:
    """The tables of some runs by name: floors and methods, and pairs."""
    answers, built = scores.frames(found, profile)
    floors = scores.floors([run for runs in found.values() for run in runs], profile)
    every = pd.concat([answers, floors], ignore_index=True)
    made = {"table_sources": table_sources(every, built, bootstrap)}
    return made | ({"table_pairs": table_pairs(answers, bootstrap)} if len(found) > 1 else {})


def compared(
    found: Mapping[str, Run | Sequence[Run]], bootstrap: Bootstrap = BOOTSTRAP
) -> dict[str, pd.DataFrame]:
    """What a notebook shows of some runs: `sources` and `pairs`, nothing of no runs.

    Left out are averages over one source or over fewer than others have, and pairs without a test.
    """
    if not found:
        return {}
    answers, built = scores.frames(found)
    table, n = table_sources(answers, built, bootstrap), answers["source"].nunique()
    whole = table["metric"].str.endswith(f"{n} columns") & (n > 1)
    pairs = table_pairs(answers, bootstrap).dropna(subset=["p"])
    return {"sources": table[whole | (table["source"] != AVERAGE)], "pairs": pairs}


def page(found: Labelled, profile: str, made: Mapping[str, pd.DataFrame]) -> str:
    """What was run, what is missing, and the tables, as Markdown."""
    drawn = "95 %, over instances (of one: its questions)"
    lines = [f"# Report\n\nProfile `{profile}`; intervals are {drawn}.\n"]
    if len({frozenset(run.settings["data_sha256"] for run in runs) for runs in found.values()}) > 1:
        lines.append(
            "**The runs were not asked the same questions** (other data or another draw): their "
            "scores are not comparable; paired differences are over what both answered.\n"
        )
    judges = {scores.judge_of(run, profile) for runs in found.values() for run in runs} - {None}
    ours = made["table_sources"].query("method in @found and source != @AVERAGE")
    if len(judges) > 1 or ours.groupby("source")["metric"].nunique().gt(1).any():
        lines.append(
            "**The runs were not scored alike** (a judge for some only, or several judges): their "
            "scores are not comparable, and no paired difference is of two metrics; `memalpha "
            "score` them with one judge.\n"
        )
    for name, run in ((name, run) for name, runs in found.items() for run in runs):
        state = "complete" if run.complete else f"INCOMPLETE: {len(run.open)} without an answer"
        state += f", {len(run.skipped)} skipped" if run.skipped else ""
        asked = f"{len(run.questions)} questions, tokens by {run.settings['method']['counter']}"
        lines.append(f"- {name}: `{run.folder.name}`, {asked}, {state}")
    titled = ((*SECTIONS[name], table) for name, table in made.items())
    sections = [f"## {title}\n\n{markdown(table[columns])}" for title, columns, table in titled]
    return "\n".join(["\n".join(lines) + "\n", *sections])


def save_report(made: Mapping[str, pd.DataFrame], text: str, out: Path) -> None:
    """Writes the tables and the page into a folder, or the table of sources into a CSV file."""
    if out.suffix == ".csv":
        files.save_table(out, made["table_sources"])
        return
    for name, table in made.items():
        files.save_table(out / f"{name}.csv", table)
    files.write_bytes(out / "report.md", text.encode())


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: shares with three digits, whole numbers whole, unknown cells blank."""
    lines = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if 0 < abs(value) < 0.0005:
            return f"{value:.1g}"
        return f"{value:,.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
