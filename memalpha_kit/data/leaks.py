"""What a test set shares with a training set: groups, questions, labelled samples, passages.

The release's `ttl_train` is cut from the rows that MemoryAgentBench is scored on: same questions,
same answers, and samples that are part of the very contexts. Nothing in its files says so; what is
in them does.

Questions and labelled samples are compared by `spelling.key`: "wake me at five am" and "Wake me at
5am." are one sentence. Contexts are compared by 13-grams of normalised words, taken from what the
frame of a chunk holds; a labelled sample counts as one gram. Samples stand in any order, so grams
over their borders would find nothing.

| column | meaning |
| --- | --- |
| `train`, `test` | data set and source |
| `groups` | names of articles, books, people, ... that are on both sides |
| `questions`, `same_question` | of the test set, each once; those asked in training too |
| `repeated` | those of them with a common answer, or whose sentence is to be labelled |
| `shown` | test questions whose sentence is a labelled sample of training |
| `grams`, `shared_grams`, `gram_share` | distinct 13-grams of the test set, those in training |
| `labels`, `shared_labels` | names in the test set's label table, those in training's, if known |
| `shared_samples`, `same_number` | samples in both, those of them with the same label number |
| `leak` | kinds of overlap that reach `LIMIT`; groups always do |
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.spelling import key, words
from memalpha_kit.records import Instance
from memalpha_kit.text import normalise

if TYPE_CHECKING:
    import pandas as pd

GRAM = 13
SHORTEST = 4
"""Words of the shortest text that counts as a gram of its own; shorter ones coincide by chance."""
LIMIT = 0.01
"""Share of a test set's questions or 13-grams from which an overlap is called a leak."""

SAMPLE = re.compile(r"^(?:Sentence|Sample): (.*)\nLabels?: (\S+)", re.MULTILINE)
ASKED = re.compile(r"Sentence: (.*)")
DIALOGUE, BOOK = "[Dialogue between User and Assistant on ", "[Event happened on "


def content(chunk: str) -> str:
    """What the frame of a chunk holds; a chunk without one as it is."""
    if chunk.startswith(DIALOGUE):
        return chunk.rpartition("\n<Assistant>")[0].split("\n", 2)[-1]
    if chunk.startswith(BOOK):
        return chunk.partition("\n<User> ")[2].rpartition("\n\n<System> ")[0]
    return chunk


@dataclass(frozen=True)
class Side:
    """What is compared of one part of one source."""

    name: str  # data set and source
    groups: set[str]
    asked: Mapping[str, set[str]]  # key of a question -> those of its answers
    labelled: set[str]  # keys of the questions that are sentences to be labelled
    shown: Mapping[str, set[str]]  # key of a sample's sentence -> its label numbers
    grams: np.ndarray  # hashes, sorted, each once
    labels: set[str] | None  # names of the label table, where a card has one


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each text, the same everywhere."""
    import pandas as pd

    return pd.util.hash_array(np.array(texts, dtype=object))


def grams_of(found: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of every `GRAM` consecutive words, or of all if there are fewer."""
    width = min(GRAM, len(found))
    if width < SHORTEST:
        return np.empty(0, dtype=np.uint64)
    hashes, total = _hashes(found), np.zeros(len(found) - width + 1, dtype=np.uint64)
    for offset in range(width):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + len(total)]
    return total


def sides(dataset: Dataset, part: str) -> list[Side]:
    """What there is to compare in a part ("train" or "test"), by source in sorted order."""
    by_source: dict[str, list[Instance]] = defaultdict(list)
    for instance in dataset.parts[part]:
        by_source[instance.source].append(instance)
    tables = dataset.card.get("labels", {})
    found = []
    for source, instances in sorted(by_source.items()):
        name = source if dataset.name == source else f"{dataset.name}/{source}"
        found.append(_side(name, instances, set(tables.get(source, ())) or None))
    return found


def _side(name: str, instances: Sequence[Instance], labels: set[str] | None) -> Side:
    asked: dict[str, set[str]] = defaultdict(set)
    labelled: set[str] = set()
    for qa in (qa for instance in instances for qa in instance.questions):
        sentence = ASKED.match(qa.question)
        question = key(sentence[1] if sentence else qa.question)
        asked[question].update(map(key, qa.answers))
        if sentence:
            labelled.add(question)
    grams = []
    sentences: dict[str, set[str]] = defaultdict(set)  # the same ones stand in many instances
    for held in (content(chunk) for instance in instances for chunk in instance.chunks):
        samples = SAMPLE.findall(held)  # (sentence, label number)
        for text, number in samples:
            sentences[text].add(number)
        if not samples:
            grams.append(np.unique(grams_of(normalise(held).split())))
    shown: dict[str, set[str]] = defaultdict(set)
    for text, numbers in sentences.items():
        shown[key(text)] |= numbers
    keys = {"".join(w) for text in sentences if len(w := words(text)) >= SHORTEST}
    grams.append(_hashes(sorted(keys)))
    names = {g for i in instances for g in (*i.listed("groups"), i.id)}
    return Side(name, names, asked, labelled, shown, np.unique(np.concatenate(grams)), labels)


def compare(train: Side, test: Side) -> dict[str, Any]:
    """The row of the report for one training and one test side."""
    same = test.asked.keys() & train.asked.keys()
    sentences = train.labelled | test.labelled
    repeated = [q for q in same if q in sentences or test.asked[q] & train.asked[q]]
    shown = test.asked.keys() & train.shown.keys()
    both = train.shown.keys() & test.shown.keys()
    shared = len(np.intersect1d(train.grams, test.grams, assume_unique=True))
    groups = len(train.groups & test.groups)
    share = shared / len(test.grams) if len(test.grams) else 0.0
    few = LIMIT * len(test.asked)
    kinds = {
        "groups": groups > 0,
        "questions": len(repeated) >= few > 0,
        "labelled questions": len(shown) >= few > 0,
        "contexts": share >= LIMIT,
    }
    shared_labels = None
    if train.labels is not None and test.labels is not None:
        shared_labels = len(train.labels & test.labels)
    return {
        **{"train": train.name, "test": test.name, "groups": groups},
        **{"questions": len(test.asked), "same_question": len(same), "repeated": len(repeated)},
        **{"shown": len(shown), "grams": len(test.grams), "shared_grams": shared},
        "gram_share": share,
        "labels": None if test.labels is None else len(test.labels),
        "shared_labels": shared_labels,
        "shared_samples": len(both),
        "same_number": sum(bool(train.shown[s] & test.shown[s]) for s in both),
        "leak": ", ".join(kind for kind, found in kinds.items() if found),
    }


def leaks(datasets: Iterable[Dataset]) -> pd.DataFrame:
    """One row for every training source beside every test source, leaks first, then by share."""
    import pandas as pd

    train, test = [], []
    for dataset in datasets:
        train += sides(dataset, "train")
        test += sides(dataset, "test")
    rows = [compare(left, right) for left in train for right in test]
    rows.sort(key=lambda row: (not row["leak"], -row["gram_share"]))
    empty = Side("", set(), {}, set(), {}, np.empty(0, dtype=np.uint64), None)
    table = pd.DataFrame(rows, columns=list(compare(empty, empty)))
    return table.astype({"labels": "Int64", "shared_labels": "Int64"})
