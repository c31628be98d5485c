"""How far a judge can be trusted: its agreement with labelled cases, and with itself.

`judge_cases.jsonl` holds cases of our own, with labels that follow the criteria of `judges.py`
(LongMemEval's by question type): half of them valid, many of them hard, as `note` says. They are
few, invented and labelled by one hand, so they tell a bad judge from a fair one and no more:

    {"id": "episodic-14", "judge": "content", "kind": "episodic", "valid": false, "text": "The user
     recently changed jobs and likes the new office.", "note": "recently is no time"}

Each case is judged `repeats` times, with another seed each time, so that a cache cannot repeat one
verdict and hide how much they vary. Cohen's kappa is agreement above chance: 1 is agreement on all,
0 what two judges reach who know the shares of valid cases only.

| column | meaning |
| --- | --- |
| `judge`, `kind` | who rated what; kind "all" is all cases of the judge |
| `n`, `n_valid`, `repeats` | cases, those labelled valid, verdicts per case |
| `kappa`, `kappa_low`, `kappa_high` | of all verdicts, and its interval over drawn cases |
| `agreement` | share of the verdicts that fit the label, of those that are there |
| `agreement_low`, `agreement_high` | if all missing verdicts did not, and if they did |
| `false_valid`, `false_invalid` | verdicts that are wrong, by what was said |
| `flips`, `variance` | share of cases with both verdicts; mean variance of a case's verdicts |
| `kappa_sd` | standard deviation of the kappas of single repeats |
| `missing`, `failed`, `retried` | verdicts without a value, with an error, asked more than once |

>>> float(kappas(np.array([20, 5, 10, 15])).round(3))
0.4
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memalpha_kit.chats import ChatModel
from memalpha_kit.data.raw import read_text
from memalpha_kit.errors import InputError
from memalpha_kit.files import parse_json
from memalpha_kit.method.content_judge import ContentJudge
from memalpha_kit.method.judges import (
    QUESTION_TYPES,
    CorrectWrongJudge,
    JudgeItem,
    LongMemEvalJudge,
    Rubric,
    Verdict,
)
from memalpha_kit.method.metrics import substring
from memalpha_kit.records import PAPER_PARTS
from memalpha_kit.sections import section, settings_from
from memalpha_kit.text import normalise

if TYPE_CHECKING:
    import pandas as pd

CASES = Path(__file__).with_name("judge_cases.jsonl")
KINDS = {  # what there is to rate, by judge
    "content": PAPER_PARTS,
    "longmemeval": (*QUESTION_TYPES, "abstention"),
    "correct_wrong": ("correct_wrong",),
}


@section
class Case:
    """One labelled case: a `text` to store, or a `question` with its `gold` and an `answer`."""

    id: str
    judge: Literal["content", "longmemeval", "correct_wrong"]
    kind: str  # the memory type or the question type
    valid: bool  # the label
    text: str = ""
    question: str = ""
    gold: tuple[str, ...] = ()
    answer: str = ""
    note: str = ""  # what makes it easy or hard; nobody is shown it

    @property
    def asked(self) -> Any:
        """The case as its judge wants it."""
        if self.judge == "content":
            return self.kind, self.text
        never = self.kind == "abstention"
        kind = self.kind if self.kind in QUESTION_TYPES else ""
        return JudgeItem(self.question, self.gold, self.answer, kind, never)


def load_cases(path: Path = CASES) -> list[Case]:
    """The cases of a JSONL file. Raises InputError naming file, line and field."""
    lines = read_text(Path(path)).splitlines()
    cases: dict[str, Case] = {}
    for where, line in ((f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()):
        raw = parse_json(line, where)
        if not isinstance(raw, dict):
            raise InputError(f"{where}: expected an object, found {type(raw).__name__}")
        case = settings_from(Case, raw, where)
        if case.kind not in KINDS[case.judge]:
            expected = list(KINDS[case.judge])
            raise InputError(f"{where}: kind: expected one of {expected}, found {case.kind!r}")
        needed = ("text",) if case.judge == "content" else ("question", "answer", "gold")
        for name in ("id", *needed):
            if not "".join(getattr(case, name)).strip():
                raise InputError(f"{where}: {name}: expected text, found none")
        if case.id in cases:
            raise InputError(f"{where}: expected each id once, found {case.id} again")
        cases[case.id] = case
    return list(cases.values())


# ---- judges of cases -----------------------------------------------------------------------------


Judgement = Callable[[Sequence[Case], int], list[Verdict]]
"""Rates cases: (cases, seed of the repeat) -> one verdict per case, in order."""


def model_judge(model: ChatModel, rubric: Rubric = "published", **settings: Any) -> Judgement:
    """The three judges of `judges.py` with one model; None is each judge's own setting."""
    settings = {name: value for name, value in settings.items() if value is not None}

    def judge(cases: Sequence[Case], seed: int) -> list[Verdict]:
        judges: dict[str, Any] = {
            "content": ContentJudge(model, seed=seed, **settings),
            "longmemeval": LongMemEvalJudge(model, rubric=rubric, seed=seed, **settings),
            "correct_wrong": CorrectWrongJudge(model, seed=seed, **settings),
        }
        found: dict[str, Verdict] = {}
        for name, asked in judges.items():
            part = [case for case in cases if case.judge == name]
            verdicts = asked.judge([case.asked for case in part])
            found |= zip((case.id for case in part), verdicts, strict=True)
        return [found[case.id] for case in cases]

    return judge


def rule_judge(cases: Sequence[Case], seed: int = 0) -> list[Verdict]:
    """A floor without a model: a few words that give most cases away, the same for every seed.

    Core is invalid if it names core memory or announces a summary, rules or details without a
    colon and some words; episodic is valid if it names a time and has more words than that;
    semantic is invalid if it tells of the user. An answer is right if it contains an accepted one,
    and to a question without an answer if it says no, not, never, cannot or only. A model that is
    no better than this is not worth its calls.
    """
    return [Verdict(_by_rule(case), asked=0) for case in cases]


def _by_rule(case: Case) -> bool:
    if case.kind == "core":
        announces = _ANNOUNCES.search(case.text) and not re.search(r":(\s+\S+){3}", case.text)
        return not (announces or "core memory" in case.text.lower())
    if case.kind == "episodic":
        rest = _TIME.sub(" ", case.text)
        return rest != case.text and len(re.findall(r"[^\W\d_]+", rest)) > 5
    if case.kind == "semantic":
        return not re.search(r"\bthe user\b(?!')", case.text, re.IGNORECASE)
    if case.kind == "abstention":
        return bool(re.search(r"\b(no|not|never|cannot|only)\b", case.answer, re.IGNORECASE))
    return bool(substring(case.answer, tuple(gold for gold in case.gold if normalise(gold))))


_ANNOUNCES = re.compile(r"\b(summary|rules?|overview|details|information)\b", re.IGNORECASE)
_TIME = re.compile(
    r"\b(?:\d{1,2}:\d\d|\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d|(?:19|20)\d\d|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|"
    r"august|september|october|november|december|yesterday|today|morning|evening)\b",
    re.IGNORECASE,
)


# ---- agreement -----------------------------------------------------------------------------------


def repeated(
    judge: Judgement, cases: Sequence[Case], repeats: int = 1, seed: int = 0, **named: str
) -> pd.DataFrame:
    """A row per verdict: every case `repeats` times, with seeds `seed`, `seed + 1`, ...

    `named` are further columns, such as the model. Raises what the judge raises.
    """
    import pandas as pd

    if repeats < 1:
        raise InputError(f"repeats: expected 1 or more, found {repeats}")
    rows = [
        {
            "case": case.id,
            **{"judge": case.judge, "kind": case.kind},
            **named,
            **{"seed": seed + repeat, "label": case.valid, "valid": verdict.valid},
            **{"reply": verdict.reply, "error": verdict.error, "asked": verdict.asked},
        }
        for repeat in range(repeats)
        for case, verdict in zip(cases, judge(cases, seed + repeat), strict=True)
    ]
    return pd.DataFrame(rows).astype({"valid": object})


def table_calibration(verdicts: pd.DataFrame, seed: int = 0, draws: int = 2000) -> pd.DataFrame:
    """The table of `repeated` verdicts: a row per kind, and one for all kinds of a judge.

    The interval is the middle 95 % of the kappas of cases drawn with replacement (`seed`, `draws`),
    all repeats of a case together. It has no width where every verdict fits: where nine of ten do,
    that of 8, 20, 56 cases holds in 52, 87, 92 %, so look at `n`.
    """
    import pandas as pd

    rows = []
    for judge, kinds in KINDS.items():
        mine = verdicts[verdicts["judge"] == judge]
        parts = [(kind, mine[mine["kind"] == kind]) for kind in kinds if kind in set(mine["kind"])]
        for kind, part in parts if len(parts) == 1 else [*parts, ("all", mine)]:
            if len(part):
                rows.append({"judge": judge, "kind": kind} | _measures(part, seed, draws))
    return pd.DataFrame(rows)


def kappas(counts: np.ndarray) -> np.ndarray:
    """Agreement above chance, (p_o - p_e) / (1 - p_e), of crossed counts (..., 4) -> (...).

    The counts are of verdicts where both say valid, only the label, only the verdict, and neither.
    NaN without a verdict, and if both sides say the same of all: then chance explains all.
    Source: Cohen (1960).
    """
    n = counts.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = counts / n[..., None]
        label, verdict = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
        chance = label * verdict + (1 - label) * (1 - verdict)
        found = (shares[..., 0] + shares[..., 3] - chance) / (1 - chance)
    return np.where(chance < 1, found, np.nan)


def _measures(part: pd.DataFrame, seed: int, draws: int) -> dict[str, Any]:
    """The measures of some verdicts; a number that is not there is NaN."""
    label, valid, invalid = part["label"], part["valid"].eq(True), part["valid"].eq(False)
    cells = part[["case", "seed"]].assign(
        both=label & valid, label=label & invalid, verdict=~label & valid, neither=~label & invalid
    )
    names = ["both", "label", "verdict", "neither"]
    counts = cells.groupby("case", sort=False)[names].sum().to_numpy()
    total = counts.sum(axis=0)
    n, fits, known = len(part), int(total[0] + total[3]), int(total.sum())
    said = valid.astype(float).where(valid | invalid).groupby(part["case"])
    spread = said.var(ddof=0)[said.count() > 1]
    by_repeat = kappas(cells.groupby("seed")[names].sum().to_numpy())
    by_repeat = by_repeat[~np.isnan(by_repeat)]
    drawn = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
    found = kappas(counts[drawn].sum(axis=1))
    found = found[~np.isnan(found)] if len(counts) > 1 else found[:0]
    low, high = tuple(np.quantile(found, [0.025, 0.975])) if len(found) else (np.nan, np.nan)
    return {
        "n": len(counts),
        "n_valid": int(part.drop_duplicates("case")["label"].sum()),
        "repeats": part["seed"].nunique(),
        **{"kappa": float(kappas(total)), "kappa_low": low, "kappa_high": high},
        "agreement": fits / known if known else np.nan,
        **{"agreement_low": fits / n, "agreement_high": (fits + n - known) / n},
        **{"false_valid": int(total[2]), "false_invalid": int(total[1])},
        **{"flips": (spread > 0).mean(), "variance": spread.mean()},
        "kappa_sd": np.std(by_repeat, ddof=1) if len(by_repeat) > 1 else np.nan,
        "missing": n - known,
        "failed": int(part["error"].ne("").sum()),
        "retried": int(part["asked"].gt(1).sum()),
    }


def measured(
    judges: Mapping[str, Judgement], name: str, cases: Sequence[Case], repeats: int, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One table of the judges of a model called `name`, by rubric, and all verdicts.

    The first judge rates all cases; the others LongMemEval's once more, by another rubric.
    """
    import pandas as pd

    parts: list[pd.DataFrame] = []
    for rubric, judge in judges.items():
        if held := [case for case in cases if not parts or case.judge == "longmemeval"]:
            parts.append(repeated(judge, held, repeats, seed, rubric=rubric))
    tables = [table_calibration(part, seed).assign(rubric=part["rubric"].iloc[0]) for part in parts]
    table, verdicts = (pd.concat(found, ignore_index=True) for found in (tables, parts))
    for made in (table, verdicts):
        made["rubric"] = made["rubric"].where(made["judge"] == "longmemeval", "")
    table.insert(1, "rubric", table.pop("rubric"))
    table.insert(0, "model", name)
    return table, verdicts


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal, without columns that are empty or the same in every row."""
    same = [name for name in ("model", "rubric", "repeats") if table[name].nunique() == 1]
    shown = table.drop(columns=same).dropna(axis="columns", how="all")
    return shown.to_string(index=False, float_format="{:.3f}".format, na_rep="")
