"""Test-time learning for training: TREC's questions and an intent corpus, 200 instances of each.

The published code cuts these instances from the evaluation rows themselves: its demonstrations are
a part of the evaluation contexts and all 100 questions are the same. Here they come from the
corpora upstream, and no sentence that an evaluation row shows or asks, in whatever spelling, is
used. Numbers of labels are drawn for each instance, so that they can only be learnt from its
chunks, never from another instance or an evaluation row.

Raw files, side by side in one folder: TREC's two files and an intent corpus (see labelled.py), and
`Test_Time_Learning*`, the rows of MemoryAgentBench that must not be trained on; these are needed,
unless `config.exclude` is "none" ("questions" leaves out only what they ask).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from memalpha_kit.data.raw import raw_file
from memalpha_kit.data.sources import labelled, memory_agent_bench
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.contexts import parse_examples
from memalpha_kit.data.sources.labelled import Sample, item, labelled_chunks, missing, question
from memalpha_kit.data.sources.memory_agent_bench import LEARNING, NLU, TREC
from memalpha_kit.data.spelling import key
from memalpha_kit.errors import InputError
from memalpha_kit.records import Instance

FILES = (*labelled.TREC_FILES, labelled.NLU_FILE, memory_agent_bench.files(LEARNING))
INSTANCES = 200  # per corpus
CHUNKS = 10  # per instance
SHARE = 10  # one sentence and one instance in ten is apart from the rest, so that a split need
# not leak; the paper's 180 training and 20 validation instances follow


def build(job: Job) -> list[Instance]:
    """200 instances of TREC and 200 of the intent corpus (`config.instances` of each).

    They are named as the published rows, whose prompts and metric they share. Raises InputError
    for a raw file that is missing or not as it must be.
    """
    excluded = evaluation_sentences(job)

    def read(name: str, where: str) -> tuple[str, list[Sample]]:
        if name == NLU:
            return name, labelled.read_nlu(raw_file(job.raw, labelled.NLU_FILE), job.skips)
        files = [raw_file(job.raw, pattern) for pattern in labelled.TREC_FILES]
        return name, [sample for file in files for sample in labelled.read_trec(file, job.skips)]

    return [
        instance
        for name, samples in job.skips.each(read, [(TREC, ""), (NLU, "")])
        for instance in build_corpus(job.but(name), _usable(job, samples, excluded))
    ]


def evaluation_sentences(job: Job) -> set[str]:
    """The key of every sentence that an evaluation row shows or asks; empty under "none".

    Under "questions" only those it asks: evaluation shows all of TREC's training file, so that 400
    sentences of TREC are left otherwise. Raises InputError if the rows are not there.
    """
    sentences: set[str] = set()
    for row in memory_agent_bench.left_out(job, LEARNING):
        sentences |= set(map(key, row.questions))
        if job.config.exclude == "evaluation":
            sentences |= {key(text) for text, _ in parse_examples(row.text, row.where)}
    return sentences


def _usable(job: Job, samples: Iterable[Sample], excluded: set[str]) -> list[Sample]:
    """Every sentence once, without those that are `excluded` in any spelling; counts both."""
    pool: dict[str, Sample] = {}
    for sample in samples:
        own = key(sample.text)
        if not excluded.isdisjoint((own, *map(key, sample.spellings))):
            job.skips.drop("ttl_train: sentences of evaluation rows")
        elif own in pool:
            job.skips.drop("ttl_train: sentences that occur twice")
        else:
            pool[own] = sample
    return list(pool.values())


def build_corpus(job: Job, pool: Sequence[Sample]) -> list[Instance]:
    """The instances of one corpus: samples to read and other sentences to label.

    A tenth of the sentences makes a tenth of the instances, the rest makes the others; groups say
    which. Raises InputError for a corpus of which nothing is left.
    """
    if not pool:
        expected = "expected sentences that no evaluation row has"
        raise InputError(f"{job.source}: {expected}, found none")
    n_shown, shares = samples_per_instance(job, pool), deal(job, pool)
    job = job.but(example_chunks=job.config.example_chunks or CHUNKS)
    texts = [json.dumps(sorted(sample.text for sample in share)) for share in shares]
    groups = [f"ttl:{hashlib.sha256(text.encode()).hexdigest()[:12]}" for text in texts]
    built = []
    for index in range(job.config.instances or INSTANCES):
        apart = index % SHARE == SHARE - 1
        order = list(shares[apart])
        job.rng(index, "order").shuffle(order)
        asked = _asked(order, min(job.config.max_questions, len(order) // 2))
        held_out = set(asked)
        shown = [sample for sample in order if sample not in held_out]
        names = list(labelled.label_table(order))
        job.rng(index, "labels").shuffle(names)
        numbers = {label: number for number, label in enumerate(names)}
        extra = missing(shown[:n_shown], shown, job.rng(index, "missing"))
        questions = [replace(question(s, numbers), id=Path(s.where).name) for s in asked]
        items, more = ([item(s, numbers) for s in part] for part in (shown[:n_shown], extra))
        chunks = labelled_chunks(job, index, items, more)
        built.append(job.instance(chunks, questions, groups=[groups[apart]]))
    return built


def deal(job: Job, pool: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Nine tenths of the sentences and one, each label spread evenly over both.

    A corpus too small for a tenth that can show a label and ask for it is given twice, whole.
    """
    order = list(pool)
    job.rng("all", "shares").shuffle(order)
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


def samples_per_instance(job: Job, samples: Sequence[Sample]) -> int:
    """`config.examples`, else what makes `config.example_tokens`."""
    config, measure = job.config, job.counter
    mean_tokens = sum(measure.count(sample.text) for sample in samples) / len(samples)
    n_chunks = config.example_chunks or CHUNKS
    return config.examples or max(n_chunks, int(config.example_tokens / mean_tokens))
