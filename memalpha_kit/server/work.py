"""What the endpoints do, without HTTP: checked requests in, the bodies of answers out.

Everything here runs in a thread of its own and may take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memalpha_kit.method.judges import ContentJudge, StepVerdict, Verdict, judge_steps
from memalpha_kit.method.model_readers import AgenticReader, ModelReader
from memalpha_kit.records import Answer, Question
from memalpha_kit.server.guard import Refused
from memalpha_kit.server.settings import ServerSettings
from memalpha_kit.server.upstream import Upstream
from memalpha_kit.server.wire import AgenticQuestions, Calls, Questions

MOST_DETAILS = 20
"""Errors that a refusal lists."""


# ---- answering --------------------------------------------------------------------------------


def check_questions(asked: Questions, settings: ServerSettings) -> None:
    """Raises Refused for what the fields' types cannot say."""
    n, items = len(asked.memories), sum(map(len, asked.questions))
    for name in ("questions", "sources"):
        rows = getattr(asked, name)
        if rows is not None and len(rows) != n:
            raise wrong([name], f"expected one per memory, {n}, found {len(rows)}", "length")
    if max(n, items) > settings.max_items:
        raise _too_many("questions", settings.max_items, max(n, items))
    if settings.release:
        return
    blank = [
        [i, j] for i, row in enumerate(asked.questions) for j, q in enumerate(row) if not q.strip()
    ]
    if blank:
        raise wrong(["questions", *blank[0]], "expected a text, found a blank one", "blank")


def answer(asked: Questions, settings: ServerSettings, model: Upstream) -> dict[str, Any]:
    """The body of `/batch_process`, with histories that of `/agentic_process`.

    Source: evaluation.md 2.4, 2.6. Raises Refused (502) if the model answered nothing.
    """
    requests = _requests(asked)
    answers, histories = _read(asked, requests, settings, model)
    errors = [_error(a) for a in answers if a.prediction is None]
    if len(errors) == len(answers) and any(error["kind"] == "no_reply" for error in errors):
        raise Refused(502, "the model answered nothing", map(_detail, errors[:MOST_DETAILS]))
    release = settings.release
    said = [f"Error: {a.error}" if release and a.prediction is None else a.prediction
            for a in answers]  # fmt: skip
    body = {
        "result": _nested(said, asked.questions),
        "status": "partial" if errors and not release else "success",
        "processed_count": len(answers) if release else len(answers) - len(errors),
    }
    if not release:
        body["errors"] = errors
    if histories is not None:
        body["search_iterations"] = _nested(histories, asked.questions)
    return body


def _requests(asked: Questions) -> list[Question]:
    """One per question; its id is its place."""
    memories = [memory.memory() for memory in asked.memories]
    sources = asked.sources or [""] * len(memories)
    return [
        Question(f"{i}.{j}", question, source, memory=memory)
        for i, (memory, questions, source) in enumerate(
            zip(memories, asked.questions, sources, strict=True)
        )
        for j, question in enumerate(questions)
    ]


def _read(
    asked: Questions, requests: Sequence[Question], settings: ServerSettings, model: Upstream
) -> tuple[list[Answer], list[list[dict]] | None]:
    """The answers, and with search their histories."""
    given = {
        "max_tokens": asked.max_tokens,
        "temperature": settings.temperature if asked.temperature is None else asked.temperature,
        "thinking": asked.enable_thinking,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if not isinstance(asked, AgenticQuestions):
        return ModelReader(model, settings.retrieval, **options).read(requests), None
    if asked.max_iterations is not None:
        options["max_iterations"] = asked.max_iterations
    found = AgenticReader(model, settings.retrieval, **options).converse(requests)
    return [one for one, _ in found], [history for _, history in found]


def _error(failed: Answer) -> dict[str, Any]:
    i, j = map(int, failed.qa.split("."))
    kind = "unanswerable" if failed.finish == "unanswerable" else "no_reply"
    return {"memory": i, "question": j, "kind": kind, "message": failed.error}


def _detail(error: dict[str, Any]) -> dict[str, Any]:
    loc = ["questions", error["memory"], error["question"]]
    return {"loc": loc, "msg": error["message"], "type": error["kind"]}


def _nested(flat: Sequence[Any], shape: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The values in lists as long as those of `shape`."""
    values = iter(flat)
    return [[next(values) for _ in row] for row in shape]


# ---- judging ----------------------------------------------------------------------------------


def check_calls(asked: Calls, settings: ServerSettings) -> None:
    """Raises Refused for more calls than are allowed."""
    items = sum(map(len, asked.batch))
    if max(items, len(asked.batch)) > settings.max_items:
        raise _too_many("batch", settings.max_items, max(items, len(asked.batch)))


def analyse(asked: Calls, settings: ServerSettings, judge: ContentJudge) -> dict[str, Any]:
    """The body of `/analyze_function`. Raises Refused (502) if the judge answered nothing.

    Under release nothing is refused: a failed judgement is 0 there. Source: evaluation.md 2.7.
    """
    release = settings.release
    calls = [[call.plain() for call in group] for group in asked.batch]
    steps = judge_steps(calls, judge)
    verdicts = [v for step in steps for v in step.verdicts if v is not None and v.asked]
    errors = _judge_errors(steps)
    if errors and not release and not any(v.reply for v in verdicts):
        details = [
            {"loc": ["batch", e["group"], e["item"]], "msg": e["message"], "type": e["kind"]}
            for e in errors[:MOST_DETAILS]
        ]
        raise Refused(502, "the judge answered nothing", details)
    body = {
        "scores": [step.score for step in steps],
        "detailed_analyses": [[_analysis(v, release) for v in step.verdicts] for step in steps],
        "total_processed": sum(not v.error for v in verdicts),
        "total_items": sum(len(step.verdicts) for step in steps),
        "total_groups": len(steps),
        "llm_processed": sum(bool(v.reply) for v in verdicts),
        "status": "partial" if errors and not release else "success",
    }
    return body if release else body | {"errors": errors}


def _judge_errors(steps: Sequence[StepVerdict]) -> list[dict[str, Any]]:
    return [
        {"group": g, "item": i, "kind": "judge_error", "message": v.error}
        for g, step in enumerate(steps)
        for i, v in enumerate(step.verdicts)
        if v is not None and v.asked and v.error
    ]


def _analysis(verdict: Verdict | None, release: bool) -> dict[str, Any]:
    """One item of `detailed_analyses`; what is not judged has no score, under release 0."""
    if verdict is None:
        verdict = Verdict(None, error="not to be judged")
    issues = verdict.issues or ((verdict.error,) if release and verdict.error else ())
    return {
        "is_valid": verdict.valid,
        "score": None if verdict.valid is None else float(verdict.valid),
        "issues": list(issues),
        "explanation": verdict.explanation,
        **({"error": verdict.error} if verdict.error else {}),
    }


# ---- refusals ---------------------------------------------------------------------------------


def wrong(loc: Sequence[str | int], msg: str, kind: str) -> Refused:
    """The refusal of a request that has the right types and still cannot be."""
    where = ".".join(map(str, loc))
    return Refused(422, f"{where}: {msg}", [{"loc": ["body", *loc], "msg": msg, "type": kind}])


def _too_many(name: str, limit: int, found: int) -> Refused:
    msg = f"expected at most {limit} items in one request, found {found}; ask in parts"
    return Refused(413, f"{name}: {msg}", [{"loc": ["body", name], "msg": msg, "type": "too_many"}])
