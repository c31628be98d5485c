"""Test-time learning: labelled samples to read, held-out sentences to label.

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
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from memalpha_kit.data.chunks import pack_paragraphs
from memalpha_kit.data.raw import raw_file
from memalpha_kit.data.sources import frames
from memalpha_kit.data.sources.building import Job, draw
from memalpha_kit.data.sources.sentences import CORPORA, Sample, label_table
from memalpha_kit.errors import InputError, closest
from memalpha_kit.records import QA, Instance
from memalpha_kit.text import normalise

log = logging.getLogger(__name__)

INSTRUCTION = (
    "Which label belongs to this sentence? Answer with the number of the label in \\boxed{}."
)


def labels(name: str, raw: Path) -> tuple[str, ...]:
    """Names of the labels of a corpus, by number."""
    (shown, _), read = CORPORA[name]
    return label_table(read(raw_file(raw, shown)))


def build(job: Job) -> list[Instance]:
    """Instances of a corpus in two raw files: samples to show and sentences to ask."""
    files, read = CORPORA[job.source]
    return of_samples(job, *(read(raw_file(job.raw, name)) for name in files))


def of_samples(job: Job, train: Sequence[Sample], test: Sequence[Sample]) -> list[Instance]:
    """Instances that show samples of `train` and ask for sentences of `test`.

    One instance with all samples, or, with `config.examples`, disjoint shares of that size from
    one shuffled list. Raises InputError for a label in `test` that `train` does not have.
    """
    numbers = {label: number for number, label in enumerate(label_table(train))}
    for sample in test:
        if sample.label not in numbers:
            found = f"found {sample.label!r}{closest(sample.label, numbers)}"
            raise InputError(f"{sample.where}: label: expected one of the training labels, {found}")
    shown = _without_held_out(job.source, train, test)
    job.rng("all", "order").shuffle(shown)
    size = job.config.examples or len(shown)
    starts = range(0, max(len(shown) - size, 0) + 1, size)[: job.config.instances]

    def instance(index: int, start: int) -> Instance:
        chosen = shown[start : start + size]
        both = chosen, missing(chosen, shown, job.rng(index, "missing"))
        chunks = labelled_chunks(job, index, *([item(s, numbers) for s in part] for part in both))
        asked = draw(test, job.config.max_questions, job.rng(index, "questions"))
        return job.instance(chunks, (question(sample, numbers) for sample in asked))

    return [instance(index, start) for index, start in enumerate(starts)]


def labelled_chunks(
    job: Job, index: int, items: Sequence[str], extra: Iterable[str] = ()
) -> tuple[str, ...]:
    """The framed chunks of an instance's samples; a chunk without any is left out."""
    contents = ["\n\n".join(group) for group in arrange(job, items, extra) if group]
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


def missing(chosen: Iterable[Sample], pool: Iterable[Sample], rng: random.Random) -> list[Sample]:
    """One sample from `pool` for each label that `chosen` lacks, in sorted order of the labels."""
    samples: dict[str, list[Sample]] = {}
    for sample in pool:
        samples.setdefault(sample.label, []).append(sample)
    lacking = sorted(samples.keys() - {sample.label for sample in chosen})
    return [rng.choice(samples[label]) for label in lacking]


def arrange(job: Job, items: Sequence[str], extra: Iterable[str]) -> list[list[str]]:
    """The items by chunk: dealt evenly into `example_chunks`, or else packed by their tokens.

    Each of `extra` goes to the first chunk with room for it, or into a chunk of its own.
    """
    measure, limit = job.counter, job.config.example_chunk_tokens
    if n := job.config.example_chunks:
        share, more = divmod(len(items), n)
        sizes = [share + (chunk < more) for chunk in range(n)]
        ends = list(accumulate(sizes))
        groups = [list(items[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    else:
        groups = [[items[i] for i in g] for g in pack_paragraphs(items, measure, lambda: limit)]
    for text in extra:
        room = (g for g in groups if measure.count("\n\n".join([*g, text])) <= limit)
        group = next(room, None)
        if group is None:
            groups.append(group := [])
        group.append(text)
    return groups


def item(sample: Sample, numbers: Mapping[str, int]) -> str:
    """A sample as a chunk shows it."""
    return f"Sentence: {sample.one_line}\nLabel: {numbers[sample.label]}"


def question(sample: Sample, numbers: Mapping[str, int]) -> QA:
    """The question for a held-out sentence; its id says in which line of the file it stands."""
    line = sample.where.rpartition(":")[2]
    answer = str(numbers[sample.label])
    return QA(f"line-{line}", f"Sentence: {sample.one_line}\n{INSTRUCTION}", (answer,))
