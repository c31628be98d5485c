"""BookSum (Kryscinski et al., 2022): chapters of novels, read over some days, to be summarised.

A raw row is a chapter with its summaries, in parquet or JSON lines:

    {"book_title": "The Blue Door", "chapter_id": "c1", "text": "Nell finds a key. ...",
     "summary": [{"source": "sparknotes", "text": "Nell opens a blue door ..."}]}

The one question asks for a summary; it is scored by keywords. With `stage` the answer is the
keywords of the chapter's summary, and a chapter without any is left out (D4); with stage "none"
it is the summary itself, a stage halfway. Groups are books (D2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha_kit.data import stages
from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.sources.building import Skips, generator, matches, raw_rows, spread, take
from memalpha_kit.data.sources.frames import book_frame, reading_days
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

TRAIN = "booksum*train*.jsonl|booksum*train*.json|booksum*train*.parquet|train-*.parquet"
TEST = TRAIN.replace("train", "test")
FILES = (TRAIN,)
COLUMNS = ("text", "summary", "book_title", "chapter_id")
QUESTION = "Summarize the content of the book that I read from {first} to {last}"
BATCH = 8  # chapters that are packed, and asked about, together


@dataclass(frozen=True)
class Chapter:
    """A chapter and the summary that was chosen for it."""

    text: str
    book: str
    name: str
    summary: str
    summary_id: str


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """One instance per chapter of chapter_min_chunks..chapter_max_chunks chunks.

    Raises InputError if no instance is left.
    Source: data.md 2.3. Differs: paragraphs and a hard limit are kept (D6, D32); the first summary
    that is not blank is used and named in the metadata (D33); the test file of BookSum is not read,
    so that a model trained here can be tested on it (D2). With compat "release" it is read too, and
    a chapter's first summary is used, blank or not; the release's days were not seeded, and its
    splitter of sentences needs a download, so neither is repeated.
    """
    patterns = (TRAIN, TEST) if config.compat == "release" else FILES
    rows = (row for pattern in patterns for row in raw_rows(raw, pattern, COLUMNS, skips))
    read = partial(_read_chapter, release=config.compat == "release")
    chapters = _with_summary(skips.each(read, rows), skips)
    asked = _with_answer(_long_enough(chapters, config, skips), config, skips)
    built = [
        _instance(number, *one, config.stage, seed)
        for number, one in enumerate(islice(asked, config.instances))
    ]
    if not built:
        low, high = config.chapter_min_chunks, config.chapter_max_chunks
        expected = f"a chapter with a summary and {low} to {high} chunks"
        raise InputError(f"{matches(raw, TRAIN)[0]}: expected {expected}, found none")
    return built


def _instance(
    number: int, chapter: Chapter, chunks: list[str], answer: str, stage: str, seed: int
) -> Instance:
    days = reading_days(len(chunks), generator(seed, "booksum", number, "days"))
    question = QUESTION.format(first=days[0], last=days[-1])
    return make_instance(
        "booksum",
        [book_frame(chunk, day) for chunk, day in zip(chunks, days, strict=True)],
        [QA("summary", question, (answer,))],
        metadata={
            "groups": [f"booksum:{chapter.book}"],
            "titles": [chapter.book],
            "chapter_id": chapter.name,
            "summary_id": chapter.summary_id,
            "dates": [day.isoformat() for day in days],
            "answer_from": {"none": "summary", "rules": "keywords by rules"}.get(stage, "keywords"),
        },
    )


def _with_summary(chapters: Iterable[Chapter], skips: Skips) -> Iterator[Chapter]:
    for chapter in chapters:
        skips.drop("chapters without a summary", not chapter.summary)
        if chapter.summary:
            yield chapter


def _long_enough(
    chapters: Iterable[Chapter], config: BuildConfig, skips: Skips
) -> Iterator[tuple[Chapter, list[str]]]:
    """Chapters with their chunks, the right number of them."""
    pack = partial(_packed, config.counter, config.chunk_max_tokens)
    for chapter, chunks in spread(pack, chapters, config, BATCH):
        short = len(chunks) < config.chapter_min_chunks
        long = len(chunks) > config.chapter_max_chunks
        skips.drop("chapters with too few chunks", short)
        skips.drop("chapters with too many chunks", long)
        if not short and not long:
            yield chapter, chunks


def _packed(name: str, limit: int, chapters: list[Chapter]) -> list[tuple[Chapter, list[str]]]:
    return [(c, pack_sentences(c.text, counter(name), limit)) for c in chapters]


def _with_answer(
    packed: Iterable[tuple[Chapter, list[str]]], config: BuildConfig, skips: Skips
) -> Iterator[tuple[Chapter, list[str], str]]:
    """Chapters with the answer; those whose keywords are not to be had are dropped (D4)."""
    if config.stage == "none":
        yield from ((chapter, chunks, chapter.summary) for chapter, chunks in packed)
        return
    stage, packed = stages.chosen(config), iter(packed)
    while group := list(islice(packed, BATCH)):
        found = stage.keywords([chapter.summary for chapter, _ in group])
        for (chapter, chunks), words in zip(group, found, strict=True):
            skips.drop("chapters whose keywords failed", not words)
            if words:
                yield chapter, chunks, ", ".join(words)


def _read_chapter(row: Any, where: str, release: bool) -> Chapter:
    """The chapter; its summary is "" if it has none that can be used."""
    text = take(row, "text", str, where).replace("<|endoftext|>", "\n")
    book = " ".join(take(row, "book_title", str, where).split())
    name = str(row.get("chapter_id") or where.rpartition(": ")[2])
    summaries = take(row, "summary", list, where)
    texts = [_summary(summary, f"{where}: summary[{i}]") for i, summary in enumerate(summaries)]
    usable = [(i, t) for i, t in enumerate(texts[:1] if release else texts) if t]
    number, summary = usable[0] if usable else (0, "")
    source = summaries[number].get("source") if usable else None
    summary_id = f"{number}:{source}" if source else str(number)
    return Chapter(text, book, name, summary, summary_id)


def _summary(raw: Any, where: str) -> str:
    """The text of a summary; "" if it is blank or missing."""
    if not isinstance(raw, dict) or not isinstance(raw.get("text"), (str, type(None))):
        raise InputError(f"{where}: expected an object with text, found {raw!r:.40}")
    return (raw.get("text") or "").strip()
