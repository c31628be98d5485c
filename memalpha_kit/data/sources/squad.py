"""SQuAD (Rajpurkar et al., 2016): paragraphs of Wikipedia articles and questions about them.

A raw file is JSON in the layout of version 1.1 (version 2.0's questions without an answer are left
out), or the hub's parquet with a row per question:

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 515}]}]}]}]}

Laws: an article stands in one instance, unless it alone has more than `max_chunks` chunks; every
question knows its chunk from packing, not from a search (D21a). Groups are article titles (D2).
With `stage`, questions that can be answered without the text, or not shortly, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memalpha_kit.data.chunks import pack_sizes
from memalpha_kit.data.sources.building import (
    Skips,
    generator,
    matches,
    raw_file,
    raw_rows,
    read_json,
    sizes,
    take,
)
from memalpha_kit.data.sources.documents import Draft, finish
from memalpha_kit.data.sources.frames import DOCUMENT_LEAD_INS
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

FILES = ("squad*.json|squad*.parquet|train-*.parquet",)
COLUMNS = ("id", "title", "context", "question", "answers")

Chunks = list[list[int]]  # paragraphs by chunk


@dataclass(frozen=True)
class Paragraph:
    """One context with its questions, whose `chunk` is not known yet."""

    text: str
    article: str  # title
    questions: tuple[QA, ...]


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Articles packed into instances of at most `config.max_chunks` chunks.

    Chunks are packed to targets drawn from chunk_min_tokens..chunk_max_tokens. Instances with fewer
    than `min_questions`, or after the stage `min_kept_questions`, are dropped; more than
    `max_questions` are sampled, in order. Raises InputError if no instance is left.
    Source: data.md 2.1. Differs: instances end with articles (D2); evidence is recorded while
    packing (D21a); seeded. With compat "release" every `max_chunks` consecutive chunks are an
    instance, joiners are not part of the packing test, and contexts are looked up in the chunks,
    where the last chunk of a question wins; its draws were not seeded and cannot be repeated.
    """
    paragraphs = read_paragraphs(raw, skips)
    tokens = list(sizes((paragraph.text for paragraph in paragraphs), config))
    if config.compat == "release":
        shares = _consecutive(tokens, config, seed)
        asked = _found_by_search(paragraphs, shares)
    else:
        shares = _by_article(paragraphs, tokens, config, seed)
        asked = [_recorded(paragraphs, chunks) for chunks in shares]
    short = _short_enough(config, skips)
    drafts = [
        Draft(
            contents=["\n\n".join(paragraphs[i].text for i in chunk) for chunk in chunks],
            questions=[qa for qa in questions if short(qa)],
            groups=_titles(paragraphs, chunks),
        )
        for chunks, questions in zip(shares, asked, strict=True)
    ]
    kept = finish("squad", drafts, DOCUMENT_LEAD_INS, config, seed, skips)
    if not kept:
        found = f"{len(paragraphs)} paragraphs without one"
        expected = f"an instance with {config.min_questions} questions"
        raise InputError(f"{matches(raw, *FILES)[0]}: expected {expected}, found {found}")
    return kept


def _short_enough(config: BuildConfig, skips: Skips) -> Callable[[QA], bool]:
    """Whether a question has fewer tokens than the largest chunk; those that have not count."""
    measure = counter(config.counter)

    def short(qa: QA) -> bool:
        fits = len(qa.question) < config.chunk_max_tokens or (
            measure.count(qa.question) < config.chunk_max_tokens
        )
        skips.drop("questions longer than a chunk", not fits)
        return fits

    return short


def _titles(paragraphs: Sequence[Paragraph], chunks: Chunks) -> list[str]:
    return list(dict.fromkeys(paragraphs[i].article for chunk in chunks for i in chunk))


# --- Packing -------------------------------------------------------------------------------------

OPEN = 20  # instances that may still take an article


@dataclass
class _Share:
    """An instance that grows by whole articles."""

    name: str  # of its first article; names its generator
    paragraphs: list[int]
    chunks: Chunks


def _by_article(
    paragraphs: Sequence[Paragraph], tokens: Sequence[int], config: BuildConfig, seed: int
) -> list[Chunks]:
    """Chunks by instance; an article goes to the first of the open instances with room for it."""
    space = counter(config.counter).count("\n\n")

    def packed(name: str, indices: Sequence[int]) -> Chunks:
        rng = generator(seed, "squad", name, "targets")
        low, high = config.chunk_min_tokens, config.chunk_max_tokens
        groups = pack_sizes([tokens[i] for i in indices], space, lambda: rng.randint(low, high))
        return [[indices[i] for i in group] for group in groups]

    articles: dict[str, list[int]] = {}
    for index, paragraph in enumerate(paragraphs):
        articles.setdefault(paragraph.article, []).append(index)
    shares: list[_Share] = []
    waiting: list[_Share] = []
    for title, own in articles.items():
        for share in waiting:
            chunks = packed(share.name, share.paragraphs + own)
            if len(chunks) <= config.max_chunks:
                share.paragraphs, share.chunks = share.paragraphs + own, chunks
                break
        else:
            shares.append(_Share(title, own, packed(title, own)))
            waiting = [*waiting, shares[-1]][-OPEN:]
        waiting = [share for share in waiting if len(share.chunks) < config.max_chunks]
    return [part for share in shares for part in _parts(share.chunks, config.max_chunks)]


def _parts(chunks: Chunks, size: int) -> list[Chunks]:
    return [chunks[i : i + size] for i in range(0, len(chunks), size)]


def _recorded(paragraphs: Sequence[Paragraph], chunks: Chunks) -> list[QA]:
    """The questions of an instance, each with the chunk that its paragraph was packed into."""
    return [
        replace(qa, chunk=number)
        for number, chunk in enumerate(chunks)
        for index in chunk
        for qa in paragraphs[index].questions
    ]


def _consecutive(tokens: Sequence[int], config: BuildConfig, seed: int) -> list[Chunks]:
    """As released: one run of chunks over all articles, cut after every `max_chunks`."""
    rng = generator(seed, "squad", "all", "targets")
    low, high = config.chunk_min_tokens, config.chunk_max_tokens
    space = counter(config.counter).count("\n\n")
    chunks = pack_sizes(tokens, space, lambda: rng.randint(low, high), test_space=False)
    return _parts(chunks, config.max_chunks)


def _found_by_search(paragraphs: Sequence[Paragraph], shares: Sequence[Chunks]) -> list[list[QA]]:
    """As released: a chunk asks for every context inside it, the last chunk being the evidence.

    Slow by nature: every chunk is searched for every context.
    """
    last: dict[str, int] = {}
    found: list[list[QA]] = []
    for chunks in shares:
        found.append([])
        for number, chunk in enumerate(chunks):
            text = "\n\n".join(paragraphs[i].text for i in chunk)
            asked = [qa for p in paragraphs if p.text in text for qa in p.questions]
            last |= {qa.id: number for qa in asked}
            found[-1] += asked
    return [[replace(qa, chunk=last[qa.id]) for qa in share] for share in found]


# --- Reading -------------------------------------------------------------------------------------


def read_paragraphs(raw: Path, skips: Skips) -> list[Paragraph]:
    """The paragraphs of the raw file, each context once, in order of first appearance.

    Raises InputError naming article, paragraph and question of a field that is not as it must be.
    """
    files = matches(raw, *FILES)
    parquet = bool(files) and files[0].suffix == ".parquet"
    rows = _parquet_questions(raw, skips) if parquet else _json_questions(raw, skips)
    titles: dict[str, str] = {}
    questions: dict[str, list[QA]] = {}
    for title, context, qa in rows:
        titles.setdefault(context, title)
        questions.setdefault(context, [])
        if qa is not None:
            questions[context].append(qa)
    return [Paragraph(context, titles[context], tuple(own)) for context, own in questions.items()]


Row = tuple[str, str, QA | None]  # title, context, question or None


def _parquet_questions(raw: Path, skips: Skips) -> Iterator[Row]:
    def read(row: Any, where: str) -> Row:
        answers = take(row, "answers", dict, where)
        texts = take(answers, "text", list, f"{where}: answers")
        qa = read_question(row | {"answers": [{"text": text} for text in texts]}, where)
        return take(row, "title", str, where), take(row, "context", str, where), _counted(qa, skips)

    yield from skips.each(read, raw_rows(raw, *FILES, COLUMNS, skips))


def _json_questions(raw: Path, skips: Skips) -> Iterator[Row]:
    path = raw_file(raw, *FILES)
    for title, where, paragraphs in skips.each(_article, _numbered(path)):
        rows = ((row, f"{where}, paragraph {i}") for i, row in enumerate(paragraphs))
        for context, here, asked in skips.each(_paragraph, rows):
            yield title, context, None
            numbered = ((qa, f"{here}: question {i}") for i, qa in enumerate(asked))
            for qa in skips.each(read_question, numbered):
                yield title, context, _counted(qa, skips)


def _numbered(path: Path) -> Iterator[tuple[Any, str]]:
    for i, article in enumerate(take(read_json(path), "data", list, str(path))):
        yield article, f"{path}: article {i}"


def _article(raw: Any, where: str) -> tuple[str, str, list[Any]]:
    paragraphs = take(raw, "paragraphs", list, where)
    title = raw.get("title")
    known = isinstance(title, str) and title.strip()
    return (title if known else where.rpartition(": ")[2]), where, paragraphs


def _paragraph(raw: Any, where: str) -> tuple[str, str, list[Any]]:
    return take(raw, "context", str, where), where, take(raw, "qas", list, where)


def _counted(qa: QA | None, skips: Skips) -> QA | None:
    skips.drop("questions without an answer", qa is None)
    return qa


def read_question(raw: Any, where: str) -> QA | None:
    """The question with its first answer, or None if it has no answer."""
    question = take(raw, "question", str, where)
    answers = take(raw, "answers", list, where)
    if not answers:
        return None
    name = take(raw, "id", str, where)
    return QA(name, question.strip(), (take(answers[0], "text", str, f"{where}: answers[0]"),))
