"""TREC questions (Li and Roth, 2002) as test-time learning, coarse (6 classes) or fine (50).

A raw line is `COARSE:fine question`, in Latin-1 where it is not plain ASCII:

    ENTY:cremat What films featured the character Popeye Doyle ?

`trec_train.label` (5,452 questions) is shown, `trec_test.label` (500) is asked. The public set's
`icl_trec_*` rows are cut from the same corpus, with other samples and label numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

from memalpha_kit.data.sources.building import Skips, raw_file, read_text
from memalpha_kit.data.sources.labelled import Sample, build_labelled, label_table
from memalpha_kit.errors import InputError
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig

TRAIN, TEST = FILES = ("trec_train.label", "trec_test.label")
LINE = re.compile(r"(\w+):(\w+)\s+(\S.*)")


def read_samples(path: Path, fine: bool) -> list[Sample]:
    """The labelled questions of a raw file; the label is "ENTY:cremat" if `fine`, else "ENTY".

    Raises InputError, naming the line, for one that is not `COARSE:fine question`.
    """
    samples = []
    for number, line in enumerate(read_text(path, ("utf-8-sig", "latin-1")).split("\n"), start=1):
        match = LINE.fullmatch(line.strip())
        if match:
            coarse, detail, text = match.groups()
            label = f"{coarse}:{detail}" if fine else coarse
            samples.append(Sample(text, label, f"{path}:{number}"))
        elif line.strip():
            raise InputError(
                f"{path}:{number}: expected 'COARSE:fine question', found {line.strip()[:60]!r}"
            )
    return samples


def build_coarse(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances whose labels are the 6 coarse classes."""
    return _build("trec_coarse", raw, config, seed)


def build_fine(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances whose labels are the 50 fine classes."""
    return _build("trec_fine", raw, config, seed)


def labels_coarse(raw: Path) -> tuple[str, ...]:
    """The coarse classes in the order of their numbers."""
    return label_table(read_samples(raw_file(raw, TRAIN), fine=False))


def labels_fine(raw: Path) -> tuple[str, ...]:
    """The fine classes in the order of their numbers."""
    return label_table(read_samples(raw_file(raw, TRAIN), fine=True))


def _build(source: str, raw: Path, config: BuildConfig, seed: int) -> list[Instance]:
    fine = source == "trec_fine"
    train, test = (read_samples(raw_file(raw, name), fine) for name in FILES)
    return build_labelled(source, train, test, config, seed)
