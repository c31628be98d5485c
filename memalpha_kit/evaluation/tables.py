"""Tables of runs: per source, averages, methods against each other, ours beside the paper's.

The one law: every number comes from one tidy table, one row per question and method, and a question
without a score is counted as missing and never as 0. A score is the mean over instances of their
mean over questions; an average is the plain mean over the columns of the table and is recomputed
from them, for the paper's rows too, as some printed averages are not the mean of their columns
(spec evaluation.md 5).

Columns of `answers`, one row per question (`runs.frames` makes both tables):

| column | meaning |
| --- | --- |
| `method`, `source`, `instance`, `index` | what was asked, of whom; together unique |
| `metric`, `profile`, `score`, `status` | the rule, the score or None and why (`scoring.Scored`) |
| `finish`, `truncated` | "length" is a reply that was cut off; whether its input was |
| `memory_tokens`, `chunk_tokens` | what the method kept of the instance, and what it read |
| `prompt_tokens`, `completion_tokens`, `cost_usd` | of answering; None where unknown |

Columns of `built`, one row per instance: `method`, `source`, `instance`, `calls`, `calls_ok`,
`prompt_tokens`, `completion_tokens`, `cost_usd`, of making the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from memalpha_kit.errors import InputError, closest
from memalpha_kit.evaluation.answered import Bootstrap
from memalpha_kit.evaluation.methods.released import RELEASED
from memalpha_kit.stats import detectable, mean_interval, sign_flip, stratified_interval
from memalpha_kit.tasks import metric_of

PAPER = Path(__file__).parents[1] / "paper_tables" / "results.csv"
STATISTICS = PAPER.with_name("statistics.csv")
AVERAGE = "Avg."
"""What stands for a source in the rows of averages, as in the paper's tables."""

BOOTSTRAP = Bootstrap()

Row = dict[str, Any]


# ---- one table of all runs ----------------------------------------------------------------------


def table_sources(
    answers: pd.DataFrame, built: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """One row per method and source, in the order they come in, then one `Avg.` row per method.

    `low` and `high` are the ends of the interval: whole instances are drawn, or questions where
    there is one instance (`interval` says which). `skipped` questions cannot be asked by the
    method; `missing` ones have no score though they can, `error_rate` is their share of the asked
    and `if_all_0`, `if_all_1` are the score if all of them were wrong or right. `unfinished`
    replies were cut off at their limit. Tokens of memory and chunks
    are means over instances; prompt and completion tokens, calls and cost are sums, None if
    unknown. The average of a method without a score in some column is None: it would be the
    average of other columns. Raises InputError if two profiles are mixed.
    """
    profiles = sorted(answers["profile"].unique())
    if len(profiles) > 1:
        raise InputError(f"table: expected one profile for all runs, found {', '.join(profiles)}")
    rows = []
    for method, mine in answers.groupby("method", sort=False):
        made = built[built.method == method]
        sources = [
            _source_row(part, made[made.source == source], bootstrap)
            for source, part in mine.groupby("source", sort=False)
        ]
        rows += [*sources, _average_row(mine, sources, bootstrap)]
    return pd.DataFrame(rows)


def _source_row(part: pd.DataFrame, made: pd.DataFrame, bootstrap: Bootstrap) -> Row:
    first = part.iloc[0]
    found = mean_interval(
        part["score"].tolist(), bootstrap.seed, bootstrap.resamples, bootstrap.level, units(part)
    )
    asked, instances = part[part["status"] != "skipped"], part["instance"].nunique()
    sizes = asked.groupby("instance")[["memory_tokens", "chunk_tokens"]].mean()
    calls, skipped = _total(made["calls"]), len(part) - len(asked)
    missing = found.missing - skipped
    return {
        "method": first["method"],
        "source": first["source"],
        "metric": first["metric"],
        "instances": instances,
        "questions": len(part),
        "skipped": skipped,
        "missing": missing,
        "error_rate": missing / (len(part) - skipped) if len(part) > skipped else None,
        "unfinished": int((part["finish"] == "length").sum()),
        "score": found.mean,
        "if_all_0": _bound(part, 0.0),
        "if_all_1": _bound(part, 1.0),
        "low": found.low,
        "high": found.high,
        "interval": "instances" if instances > 1 else "questions",
        "memory_tokens": _mean(sizes["memory_tokens"]),
        "chunk_tokens": _mean(sizes["chunk_tokens"]),
        "compression": _mean(1 - sizes["memory_tokens"] / sizes["chunk_tokens"]),
        "truncated": int(part["truncated"].sum()),
        "calls": calls,
        "call_success": _total(made["calls_ok"]) / calls if calls else None,
        **{name: _spent(part, made, name) for name in SPENT},
    }


SPENT = ("prompt_tokens", "completion_tokens", "cost_usd")


def _bound(part: pd.DataFrame, value: float) -> float | None:
    """The score if every question that was asked and has none had this one."""
    asked = part[part["status"] != "skipped"]
    filled = asked["score"].astype(float).fillna(value).tolist()
    return mean_interval(filled, seed=0, n=1, clusters=units(asked)).mean


def _average_row(mine: pd.DataFrame, sources: list[Row], bootstrap: Bootstrap) -> Row:
    """The plain mean over columns of score and sizes, the sums of the rest."""
    whole = all(row["score"] is not None for row in sources)
    found = stratified_interval(
        mine["score"].tolist(),
        mine["source"].tolist(),
        units(mine),
        bootstrap.seed,
        bootstrap.resamples,
        bootstrap.level,
    )
    row = {name: None for name in sources[0]} | {
        "method": sources[0]["method"],
        "source": AVERAGE,
        "metric": f"{len(sources)} columns",
        "interval": "within columns",
    }
    if whole:
        row |= {"score": found.mean, "low": found.low, "high": found.high}
    for name in ("memory_tokens", "chunk_tokens", "compression"):
        row[name] = _mean(pd.Series([source[name] for source in sources], dtype=float))
    for name in ("if_all_0", "if_all_1"):
        row[name] = _mean(pd.Series([source[name] for source in sources], dtype=float))
    for name in (*COUNTS, *SPENT):
        row[name] = _total(pd.Series([source[name] for source in sources], dtype=float))
    asked = row["questions"] - row["skipped"]
    return row | {"error_rate": row["missing"] / asked if asked else None}


COUNTS = (
    *("instances", "questions", "skipped", "missing"),
    *("unfinished", "truncated", "calls"),
)


def units(part: pd.DataFrame) -> list[str]:
    """What stands for itself in a bootstrap: an instance, or a question of a source's only one."""
    alone = part.groupby("source")["instance"].transform("nunique") == 1
    return [
        f"{instance}#{index}" if single else instance
        for instance, index, single in zip(part["instance"], part["index"], alone, strict=True)
    ]


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
    """What answering and making the memories took; questions without an answer do not count."""
    answered = part.loc[~part["status"].isin(["infra_error", "skipped"]), name]
    return _total(pd.concat([answered, made[name]]).astype(float))


# ---- methods against each other -----------------------------------------------------------------


def table_pairs(answers: pd.DataFrame, bootstrap: Bootstrap = BOOTSTRAP) -> pd.DataFrame:
    """Every other method against the first one, source by source and on average.

    A method that has no question in common with the first one is left out.
    `p_holm` is p corrected for the number of tests in this table (Holm). Columns as in `paired`.
    """
    first, *others = answers["method"].drop_duplicates()
    scored = answers.dropna(subset=["score"]).groupby("method")
    asked = {name: set(zip(part["instance"], part["index"], strict=True)) for name, part in scored}
    alike = [name for name in others if asked.get(name, set()) & asked.get(first, set())]
    parts = [paired(answers, other, first, bootstrap) for other in alike]
    if not parts:
        return pd.DataFrame(columns=[*PAIR, "p_holm"])
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(p_holm=holm(table["p"].tolist()))
    return table.astype(dict.fromkeys((*PAIR[PAIR.index("score") :], "p_holm"), float))


PAIR = (
    *("method", "against", "source", "questions", "units", "score", "score_against"),
    *("difference", "low", "high", "p", "detectable"),
)


def paired(
    answers: pd.DataFrame, method: str, against: str, bootstrap: Bootstrap = BOOTSTRAP
) -> pd.DataFrame:
    """Mean differences of two methods on the questions that both have a score for.

    `difference` is `method` minus `against`, with its interval; p flips the signs of whole units
    (`units` of them: instances, or questions of a single instance); `detectable` is the smallest
    true difference that a test of this size finds in 80 % of the cases. The last row is the mean
    over sources, if there are several. Raises InputError if the two share no question.
    """
    keys = ["source", "instance", "index"]
    left, right = (answers[answers.method == name] for name in (method, against))
    both = left.merge(right, on=keys, suffixes=("", "_against"))
    both = both.dropna(subset=["score", "score_against"])
    if both.empty:
        raise InputError(f"{method} and {against}: expected questions that both answered")
    parts = list(both.groupby("source", sort=False))
    rows = [_pair_row(name, part, bootstrap) for name, part in parts]
    rows += [_pair_row(AVERAGE, both, bootstrap)] if len(parts) > 1 else []
    named = [{"method": method, "against": against, **row} for row in rows]
    return pd.DataFrame(named, columns=list(PAIR))


def _pair_row(source: str, part: pd.DataFrame, bootstrap: Bootstrap) -> Row:
    """One comparison; over several sources each has the same weight."""
    gains = (part["score"] - part["score_against"]).astype(float).tolist()
    strata, drawn = part["source"].tolist(), units(part)
    scores = [
        stratified_interval(part[name].tolist(), strata, drawn, bootstrap.seed, n=1).mean
        for name in ("score", "score_against")
    ]
    found = stratified_interval(
        gains, strata, drawn, bootstrap.seed, bootstrap.resamples, bootstrap.level
    )
    return {
        "source": source,
        "questions": found.n,
        "units": found.n_clusters,
        "score": scores[0],
        "score_against": scores[1],
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": sign_flip(gains, strata, drawn, bootstrap.seed),
        "detectable": detectable(gains, strata, drawn, bootstrap.level),
    }


def holm(values: Iterable[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's rule; None stays None and is not counted."""
    values = list(values)
    known = sorted((v, i) for i, v in enumerate(values) if v is not None and v == v)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        corrected[place] = largest
    return corrected


# ---- the paper's numbers ------------------------------------------------------------------------

MIN_UNITS = 5
"""Fewer instances (or questions) say too little about spread for a verdict."""
MAX_HALF = 0.1
"""An interval wider than this on either side cannot support "reproduced"."""
ROUNDING = 0.0005
"""Printed scores have three decimals."""


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
"""Our methods: the paper's name for them, and the model that answered there (evaluation.md 4.2)."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "long-context": {"window": 30_000},
    "bm25": {"window": 30_000, "top_k": 2},
    "memagent": {"mode": "agnostic", "memory_tokens": 1024, "max_tokens": 1024},
    "mem1": {"window": 30_000, "state_tokens": 1024},
    "memory": {
        **{"reader": "model", "retrieval": "bm25", "top_k": 20},
        **{f"memory.{part}": True for part in ("core", "semantic", "episodic")},
    },
}
"""What a method is in the paper (evaluation.md 1.6, 2.4, 4.2 to 4.6): anything else is another one.
How its models are asked (wording, temperature, thinking) is not among it: ours is the same for all
methods, on purpose; the `release-` methods ask as the release does.
"""
MEM1_WRITER = "qwen2.5-7b-rl-rag-q2-em-release"
WRITERS = {
    "memalpha-4b": "Mem-alpha",
    "qwen3-4b": "Qwen3-4B",
    "gpt-4.1-mini": "gpt-4.1-mini",
}
"""The writers of a memory: the paper's name for each. Qwen3-32B answers."""


def claim(settings: Mapping[str, Any], writer: str = "") -> Claim | None:
    """Which row of the paper a run with these settings (`Run.settings`) stands beside, if any.

    `writer` is the model that wrote the memory; names are compared without owner and capitals. A
    run with another model, or that is not what is `PUBLISHED`, stands beside the row with a doubt,
    so it gets no verdict.
    """
    said = settings["method"]
    method, model = RELEASED.get(said["method"], (said["method"],))[0], _bare(said.get("model"))
    if method == "memory":
        known = WRITERS.get(_bare(writer))
        doubt = "" if known else f"memory written by {writer or 'a rule'}"
        found, wanted = Claim(known or "Mem-alpha", doubt), "qwen3-32b"
        found = found if found.method != "Mem-alpha" else replace(found, beta=0.05, gamma=0.1)
    elif method in BASELINES:
        name, wanted = BASELINES[method]
        found = Claim(name)
    else:
        return None
    if model != wanted and not found.doubt:
        found = replace(found, doubt=f"answered by {model or 'no model'}, the paper's by {wanted}")
    if not found.doubt:
        found = replace(found, doubt=_unlike(said, method))
    return found


def _unlike(said: Mapping[str, Any], method: str) -> str:
    """The first setting that is not the published method's, "" if there is none."""
    for name, wanted in PUBLISHED[method].items():
        outer, _, inner = name.partition(".")
        value = said.get(outer, wanted)
        value = value.get(inner, wanted) if inner and isinstance(value, Mapping) else value
        if value != wanted:
            return f"{name} is {value}, the paper's {wanted}"
    if method == "mem1" and not said.get("rollouts"):
        writer = _bare(said.get("write_model") or said.get("model"))
        if writer != MEM1_WRITER:
            return f"summaries by {writer}, the paper's by {MEM1_WRITER}"
    return ""


def _bare(model: str | None) -> str:
    return (model or "").rstrip("/").rpartition("/")[2].lower()


def paper_profile(found: Claim) -> str:
    """The scorer behind the paper's row: it has one for agents and another for baselines (M-1)."""
    baseline = found.method in (name for name, _ in BASELINES.values())
    return "release-baseline" if baseline else "release-agent"


def doubts(
    answers: pd.DataFrame, claims: Mapping[str, Claim], table: int
) -> dict[tuple[str, str], str]:
    """What keeps (method, source) of `answers` from being what the paper's table measured.

    Another metric than the paper's own scorer used, or another number of instances than its
    statistics say (10 % more or less is accepted, as a rebuild may differ).
    """
    statistics = pd.read_csv(STATISTICS, comment="#")
    counted = statistics[
        (statistics.split == "test") & (statistics.table == (8 if table in (2, 9) else 6))
    ]
    instances = dict(zip(counted["source"], counted["instances"], strict=True))
    found = {}
    for (method, source), part in answers.groupby(["method", "source"], sort=False):
        if method not in claims or source not in instances:
            continue
        ours, theirs = part["metric"].iloc[0], metric_of(source, paper_profile(claims[method]))
        n, expected = part["instance"].nunique(), instances[source]
        if ours != theirs:
            found[method, source] = f"scored by {ours}, the paper by {theirs}"
        elif abs(n - expected) > 0.1 * expected:
            found[method, source] = f"{n} instances, the paper had {expected}"
    return found


@dataclass(frozen=True)
class Verdict:
    """`reproduced`, `not reproduced` or `cannot tell`, and the reason."""

    verdict: str
    why: str


def verdict(
    ours: float | None,
    low: float | None,
    high: float | None,
    printed: float | None,
    n: int,
    missing: int = 0,
    doubt: str = "",
) -> Verdict:
    """Whether our score reproduces the printed one.

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

    >>> verdict(0.60, 0.55, 0.65, 0.62, n=100).verdict
    'reproduced'
    """
    if doubt:
        return Verdict("cannot tell", doubt)
    if ours is None or printed is None:
        return Verdict("cannot tell", "no score of ours" if ours is None else "not in the paper")
    if missing:
        return Verdict("cannot tell", f"{missing} questions have no score")
    if low is None or high is None or n < MIN_UNITS:
        return Verdict("cannot tell", f"{n} units: too few for an interval")
    gap, reach = printed - ours, high - ours if printed > ours else ours - low
    if abs(gap) > (2**0.5 * reach if high - low > 1e-9 else 3 / n) + ROUNDING:
        return Verdict("not reproduced", f"printed {gap:+.3f} away, our interval {-reach:+.3f}")
    if abs(gap) > reach + ROUNDING:
        return Verdict("cannot tell", "printed score just outside our interval")
    if max(high - ours, ours - low) > MAX_HALF:
        return Verdict("cannot tell", f"interval wider than {MAX_HALF} on a side")
    return Verdict("reproduced", "printed score inside our interval")


def paper_results(table: str | int | None = None) -> pd.DataFrame:
    """The rows of tables 1 to 4 and 9 as printed, or of one of them ("table1" or 1)."""
    rows = pd.read_csv(
        PAPER, comment="#", keep_default_na=False, na_values={"beta": "", "gamma": ""}
    )
    if table is None:
        return rows
    names = {f"table{n}": n for n in sorted(rows["table"].unique())}
    name = f"table{str(table).removeprefix('table')}"
    if name not in names:
        raise InputError(
            f"paper: expected a table with results, found {name!r}{closest(name, names)}"
        )
    return rows[rows["table"] == names[name]].reset_index(drop=True)


def paper_averages(rows: pd.DataFrame) -> pd.DataFrame:
    """Printed and recomputed averages of score and memory, one row per table and method.

    `differs` where the recomputed score, rounded as printed, is another one by more than 0.001, or
    nothing was printed.
    """
    found = []
    keys = ["table", "method", "beta", "gamma"]
    for key, part in rows.groupby(keys, sort=False, dropna=False):
        columns = part[part.dataset != AVERAGE]
        printed = part[part.dataset == AVERAGE]
        row = dict(zip(keys, key, strict=True))
        for name in ("score", "memory_ktok"):
            row[f"{name}_printed"] = printed[name].iloc[0] if len(printed) else None
            row[f"{name}_recomputed"] = round(columns[name].mean(), 3)
        found.append(row)
    table = pd.DataFrame(found)
    gap = (table["score_printed"].astype(float) - table["score_recomputed"]).abs()
    return table.assign(differs=~(gap <= 0.001 + 1e-9))


def table_paper(
    table: pd.DataFrame,
    paper: pd.DataFrame,
    claims: Mapping[str, Claim],
    doubts: Mapping[tuple[str, str], str] = {},
) -> pd.DataFrame:
    """Our rows of `table_sources` beside the paper's (`paper_results`) with a verdict on each.

    `claims` says for each method which row of the paper it stands beside; `doubts` what else is not
    alike, by (method, source). The average is compared with the mean of the paper's columns, not
    with what was printed for it, and only if ours has the same columns. Columns that the paper has
    and we have not are listed without a score of ours.
    """
    rows = []
    for method, claim in claims.items():
        ours = table[table.method == method].set_index("source")
        theirs = _row_of(paper, claim)
        here = theirs["source"].isin(ours.index)
        for _, cell in theirs.iterrows():
            average = cell["dataset"] == AVERAGE
            mine = (
                ours.loc[AVERAGE if average else cell["source"]]
                if (average or cell["source"] in ours.index)
                else None
            )
            columns = theirs[theirs.dataset != AVERAGE]
            compared = round(columns["score"].mean(), 4) if average else cell["score"]
            doubt = claim.doubt or doubts.get((method, cell["source"]), "")
            if average and not doubt and any(name == method for name, _ in doubts):
                doubt = "some columns are not alike"
            if average and not doubt and not here[theirs.dataset != AVERAGE].all():
                doubt = "not all columns of the paper were run"
            if average and not doubt and (ours.index != AVERAGE).sum() != len(columns):
                doubt = "other columns than the paper's"
            rows.append(_paper_row(method, claim, cell, compared, mine, doubt))
    return pd.DataFrame(rows)


def _row_of(paper: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    theirs = paper[paper.method == claim.method]
    for name in ("beta", "gamma"):
        if (value := getattr(claim, name)) is not None:
            theirs = theirs[theirs[name] == value]
    return theirs


def _paper_row(
    method: str, claim: Claim, cell: pd.Series, compared: float, mine: pd.Series | None, doubt: str
) -> Row:
    found = {} if mine is None else mine.where(mine.notna(), None).to_dict()
    n = found.get("instances") or 0
    n = n if n > 1 else found.get("questions") or 0
    judged = verdict(
        found.get("score"), found.get("low"), found.get("high"), compared, n,
        int(found.get("missing") or 0), doubt if found else "",
    )  # fmt: skip
    tokens = found.get("memory_tokens")
    return {
        "table": cell["table"],
        "method": method,
        "paper_method": claim.method,
        "dataset": cell["dataset"],
        "source": cell["source"],
        "ours": found.get("score"),
        "low": found.get("low"),
        "high": found.get("high"),
        "printed": cell["score"],
        "compared_with": compared,
        "verdict": judged.verdict,
        "why": judged.why,
        "memory_ktok": None if tokens is None else tokens / 1000,
        "memory_ktok_printed": cell["memory_ktok"],
    }


# ---- to be read ---------------------------------------------------------------------------------


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
