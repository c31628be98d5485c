"""One scorer for training, agents and baselines: which metric a source has under which rules.

The one law: a score says how it was made (`metric`) and whether it is one (`status`). Only `ok` and
`no_answer` have a number and enter a mean; what failed has None, whatever the rules:

| status | meaning | score |
| --- | --- | --- |
| `ok` | compared with the gold | 0 to 1 |
| `no_answer` | nothing was said: blank, or a thought that was never closed | 0 |
| `infra_error` | the model failed: there is no prediction | None |
| `judge_error` | the judge failed, could not be read, or there is none | None |
| `data_error` | no gold answer that can be compared with | None |

`fixed` is the right behaviour and the default. The others repeat what was published, to compare
with printed numbers: `release-agent`, `release-baseline` and `release-training` are the release's
three scorers, which disagree on 9 of 16 reported columns (trap M-1); `memoryagentbench` has the
benchmark's own rules. One profile holds for all methods of a table.

>>> score("ruler_qa1_197K", "City of Light", ("Paris", "City of Light")).score
1.0
>>> score("ruler_qa1_197K", "City of Light", ("Paris", "City of Light"), profile="release-baseline")
Scored(score=0.0, status='ok', metric='contains@release', judge_reply='')

Source: spec evaluation.md 3.1 to 3.10. Differs: a reply that failed is never 0 in the release's
profiles either, and a name is never guessed from a part of it, except for the families of
`_LEGACY`, which have one (`eventqa_full`); sources that are ours are scored as what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TYPE_CHECKING, Literal, Protocol

from memalpha_kit.errors import InputError
from memalpha_kit.method import metrics
from memalpha_kit.records import Episode, Instance
from memalpha_kit.stats import mean_interval
from memalpha_kit.tasks import JUDGED, SCORING, metric_of

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["ok", "no_answer", "infra_error", "judge_error", "data_error"]


@dataclass(frozen=True)
class Item:
    """One answer to score. `prediction` is the raw reply, None if the model failed.

    `gold` is a tuple as in `QA.answers`, or a text where the raw data has a text: the release's
    training tells them apart (7.4). `instance` is whose voice it has in a mean.
    """

    source: str
    prediction: str | None
    gold: Sequence[str] | str
    question: str = ""
    instance: str = ""
    qa: str = ""


@dataclass(frozen=True)
class Scored:
    """The score of one item, how it was made, and what the judge wrote, if one was asked."""

    score: float | None
    status: Status
    metric: str
    judge_reply: str = ""


class Ruling(Protocol):
    """What a judge said of one item: right or not, or a share of 1; None or an error if it failed.

    A `judges.Verdict` is one.
    """

    valid: bool | float | None
    reply: str
    error: str


Judgement = Callable[[Sequence[Item]], Sequence[Ruling]]
"""Judges items in one batch; their predictions have been stripped."""


_STRIP = {
    "fixed": metrics.answer_text,
    "release-agent": metrics.answer_text_release,
    "release-baseline": metrics.answer_text_release,
    "release-training": metrics.answer_text_training,
    "memoryagentbench": metrics.answer_text,  # its models do not think aloud
}
"""What of a reply is compared (3.2). The release puts the word "Empty" for an unclosed thought."""


# ---- scores ----------------------------------------------------------------------------------


def score(
    source: str,
    prediction: str | None,
    gold: Sequence[str] | str,
    question: str = "",
    profile: str = "fixed",
    verdict: bool | float | None | EllipsisType = ...,
) -> Scored:
    """One scored answer. `verdict` is what a judge said, None if it failed, `...` if none is there.

    Raises InputError for a source or profile that is unknown or has no metric.
    """
    item = Item(source, prediction, gold, question)
    if verdict is ...:
        return score_all([item], profile)[0]
    return score_all([item], profile, lambda asked: [_Given(verdict) for _ in asked])[0]


@dataclass(frozen=True)
class _Given:
    """A ruling that was handed in."""

    valid: bool | float | None
    reply: str = ""
    error: str = ""


def score_all(
    items: Sequence[Item], profile: str = "fixed", judge: Judgement | None = None
) -> list[Scored]:
    """The items' scores, in order; `judge` is asked once, for all that need it together.

    Without a judge the metric that stands in is used and named, where there is one. What needs no
    judge is not shown to it: failed and missing answers. Raises InputError as `metric_of` does, and
    if the judge does not give one ruling per item.
    """
    names = [_metric(item, profile, judged=judge is not None) for item in items]
    found = [_unjudged(item, name, profile) for item, name in zip(items, names, strict=True)]
    asked = [i for i, scored in enumerate(found) if scored is None]
    rulings = _rulings([items[i] for i in asked], profile, judge)
    for i, ruling in zip(asked, rulings, strict=True):
        found[i] = _ruled(ruling, names[i])
    return found


def _metric(item: Item, profile: str, judged: bool) -> str:
    name = metric_of(item.source, profile, judged)
    text_gold = isinstance(item.gold, str)
    return "label@release" if text_gold and name == "label@release-training" else name


def _unjudged(item: Item, name: str, profile: str) -> Scored | None:
    """The score as far as no judge is needed; None: it is the judge's turn."""
    gold = (item.gold,) if isinstance(item.gold, str) else tuple(item.gold)
    text = None if item.prediction is None else _STRIP[profile](item.prediction)
    try:
        # a judge is shown the gold as it is, which must not be blank
        value = metrics.compare("contains" if name in JUDGED else name, text or "", gold)
    except InputError:
        return Scored(None, "data_error", name)
    if item.prediction is None:
        return Scored(None, "infra_error", name)
    if not text and not profile.startswith("release"):
        return Scored(0.0, "no_answer", name)
    return None if name in JUDGED else Scored(value, "ok", name)


def _rulings(items: Sequence[Item], profile: str, judge: Judgement | None) -> Sequence[Ruling]:
    if judge is None or not items:
        return [_Given(None)] * len(items)
    strip = _STRIP[profile]
    rulings = judge([replace(item, prediction=strip(item.prediction or "")) for item in items])
    if len(rulings) != len(items):
        raise InputError(f"judge: expected {len(items)} rulings, found {len(rulings)}")
    return rulings


def _ruled(ruling: Ruling, name: str) -> Scored:
    if ruling.valid is None or ruling.error:
        return Scored(None, "judge_error", name, ruling.reply)
    return Scored(float(ruling.valid), "ok", name, ruling.reply)


def items(episodes: Iterable[Episode], instances: Iterable[Instance]) -> list[Item]:
    """The answers of asked episodes as items. Raises InputError if an instance is missing."""
    by_id = {instance.id: instance for instance in instances}
    found = []
    for episode in episodes:
        if episode.instance not in by_id:
            raise InputError(f"episode {episode.id}: its instance is not in the data")
        instance = by_id[episode.instance]
        asked = {qa.id: qa for qa in instance.questions}
        for answer in episode.answers:
            qa = asked[answer.qa]
            found.append(
                Item(
                    instance.source, answer.prediction, qa.answers, qa.question, instance.id, qa.id
                )
            )
    return found


# ---- parity ----------------------------------------------------------------------------------

PARITY = (
    "source",
    "profile",
    "metric",
    "questions",
    "missing",
    "score",
    "above",
    "below",
    "example",
)


def parity(items: Sequence[Item], judge: Judgement | None = None) -> pd.DataFrame:
    """What the same answers score under every profile: a row per source and profile.

    `score` is the mean over instances of their mean over questions (evaluation.md 5), `missing`
    the number without a score; `above` and `below` count answers that this profile scores higher
    and lower than `fixed`, of which `example` is the first. A profile that has no metric for a
    source has no row.
    """
    import pandas as pd

    by_source: dict[str, list[Item]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append(item)
    rows = []
    for source, part in by_source.items():
        fixed = score_all(part, "fixed", judge)
        rows.append(_parity_row(source, "fixed", part, fixed, fixed))
        for profile in SCORING.names()[1:]:
            if SCORING[profile](source):
                found = score_all(part, profile, judge)
                rows.append(_parity_row(source, profile, part, found, fixed))
    return pd.DataFrame(rows, columns=list(PARITY))


def _parity_row(
    source: str,
    profile: str,
    part: Sequence[Item],
    found: Sequence[Scored],
    fixed: Sequence[Scored],
) -> dict[str, object]:
    pairs = [
        (here.score - there.score, item, here, there)
        for item, here, there in zip(part, found, fixed, strict=True)
        if here.score is not None and there.score is not None
    ]
    moved = [pair for pair in pairs if abs(pair[0]) > 1e-9]
    names = sorted({scored.metric for scored in found})
    scores = [scored.score for scored in found]
    instances = [item.instance for item in part]
    return {
        "source": source,
        "profile": profile,
        "metric": ", ".join(names),
        "questions": len(part),
        "missing": scores.count(None),
        "score": mean_interval(scores, seed=0, n=1, clusters=instances).mean,
        "above": sum(pair[0] > 0 for pair in moved),
        "below": sum(pair[0] < 0 for pair in moved),
        "example": _example(*moved[0][1:]) if moved else "",
    }


def _example(item: Item, here: Scored, fixed: Scored) -> str:
    gold = item.gold if isinstance(item.gold, str) else " | ".join(item.gold)
    said = " ".join((item.prediction or "").split())
    return f"{said[:60]!r} for {gold[:40]!r}: {here.score:.2f}, fixed {fixed.score:.2f}"
