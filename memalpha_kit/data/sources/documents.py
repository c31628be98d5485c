"""What the sources of documents share: from packed chunks with questions to instances.

The order of the steps is a law: enough questions, then the stage, then a sample, then enough
questions again. Each step that drops something says so to `Skips`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memalpha_kit.data import stages
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.stages import Stage
from memalpha_kit.records import QA, Instance


@dataclass(frozen=True)
class Draft:
    """An instance before its questions are filtered and its chunks are framed."""

    contents: Sequence[str]
    questions: Sequence[QA]
    groups: Sequence[str]  # names that may not be on both sides of a split
    details: Mapping[str, str] = field(default_factory=dict)  # evidence as text, by question id


def finish(job: Job, drafts: Iterable[Draft], pattern: str) -> list[Instance]:
    """At most `config.instances` instances of the drafts with enough questions.

    Later drafts are not looked at, so that no model is asked in vain. Raises InputError, naming the
    raw file, if no instance is left.
    """
    built: list[Instance] = []
    config, stage = job.config, stages.chosen(job.config)
    for index, draft in enumerate(drafts):
        if config.instances and len(built) == config.instances:
            break
        asked = draft.questions
        if len(asked) < config.min_questions or not asked:
            job.skips.drop("instances with too few questions")
            continue
        asked = job.sampled(_unknown(job, stage, asked) if stage else asked, index)
        if len(asked) < config.min_kept_questions or not asked:
            job.skips.drop("instances with too few questions after the closed-book filter")
            continue
        chunks = job.framed(draft.contents, index)
        about = {"groups": [f"{job.source}:{name}" for name in draft.groups]}
        about["titles"] = list(draft.groups)
        if draft.details:
            about["evidence"] = [draft.details[qa.id] for qa in asked]
        built.append(job.instance(chunks, asked, **about))
    return job.not_none(built, pattern, f"an instance with {config.min_questions} questions")


def _unknown(job: Job, stage: Stage, asked: Sequence[QA]) -> list[QA]:
    """The questions with a short answer that nobody knows without the text."""
    pairs = [(qa.question, qa.answers[0]) for qa in asked]
    verdicts = stage.closed_book(pairs, job.counter.count)
    drop = job.skips.drop
    drop("questions with a long answer, or answered without the text", verdicts.count(False))
    drop("questions whose closed-book check failed", verdicts.count(None))
    return [qa for qa, keep in zip(asked, verdicts, strict=True) if keep]
