"""BookSum (Kryscinski et al., 2022): chapters of novels, read over some days, to be summarised.

A raw row is a chapter with its summaries, in parquet or JSON lines:

    {"book_title": "The Blue Door", "chapter_id": "c1", "text": "Nell finds a key. ...",
     "summary": [{"source": "sparknotes", "text": "Nell opens a blue door ..."}]}

The one question asks for a summary; it is scored by keywords. With `stage` the answer is the
keywords of the chapter's summary, and a chapter without any is left out; with stage "none" it is
the summary itself, a stage halfway. Groups are books. BookSum's test file is not read, so that a
model trained here can be tested on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from memalpha_kit.data import stages
from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.raw import Row, Text, checked
from memalpha_kit.data.sources.building import Job, spread
from memalpha_kit.data.sources.frames import book_frames
from memalpha_kit.records import QA, Instance
from memalpha_kit.tokens import counter

TRAIN = (
    "booksum*train*.jsonl|booksum*train*.json|booksum*train*.parquet|train-*.parquet|train.jsonl|"
    "chapters/train.jsonl|chapters/train-*.parquet"
)
FILES = (TRAIN,)
COLUMNS = ("text", "summary", "book_title", "chapter_id")
QUESTION = "Summarize the content of the book that I read from {first} to {last}"
END_OF_TEXT = "<|endoftext|>"  # a text's border in raw contexts; a line's border for us
BATCH = 8  # chapters that are packed, and asked about, together


class _RawSummary(Row):
    text: str | None
    source: Any = None


class _RawChapter(Row):
    text: Text
    book_title: Text
    summary: list[_RawSummary]
    chapter_id: Any = None


@dataclass(frozen=True)
class Chapter:
    """A chapter and the summary that was chosen for it, "" if it has none that can be used."""

    text: str
    book: str
    name: str
    summary: str
    summary_id: str


def first_with_text(texts: Sequence[str]) -> int | None:
    """The first summary that is not blank."""
    return next((number for number, text in enumerate(texts) if text), None)


def build(
    job: Job,
    patterns: Sequence[str] = FILES,
    choose: Callable[[Sequence[str]], int | None] = first_with_text,
) -> list[Instance]:
    """One instance per chapter of chapter_min_chunks..chapter_max_chunks chunks.

    `choose` says which of a chapter's summaries is used. Raises InputError if no instance is left.
    """
    read = partial(_read_chapter, choose)
    chapters = (one for pattern in patterns for one in job.read(read, pattern, COLUMNS))
    asked = islice(_with_answer(job, _long_enough(job, chapters)), job.config.instances)
    built = [_instance(job, number, *one) for number, one in enumerate(asked)]
    low, high = job.config.chapter_min_chunks, job.config.chapter_max_chunks
    return job.not_none(built, TRAIN, f"a chapter with a summary and {low} to {high} chunks")


def _instance(
    job: Job, number: int, chapter: Chapter, contents: list[str], answer: str
) -> Instance:
    chunks, days = book_frames(contents, job.rng(number, "days"))
    origins = {"none": "summary", "rules": "keywords by rules"}
    return job.instance(
        chunks,
        [QA("summary", QUESTION.format(first=days[0], last=days[-1]), (answer,))],
        groups=[f"booksum:{chapter.book}"],
        titles=[chapter.book],
        chapter_id=chapter.name,
        summary_id=chapter.summary_id,
        dates=days,
        answer_from=origins.get(job.config.stage, "keywords"),
    )


def _read_chapter(choose: Callable[[Sequence[str]], int | None], raw: Any, where: str) -> Chapter:
    row = checked(_RawChapter, raw, where)
    texts = [(summary.text or "").strip() for summary in row.summary]
    chosen = choose(texts)
    source = None if chosen is None else row.summary[chosen].source
    return Chapter(
        row.text.replace(END_OF_TEXT, "\n"),
        " ".join(row.book_title.split()),
        str(row.chapter_id or where.rpartition(": ")[2]),
        "" if chosen is None else texts[chosen],
        f"{chosen or 0}:{source}" if source else str(chosen or 0),
    )


def _long_enough(job: Job, chapters: Iterable[Chapter]) -> Iterator[tuple[Chapter, list[str]]]:
    """Chapters that have a summary and the right number of chunks, with these."""
    config, drop = job.config, job.skips.drop
    pack = partial(_packed, config.counter, config.chunk_max_tokens)
    # With a limit nothing is read ahead: what was left out depends on what was read.
    ahead = (config.workers, BATCH) if config.instances is None else (1, 1)
    for chapter, chunks in spread(pack, chapters, *ahead):
        if not chapter.summary:
            drop("chapters without a summary")
        elif len(chunks) < config.chapter_min_chunks:
            drop("chapters with too few chunks")
        elif len(chunks) > config.chapter_max_chunks:
            drop("chapters with too many chunks")
        else:
            yield chapter, chunks


def _packed(name: str, limit: int, chapters: list[Chapter]) -> list[tuple[Chapter, list[str]]]:
    """Each chapter with its chunks, none where there is no summary to ask for."""
    count = counter(name)
    return [(c, pack_sentences(c.text, count, limit) if c.summary else []) for c in chapters]


def _with_answer(
    job: Job, packed: Iterator[tuple[Chapter, list[str]]]
) -> Iterator[tuple[Chapter, list[str], str]]:
    """Chapters with the answer; those whose keywords are not to be had are dropped."""
    if (stage := stages.chosen(job.config)) is None:
        yield from ((chapter, chunks, chapter.summary) for chapter, chunks in packed)
        return
    while group := list(islice(packed, BATCH)):
        found = stage.keywords([chapter.summary for chapter, _ in group])
        for (chapter, chunks), words in zip(group, found, strict=True):
            job.skips.drop("chapters whose keywords failed", not words)
            if words:
                yield chapter, chunks, ", ".join(words)
