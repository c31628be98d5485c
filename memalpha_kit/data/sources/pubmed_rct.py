"""PubMed RCT (Dernoncourt and Lee, 2017): sentences of medical abstracts in five classes.

Raw rows, parquet or JSON lines, have `text` and `labels`, a number from 0 to 4 (or its name):

    {"text": "Forty adults took zinc.", "labels": 2}

The authors' text file is read too; it says where an abstract begins:

    ###24293578
    METHODS	Forty adults took zinc.

Laws: the sentences are shuffled once and used once (D21b); all sentences of an abstract are in one
instance, or in none, and abstracts are the groups (D2); what an instance shows it never asks for.
Rows do not say where an abstract begins, so one is taken to begin where a background or objective
follows results or conclusions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memalpha_kit.data.sources.building import (
    Skips,
    generator,
    matches,
    raw_file,
    raw_lines,
    raw_rows,
    sizes,
    take,
)
from memalpha_kit.data.sources.frames import CLASSIFICATION_LEAD_INS, frame_all
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, Instance, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter

TEXT_FILES = "pubmed*train*.txt|train.txt|train.zip"
ROW_FILES = "pubmed*train*.parquet|pubmed*train*.jsonl|pubmed*train*.json|train-*.parquet"
FILES = (f"{ROW_FILES}|{TEXT_FILES}",)
COLUMNS = ("text", "labels")
LABELS = ("BACKGROUND", "CONCLUSIONS", "METHODS", "OBJECTIVE", "RESULTS")
BACKGROUND, CONCLUSIONS, METHODS, OBJECTIVE, RESULTS = range(len(LABELS))
INSTANCES = 100  # where the settings do not say how many
CUT = 1000  # release: characters that are kept of a sentence above its target
INSTRUCTION = (
    "Which label does this sentence of a medical abstract have? Answer with the number of the "
    "label in \\boxed{}."
)


@dataclass
class Corpus:
    """All sentences with their labels, and where each abstract begins."""

    texts: list[str] = field(default_factory=list)
    labels: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the abstracts

    def item(self, index: int) -> str:
        """A sentence as a chunk shows it."""
        return f"Sample: {self.texts[index]}\nLabels: {self.labels[index]}"

    def question(self, index: int) -> QA:
        """The question for a sentence; its id says which one it is in the file."""
        text = f"Sentence: {self.texts[index]}\n{INSTRUCTION}"
        return QA(f"sentence-{index}", text, (str(self.labels[index]),))

    def abstract(self, number: int) -> range:
        """The sentences of an abstract."""
        ends = self.starts[number + 1 : number + 2]
        return range(self.starts[number], ends[0] if ends else len(self.texts))


@dataclass
class _Pool:
    """The sentences that an instance may use, and the abstracts they are from."""

    abstracts: list[int] = field(default_factory=list)
    sentences: list[tuple[int, int]] = field(default_factory=list)  # (index, tokens)
    tokens: int = 0
    texts: set[str] = field(default_factory=set)


def labels(raw: Path) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    return LABELS


def build(raw: Path, config: BuildConfig, seed: int, skips: Skips) -> list[Instance]:
    """Instances of exactly `max_chunks` chunks and `max_questions` questions.

    At most `config.instances`, or 100, as many as the sentences are enough for; what is left over
    is counted. Raises InputError if they are not enough for one, and for an unknown label.
    Source: data.md 2.4. Differs: abstracts stay together (D2), one shuffle (D21b), labels are
    checked (D21d), longer sentences than a chunk are left out. With compat "release" sentences are
    drawn one by one, and one above its target is cut to 1,000 characters; its stream of random
    numbers, shared with the frames, is not repeated.
    """
    release = config.compat == "release"
    corpus = read(raw, skips)
    if release:
        corpus.starts = list(range(len(corpus.texts)))
        corpus.names = []
    order = list(range(len(corpus.starts)))
    generator(seed, "pubmed-rct", "all", "order").shuffle(order)
    abstracts = _measured(corpus, order, config)
    built: list[Instance] = []
    for number in range(config.instances or INSTANCES):
        made = _instance(number, corpus, abstracts, config, seed, skips)
        if made is None:
            break
        built.append(made)
    if not built:
        expected = f"enough sentences for {config.max_chunks} chunks and {config.max_questions}"
        found = f"found {len(corpus.texts)} sentences"
        raise InputError(f"{matches(raw, *FILES)[0]}: expected {expected} questions, {found}")
    return built


Measured = Iterator[tuple[int, list[tuple[int, int]]]]  # abstract, (sentence, tokens) of each


def _measured(corpus: Corpus, order: Sequence[int], config: BuildConfig) -> Measured:
    """The abstracts in that order, every sentence counted once, when it is needed."""
    used = (index for number in order for index in corpus.abstract(number))
    tokens = sizes(map(corpus.item, used), config)
    for number in order:
        yield number, [(index, next(tokens)) for index in corpus.abstract(number)]


def _instance(
    number: int, corpus: Corpus, abstracts: Measured, config: BuildConfig, seed: int, skips: Skips
) -> Instance | None:
    """The instance of the next abstracts, or None if they come to an end."""
    rng = generator(seed, "pubmed-rct", number, "targets")
    low, high = config.sample_min_tokens, config.chunk_max_tokens
    targets = [rng.randint(min(low, high), high) for _ in range(config.max_chunks)]
    pool = _Pool()
    arranged, ended = None, False
    while arranged is None and not ended:
        abstract = next(abstracts, None)
        ended = abstract is None
        if not ended:
            _add(pool, *abstract, corpus, config, skips)
        mean = pool.tokens / max(len(pool.sentences), 1)
        if ended or pool.tokens >= sum(targets) + config.max_questions * mean:
            arranged = arrange(pool.sentences, targets, config.max_questions, number, seed)
    if arranged is None:
        skips.drop("sentences left over, too few for an instance", len(pool.sentences))
        return None
    chunks, asked = arranged
    shown = sum(map(len, chunks))
    skips.drop("sentences of used abstracts left over", len(pool.sentences) - shown - len(asked))
    contents = ["\n" + "\n\n".join(map(corpus.item, chunk)) for chunk in chunks]
    return make_instance(
        "pubmed-rct",
        frame_all(
            contents, CLASSIFICATION_LEAD_INS, generator(seed, "pubmed-rct", number, "frames")
        ),
        map(corpus.question, asked),
        metadata={"groups": [f"pubmed-rct:{corpus.names[i]}" for i in pool.abstracts]}
        if corpus.names
        else {},
    )


def _add(
    pool: _Pool,
    abstract: int,
    sentences: Iterable[tuple[int, int]],
    corpus: Corpus,
    config: BuildConfig,
    skips: Skips,
) -> None:
    """Adds the abstract's sentences that no other one of the pool repeats and that fit a chunk."""
    pool.abstracts.append(abstract)
    longest = min(config.sample_min_tokens, config.chunk_max_tokens)
    release = config.compat == "release"
    for index, tokens in sentences:
        if tokens > longest and release:
            corpus.texts[index] = corpus.texts[index][:CUT]
            tokens = counter(config.counter).count(corpus.item(index))
        text = corpus.texts[index].lower()
        if tokens > longest:
            skips.drop("sentences longer than a chunk")
        elif text in pool.texts and not release:
            skips.drop("sentences that repeat another")
        else:
            pool.texts.add(text)
            pool.sentences.append((index, tokens))
            pool.tokens += tokens


def arrange(
    sentences: Sequence[tuple[int, int]], targets: Sequence[int], n: int, number: int, seed: int
) -> tuple[list[list[int]], list[int]] | None:
    """(sentences by chunk, sentences to ask for), or None if there are too few.

    Shuffled, each chunk takes sentences until the next one would exceed its target, joiners not
    counted; the `n` after the last chunk are asked for.
    """
    left = list(sentences)
    generator(seed, "pubmed-rct", number, "sentences").shuffle(left)
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
    asked = [index for index, _ in left[position : position + n]]
    return (chunks, asked) if len(asked) == n else None


# --- Reading -------------------------------------------------------------------------------------


def read(raw: Path, skips: Skips) -> Corpus:
    """All sentences of the raw file, in its order. Raises InputError naming row and field."""
    corpus = Corpus()
    files = matches(raw, *FILES)
    if files and any(".txt" in path.suffixes or path.name == "train.zip" for path in files):
        _read_text(raw, corpus, skips)
        return corpus
    before = CONCLUSIONS
    rows = raw_rows(raw, *FILES, COLUMNS, skips)
    for number, (text, label) in enumerate(skips.each(_read_row, rows)):
        if before in (CONCLUSIONS, RESULTS) and label in (BACKGROUND, OBJECTIVE) or not number:
            corpus.starts.append(number)
            corpus.names.append(f"sentence-{number}")
        corpus.texts.append(text)
        corpus.labels.append(label)
        before = label
    return corpus


def _read_row(row: Any, where: str) -> tuple[str, int]:
    text = take(row, "text", str, where)
    return " ".join(text.split()), _label(row.get("labels"), where)


def _label(value: Any, where: str) -> int:
    """The number of a label that is given as a number, a name, or a list of one of them."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.strip().upper() in LABELS:
        return LABELS.index(value.strip().upper())
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(LABELS):
        return value
    known = ", ".join(f"{i} {name}" for i, name in enumerate(LABELS))
    raise InputError(f"{where}: labels: expected one of {known}, found {value!r:.40}")


def _read_text(raw: Path, corpus: Corpus, skips: Skips) -> None:
    """The authors' file: a line `###id`, lines `LABEL<tab>sentence`, a blank line."""
    path = raw_file(raw, *FILES)
    for line, where in raw_lines(path, skips):
        if line.startswith("###"):
            corpus.starts.append(len(corpus.texts))
            corpus.names.append(line[3:].strip())
            continue
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not text.strip():
            skips.add(where, f"expected LABEL, a tab and a sentence, found {line[:40]!r}")
            continue
        try:
            number = _label(label, where)
        except InputError as error:
            skips.failed(error)
            continue
        if not corpus.starts:
            corpus.starts.append(0)
            corpus.names.append("sentence-0")
        corpus.texts.append(" ".join(text.split()))
        corpus.labels.append(number)
