"""The user's own text files with questions: notes, minutes, chapters, whatever can be read.

    memalpha data build --source text --raw notes/ --questions q.jsonl --out data/notes

`notes/` holds .txt and .md files in UTF-8; each of its sub-folders is an instance, and so are the
files beside them together. Files are read in the order of their names and cut after sentences; what
has a name that begins with a dot is left out, and so are linked folders. A line of the questions'
file:

    {"question": "Who built the ferry?", "answer": "Mira Holt", "file": "lakes/orvane.md"}

`answer` is a text or `answers` a list of accepted ones; `file` says where the evidence stands and
may be left out where there is one instance. `--metric` says how answers are scored.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from glob import escape
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from memalpha_kit.data.chunks import pack_sentences
from memalpha_kit.data.raw import Row, Text, checked, listing, matches, read_text, rows
from memalpha_kit.data.sources.building import Job, only
from memalpha_kit.data.sources.longmemeval import AnswerText
from memalpha_kit.errors import InputError, closest
from memalpha_kit.method.metrics import comparable, words_of
from memalpha_kit.records import QA, Instance
from memalpha_kit.tasks import TASKS

FILES = ("**/*.[tT][xX][tT]", "**/*.[mM][dD]")

Chunks = list[tuple[str, str, str]]
"""(file, text, its words as scores compare them, between spaces) of each chunk."""


class _RawQuestion(Row):
    question: Text
    answers: Annotated[
        list[AnswerText], BeforeValidator(lambda v: v if isinstance(v, list) else [v])
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
    path = Path(job.config.questions)
    if not path.name:
        raise InputError("questions: expected a file with a question on each line, found none")
    job = job.but(source_name(job.config.metric))
    folders: dict[str, Chunks] = defaultdict(list)
    homes: dict[str, str] = {}  # the folder of each file
    places: dict[tuple[str, str], list[int]] = defaultdict(list)  # of chunks by folder and word
    found = sorted((file, str(file)) for pattern in FILES for file in matches(job.raw, pattern))
    if not found:
        inside = listing(job.raw, ".txt or .md files")
        raise InputError(f"{job.raw}: expected .txt or .md files, found {inside}")
    for file, text in job.skips.each(lambda path, _: (path, read_text(path)), found):
        place = file.relative_to(job.raw)
        folder, name = place.parts[0] if place.parts[1:] else ".", _name(str(place))
        homes[name] = folder
        for chunk in pack_sentences(text, job.counter, job.config.chunk_max_tokens):
            for word in set((words := _spaced(chunk)).split()):
                places[folder, word].append(len(folders[folder]))
            folders[folder].append((name, chunk, words))
    asked: dict[str, list[QA]] = {folder: [] for folder in folders}
    numbered = enumerate(rows(path.parent, escape(path.name), (), job.skips), start=1)
    items = (((number, row), where) for number, (row, where) in numbered)
    for folder, qa in job.skips.each(partial(_asked, folders, homes, places, set()), items):
        asked[folder].append(qa)
    built = []
    for folder, questions in asked.items():
        if not questions:
            job.skips.drop("folders without a question")
            continue
        kept = job.sampled(questions, folder)
        files, texts, _ = map(list, zip(*folders[folder], strict=True))
        shown = job.framed(texts, folder)
        built.append(job.instance(shown, kept, groups=[f"text:{folder}"], files=files))
    if not built:
        raise InputError(f"{path}: expected at least one question, found none{job.skips.reasons()}")
    return built[: job.config.instances]


def _name(path: str) -> str:
    """The name of a file, the same from every system."""
    return unicodedata.normalize("NFC", PureWindowsPath(path).as_posix())


def _spaced(text: str) -> str:
    return f" {' '.join(words_of(comparable(text)))} "


def _asked(
    folders: Mapping[str, Chunks],
    homes: Mapping[str, str],
    places: Mapping[tuple[str, str], list[int]],
    seen: set[tuple[str, str]],
    item: tuple[int, Any],
    where: str,
) -> tuple[str, QA]:
    """(folder, question), with the one chunk of its file that has the answer, if there is one."""
    number, row = item[0], checked(_RawQuestion, item[1], where)
    file = None if row.file is None else _name(row.file)
    possible = [*folders] if file is None else [homes[file]] if file in homes else []
    if len(possible) != 1:
        known = ", ".join(sorted(homes)[:8])
        found = repr(row.file) if row.file else f"none and {len(folders)} folders"
        raise InputError(f"{where}: file: expected one of {known}, found {found}")
    [home], id = possible, row.id or f"q{number}"
    if (home, id) in seen:
        raise InputError(f"{where}: id: expected each id once, found {id!r} again")
    seen.add((home, id))
    evidence = (
        i
        for phrase in map(_spaced, row.answers)
        for i in min((places.get((home, w), []) for w in phrase.split()), key=len, default=[])
        if file in (None, folders[home][i][0]) and phrase in folders[home][i][2]
    )
    return home, QA(id, row.question, tuple(row.answers), only(evidence))
