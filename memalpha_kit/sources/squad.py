"""SQuAD (Rajpurkar et al., 2016): paragraphs of Wikipedia articles and questions about them.

A raw file is JSON in the layout of version 1.1; version 2.0's questions without an answer are
left out:

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 515}]}]}]}]}

There is no closed-book filter at this stage: the paper keeps only short questions that a strong
model cannot answer without the text (data.md 2.0), we keep all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalpha_kit.config import BuildConfig
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.sources.building import (
    Skips,
    draw,
    generator,
    raw_file,
    read_json,
    take,
)
from memalpha_kit.sources.frames import DOCUMENT_LEAD_INS, frame_all
from memalpha_kit.text import counter, pack_paragraphs

log = logging.getLogger(__name__)

FILES = ("squad*.json",)


@dataclass(frozen=True)
class Paragraph:
    """One context with its questions, whose `chunk` is not known yet."""

    text: str
    questions: tuple[QA, ...]


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Every `config.max_chunks` consecutive chunks as one instance.

    Chunks are packed to targets drawn from chunk_min_tokens..chunk_max_tokens; instances with
    fewer than `min_questions` are dropped and more than `max_questions` are sampled, in order.
    Raises InputError if no instance is left.
    Source: data.md 2.1. Differs: no closed-book filter; evidence is recorded while packing (D21a).
    """
    path = raw_file(raw, *FILES)
    paragraphs = read_paragraphs(path)
    rng = generator(seed, "squad", "all", "targets")
    groups = pack_paragraphs(
        [paragraph.text for paragraph in paragraphs],
        counter(config.counter),
        lambda: rng.randint(config.chunk_min_tokens, config.chunk_max_tokens),
    )
    chunks = [[paragraphs[i] for i in group] for group in groups]
    shares = [chunks[i : i + config.max_chunks] for i in range(0, len(chunks), config.max_chunks)]
    built = [_instance(i, share, config, seed) for i, share in enumerate(shares)]
    kept = [instance for instance in built if instance is not None]
    if not kept:
        found = f"{len(paragraphs)} paragraphs without one"
        raise InputError(
            f"{path}: expected an instance with {config.min_questions} questions, found {found}"
        )
    return kept[: config.instances]


def _instance(
    index: int, chunks: Sequence[Sequence[Paragraph]], config: BuildConfig, seed: int
) -> Instance | None:
    """The instance of these chunks, or None if it has too few questions."""
    longest = config.chunk_max_tokens
    questions = [
        QA(qa.id, qa.question, qa.answers, chunk)
        for chunk, paragraphs in enumerate(chunks)
        for paragraph in paragraphs
        for qa in paragraph.questions
        if counter(config.counter).count(qa.question) < longest
    ]
    if len(questions) < max(config.min_questions, 1):
        return None
    contents = ["\n\n".join(p.text for p in paragraphs) for paragraphs in chunks]
    return make_instance(
        "squad",
        frame_all(contents, DOCUMENT_LEAD_INS, generator(seed, "squad", index, "frames")),
        draw(questions, config.max_questions, generator(seed, "squad", index, "questions")),
    )


def read_paragraphs(path: Path) -> list[Paragraph]:
    """The paragraphs of a raw file, each context once, in order of first appearance.

    Raises InputError naming article, paragraph and question of a field that is not as it must be.
    """
    questions: dict[str, list[QA]] = {}
    left_out = 0
    for context, where, raw in _raw_paragraphs(path):
        own = questions.setdefault(context, [])
        read = [read_question(qa, f"{where}: question {i}") for i, qa in enumerate(raw)]
        own += [qa for qa in read if qa is not None]
        left_out += read.count(None)
    if left_out:
        log.info("%s: %d questions without an answer left out", path, left_out)
    return [Paragraph(context, tuple(own)) for context, own in questions.items()]


def _raw_paragraphs(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """(context, where it stands, its raw questions)."""
    for i, article in enumerate(take(read_json(path), "data", list, str(path))):
        for j, raw in enumerate(take(article, "paragraphs", list, f"{path}: article {i}")):
            where = f"{path}: article {i}, paragraph {j}"
            yield take(raw, "context", str, where), where, take(raw, "qas", list, where)


def read_question(raw: Any, where: str) -> QA | None:
    """The question with its first answer, or None if it has no answer."""
    question = take(raw, "question", str, where)
    answers = take(raw, "answers", list, where)
    if not answers:
        return None
    name = take(raw, "id", str, where)
    return QA(name, question.strip(), (take(answers[0], "text", str, f"{where}: answers[0]"),))
