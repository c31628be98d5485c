"""Scores of runs, and the tables' raw material: a row per question, a row per memory.

Scoring calls no answering model. Every profile has a file in the run's `scores/`, whose first line
says who judged and what that cost.
"""

from __future__ import annotations

import json
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit import files
from memalpha_kit.chats import ChatModel
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.methods import Prepared
from memalpha_kit.evaluation.runs import Run, made_by
from memalpha_kit.evaluation.scoring import Item, Judgement, Scored, score_all
from memalpha_kit.evaluation.writing import Counts, WatchedChat, silence, spent
from memalpha_kit.method.judges import JudgeItem, LongMemEvalJudge, Rubric
from memalpha_kit.records import Answer, Episode

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def items(run: Run) -> list[Item]:
    """Every question of a run with its answer, as scorers want it."""
    nothing = Answer("", None)
    return [
        replace(q, prediction=run.answers.get(q.key, nothing).prediction) for q in run.questions
    ]


def score_run(
    run: Run, profile: str = "fixed", judge: Judgement | None = None, card: Mapping[str, Any] = {}
) -> list[Row]:
    """Scores every question under a profile and saves the rows, in the order of the run.

    No answering model is called. Without a judge its stand-in metric is used and named. Questions
    without an answer have `infra_error`, those that the method cannot be asked `skipped`; neither
    has a score. `card` says who judged; it is kept with the scores.
    """
    scored = score_all(items(run), profile, judge)
    rows = [_score_row(run, q, s, profile) for q, s in zip(run.questions, scored, strict=True)]
    head = {"profile": profile, "judge": None, "answers": len(run.answers)} | dict(card)
    lines = "".join(f"{json.dumps(line)}\n" for line in (head, *rows))
    files.write_bytes(_file(run, profile), lines.encode())
    return rows


def _score_row(run: Run, question: Item, scored: Scored, profile: str) -> Row:
    answer, made = run.answers.get(question.key), run.prepared.get(question.instance)
    failure = run.failed.get(question.key)
    own = answer.memory_tokens if answer else None
    of_answer = "finish", "prompt_tokens", "completion_tokens", "latency_s", "truncated", "requests"
    asked_nobody = answer and not answer.requests and answer.prompt_tokens is None
    return {
        "run_key": run.key,
        **asdict(question),
        "prediction": answer.prediction if answer else None,
        "status": "skipped" if answer and answer.skipped else scored.status,
        **{name: getattr(answer, name, None) for name in of_answer},
        **({"prompt_tokens": 0, "completion_tokens": 0} if asked_nobody else {}),
        "made_by": run.made_by.get(question.key, ""),
        "memory_tokens": made.memory_tokens if made and own is None else own,
        "input_tokens": made.input_tokens if made else None,
        "profile": profile,
        "metric": scored.metric,
        "score": scored.score,
        "judge_reply": scored.judge_reply,
        "error": "" if answer else (failure.error if failure else "not asked yet"),
    }


def _file(run: Run, profile: str) -> Path:
    return run.folder / "scores" / f"{profile}.jsonl"


def scores_of(run: Run, profile: str = "fixed") -> list[Row]:
    """The saved scores of a run, made anew where they are not there or older than its answers.

    Raises InputError if the old ones came from a judge, which only `memalpha score` may ask again.
    """
    head, *rows = _saved(run, profile)
    if head.get("answers") == len(run.answers) and len(rows) == len(run.questions):
        return rows
    if head.get("judge"):
        old = "older than the answers and made by a judge; score the run again"
        raise InputError(f"{_file(run, profile)}: {old}")
    return score_run(run, profile)


def judge_of(run: Run, profile: str) -> str | None:
    """Who judged the saved scores of a run, None if nobody did."""
    return _saved(run, profile)[0].get("judge")


def _saved(run: Run, profile: str) -> list[Row]:
    file = _file(run, profile)
    return (files.read_jsonl(file) if file.exists() else []) or [{}]


def score(
    run: Run,
    profile: str,
    rubric: Rubric = "published",
    judge: ChatModel | None = None,
    prices: Mapping[str, float | None] = {},
) -> list[Row]:
    """Scores a run, with a model as judge where there is one, and keeps what it cost by source.

    What earlier attempts lost was paid for too, so it is counted on. Without a judge, what one said
    before is kept. Raises InputError if that is too old.
    """
    if judge is None:
        if not _saved(run, profile)[0].get("judge"):
            score_run(run, profile)
        return scores_of(run, profile)
    behaviour = "release" if profile.startswith("release") else "fixed"
    costs: dict[str, float | None] = {}
    lost: dict[str, float | None] = dict(_saved(run, profile)[0].get("judge_lost_usd") or {})

    def rule(items: Sequence[Item]) -> list[Any]:
        verdicts: dict[int, Any] = {}
        for source in dict.fromkeys(item.source for item in items):
            if source == "infbench_sum_eng_shots2":
                raise InputError(f"source {source}: its judge gives F1, which the kit has not")
            meter = WatchedChat(judge)
            places = [place for place, item in enumerate(items) if item.source == source]
            by_rubric = LongMemEvalJudge(meter, behaviour, rubric=rubric)
            rulings = by_rubric.judge([_judged(items[place]) for place in places])
            verdicts |= zip(places, rulings, strict=True)
            lost[source] = _sum(lost.get(source, 0.0), _price(meter.lost, prices))
            costs[source] = _sum(lost[source], _price(meter.spent, prices))
        return [verdicts[place] for place in range(len(items))]

    card: dict[str, Any] = {"judge": f"{made_by(judge)}, rubric {rubric}"}
    card |= {"judge_usd": costs, "judge_lost_usd": lost}
    return score_run(run, profile, rule, card)


def _price(calls: Sequence[Counts], prices: Mapping[str, float | None]) -> float | None:
    return cost(spent(calls), prices) if calls else 0.0


def _sum(*costs: float | None) -> float | None:
    known = [usd for usd in costs if usd is not None]
    return sum(known) if len(known) == len(costs) else None


def _judged(item: Item) -> JudgeItem:
    never = item.qa.endswith("_abs")
    return JudgeItem(item.question, item.golds, item.prediction or "", item.kind, never)


def episodes(run: Run, profile: str = "fixed") -> list[Episode]:
    """How each memory of a run was written, with its scored answers, e.g. for `waterfall`.

    Instances that are not prepared are left out, questions without an answer have none. Raises
    InputError for a method that writes no memory.
    """
    answers: dict[str, list[Answer]] = {}
    for question, row in zip(run.questions, scores_of(run, profile), strict=True):
        answer = run.answers.get(question.key, Answer(question.qa, None))
        answers.setdefault(question.instance, []).append(replace(answer, score=row["score"]))
    written = []
    for instance in (name for name in answers if name in run.prepared):
        episode = run.prepared[instance].episode
        if episode is None:
            raise InputError(f"{run.folder}: expected a run that writes memories, found none")
        written.append(replace(episode, answers=tuple(answers[instance])))
    return written


def silent(episodes: Sequence[Episode]) -> str:
    """`writing.silence` of these episodes."""
    steps = [step for episode in episodes for step in episode.steps]
    without = sum(not step.calls for step in steps)
    return silence(without, len(steps), episodes[0].wire if episodes else "")


# ---- the raw material of tables -----------------------------------------------------------------


COLUMNS = (
    *("source", "instance", "qa", "metric", "profile", "score", "status", "finish", "truncated"),
    *("memory_tokens", "prompt_tokens", "completion_tokens"),
)
"""Of a row of scores, what tables look at."""


def frames(
    runs: Mapping[str, Run | Sequence[Run]], profile: str = "fixed"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`answers` and `built` of `tables`, all runs together; the mapping names the methods.

    A method may be several runs, e.g. one per source.
    """
    import pandas as pd

    answers: list[Row] = []
    built: list[Row] = []
    for name, found in runs.items():
        for run in [found] if isinstance(found, Run) else found:
            prices = run.info.get("answer") or {}
            for row in scores_of(run, profile):
                more = {"chunk_tokens": row["input_tokens"], "cost_usd": cost(row, prices)}
                answers.append({key: row[key] for key in COLUMNS} | more | {"method": name})
            built += [row | {"method": name} for row in _built(run, profile)]
    return pd.DataFrame(answers), pd.DataFrame(built)


def _built(run: Run, profile: str) -> Iterator[Row]:
    """A row per instance, per failure that was paid for, and per source that a judge saw."""
    answering = run.info.get("answer") or {}
    writing = run.info.get("write") or answering
    sources = {question.instance: question.source for question in run.questions}
    for instance, source in sources.items():
        made = run.prepared.get(instance) or Prepared(instance)
        took = _tokens(made) if made.requests else _NOTHING
        counts = dict(zip(("chunks", "calls", "calls_ok"), made.counts, strict=True))
        costs = {"unusable": made.unusable, "cost_usd": cost(took, writing)}
        yield _NOTHING | took | {"source": source} | counts | costs
    for record, took in _thrown(run):
        if record.instance in sources and took["prompt_tokens"] is not None:
            prices = answering if isinstance(record, Answer) else writing
            named = {"source": sources[record.instance], "cost_usd": cost(took, prices)}
            yield _NOTHING | took | named
    for source, usd in (_saved(run, profile)[0].get("judge_usd") or {}).items():
        yield _NOTHING | {"source": source, "cost_usd": usd}


def _tokens(record: Answer | Prepared) -> Row:
    return {name: getattr(record, name) for name in ("prompt_tokens", "completion_tokens")}


def _thrown(run: Run) -> Iterator[tuple[Answer | Prepared, Row]]:
    """What failed, with the tokens that no other record counts.

    Of a memory that failed that is the reply that ended it, for its journal gives the others to the
    next attempt; where there was no next one, all of them.
    """
    last = {made.instance: made for made in run.thrown if isinstance(made, Prepared)}
    for record in run.thrown:
        took = _tokens(record)
        if isinstance(record, Prepared):
            final = last[record.instance] is record and record.instance not in run.prepared
            took = took if final else dict(zip(took, record.lost, strict=True))
        yield record, took


_NOTHING: Row = dict.fromkeys(
    ("chunks", "calls", "calls_ok", "unusable", "prompt_tokens", "completion_tokens", "cost_usd"), 0
)


def cost(spent: Mapping[str, Any], prices: Mapping[str, Any]) -> float | None:
    """US dollars by prices per million tokens (`price_in`, `price_out`); None if unknown."""
    tokens: list[Any] = [spent.get("prompt_tokens"), spent.get("completion_tokens")]
    if tokens == [0, 0]:
        return 0.0
    rates: list[Any] = [prices.get("price_in"), prices.get("price_out")]
    if None in (*rates, *tokens):
        return None
    return sum(rate * n for rate, n in zip(rates, tokens, strict=True)) / 1e6


def floors(runs: Sequence[Run], profile: str = "fixed") -> pd.DataFrame:
    r"""`answers` of two constants on every question of the runs, as two methods.

    `read_nothing` is an empty answer; `majority_label`, for classes only, answers with the
    commonest accepted answer of an instance's questions as `\boxed{n}`. It looks at the gold, so no
    constant answer can score better.
    """
    import pandas as pd

    asked = {question.key: question for run in runs for question in run.questions}
    by_instance: dict[str, list[Item]] = {}
    for item in asked.values():
        by_instance.setdefault(item.instance, []).append(item)
    rows: list[Row] = []
    for name in ("read_nothing", "majority_label"):
        for _, mine in sorted(by_instance.items()):
            text = "" if name == "read_nothing" else f"\\boxed{{{majority_label(mine)}}}"
            given = [replace(item, prediction=text) for item in mine]
            for item, scored in zip(given, score_all(given, profile), strict=True):
                if not text or scored.metric.partition("@")[0] == "label":
                    rows.append({"method": name, **_FLOOR, **asdict(item), **asdict(scored)})
    return pd.DataFrame(rows).assign(profile=profile)


_FLOOR = {"truncated": False, "finish": "", "memory_tokens": None, "chunk_tokens": None} | (
    dict.fromkeys(("prompt_tokens", "completion_tokens", "cost_usd"), 0)
)


def majority_label(questions: Sequence[Item]) -> str:
    """The commonest accepted answer of some questions, the smallest of equals."""
    times = Tally(q.golds[0] for q in questions)
    return min(times, key=lambda gold: (-times[gold], gold))
