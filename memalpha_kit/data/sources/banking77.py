"""Banking77 (Casanueva et al., 2020): customers' messages in 77 intents, as test-time learning.

Raw files are CSV with the columns `text` and `category`:

    I am still waiting on my card?,card_arrival

`banking77_train.csv` (10,003 messages) is shown, `banking77_test.csv` (3,080) is asked.
"""

from __future__ import annotations

from pathlib import Path

from memalpha_kit.data.sources.building import Skips, csv_rows, raw_file, read_text
from memalpha_kit.data.sources.labelled import Sample, build_labelled, label_table
from memalpha_kit.errors import InputError
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig

TRAIN, TEST = FILES = ("banking77_train.csv", "banking77_test.csv")
COLUMNS = ("text", "category")


def read_samples(path: Path) -> list[Sample]:
    """The labelled messages of a raw file.

    Raises InputError, naming line and column, for a missing column, a row of another length, a
    blank cell, or no row at all.
    """
    samples = [
        _sample(row, f"{path}:{line}") for line, row in csv_rows(path, read_text(path), COLUMNS)
    ]
    if not samples:
        raise InputError(f"{path}:2: expected at least one row, found none")
    return samples


def _sample(row: dict[str, str], where: str) -> Sample:
    if None in row:
        raise InputError(f"{where}: expected {len(row) - 1} cells, found more (quote the comma?)")
    for column in COLUMNS:
        if not (row[column] or "").strip():
            raise InputError(f"{where}: {column}: expected text, found a blank or missing cell")
    return Sample(row["text"].strip(), row["category"].strip(), where)


def labels(raw: Path) -> tuple[str, ...]:
    """The intents in the order of their numbers."""
    return label_table(read_samples(raw_file(raw, TRAIN)))


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances whose labels are the 77 intents."""
    train, test = (read_samples(raw_file(raw, name)) for name in FILES)
    return build_labelled("banking77", train, test, config, seed)
