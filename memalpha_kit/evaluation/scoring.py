"""One scorer for training, agents and baselines: answers to scores, under a profile's rules.

The one law: a score says how it was made (`metric`) and whether it is one (`status`). Only `ok` and
`no_answer` have a number and enter a mean; what failed has None, whatever the rules:

| status | meaning | score |
| --- | --- | --- |
| `ok` | compared with the gold | 0 to 1 |
| `no_answer` | nothing was said: blank, or a thought that was never closed | 0 |
| `infra_error` | the model failed: there is no prediction | None |
| `judge_error` | the judge failed, could not be read, or there is none | None |
| `data_error` | no gold answer that can be compared with | None |

`fixed` is the right behaviour and the default. The other profiles repeat what was published, to
compare with printed numbers; they are registered by `memalpha_kit.release`. One profile holds for
all methods of a table. A profile of your own needs `tasks.SCORING` (the metric of a source) and
`RULES` (what of a reply is compared).

>>> item = Item("ruler_qa1_197K", "City of Light", ("Paris", "City of Light"))
>>> score_all([item])
[Scored(score=1.0, status='ok', metric='substring', judge_reply='')]
>>> score_all([item], "release-baseline")[0].score
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from memalpha_kit.data.instances import ANSWER_TYPE
from memalpha_kit.entries import essence
from memalpha_kit.errors import InputError
from memalpha_kit.method import metrics
from memalpha_kit.method.judges import Verdict
from memalpha_kit.records import Instance
from memalpha_kit.registry import Registry
from memalpha_kit.stats import mean_interval
from memalpha_kit.tasks import JUDGED, SCORING, metric_of
from memalpha_kit.text import without_thinking

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["ok", "no_answer", "infra_error", "judge_error", "data_error"]


@dataclass(frozen=True)
class Item:
    """One answer to score. `prediction` is the raw reply, None if the model failed.

    `gold` is a tuple as in `QA.answers`, or a text where the raw data has a text: one of the
    published scorers tells them apart. `instance` is whose voice it has in a mean.
    """

    source: str
    prediction: str | None
    gold: tuple[str, ...] | str
    question: str = ""
    instance: str = ""
    qa: str = ""
    kind: str = ""  # the type of the question, where the data knows one

    @property
    def key(self) -> tuple[str, str]:
        """The ids of its instance and of itself, unique in a run."""
        return self.instance, self.qa

    @property
    def golds(self) -> tuple[str, ...]:
        """The accepted answers."""
        return (self.gold,) if isinstance(self.gold, str) else self.gold


def questions_of(instances: Sequence[Instance]) -> tuple[Item, ...]:
    """Every question of the instances, in order, with what scoring needs.

    A single accepted answer is a text where the data has a text, because the published training
    scores a list of one text otherwise. `kind` is the question's type where the data knows one
    (LongMemEval). Raises InputError for an id that occurs twice.
    """
    found: dict[tuple[str, str], Item] = {}
    for instance in instances:
        kinds = instance.listed("question_types")
        kinds = kinds if len(kinds) == len(instance.questions) else ("",) * len(instance.questions)
        listed = instance.metadata.get(ANSWER_TYPE) == "list"
        for qa, kind in zip(instance.questions, kinds, strict=True):
            gold = qa.answers[0] if len(qa.answers) == 1 and not listed else qa.answers
            item = Item(instance.source, None, gold, qa.question, instance.id, qa.id, kind)
            if item.key in found:
                raise InputError(f"{instance.id}: question {qa.id}: expected each id once")
            found[item.key] = item
    return tuple(found.values())


@dataclass(frozen=True)
class Scored:
    """The score of one item, how it was made, and what the judge wrote, if one was asked."""

    score: float | None
    status: Status
    metric: str
    judge_reply: str = ""


Judgement = Callable[[Sequence[Item]], Sequence[Verdict]]
"""Judges items in one batch; their predictions have been stripped."""


@dataclass(frozen=True)
class Rules:
    """What a profile compares, beside the metrics that `tasks.SCORING` names.

    `strip` cuts a reply; `compares_blank`: an empty answer is compared like any other; `adjusted`
    may choose another metric by what an item's gold is.
    """

    strip: Callable[[str], str | None] = without_thinking
    compares_blank: bool = False
    adjusted: Callable[[str, Item], str] = lambda metric, item: metric


RULES: Registry[Rules] = Registry("profile")
RULES.add("fixed", Rules())


def score_all(
    items: Sequence[Item], profile: str = "fixed", judge: Judgement | None = None
) -> list[Scored]:
    """The items' scores, in order; `judge` is asked once, for all that need it together.

    Without a judge the metric that stands in is used and named, where there is one. What needs no
    judge is not shown to it: failed and missing answers. Raises InputError for a source or profile
    that is unknown or has no metric.
    """
    rules = RULES[profile]
    names = [
        rules.adjusted(metric_of(item.source, profile, judge is not None), item) for item in items
    ]
    first = [_unjudged(item, name, rules) for item, name in zip(items, names, strict=True)]
    places = [place for place, scored in enumerate(first) if scored is None]
    shown = [replace(items[p], prediction=rules.strip(items[p].prediction or "")) for p in places]
    rulings: Sequence[Verdict | None] = judge(shown) if judge and shown else [None] * len(shown)
    judged: dict[int, Scored] = {}
    for place, ruling in zip(places, rulings, strict=True):
        valid = ruling.valid if ruling and not ruling.error else None
        judged[place] = Scored(
            None if valid is None else float(valid),
            "judge_error" if valid is None else "ok",
            names[place],
            ruling.reply if ruling else "",
        )
    return [scored or judged[place] for place, scored in enumerate(first)]


def _unjudged(item: Item, name: str, rules: Rules) -> Scored | None:
    """The score as far as no judge is needed; None: it is the judge's turn."""
    text = None if item.prediction is None else rules.strip(item.prediction)
    try:
        # a judge is shown the gold as it is, which must not be blank
        value = metrics.compare("contains" if name in JUDGED else name, text or "", item.golds)
    except metrics.NoGold:
        return Scored(None, "data_error", name)
    if item.prediction is None:
        return Scored(None, "infra_error", name)
    if not essence(text or "") and not rules.compares_blank:
        return Scored(0.0, "no_answer", name)
    return None if name in JUDGED else Scored(value, "ok", name)


def parity(items: Sequence[Item]) -> pd.DataFrame:
    """What the same answers score under every profile: a row per source and profile.

    `score` is the mean over instances of their mean over questions, `missing` the number without a
    score; `above` and `below` count answers that this profile scores higher and lower than `fixed`,
    of which `example` is the first. A profile that has no metric for a source has no row.
    """
    import pandas as pd

    rows = []
    for source in dict.fromkeys(item.source for item in items):
        part = [item for item in items if item.source == source]
        fixed = score_all(part)
        for profile in SCORING.names():
            if SCORING[profile](source):
                scores = fixed if profile == "fixed" else score_all(part, profile)
                row = {"source": source, "profile": profile}
                rows.append(row | _parity_row(part, scores, fixed))
    return pd.DataFrame(rows)


def _parity_row(
    part: Sequence[Item], scored: Sequence[Scored], fixed: Sequence[Scored]
) -> dict[str, object]:
    moved = [
        (here.score - there.score, item, here.score, there.score)
        for item, here, there in zip(part, scored, fixed, strict=True)
        if here.score is not None and there.score is not None
        if abs(here.score - there.score) > 1e-9
    ]
    example = ""
    for _, item, here, there in moved[:1]:
        said, gold = " ".join((item.prediction or "").split()), " | ".join(item.golds)
        example = f"{said[:60]!r} for {gold[:40]!r}: {here:.2f}, fixed {there:.2f}"
    scores = [one.score for one in scored]
    mean = mean_interval(scores, seed=0, n=1, clusters=[item.instance for item in part]).mean
    return {
        "metric": ", ".join(sorted({one.metric for one in scored})),
        "questions": len(part),
        "missing": scores.count(None),
        "score": mean,
        "above": sum(row[0] > 0 for row in moved),
        "below": sum(row[0] < 0 for row in moved),
        "example": example,
    }
