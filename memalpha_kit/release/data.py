"""What the published `process_data.py` does otherwise, source by source.

`memalpha data build --compat release` chooses these builders. What cannot be repeated is not: draws
that were never seeded, an order of articles that changed with every process, and splitters of
sentences that need a download.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from memalpha_kit.data.chunks import pack_sizes
from memalpha_kit.data.dataset import MERGE_SEED, SEPARATIONS, Parts, Separation, n_train
from memalpha_kit.data.sources import (
    RULES,
    SOURCES,
    Builder,
    booksum,
    hotpotqa,
    labelled,
    memory_agent_bench,
    perltqa,
    pubmed_rct,
    squad,
    ttl_train,
)
from memalpha_kit.data.sources.building import Job
from memalpha_kit.data.sources.contexts import parse_examples
from memalpha_kit.data.sources.labelled import Sample
from memalpha_kit.data.sources.memory_agent_bench import NLU, TREC, Row
from memalpha_kit.records import QA, Instance

log = logging.getLogger(__name__)

HEAD = 20
"""Characters of a context that are looked up where it may stand in a chunk."""


def consecutive_shares(
    job: Job, paragraphs: Sequence[squad.Paragraph], tokens: Sequence[int]
) -> list[squad.Share]:
    """One run of chunks over all articles, cut after every `max_chunks`; joiners are not counted.

    A chunk asks for every context inside it, and the last chunk of a question is its evidence.
    """
    packed = pack_sizes(tokens, job.counter.count("\n\n"), job.targets("all"), test_space=False)
    last: dict[str, int] = {}
    found = []
    heads: dict[str, list[int]] = defaultdict(list)
    for index, paragraph in enumerate(paragraphs):
        heads[paragraph.text[:HEAD]].append(index)
    for chunks in squad.parts(packed, job.config.max_chunks):
        asked: list[QA] = []
        for number, chunk in enumerate(chunks):
            text = "\n\n".join(paragraphs[i].text for i in chunk)
            inside = [qa for p in _inside(text, paragraphs, heads) for qa in p.questions]
            last |= {qa.id: number for qa in inside}
            asked += inside
        found.append((chunks, asked))
    return [(chunks, list(_placed(asked, last))) for chunks, asked in found]


def _inside(
    text: str, paragraphs: Sequence[squad.Paragraph], heads: Mapping[str, Sequence[int]]
) -> list[squad.Paragraph]:
    """The paragraphs that stand in the text, in their order; `heads` numbers them by their head."""
    lengths = set(map(len, heads))
    found = {
        index
        for at in range(len(text))
        for n in lengths
        for index in heads.get(text[at : at + n], ())
        if text.startswith(paragraphs[index].text, at)
    }
    return [paragraphs[index] for index in sorted(found)]


def _placed(asked: Sequence[QA], last: Mapping[str, int]) -> Iterator[QA]:
    """The questions with their chunk; one that is asked again has another id."""
    times = Counter[str]()
    for qa in asked:
        again = f"#{times[qa.id]}" if times[qa.id] else ""
        times[qa.id] += 1
        yield replace(qa, id=f"{qa.id}{again}", chunk=last[qa.id])


def build_hotpotqa(job: Job) -> list[Instance]:
    """Batches in the order of the file; a second space between sentences; articles cut or lost."""
    questions, articles, k = hotpotqa.read_questions(job, " ".join)
    batches = hotpotqa.batch([[question] for question in questions], k)
    return hotpotqa.from_batches(job, batches, articles, pack_with_loss, evidence_or_first)


def pack_with_loss(job: Job, number: int, articles: Sequence[hotpotqa.Fact]) -> hotpotqa.Packed:
    """An article above the current target is cut by characters; if that is not enough, lost."""
    measure, draw = job.counter, job.targets(number)
    space, filled = measure.count("\n\n"), 0
    chunks: hotpotqa.Packed = [[]]
    target = draw()
    for title, text in articles:
        if measure.count(hotpotqa.titled(title, text)) > target:
            text = text[: 4 * (target - 100)]
        size = measure.count(hotpotqa.titled(title, text))
        if size > target:
            continue
        if chunks[-1] and filled + size > target:
            chunks.append([])
            filled, target = 0, draw()
        filled += size + (space if chunks[-1] else 0)
        chunks[-1].append((title, text))
    return [chunk for chunk in chunks if chunk]


def evidence_or_first(question: hotpotqa.Question, chunks: hotpotqa.Packed) -> list[int | None]:
    """The chunks with its articles; evidence that was lost is chunk 0."""
    found = (hotpotqa.chunk_of(chunks, title) for title in question.titles)
    return [chunk for chunk in found if chunk is not None] or [0]


CUT = 1000  # characters that are kept of a sentence above its target


def build_pubmed(job: Job) -> list[Instance]:
    """Sentences are drawn one by one, whatever abstract they are from."""
    corpus = pubmed_rct.read(job)
    corpus.starts, corpus.names = list(range(len(corpus.texts))), []
    return pubmed_rct.from_corpus(job, corpus, admit_cut)


def admit_cut(job: Job, corpus: pubmed_rct.Corpus, index: int, tokens: int, texts: set[str]) -> int:
    """A sentence above its target is cut, and one that repeats another is used."""
    if tokens > pubmed_rct.longest(job):
        corpus.texts[index] = corpus.texts[index][:CUT]
        tokens = job.counter.count(corpus.item(index))
    if tokens > pubmed_rct.longest(job):
        job.skips.drop("sentences longer than a chunk")
        return 0
    return tokens


def build_ttl(job: Job) -> list[Instance]:
    """Instances that are cut from the evaluation rows themselves: a leak."""
    log.warning(
        "ttl_train: compat release trains on evaluation rows: their examples, and their questions "
        "with the answers"
    )
    rows = (row for name in (TREC, NLU) for row in memory_agent_bench.read_rows(job, name)[:1])
    return [instance for row in rows for instance in from_row(job.but(row.source), row)]


def from_row(job: Job, row: Row) -> Iterator[Instance]:
    """Instances cut from one evaluation row, with its numbers; each asks all its questions.

    Only the last line of an example counts, and an example of every label, missing or not, goes to
    the first chunk, in sorted order where the published code's changes with the process.
    """
    parsed = parse_examples(row.text, row.where, last_line=True)
    samples = [Sample(text, label, f"{row.where}:{i}") for i, (text, label) in enumerate(parsed)]
    numbers = {sample.label: int(sample.label) for sample in samples}
    n_shown = ttl_train.samples_per_instance(job, samples)
    questions = [
        QA(id, f"Sentence: {' '.join(text.split())}\n{labelled.INSTRUCTION}", accepted[:1])
        for id, text, accepted in zip(row.ids, row.questions, row.answers, strict=True)
    ]
    n_chunks = job.config.example_chunks or ttl_train.CHUNKS
    job = job.but(example_chunks=n_chunks, example_chunk_tokens=2**31)  # chunk 0 has room for all
    for index in range(job.config.instances or ttl_train.INSTANCES):
        order = list(samples)
        job.rng(index, "order").shuffle(order)
        shown = [order[i % len(order)] for i in range(n_shown)]
        job.rng(index, "chunks").shuffle(shown)
        extra = labelled.missing([], samples, job.rng(index, "missing"))
        items, more = ([labelled.item(s, numbers) for s in part] for part in (shown, extra))
        chunks = labelled.labelled_chunks(job, index, items, more)
        yield job.instance(chunks, questions, groups=memory_agent_bench.groups(row))


def without_dates(job: Job) -> list[Instance]:
    """Questions are asked without the day on which they are asked."""
    return SOURCES[job.source].build(job.but(question_dates="kept"))


PERLTQA = perltqa.Rules(
    # A message with a second ": " is lost, and so is one without any; 7_0_1 has 7_0_10's talks too;
    # a chunk has any size, and HTML entities as they stand.
    line=lambda message: perltqa.line_of(message) if message.count(": ") == 1 else "",
    owns=lambda event, dialogue, owner: dialogue.startswith(event),
    chunks=lambda job, opening, body: [f"{opening}\n\n{body}"],
    asks_hidden=True,
)
BOOKS = partial(
    booksum.build,
    patterns=(booksum.TRAIN, booksum.TRAIN.replace("train", "test")),
    choose=lambda texts: 0 if texts and texts[0] else None,  # none if the first one is blank
)
BUILDERS: dict[str, Builder] = {
    "squad": partial(squad.build, share=consecutive_shares),
    "hotpotqa": build_hotpotqa,
    "booksum": BOOKS,
    "perltqa": partial(perltqa.build, rules=PERLTQA),
    "pubmed-rct": build_pubmed,
    "ttl_train": build_ttl,
    **dict.fromkeys(("longmemeval", "lme_train", memory_agent_bench.DIALOGUES), without_dates),
}
RULES.add("release", BUILDERS)


def split_release(instances: Sequence[Instance], ratio: float, seed: int = MERGE_SEED) -> Parts:
    """Head and tail of the shuffled instances, always with seed 42: groups are on both sides."""
    shuffled = list(instances)
    random.Random(MERGE_SEED).shuffle(shuffled)
    cut = n_train(len(shuffled), ratio)
    return shuffled[:cut], shuffled[cut:]


# All of lme_train is trained on, where the paper's table 6 says 45 of 50, as the kit does.
SEPARATIONS.add("release", Separation("instances", split_release, False, ("lme_train",)))
