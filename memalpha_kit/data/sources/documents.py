"""What the sources of documents share: from packed chunks with questions to instances.

The order of the steps is a law: enough questions, then the stage, then a sample, then enough
questions again. Each step that drops something says so to `Skips`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memalpha_kit.data import stages
from memalpha_kit.data.sources import frames
from memalpha_kit.data.sources.building import Skips, generator, sampled
from memalpha_kit.data.stages import Stage
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter


@dataclass(frozen=True)
class Draft:
    """An instance before its questions are filtered and its chunks are framed."""

    contents: Sequence[str]
    questions: Sequence[QA]
    groups: Sequence[str]  # names that may not be on both sides of a split
    details: Mapping[str, str] = field(default_factory=dict)  # evidence as text, by question id


def finish(
    source: str, drafts: Iterable[Draft], path: Path, config: BuildConfig, seed: int, skips: Skips
) -> list[Instance]:
    """At most `config.instances` instances of the drafts with enough questions.

    Later drafts are not looked at, so that no model is asked in vain. Raises InputError, naming the
    raw file `path`, if no instance is left.
    """
    built: list[Instance] = []
    stage = stages.chosen(config)
    for index, draft in enumerate(drafts):
        if config.instances and len(built) == config.instances:
            break
        asked = draft.questions
        if len(asked) < config.min_questions or not asked:
            skips.drop("instances with too few questions")
            continue
        asked = _unknown(asked, config, skips, stage)
        rng = generator(seed, source, index, "questions")
        asked = sampled(asked, config.max_questions, rng, skips)
        if len(asked) < config.min_kept_questions or not asked:
            skips.drop("instances with too few questions after the closed-book filter")
            continue
        rng = generator(seed, source, index, "frames")
        chunks = frames.frame_all(draft.contents, frames.DOCUMENT_LEAD_INS, rng)
        built.append(make_instance(source, chunks, asked, metadata=_metadata(source, draft, asked)))
    if not built:
        expected = f"an instance with {config.min_questions} questions"
        raise InputError(f"{path}: expected {expected}, found none")
    return built


def _unknown(
    asked: Sequence[QA], config: BuildConfig, skips: Skips, stage: Stage | None
) -> list[QA]:
    """The questions with a short answer that nobody knows without the text."""
    if stage is None:
        return list(asked)
    pairs = [(qa.question, qa.answers[0]) for qa in asked]
    verdicts = stage.closed_book(pairs, counter(config.counter).count)
    skips.drop("questions with a long answer, or answered without the text", verdicts.count(False))
    skips.drop("questions whose closed-book check failed", verdicts.count(None))
    return [qa for qa, keep in zip(asked, verdicts, strict=True) if keep]


def _metadata(source: str, draft: Draft, asked: Sequence[QA]) -> dict[str, Any]:
    evidence = [draft.details[qa.id] for qa in asked] if draft.details else None
    return {
        "groups": [f"{source}:{name}" for name in draft.groups],
        "titles": list(draft.groups),
        **({"evidence": evidence} if evidence else {}),
    }
