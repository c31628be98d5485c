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

>>> round(cohen_kappa([True, True, False, False], [True, False, False, None]), 3)
0.4
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memalpha_kit.chats import ChatModel, ChatReply, ChatRequest, Done
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
    tally,
)
from memalpha_kit.method.memory import COMPONENTS
from memalpha_kit.method.metrics import substring
from memalpha_kit.progress import bar
from memalpha_kit.sections import section, settings_from
from memalpha_kit.settings import Behaviour
from memalpha_kit.text import normalise

if TYPE_CHECKING:
    import pandas as pd

CASES = Path(__file__).with_name("judge_cases.jsonl")
KINDS = {
    "content": COMPONENTS,
    "longmemeval": (*QUESTION_TYPES, "abstention"),
    "correct_wrong": ("correct_wrong",),
}
"""What there is to rate, by judge."""


# ---- labelled cases ------------------------------------------------------------------------------


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
    def item(self) -> JudgeItem:
        """The case as answers are judged."""
        never = self.kind == "abstention"
        kind = self.kind if self.kind in QUESTION_TYPES else ""
        return JudgeItem(self.question, self.gold, self.answer, kind, never)


def load_cases(path: Path = CASES) -> list[Case]:
    """The cases of a JSONL file. Raises InputError naming file, line and field."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected labelled cases as JSON lines: {error}") from error
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
    if not cases:
        raise InputError(f"{path}: expected labelled cases, found none")
    return list(cases.values())


# ---- judges of cases -----------------------------------------------------------------------------

Judgement = Callable[[Sequence[Case], int], list[Verdict]]
"""Rates cases: (cases, seed of the repeat) -> one verdict per case, in order."""


def model_judge(
    model: ChatModel,
    rubric: Rubric = "published",
    behaviour: Behaviour = "fixed",
    temperature: float | None = None,
    thinking: bool = False,
    max_tokens: int | None = None,
) -> Judgement:
    """The three judges of `judges.py` with one model; None is each judge's own setting."""
    given = {"temperature": temperature, "max_tokens": max_tokens}
    settings = {name: value for name, value in given.items() if value is not None}
    settings |= {"behaviour": behaviour, "thinking": thinking}

    def judge(cases: Sequence[Case], seed: int) -> list[Verdict]:
        content = ContentJudge(model, seed=seed, **settings)
        by_rubric = LongMemEvalJudge(model, rubric=rubric, seed=seed, **settings)
        labels = CorrectWrongJudge(model, seed=seed, **settings)
        found: dict[str, Verdict] = {}
        for name, rate in (
            ("content", lambda part: content.judge([(case.kind, case.text) for case in part])),
            ("longmemeval", lambda part: by_rubric.judge([case.item for case in part])),
            ("correct_wrong", lambda part: labels.judge([case.item for case in part])),
        ):
            part = [case for case in cases if case.judge == name]
            found |= zip((case.id for case in part), rate(part), strict=True)
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
    golds = tuple(gold for gold in case.gold if normalise(gold))
    return bool(substring(case.answer, golds))


_ANNOUNCES = re.compile(r"\b(summary|rules?|overview|details|information)\b", re.IGNORECASE)
_TIME = re.compile(
    r"\b(?:\d{1,2}:\d\d|\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d|(?:19|20)\d\d|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|"
    r"august|september|october|november|december|yesterday|today|morning|evening)\b",
    re.IGNORECASE,
)


# ---- agreement -----------------------------------------------------------------------------------


def calibrate(
    judge: Judgement, cases: Sequence[Case], repeats: int = 1, seed: int = 0
) -> pd.DataFrame:
    """The table of a judge over cases, one row per kind and one for all; see the top of this page.

    Repeat r is asked with seed `seed + r`. Raises what the judge raises.
    """
    return table_calibration(cases, repeated(judge, cases, repeats, seed), seed)


def repeated(
    judge: Judgement, cases: Sequence[Case], repeats: int, seed: int = 0
) -> list[list[Verdict]]:
    """The verdicts of every repeat, each one per case, asked with seeds `seed`, `seed + 1`, ..."""
    if repeats < 1:
        raise InputError(f"repeats: expected 1 or more, found {repeats}")
    return [judge(cases, seed + repeat) for repeat in range(repeats)]


def table_calibration(
    cases: Sequence[Case], verdicts: Sequence[Sequence[Verdict]], seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """The table of the verdicts of one or more repeats. `seed` and `draws` are of the intervals.

    The interval is the middle 95 % of the kappas of cases drawn with replacement, all repeats of a
    case together. It has no width where every verdict fits, however few the cases: look at `n`.
    """
    import pandas as pd

    rows = []
    for name, kinds in KINDS.items():
        held = [i for i, case in enumerate(cases) if case.judge == name]
        found = {kind: [i for i in held if cases[i].kind == kind] for kind in kinds}
        parts = [(kind, places) for kind, places in found.items() if places]
        for kind, places in parts if len(parts) == 1 else [*parts, ("all", held)]:
            if places:
                part = [cases[i].valid for i in places]
                said = [[repeat[i] for i in places] for repeat in verdicts]
                rows.append({"judge": name, "kind": kind} | _row(part, said, seed, draws))
    return pd.DataFrame(rows)


def cohen_kappa(labels: Sequence[bool], verdicts: Sequence[bool | None]) -> float | None:
    """Agreement above chance, (p_o - p_e) / (1 - p_e); verdicts None are left out.

    None without a verdict, and if both sides say the same of all cases: then chance explains all.
    Source: Cohen (1960).
    """
    counts = [_crossed(label, [said]) for label, said in zip(labels, verdicts, strict=True)]
    return _number(_kappas(np.sum(counts, axis=0))) if counts else None


def _row(
    labels: Sequence[bool], verdicts: Sequence[Sequence[Verdict]], seed: int, draws: int
) -> dict[str, float | int | None]:
    """The measures of some cases; `verdicts` is (repeats, cases)."""
    said = [[verdict.valid for verdict in repeat] for repeat in verdicts]
    by_case = list(zip(*said, strict=True))
    counts = np.array([_crossed(*pair) for pair in zip(labels, by_case, strict=True)])  # (n, 4)
    both_valid, false_invalid, false_valid, both_invalid = (int(x) for x in counts.sum(axis=0))
    fits, known = both_valid + both_invalid, int(counts.sum())
    low, high = _interval(counts, seed, draws)
    spread = [_variance(case) for case in by_case]
    spread = [value for value in spread if value is not None]
    kappas = [kappa for repeat in said if (kappa := cohen_kappa(labels, repeat)) is not None]
    counted = tally(verdict for repeat in verdicts for verdict in repeat)
    return {
        "n": len(labels),
        "n_valid": sum(labels),
        "repeats": len(verdicts),
        "kappa": _number(_kappas(counts.sum(axis=0))),
        "kappa_low": low,
        "kappa_high": high,
        "agreement": fits / known if known else None,
        "agreement_low": fits / counted.n,
        "agreement_high": (fits + counted.missing) / counted.n,
        "false_valid": false_valid,
        "false_invalid": false_invalid,
        "flips": sum(value > 0 for value in spread) / len(spread) if spread else None,
        "variance": float(np.mean(spread)) if spread else None,
        "kappa_sd": float(np.std(kappas, ddof=1)) if len(kappas) > 1 else None,
        "missing": counted.missing,
        "failed": counted.failed,
        "retried": counted.retried,
    }


def _crossed(label: bool, said: Sequence[bool | None]) -> list[int]:
    """How often each pair of label and verdict occurs: both valid, only the label, only the
    verdict, neither."""
    valid, invalid = sum(v is True for v in said), sum(v is False for v in said)
    return [valid, invalid, 0, 0] if label else [0, 0, valid, invalid]


def _kappas(counts: np.ndarray) -> np.ndarray:
    """Kappas of crossed counts (..., 4) -> (...); NaN where there is none."""
    n = counts.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = counts / n[..., None]
        label, verdict = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
        chance = label * verdict + (1 - label) * (1 - verdict)
        kappas = (shares[..., 0] + shares[..., 3] - chance) / (1 - chance)
    return np.where(chance < 1, kappas, np.nan)


def _interval(counts: np.ndarray, seed: int, draws: int) -> tuple[float | None, float | None]:
    if len(counts) < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
    kappas = _kappas(counts[drawn].sum(axis=1))
    kappas = kappas[~np.isnan(kappas)]
    if not len(kappas):
        return None, None
    low, high = np.quantile(kappas, [0.025, 0.975])
    return float(low), float(high)


def _variance(said: Sequence[bool | None]) -> float | None:
    """Variance of one case's verdicts: 0 always the same, 0.25 half and half; None below two."""
    known = [value for value in said if value is not None]
    return float(np.var(known)) if len(known) > 1 else None


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


# ---- all of it together -------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """A chat model whose replies are counted on a bar, which grows where cases are asked again."""

    model: ChatModel
    shown: bar

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def chat(self, requests: Sequence[ChatRequest], done: Done | None = None) -> list[ChatReply]:
        """As its model's."""
        self.shown.total = max(self.shown.total, self.shown.n + len(requests))

        def take(place: int, reply: ChatReply) -> None:
            self.shown.advance()
            if done:
                done(place, reply)

        return self.model.chat(requests, take)


Part = tuple[str, str, Judgement, list[Case]]
"""A rubric, the name of a model, its judge and the cases it is shown."""


def parts(
    model: ChatModel,
    cases: Sequence[Case],
    rubrics: Sequence[Rubric],
    behaviour: str,
    temperature: float | None,
    thinking: bool,
    max_tokens: int | None,
) -> list[Part]:
    """All cases under the first rubric, then LongMemEval's once more under each other one."""
    found: list[Part] = []
    for rubric in rubrics:
        judge = model_judge(model, rubric, behaviour, temperature, thinking, max_tokens)
        held = [case for case in cases if not found or case.judge == "longmemeval"]
        if held:
            found.append((rubric, model.name, judge, held))
    return found


def measured(
    parts: Sequence[Part], repeats: int, seed: int = 0
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """One table of all parts, and one plain record per verdict."""
    import pandas as pd

    tables, replies = [], []
    for rubric, name, judge, held in parts:
        verdicts = repeated(judge, held, repeats, seed)
        table = table_calibration(held, verdicts, seed)
        table.insert(1, "rubric", [rubric if j == "longmemeval" else "" for j in table["judge"]])
        table.insert(0, "model", name)
        tables.append(table)
        replies += [
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
            for case, verdict in zip(held, row, strict=True)
        ]
    return pd.concat(tables, ignore_index=True), replies


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal, without columns that are empty or the same in every row."""
    same = [name for name in ("model", "rubric", "repeats") if table[name].nunique() == 1]
    shown = table.drop(columns=same).dropna(axis="columns", how="all")
    return shown.to_string(index=False, float_format="{:.3f}".format, na_rep="")
