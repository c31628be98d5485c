"""Labelled sentences as their authors publish them: TREC, Banking77, NLU-Evaluation-Data.

    trec_train.label     ENTY:cremat What films featured the character Popeye Doyle ?
    banking77_train.csv  I am still waiting on my card?,card_arrival
    NLU-Data...csv       ...;alarm;set;;wake me at [time : five am];...;wake me at 5am;...

TREC (Li and Roth, 2002) has 6 coarse classes and 50 fine ones, 5,452 questions to learn from and
500 to ask, in Latin-1 where they are not plain ASCII. Banking77 (Casanueva et al., 2020) has
customers' messages in 77 intents, 10,003 and 3,080. NLU-Evaluation-Data (Liu et al., 2019) has
commands to an assistant, `;` between its columns, each spelt in two or three ways; a file with the
columns `text,category` is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memalpha_kit.data.raw import csv_rows, read_text
from memalpha_kit.data.skips import Skips
from memalpha_kit.errors import InputError

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


def read_trec(path: Path, fine: bool = False) -> list[Sample]:
    """The questions of a TREC file; the label is "ENTY:cremat" if `fine`, else "ENTY".

    Raises InputError, naming the line, for one that is not `COARSE:fine question`.
    """
    samples = []
    for number, line in enumerate(read_text(path, LATIN).split("\n"), start=1):
        match = _TREC_LINE.fullmatch(line.strip())
        if match:
            coarse, detail, text = match.groups()
            label = f"{coarse}:{detail}" if fine else coarse
            samples.append(Sample(text, label, f"{path}:{number}"))
        elif line.strip():
            found = f"found {line.strip()[:60]!r}"
            raise InputError(f"{path}:{number}: expected 'COARSE:fine question', {found}")
    return samples


def read_banking77(path: Path) -> list[Sample]:
    """The messages of a Banking77 file. Raises InputError naming line and column."""
    columns = ("text", "category")
    samples = []
    for row, where in csv_rows(path, columns, read_text(path)):
        text, label = (_cell(row, column, where) for column in columns)
        samples.append(Sample(text, label, where))
    return _not_none(samples, path)


SPELLINGS = ("answer_normalised", "answer_annotation")
_BRACKETS = re.compile(r"\[[^\[\]:]*:([^\[\]]*)\]")


def read_nlu(path: Path, skips: Skips) -> list[Sample]:
    """The sentences of an intent corpus, in either layout, with `scenario_intent` as the label.

    Sentences that are blank or `null` are left out, and so, counted, are those that the authors
    mark as unfit (a `status` that begins with IRR, or no annotation). Raises InputError for a
    missing column or a cell without a label.
    """
    text = read_text(path, LATIN)
    published = ";" in text.partition("\n")[0]
    label = ("scenario", "intent") if published else ("category",)
    sentence = "answer" if published else "text"
    samples = []
    for row, where in csv_rows(path, (*label, sentence), text, ";" if published else ","):
        content = row[sentence].strip()
        if not content or content == "null":
            continue
        if row.get("status", "").strip().upper().startswith("IRR"):
            skips.drop("NLU rows that their authors mark as irrelevant (status IRR)")
        elif row.get("answer_annotation", content).strip() in ("", "null"):
            skips.drop("NLU rows without an annotation")
        else:
            name = "_".join(_cell(row, column, where) for column in label)
            others = (_BRACKETS.sub(r"\1", row.get(column) or "") for column in SPELLINGS)
            samples.append(Sample(content, name, where, tuple(filter(str.strip, others))))
    return _not_none(samples, path)


def _cell(row: dict[str, str], column: str, where: str) -> str:
    if not row[column].strip():
        raise InputError(f"{where}: {column}: expected text, found a blank or missing cell")
    return row[column].strip()


def _not_none(samples: list[Sample], path: Path) -> list[Sample]:
    if not samples:
        raise InputError(f"{path}:2: expected at least one sentence, found none")
    return samples


CORPORA: dict[str, tuple[tuple[str, str], Callable[[Path], list[Sample]]]] = {
    "trec_coarse": (TREC_FILES, read_trec),
    "trec_fine": (TREC_FILES, partial(read_trec, fine=True)),
    "banking77": (BANKING_FILES, read_banking77),
}
"""Corpora that are sources of their own: files to learn from and to ask, and how both are read."""
