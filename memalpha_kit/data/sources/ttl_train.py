"""Test-time learning for training: TREC's questions and an intent corpus, 200 instances of each.

The release cuts these instances from the evaluation rows themselves: its demonstrations are a part
of the evaluation contexts and all 100 questions are the same (data.md 6.1, D1). By default they
come from the corpora upstream instead, and no sentence that an evaluation row shows or asks, in
whatever spelling, is used. Numbers of labels are drawn for each instance, so that they can only be
learnt from its chunks, never from another instance or an evaluation row.

Raw files, side by side in one folder:

* `trec_train.label`, `trec_test.label`: `COARSE:fine question` (see trec.py); both are read;
* `NLU*.csv` (in any case), in one of two layouts, told by its first line:
    - `text,category`: a sentence and its intent;
    - `;` between the columns `scenario`, `intent` and `answer`, as NLU-Evaluation-Data publishes
      it, other columns ignored: the sentence is `answer`, its label `scenario_intent`;
* `Test_Time_Learning*`: the rows of MemoryAgentBench that must not be trained on; needed, unless
  `config.exclude` is "none" ("questions" leaves out only what they ask).

`compat` "release" reads the last one alone and does what the release did, its quirks included.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memalpha_kit.data.sources import memory_agent_bench, trec
from memalpha_kit.data.sources.building import (
    Skips,
    csv_rows,
    generator,
    raw_file,
    read_text,
)
from memalpha_kit.data.sources.frames import CLASSIFICATION_LEAD_INS, frame_all
from memalpha_kit.data.sources.labelled import (
    INSTRUCTION,
    Sample,
    arrange,
    item,
    label_table,
    missing,
    question,
)
from memalpha_kit.data.sources.memory_agent_bench import LEARNING, NLU, TREC, Row, parse_examples
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.text import normalise
from memalpha_kit.tokens import counter

log = logging.getLogger(__name__)

NLU_FILE = "[Nn][Ll][Uu]*.csv"
EVALUATION = f"{LEARNING}*"
FILES = (*trec.FILES, NLU_FILE, EVALUATION)
INSTANCES = 200  # per corpus
CHUNKS = 10  # per instance
SHARE = 10  # one sentence and one instance in ten is apart from the rest, so that a split need
# not leak (D2); the paper's 180 training and 20 validation instances follow


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """200 instances of TREC and 200 of the intent corpus (`config.instances` of each).

    They are named as the published rows, whose prompts and metric they share. Raises InputError
    for a raw file that is missing or not as it must be.
    Source: data.md 2.6. Differs: D1, D2, D5, label numbers and questions drawn per instance.
    """
    if config.compat == "release":
        return _build_release(raw, config, seed, skips)
    excluded = evaluation_sentences(raw, config)
    built = []
    readers = ((TREC, read_trec), (NLU, read_intents))
    corpora = (((name, read), f"{raw}: {name}") for name, read in readers)
    for name, samples in skips.each(lambda pair, _: (pair[0], pair[1](raw)), corpora):
        built += build_corpus(name, _usable(samples, excluded, skips), config, seed)
    return built


# --- Raw files -----------------------------------------------------------------------------------


def read_trec(raw: Path) -> list[Sample]:
    """The sentences of both TREC files with their coarse class."""
    files = [raw_file(raw, name) for name in trec.FILES]
    return [sample for file in files for sample in trec.read_samples(file, fine=False)]


def read_intents(raw: Path) -> list[Sample]:
    """The sentences of the intent corpus with their intent, in either layout.

    Sentences that are blank or `null` are left out. Raises InputError for a missing column or a
    cell without a label.
    """
    path = raw_file(raw, NLU_FILE)
    text = read_text(path, ("utf-8-sig", "latin-1"))
    columns = ("scenario", "intent", "answer") if ";" in text.partition("\n")[0] else None
    label, sentence = (columns[:2], columns[2]) if columns else (("category",), "text")
    samples = []
    for line, row in csv_rows(path, text, (*label, sentence), ";" if columns else ","):
        content = (row[sentence] or "").strip()
        names = [(row[column] or "").strip() for column in label]
        if content and content != "null":
            if not all(names):
                wanted = ", ".join(label)
                raise InputError(f"{path}:{line}: {wanted}: expected text, found a blank cell")
            samples.append(Sample(content, "_".join(names), f"{path}:{line}"))
    if not samples:
        raise InputError(f"{path}:2: expected at least one sentence, found none")
    return samples


def evaluation_sentences(raw: Path, config: BuildConfig) -> set[str]:
    """Every sentence that an evaluation row shows or asks, normalised; empty under "none".

    Under "questions" only those it asks: evaluation shows all of TREC's training file, so that 400
    sentences of TREC are left otherwise. Raises InputError if the rows are not there.
    """
    if config.exclude == "none":
        log.warning("ttl_train: nothing is excluded: evaluation sentences may be trained on")
        return set()
    memory_agent_bench.check_present(raw, EVALUATION)
    sentences: set[str] = set()
    for row in memory_agent_bench.read_split(raw, LEARNING):
        sentences |= {normalise(text) for text in row.questions}
        if config.exclude == "evaluation":
            examples = parse_examples(row.context, row.where)
            sentences |= {normalise(text) for text, _ in examples}
    return sentences


def _usable(samples: Iterable[Sample], excluded: set[str], skips: Skips) -> list[Sample]:
    """Every sentence once, without those that are `excluded`; counts both."""
    pool: dict[str, Sample] = {}
    for sample in samples:
        key = normalise(sample.text)
        if key in excluded:
            skips.drop("ttl_train: sentences of evaluation rows")
        elif key in pool:
            skips.drop("ttl_train: sentences that occur twice")
        else:
            pool[key] = sample
    return list(pool.values())


# --- Instances -----------------------------------------------------------------------------------


def build_corpus(
    name: str, pool: Sequence[Sample], config: BuildConfig, seed: int
) -> list[Instance]:
    """The instances of one corpus: samples to read and other sentences to label.

    A tenth of the sentences makes a tenth of the instances, the rest makes the others; groups say
    which. Raises InputError for a corpus of which nothing is left.
    """
    if not pool:
        raise InputError(f"{name}: expected sentences that no evaluation row has, found none")
    n_shown = _size(pool, config)
    shares = deal(pool, seed, name)

    def build(index: int) -> Instance:
        def rng(purpose: str) -> random.Random:
            return generator(seed, name, index, purpose)

        share = list(shares[index % SHARE == SHARE - 1])
        rng("order").shuffle(share)
        asked = _asked(share, min(config.max_questions, len(share) // 2))
        held_out = set(asked)
        shown = [sample for sample in share if sample not in held_out]
        names = list(label_table(share))
        rng("labels").shuffle(names)
        numbers = {label: number for number, label in enumerate(names)}
        extra = missing(shown[:n_shown], shown, rng("missing"))
        questions = [
            replace(question(sample, numbers), id=Path(sample.where).name) for sample in asked
        ]
        return _instance(
            name, shown[:n_shown], extra, numbers, questions, [_group(share)], config, rng("frames")
        )

    return [build(index) for index in range(config.instances or INSTANCES)]


def deal(pool: Sequence[Sample], seed: int, name: str) -> tuple[list[Sample], list[Sample]]:
    """Nine tenths of the sentences and one, each label spread evenly over both.

    A corpus too small for a tenth that can show a label and ask for it is given twice, whole.
    """
    order = list(pool)
    generator(seed, name, "all", "shares").shuffle(order)
    order.sort(key=lambda sample: sample.label)
    small = order[SHARE - 1 :: SHARE]
    if not _asked(small, 1):
        return order, order
    apart = set(small)
    return [sample for sample in order if sample not in apart], small


def _asked(share: Sequence[Sample], n: int) -> list[Sample]:
    """The first `n` samples that leave another one of their label to be shown."""
    left = Counter(sample.label for sample in share)
    asked: list[Sample] = []
    for sample in share:
        if len(asked) < n and left[sample.label] > 1:
            asked.append(sample)
            left[sample.label] -= 1
    return asked


def _size(samples: Sequence[Sample], config: BuildConfig) -> int:
    """Samples per instance: `config.examples`, else what makes `config.example_tokens`."""
    measure = counter(config.counter)
    mean_tokens = sum(measure.count(sample.text) for sample in samples) / len(samples)
    n_chunks = config.example_chunks or CHUNKS
    return config.examples or max(n_chunks, int(config.example_tokens / mean_tokens))


def _group(share: Iterable[Sample]) -> str:
    texts = json.dumps(sorted(sample.text for sample in share))
    return f"ttl:{hashlib.sha256(texts.encode()).hexdigest()[:12]}"


def _instance(
    name: str,
    shown: Sequence[Sample],
    extra: Sequence[Sample],
    numbers: Mapping[str, int],
    questions: Sequence[QA],
    groups: Sequence[str],
    config: BuildConfig,
    rng: random.Random,
) -> Instance:
    dealt = replace(config, example_chunks=config.example_chunks or CHUNKS)
    chunks = arrange([item(s, numbers) for s in shown], [item(s, numbers) for s in extra], dealt)
    contents = ["\n\n".join(chunk) for chunk in chunks if chunk]
    framed = frame_all(contents, CLASSIFICATION_LEAD_INS, rng)
    return make_instance(name, framed, questions, metadata={"groups": list(groups)})


# --- From evaluation rows ------------------------------------------------------------------------


def _build_release(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    log.warning(
        "ttl_train: compat release trains on evaluation rows: their examples, and their questions "
        "with the answers (data.md 6.1, D1)"
    )
    built = []
    for name in (TREC, NLU):
        row = memory_agent_bench.read_rows(raw, name, config, skips)[0]
        built += build_from_row(row, config, seed)
    return built


def build_from_row(row: Row, config: BuildConfig, seed: int) -> list[Instance]:
    """Instances cut from one evaluation row: a leak, which only `compat` "release" asks for.

    Numbers are those of the row; every instance asks all its questions. With `compat` "release"
    only the last line of an example counts and an example of every label, missing or not, goes to
    the first chunk (D5), in sorted order where the release's order changes with the process.
    """
    release = config.compat == "release"
    parsed = parse_examples(row.context, row.where, last_line=release)
    samples = [Sample(text, label, f"{row.where}:{i}") for i, (text, label) in enumerate(parsed)]
    numbers = {sample.label: int(sample.label) for sample in samples}
    n_shown = _size(samples, config)
    questions = [
        QA(id, f"Sentence: {' '.join(text.split())}\n{INSTRUCTION}", accepted[:1])
        for id, text, accepted in zip(row.ids, row.questions, row.answers, strict=True)
    ]
    groups = memory_agent_bench.groups(row)
    sizes = replace(config, example_chunk_tokens=2**31) if release else config  # all to chunk 0

    def build(index: int) -> Instance:
        def rng(purpose: str) -> random.Random:
            return generator(seed, row.source, index, purpose)

        order = list(samples)
        rng("order").shuffle(order)
        shown = [order[i % len(order)] for i in range(n_shown)]
        rng("chunks").shuffle(shown)
        lacking = [] if release else shown
        extra = missing(lacking, samples, rng("missing"))
        return _instance(row.source, shown, extra, numbers, questions, groups, sizes, rng("frames"))

    return [build(index) for index in range(config.instances or INSTANCES)]
