"""One evaluation from its first question to its table: asked, scored, and what is left is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.chats import ChatModel
from memalpha_kit.errors import ModelGone
from memalpha_kit.evaluation import runs, scores, tables
from memalpha_kit.evaluation.methods import METHODS, Backends, Method, MethodSpec
from memalpha_kit.evaluation.report import SHOWN
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.method.judges import LongMemEvalJudge
from memalpha_kit.progress import bar
from memalpha_kit.records import Instance

Prices = Mapping[str, float | None]


def answer(run: Run, method: Method, instances: Sequence[Instance]) -> Run:
    """The run after all open questions were asked. Raises ModelGone, saying what is kept."""
    left = {instance for instance, _ in run.open}
    work = len(left - run.prepared.keys()) + len(run.open)
    if not work:
        return run
    try:
        with bar(work, f"evaluate {method.name}") as shown:
            return runs.complete(run, method, instances, shown.advance)
    except ModelGone as error:
        kept = runs.load_run(run.folder)
        done = f"{len(kept.answers)} of {len(kept.questions)} answers are in {run.folder}"
        raise ModelGone(f"{error}; {done}") from error


def score(
    run: Run,
    profile: str,
    rubric: str,
    judge: ChatModel | None = None,
    prices: Prices | None = None,
) -> None:
    """Scores a run under a profile, with a model as judge where there is one.

    Without one, what a judge said before is kept. Raises InputError if that is too old.
    """
    if judge is None:
        if not scores.judge_of(run, profile):
            scores.score_run(run, profile)
        scores.scores_of(run, profile)
        return
    behaviour = "release" if profile.startswith("release") else "fixed"

    def make(model: ChatModel) -> LongMemEvalJudge:
        return LongMemEvalJudge(model, behaviour, rubric=rubric)

    name = f"{judge.name}, rubric {rubric}"
    scores.judged(run, profile, judge, make, name, dict(prices or {}))


def summary(run: Run, profile: str) -> tuple[str, list[str], bool]:
    """The table of a scored run, what is to be warned of, and whether nothing is missing."""
    method = run.settings["method"]["method"]
    table = tables.markdown(tables.table_sources(*scores.frames({method: run}, profile))[[*SHOWN]])
    warnings = [warning] if (warning := scores.silent_writer(run)) else []
    if not run.complete:
        return table, [*warnings, f"incomplete: {run.why_open()}"], False
    rows = scores.scores_of(run, profile)
    if failed := sum(row["status"] == "judge_error" for row in rows):
        warnings.append(
            f"{failed} of {len(rows)} answers have no verdict of the judge and are in no mean, see "
            "if_all_0 and if_all_1; `memalpha score` with the judge asks again"
        )
    return table, warnings, not failed


def data_name(path: Path) -> str:
    """The data's own name: a file without ending, or a folder."""
    name = path.resolve().stem
    return path.resolve().parent.name if name in ("test", "train") else name


def provenance(
    spec: MethodSpec, backends: Backends, data: Path, prices: Mapping[str, Prices], wrote: str = ""
) -> dict[str, Any]:
    """What changes no answer but belongs to the run: where the data is, who writes, prices.

    `prices` are by role, answer and write; `wrote` is who wrote the episodes, if others did.
    """
    roles = {"answer": backends.answer, "write": backends.write}
    models = {role: {"model": model.name, **prices[role]} for role, model in roles.items() if model}
    writer = {**METHODS[spec.method].defaults, **spec.options}.get("writer") or wrote
    if writer == "api":
        writer = (backends.write or backends.answer).name if backends.answer else ""
    elif writer:
        models["write"] = {"model": writer}  # not at the price of the answering model
    return {"data": str(data), "writer": writer, **models}
