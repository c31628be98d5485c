"""The user's own text files with questions: notes, minutes, chapters, whatever can be read.

    memalpha data build --source text --raw notes/ --questions q.jsonl --out data/notes

`notes/` holds .txt and .md files; each of its sub-folders is an instance, and so are the files
beside them together. Files are read in the order of their names and cut after sentences. A line of
the questions' file:

    {"question": "Who built the ferry?", "answer": "Mira Holt", "file": "lakes/orvane.md"}

`answer` is a text or `answers` a list of accepted ones; `file` says where the evidence stands and
may be left out where there is one instance. `--metric` says how answers are scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.raw import Row, Text, checked, listing, read_text, rows
from memalpha_kit.data.sources.building import Job, only
from memalpha_kit.data.stages import mentions
from memalpha_kit.errors import InputError, closest
from memalpha_kit.records import QA, Instance
from memalpha_kit.tasks import TASKS

ENDINGS = (".txt", ".md")
FILES = ("**/*.txt", "**/*.md")

Chunks = list[tuple[str, str]]
"""(file, text) of each chunk."""


class _RawQuestion(Row):
    question: Text
    answers: Annotated[
        list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(validation_alias=AliasChoices("answer", "answers"), min_length=1)
    file: str | None = None
    id: str | None = None


def source_name(metric: str) -> str:
    """The source that instances with this metric carry. Raises InputError for an unknown metric."""
    mine = (task for name, task in TASKS.items() if name.partition("-")[0] == "text")
    names = {task.judge or task.metric: task.name for task in mine}
    if metric not in names:
        raise InputError(f"metric: expected a known name, found {metric!r}{closest(metric, names)}")
    return names[metric]


def build(job: Job) -> list[Instance]:
    """One instance of each folder with text files and questions about them.

    Raises InputError for a folder without text, a question about a file that is not there, or one
    without a file where there are several folders.
    """
    if not job.config.questions:
        raise InputError("questions: expected a file with a question on each line, found none")
    job = job.but(source_name(job.config.metric))
    folders: dict[str, Chunks] = {}
    for file in text_files(job.raw):
        place = file.relative_to(job.raw)
        folder = place.parts[0] if len(place.parts) > 1 else "."
        texts = pack_sentences(read_text(file), job.counter, job.config.chunk_max_tokens)
        folders.setdefault(folder, []).extend((place.as_posix(), text) for text in texts)
    asked: dict[str, list[QA]] = {folder: [] for folder in folders}
    path = Path(job.config.questions)
    numbered = enumerate(rows(path.parent, path.name, (), job.skips), start=1)
    items = (((number, row), where) for number, (row, where) in numbered)
    for folder, qa in job.skips.each(partial(_asked, folders), items):
        asked[folder].append(qa)
    built = []
    for folder, questions in asked.items():
        if not questions:
            job.skips.drop("folders without a question")
            continue
        kept = job.sampled(questions, folder)
        files, texts = map(list, zip(*folders[folder], strict=True))
        chunks = job.framed(texts, folder)
        built.append(job.instance(chunks, kept, groups=[f"text:{folder}"], files=files))
    if not built:
        raise InputError(f"{path}: expected at least one question, found none")
    return built[: job.config.instances]


def text_files(raw: Path) -> list[Path]:
    """The text files of a folder and its sub-folders, by name. Raises InputError for none."""
    found = sorted(path for path in raw.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        inside = listing(raw, ".txt or .md files")
        raise InputError(f"{raw}: expected .txt or .md files, found {inside}")
    return found


def _asked(folders: Mapping[str, Chunks], item: tuple[int, Any], where: str) -> tuple[str, QA]:
    """(folder, question), with the one chunk of its file that has the answer, if there is one."""
    number, row = item[0], checked(_RawQuestion, item[1], where)
    files = {folder: {file for file, _ in chunks} for folder, chunks in folders.items()}
    homes = [folder for folder, inside in files.items() if row.file is None or row.file in inside]
    if len(homes) != 1:
        known = ", ".join(sorted(set().union(*files.values()))[:8])
        found = repr(row.file) if row.file else f"none and {len(folders)} folders"
        raise InputError(f"{where}: file: expected one of {known}, found {found}")
    evidence = [
        i
        for i, (file, text) in enumerate(folders[homes[0]])
        if row.file in (None, file) and any(mentions(text, answer) for answer in row.answers)
    ]
    qa = QA(row.id or f"q{number}", row.question, tuple(row.answers), only(evidence))
    return homes[0], qa
