"""Labelled sentences: TREC, Banking77, NLU-Evaluation-Data, and instances for test-time learning.

    trec_train.label     ENTY:cremat What films featured the character Popeye Doyle ?
    banking77_train.csv  I am still waiting on my card?,card_arrival
    NLU-Data...csv       ...;alarm;set;;wake me at [time : five am];...;wake me at 5am;...

TREC (Li and Roth, 2002) has 6 coarse classes and 50 fine ones, 5,452 questions to learn from and
500 to ask, in Latin-1 where they are not plain ASCII. Banking77 (Casanueva et al., 2020) has
customers' messages in 77 intents, 10,003 and 3,080. NLU-Evaluation-Data (Liu et al., 2019) has
commands to an assistant, `;` between its columns, each spelt in two or three ways; a file with the
columns `text,category` is read as well.

A chunk shows samples like

    Sentence: What films featured the character Popeye Doyle ?
    Label: 2

and a question asks for the number of a sentence that was never shown. Laws: a sample is never
split; every label is shown at least once; no sentence of the held-out file is shown, whether it is
asked or not. Numbers are positions in the sorted list of the labels' names.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from memalpha_kit.data.chunks import pack_paragraphs
from memalpha_kit.data.raw import csv_rows, raw_file, read_text
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import frames
from memalpha_kit.data.sources.building import Job, draw
from memalpha_kit.errors import InputError, closest
from memalpha_kit.records import QA, Instance
from memalpha_kit.text import normalise

log = logging.getLogger(__name__)

INSTRUCTION = (
    "Which label belongs to this sentence? Answer with the number of the label in \\boxed{}."
)
TREC_FILES = ("trec_train.label|train_5500.label", "trec_test.label|TREC_10.label")
BANKING_FILES = ("banking77_train.csv|train.csv", "banking77_test.csv|test.csv")
NLU_FILE = "[Nn][Ll][Uu]*.csv"
LATIN = ("utf-8-sig", "latin-1")


@dataclass(frozen=True)
class Sample:
    """A sentence, the name of its label, and where it stands ("file:line").

    `spellings` are the other ways in which the file writes the same sentence.
    """

    text: str
    label: str
    where: str
    spellings: tuple[str, ...] = ()

    @property
    def one_line(self) -> str:
        """The sentence without line breaks, which would end it in a chunk."""
        return " ".join(self.text.split())


def label_table(train: Iterable[Sample]) -> tuple[str, ...]:
    """Names of the labels; a label's position is its number."""
    return tuple(sorted({sample.label for sample in train}))


_TREC_LINE = re.compile(r"(\w+):(\w+)\s+(\S.*)")


def read_trec(path: Path, skips: Skips, fine: bool = False) -> list[Sample]:
    """The questions of a TREC file; the label is "ENTY:cremat" if `fine`, else "ENTY".

    A line that is not `COARSE:fine question` is a bad record.
    """
    samples = []
    for number, line in enumerate(read_text(path, LATIN).split("\n"), start=1):
        if match := _TREC_LINE.fullmatch(line.strip()):
            coarse, detail, text = match.groups()
            label = f"{coarse}:{detail}" if fine else coarse
            samples.append(Sample(text, label, f"{path}:{number}"))
        elif line.strip():
            found = f"found {line.strip()[:60]!r}"
            skips.add(f"{path}:{number}", f"expected 'COARSE:fine question', {found}")
    return samples


def read_banking77(path: Path, skips: Skips) -> list[Sample]:
    """The messages of a Banking77 file. A row without text or category is a bad record."""

    def read(row: dict[str, str], where: str) -> Sample:
        return Sample(_cell(row, "text", where), _cell(row, "category", where), where)

    found = csv_rows(path, ("text", "category"), read_text(path), skips)
    return _not_none(list(skips.each(read, found)), path)


SPELLINGS = ("answer_normalised", "answer_annotation")
_BRACKETS = re.compile(r"\[[^\[\]:]*:([^\[\]]*)\]")


def read_nlu(path: Path, skips: Skips) -> list[Sample]:
    """The sentences of an intent corpus, in either layout, with `scenario_intent` as the label.

    Sentences that are blank or `null` are left out, and so, counted, are those that the authors
    mark as unfit (a `status` that begins with IRR, or no annotation). A cell without a label is a
    bad record. Raises InputError for a missing column.
    """
    text = read_text(path, LATIN)
    published = ";" in text.partition("\n")[0]
    label = ("scenario", "intent") if published else ("category",)
    sentence = "answer" if published else "text"

    def read(row: dict[str, str], where: str) -> Sample | None:
        content = row[sentence].strip()
        if not content or content == "null":
            return None
        if row.get("status", "").strip().upper().startswith("IRR"):
            skips.drop("NLU rows that their authors mark as irrelevant (status IRR)")
        elif row.get("answer_annotation", content).strip() in ("", "null"):
            skips.drop("NLU rows without an annotation")
        else:
            name = "_".join(_cell(row, column, where) for column in label)
            others = (_BRACKETS.sub(r"\1", row.get(column) or "") for column in SPELLINGS)
            return Sample(content, name, where, tuple(filter(str.strip, others)))
        return None

    found = csv_rows(path, (*label, sentence), text, skips, ";" if published else ",")
    return _not_none(list(filter(None, skips.each(read, found))), path)


def _cell(row: dict[str, str], column: str, where: str) -> str:
    if not row[column].strip():
        raise InputError(f"{where}: {column}: expected text, found a blank or missing cell")
    return row[column].strip()


def _not_none(samples: list[Sample], path: Path) -> list[Sample]:
    if not samples:
        raise InputError(f"{path}:2: expected at least one sentence, found none")
    return samples


CORPORA: dict[str, tuple[tuple[str, str], Callable[[Path, Skips], list[Sample]]]] = {
    "trec_coarse": (TREC_FILES, read_trec),
    "trec_fine": (TREC_FILES, partial(read_trec, fine=True)),
    "banking77": (BANKING_FILES, read_banking77),
}
"""Corpora that are sources of their own: files to learn from and to ask, and how both are read."""


def labels(name: str, raw: Path) -> tuple[str, ...]:
    """Names of the labels of a corpus, by number."""
    (shown, _), read = CORPORA[name]
    return label_table(read(raw_file(raw, shown), Skips("skip")))


def build(job: Job) -> list[Instance]:
    """Instances of a corpus in two raw files: samples to show and sentences to ask."""
    files, read = CORPORA[job.source]
    return of_samples(job, *(read(raw_file(job.raw, name), job.skips) for name in files))


def of_samples(job: Job, train: Sequence[Sample], test: Sequence[Sample]) -> list[Instance]:
    """Instances that show samples of `train` and ask for sentences of `test`.

    One instance with all samples, or, with `config.examples`, disjoint shares of that size from
    one shuffled list. A label in `test` that `train` does not have is a bad record.
    """
    numbers = {label: number for number, label in enumerate(label_table(train))}
    for sample in test:
        if sample.label not in numbers:
            found = f"found {sample.label!r}{closest(sample.label, numbers)}"
            job.skips.add(sample.where, f"label: expected one of the training labels, {found}")
    known = [sample for sample in test if sample.label in numbers]
    shown = _without_held_out(job.source, train, test)
    job.rng("all", "order").shuffle(shown)
    size = job.config.examples or len(shown)
    starts = range(0, max(len(shown) - size, 0) + 1, size)[: job.config.instances]
    built = []
    for index, start in enumerate(starts):
        chosen = shown[start : start + size]
        both = chosen, missing(chosen, shown, job.rng(index, "missing"))
        chunks = labelled_chunks(job, index, *([item(s, numbers) for s in part] for part in both))
        asked = draw(known, job.config.max_questions, job.rng(index, "questions"))
        built.append(job.instance(chunks, (question(sample, numbers) for sample in asked)))
    return built


def labelled_chunks(
    job: Job, index: int, items: Sequence[str], extra: Iterable[str] = ()
) -> tuple[str, ...]:
    """The framed chunks of an instance's samples; a chunk without any is left out.

    The items are dealt evenly into `example_chunks`, or else packed by their tokens. Each of
    `extra` goes to the first chunk with room for it, or into a chunk of its own.
    """
    measure, limit = job.counter, job.config.example_chunk_tokens
    if n := job.config.example_chunks:
        share, more = divmod(len(items), n)
        left = iter(items)
        groups = [list(islice(left, share + (chunk < more))) for chunk in range(n)]
    else:
        groups = [[items[i] for i in g] for g in pack_paragraphs(items, measure, lambda: limit)]
    for text in extra:
        room = (g for g in groups if measure.count("\n\n".join([*g, text])) <= limit)
        if (group := next(room, None)) is None:
            groups.append(group := [])
        group.append(text)
    contents = ["\n\n".join(group) for group in groups if group]
    return job.framed(contents, index, frames.CLASSIFICATION_LEAD_INS)


def _without_held_out(source: str, train: Sequence[Sample], test: Sequence[Sample]) -> list[Sample]:
    """The samples whose sentence, normalised, is not in the held-out file; logs how many are.

    Raises InputError if a label loses all its samples.
    """
    held_out = {normalise(sample.text) for sample in test}
    shown = [sample for sample in train if normalise(sample.text) not in held_out]
    if len(shown) < len(train):
        log.info("%s: %d samples left out: held-out sentences", source, len(train) - len(shown))
    for label in sorted({sample.label for sample in train} - {sample.label for sample in shown}):
        raise InputError(f"{source}: label {label!r}: every sample is also a held-out sentence")
    return shown


def missing(chosen: Iterable[Sample], pool: Sequence[Sample], rng: random.Random) -> list[Sample]:
    """One sample from `pool` for each label that `chosen` lacks, in sorted order of the labels."""
    lacking = sorted({sample.label for sample in pool} - {sample.label for sample in chosen})
    return [rng.choice([s for s in pool if s.label == label]) for label in lacking]


def item(sample: Sample, numbers: Mapping[str, int]) -> str:
    """A sample as a chunk shows it."""
    return f"Sentence: {sample.one_line}\nLabel: {numbers[sample.label]}"


def question(sample: Sample, numbers: Mapping[str, int]) -> QA:
    """The question for a held-out sentence; its id says in which line of the file it stands."""
    line, answer = sample.where.rpartition(":")[2], str(numbers[sample.label])
    return QA(f"line-{line}", f"Sentence: {sample.one_line}\n{INSTRUCTION}", (answer,))
