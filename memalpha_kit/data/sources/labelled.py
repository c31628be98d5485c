"""Test-time learning: labelled samples to read, held-out sentences to label.

A chunk shows samples like

    Sentence: What films featured the character Popeye Doyle ?
    Label: 2

and a question asks for the number of a sentence that was never shown. Laws: a sample is never
split (D6, D7); every label is shown at least once (D5); no sentence of the held-out file is shown,
whether it is asked or not (D1). Numbers are positions in the sorted list of the labels' names.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from memalpha_kit.data.chunks import pack_paragraphs
from memalpha_kit.data.sources.building import draw, generator
from memalpha_kit.data.sources.frames import CLASSIFICATION_LEAD_INS, frame_all
from memalpha_kit.errors import InputError, closest
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import counter

log = logging.getLogger(__name__)

INSTRUCTION = (
    "Which label belongs to this sentence? Answer with the number of the label in \\boxed{}."
)


@dataclass(frozen=True)
class Sample:
    """A sentence, the name of its label, and where it stands ("file:line")."""

    text: str
    label: str
    where: str

    @property
    def one_line(self) -> str:
        """The sentence without line breaks, which would end it in a chunk."""
        return " ".join(self.text.split())


def label_table(train: Iterable[Sample]) -> tuple[str, ...]:
    """Names of the labels; a label's position is its number."""
    return tuple(sorted({sample.label for sample in train}))


def build_labelled(
    source: str, train: Sequence[Sample], test: Sequence[Sample], config: BuildConfig, seed: int
) -> list[Instance]:
    """Instances that show samples of `train` and ask for sentences of `test`.

    One instance with all samples, or, with `config.examples`, disjoint shares of that size from
    one shuffled list. Raises InputError for a label in `test` that `train` does not have.
    Source: data.md 2.6. Differs: held-out sentences (D1), whole examples (D6, D7), D5, one
    generator per purpose, each instance draws its own questions.
    """
    numbers = {label: number for number, label in enumerate(label_table(train))}
    check_labels(test, numbers)
    shown = without_held_out(source, train, test)
    generator(seed, source, "all", "order").shuffle(shown)

    def build(index: int, chosen: Sequence[Sample]) -> Instance:
        def rng(purpose: str) -> random.Random:
            return generator(seed, source, index, purpose)

        extra = missing(chosen, shown, rng("missing"))
        items = [item(sample, numbers) for sample in chosen]
        groups = arrange(items, [item(sample, numbers) for sample in extra], config)
        contents = ["\n\n".join(group) for group in groups]
        asked = draw(test, config.max_questions, rng("questions"))
        return make_instance(
            source,
            frame_all(contents, CLASSIFICATION_LEAD_INS, rng("frames")),
            (question(sample, numbers) for sample in asked),
        )

    size = config.examples or len(shown)
    starts = range(0, max(len(shown) - size, 0) + 1, size)[: config.instances]
    return [build(i, shown[start : start + size]) for i, start in enumerate(starts)]


def check_labels(test: Iterable[Sample], numbers: Mapping[str, int]) -> None:
    """Nothing; raises InputError, naming file and line, for a label without a number."""
    for sample in test:
        if sample.label not in numbers:
            found = f"found {sample.label!r}{closest(sample.label, numbers)}"
            raise InputError(f"{sample.where}: label: expected one of the training labels, {found}")


def without_held_out(source: str, train: Sequence[Sample], test: Sequence[Sample]) -> list[Sample]:
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


def arrange(items: Sequence[str], extra: Iterable[str], config: BuildConfig) -> list[list[str]]:
    """The items by chunk: dealt evenly into `example_chunks`, or else packed by their tokens.

    Each of `extra` goes to the first chunk with room for it, or into a chunk of its own.
    """
    measure, limit = counter(config.counter), config.example_chunk_tokens
    if config.example_chunks:
        share, more = divmod(len(items), config.example_chunks)
        sizes = [share + (chunk < more) for chunk in range(config.example_chunks)]
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
