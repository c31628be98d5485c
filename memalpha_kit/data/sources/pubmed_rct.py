"""PubMed RCT (Dernoncourt and Lee, 2017): sentences of medical abstracts in five classes.

Raw rows, parquet or JSON lines, have `text` and `labels`, a number from 0 to 4 (or its name):

    {"text": "Forty adults took zinc.", "labels": 2}

The authors' text file is read too; it says where an abstract begins:

    ###24293578
    METHODS	Forty adults took zinc.

Laws: the sentences are shuffled once and used once; all sentences of an abstract are in one
instance, or in none, and abstracts are the groups; what an instance shows it never asks for.
Rows do not say where an abstract begins, so one is taken to begin where a background or objective
follows results or conclusions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from memalpha_kit.data.raw import Row, Text, checked, lines, matches, raw_file
from memalpha_kit.data.sources import frames
from memalpha_kit.data.sources.building import Job, sizes
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance

TEXT_FILES = "pubmed*train*.txt|train.txt|train.zip|train.7z"
ROW_FILES = (
    "pubmed*train*.parquet|pubmed*train*.jsonl|pubmed*train*.json|train-*.parquet|"
    "data/train-*.parquet"
)
FILES = (f"{ROW_FILES}|{TEXT_FILES}",)
COLUMNS = ("text", "labels")
LABELS = ("BACKGROUND", "CONCLUSIONS", "METHODS", "OBJECTIVE", "RESULTS")
BACKGROUND, CONCLUSIONS, METHODS, OBJECTIVE, RESULTS = range(len(LABELS))
INSTANCES = 100  # where the settings do not say how many
INSTRUCTION = (
    "Which label does this sentence of a medical abstract have? Answer with the number of the "
    "label in \\boxed{}."
)


def _label(value: Any) -> int:
    """The number of a label that is given as a number, a name, or a list of one of them."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.strip().upper() in LABELS:
        return LABELS.index(value.strip().upper())
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(LABELS):
        return value
    known = ", ".join(f"{i} {name}" for i, name in enumerate(LABELS))
    raise ValueError(f"expected one of {known}, found {value!r:.40}")


class _RawSentence(Row):
    text: Text
    labels: Annotated[int, BeforeValidator(_label)] = Field(None, validate_default=True)


@dataclass
class Corpus:
    """All sentences with their labels, and where each abstract begins."""

    texts: list[str] = field(default_factory=list)
    labels: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the abstracts

    def begin(self, name: str) -> None:
        """The next sentence begins an abstract."""
        self.starts.append(len(self.texts))
        self.names.append(name)

    def add(self, row: _RawSentence) -> None:
        """Adds a sentence, its white space evened out."""
        if not self.starts:
            self.begin("sentence-0")
        self.texts.append(" ".join(row.text.split()))
        self.labels.append(row.labels)

    def item(self, index: int) -> str:
        """A sentence as a chunk shows it."""
        return f"Sample: {self.texts[index]}\nLabels: {self.labels[index]}"

    def question(self, index: int) -> QA:
        """The question for a sentence; its id says which one it is in the file."""
        text = f"Sentence: {self.texts[index]}\n{INSTRUCTION}"
        return QA(f"sentence-{index}", text, (str(self.labels[index]),))

    def abstract(self, number: int) -> range:
        """The sentences of an abstract."""
        start, end = [*self.starts[number : number + 2], len(self.texts)][:2]
        return range(start, end)


Sized = tuple[int, int]
"""A sentence's index and its tokens."""
Admit = Callable[[Job, Corpus, int, int, set[str]], int]
"""Tokens of the sentence of this index and size as it is used, 0 if it is left out; the texts are
those that the instance uses already."""


def labels(raw: Path) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    return LABELS


def build(job: Job) -> list[Instance]:
    """Instances of exactly `max_chunks` chunks and `max_questions` questions.

    At most `config.instances`, or 100, as many as the sentences are enough for; what is left over
    is counted. Raises InputError if they are not enough for one, and for an unknown label.
    """
    return from_corpus(job, read(job), admit)


def admit(job: Job, corpus: Corpus, index: int, tokens: int, texts: set[str]) -> int:
    """A sentence is used if it fits a chunk and repeats no other one."""
    text = corpus.texts[index].lower()
    if tokens > longest(job):
        job.skips.drop("sentences longer than a chunk")
    elif text in texts:
        job.skips.drop("sentences that repeat another")
    else:
        texts.add(text)
        return tokens
    return 0


def longest(job: Job) -> int:
    """Tokens of the longest sentence that fits every chunk."""
    return min(job.config.sample_min_tokens, job.config.chunk_max_tokens)


def from_corpus(job: Job, corpus: Corpus, admit: Admit) -> list[Instance]:
    """The instances of a corpus; `admit` says which sentences are used, and how."""
    order = list(range(len(corpus.starts)))
    job.rng("all", "order").shuffle(order)
    # Every sentence is counted once, when it is needed.
    items = (corpus.item(i) for number in order for i in corpus.abstract(number))
    tokens = sizes(items, job.config)
    abstracts = (
        (corpus.names[n : n + 1], [(i, next(tokens)) for i in corpus.abstract(n)]) for n in order
    )
    built: list[Instance] = []
    for number in range(job.config.instances or INSTANCES):
        if (instance := _instance(job, number, corpus, abstracts, admit)) is None:
            break
        built.append(instance)
    expected = f"enough sentences for {job.config.max_chunks} chunks and {job.config.max_questions}"
    return job.not_none(built, *FILES, f"{expected} questions", f"{len(corpus.texts)} sentences")


def _instance(
    job: Job,
    number: int,
    corpus: Corpus,
    abstracts: Iterator[tuple[list[str], list[Sized]]],
    admit: Admit,
) -> Instance | None:
    """The instance of the next abstracts, or None if they come to an end."""
    rng, drop, n = job.rng(number, "targets"), job.skips.drop, job.config.max_questions
    low, high = longest(job), job.config.chunk_max_tokens
    targets = [rng.randint(low, high) for _ in range(job.config.max_chunks)]
    names: list[str] = []
    pool: list[Sized] = []
    texts: set[str] = set()
    arranged = None
    while arranged is None:
        name, sentences = next(abstracts, (None, []))
        names += name or []
        used = ((i, admit(job, corpus, i, tokens, texts)) for i, tokens in sentences)
        pool += [(i, tokens) for i, tokens in used if tokens]
        held = sum(tokens for _, tokens in pool)
        if name is None or held >= sum(targets) + n * held / max(len(pool), 1):
            arranged = arrange(job, number, pool, targets)
        if name is None and arranged is None:
            drop("sentences left over, too few for an instance", len(pool))
            return None
    chunks, asked = arranged
    drop("sentences of used abstracts left over", len(pool) - sum(map(len, chunks)) - len(asked))
    contents = ["\n" + "\n\n".join(map(corpus.item, chunk)) for chunk in chunks]
    return job.instance(
        job.framed(contents, number, frames.CLASSIFICATION_LEAD_INS),
        map(corpus.question, asked),
        **({"groups": [f"pubmed-rct:{name}" for name in names]} if names else {}),
    )


def arrange(
    job: Job, number: int, sentences: Sequence[Sized], targets: Sequence[int]
) -> tuple[list[list[int]], list[int]] | None:
    """(sentences by chunk, sentences to ask for), or None if there are too few.

    Shuffled, each chunk takes sentences until the next one would exceed its target, joiners not
    counted; `max_questions` after the last chunk are asked for.
    """
    left = list(sentences)
    job.rng(number, "sentences").shuffle(left)
    chunks, position = [], 0
    for target in targets:
        chunk, filled = [], 0
        while position < len(left) and filled + left[position][1] <= target:
            chunk.append(left[position][0])
            filled += left[position][1]
            position += 1
        if position == len(left):
            return None
        chunks.append(chunk)
    asked = [index for index, _ in left[position : position + job.config.max_questions]]
    return (chunks, asked) if len(asked) == job.config.max_questions else None


def read(job: Job) -> Corpus:
    """All sentences of the raw file, in its order. Raises InputError naming row and field."""
    corpus, before = Corpus(), CONCLUSIONS
    if not matches(job.raw, TEXT_FILES) or matches(job.raw, ROW_FILES):
        for row in job.read(partial(checked, _RawSentence), *FILES, COLUMNS):
            if before in (CONCLUSIONS, RESULTS) and row.labels in (BACKGROUND, OBJECTIVE):
                corpus.begin(f"sentence-{len(corpus.texts)}")
            corpus.add(row)
            before = row.labels
        return corpus
    for line, where in lines(raw_file(job.raw, TEXT_FILES), job.skips):
        if line.startswith("###"):
            corpus.begin(line[3:].strip())
        elif line.strip():
            for row in job.skips.each(_read_line, [(line, where)]):
                corpus.add(row)
    return corpus


def _read_line(line: str, where: str) -> _RawSentence:
    label, tab, text = line.partition("\t")
    if not tab or not text.strip():
        raise InputError(f"{where}: expected LABEL, a tab and a sentence, found {line[:40]!r}")
    return checked(_RawSentence, {"text": text, "labels": label}, where)
