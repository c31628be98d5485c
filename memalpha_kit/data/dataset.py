"""Data sets: a training part, a test part and a card, split and merged without leaks.

    data/squad/{train.parquet, test.parquet, card.json}

The one law: nothing that belongs together is on both sides of a split. What belongs together is
named by the builders (`groups` in the metadata of an instance: an article, a book, a person); two
instances that share a name, or are linked by others that do, go to the same side. The release
splits single instances instead, so that articles, books and questions straddle (data.md 6.1, D2);
`split_release` and `compat="release"` do the same, draw for draw.

A folder is written whole or not at all: beside its final name, and renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from memalpha_kit import files as store
from memalpha_kit.data import sources
from memalpha_kit.data.instances import ANSWER_TYPE, load_instances, save_instances
from memalpha_kit.data.sources.building import Skips
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.records import Instance
from memalpha_kit.settings import Behaviour, BuildConfig
from memalpha_kit.tasks import task

TRAIN, TEST, CARD = FILES = ("train.parquet", "test.parquet", "card.json")
OLD = "instances.parquet"
"""What earlier versions of the kit wrote; read as a test part."""
RELEASE_SEED = 42


@dataclass(frozen=True)
class Dataset:
    """Instances to train on, instances to test on, and the card that says where they come from."""

    name: str
    train: tuple[Instance, ...]
    test: tuple[Instance, ...]
    card: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def parts(self) -> dict[str, tuple[Instance, ...]]:
        """Both parts by name."""
        return {"train": self.train, "test": self.test}


# --- Building ------------------------------------------------------------------------------------

TASKS = {
    "AR": "You read texts one piece after the other. Keep the facts that questions may ask for.",
    "TTL": "You read labelled examples. Later you give the number of the label of new sentences.",
    "LRU": "You read a long text in parts. Keep what a summary of the whole text needs.",
    "CR": "You read facts one after the other, of which a later one may replace an earlier one.",
    "": "You read a text piece by piece. Keep what later questions may need.",
}
"""What the column `prompt` says where a builder says nothing, by category; names no tool (D25)."""


def build(
    name: str, raw: Path, config: BuildConfig, seed: int, ratio: float | None = None
) -> tuple[Dataset, Skips]:
    """The instances of a source, split, and what the builder left out. No card yet.

    `ratio` is the share of the instances that goes to the training part; by default `share`.
    Raises InputError for raw files that are not as they must be.
    """
    named, skips = sources.source(name), Skips(config.on_error)
    built = sources.build(name, raw, config, seed, skips)
    instances = [_completed(instance, named) for instance in built]
    ratio = share(named, config.compat) if ratio is None else ratio
    if config.compat == "release":
        train, test = split_release(instances, ratio)
    else:
        train, test = split(instances, ratio, seed)
    return Dataset(name, tuple(train), tuple(test)), skips


def share(named: sources.Source, compat: Behaviour = "fixed") -> float:
    """The training share of a source: nothing of an evaluation source, else nine tenths.

    Source: data.md 4.1. Differs: the release gives all of lme_train to training; its paper's tables
    say 45 of 50, as here.
    """
    if task(named.name).role != "train":
        return 0.0
    return 1.0 if compat == "release" and named.name == "lme_train" else 0.9


def _completed(instance: Instance, named: sources.Source) -> Instance:
    """The instance with a task text, and in evaluation with answers as lists (data.md 1.6)."""
    metadata = dict(instance.metadata)
    if task(named.name).role == "eval":
        metadata[ANSWER_TYPE] = "list"
    prompt = instance.prompt or TASKS[task(named.name).category]
    return replace(instance, prompt=prompt, metadata=metadata)


# --- Splitting -----------------------------------------------------------------------------------


def groups(instance: Instance) -> tuple[str, ...]:
    """Names of what may not be on both sides: the builder's, or else the questions and answers.

    The id of the instance is always one of them, so that a copy never straddles.
    """
    named = instance.metadata.get("groups")
    if not named:
        asked = json.dumps(sorted((qa.question, qa.answers) for qa in instance.questions))
        named = [f"questions:{hashlib.sha256(asked.encode()).hexdigest()[:16]}"]
    return (*named, instance.id)


def shared_groups(train: Iterable[Instance], test: Iterable[Instance]) -> list[str]:
    """Names that are on both sides, sorted."""
    left, right = ({name for i in part for name in groups(i)} for part in (train, test))
    return sorted(left & right)


def components(instances: Sequence[Instance]) -> list[list[int]]:
    """Positions of the instances that must stay together, in order of first appearance."""
    parent = list(range(len(instances)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[str, int] = {}
    for index, instance in enumerate(instances):
        for name in groups(instance):
            old, new = sorted((root(first.setdefault(name, index)), root(index)))
            parent[new] = old
    members: dict[int, list[int]] = {}
    for index in range(len(instances)):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def split(
    instances: Sequence[Instance], ratio: float, seed: int
) -> tuple[list[Instance], list[Instance]]:
    """Training and test part, each in the old order, that share no group; source by source.

    Whole components are drawn for the test part while they fit into its n - int(n * ratio)
    instances. If none fits, the smallest one is taken unless it is more than half of all, so a
    source that hangs together as a whole has no test part. Raises InputError for a wrong ratio.
    """
    by_source: dict[str, list[list[int]]] = {}
    for component in components(instances):
        by_source.setdefault(instances[component[0]].source, []).append(component)
    held_out = {
        index
        for source, drawn in by_source.items()
        for index in _held_out(drawn, ratio, random.Random(f"{seed}/{source}/split"))
    }
    train = [instance for i, instance in enumerate(instances) if i not in held_out]
    test = [instances[i] for i in sorted(held_out)]
    assert not shared_groups(train, test)
    return train, test


def _held_out(drawn: list[list[int]], ratio: float, rng: random.Random) -> list[int]:
    n = sum(map(len, drawn))
    wanted, chosen = n - _head(n, ratio), []
    rng.shuffle(drawn)
    for component in drawn:
        if len(chosen) + len(component) <= wanted:
            chosen += component
    smallest = min(drawn, key=len)
    return smallest if wanted and not chosen and 2 * len(smallest) <= n else chosen


def split_release(
    instances: Sequence[Instance], ratio: float, seed: int = RELEASE_SEED
) -> tuple[list[Instance], list[Instance]]:
    """Head and tail of the shuffled instances, as the release cuts them. Groups straddle.

    Source: data.md 4.1.
    """
    shuffled = list(instances)
    random.Random(seed).shuffle(shuffled)
    cut = _head(len(shuffled), ratio)
    return shuffled[:cut], shuffled[cut:]


def _head(n: int, ratio: float) -> int:
    if not 0 <= ratio <= 1:
        raise InputError(f"train ratio: expected a number from 0 to 1, found {ratio}")
    return int(n * ratio)


# --- Merging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A merged data set by name: its parts in order, limits, and how many instances to expect."""

    about: str
    parts: tuple[str, ...]  # names of sources
    expected: Mapping[str, int]  # instances by part, training part or else test, on all raw data
    limit: int | None = None  # largest training part of any one
    compat: Behaviour = "fixed"


_EVALUATION = {
    **{"ruler_qa1_197K": 1, "ruler_qa2_421K": 1, "longmemeval_s*": 5},
    "infbench_sum_eng_shots2": 100,
    **{"icl_banking77_5900shot_balance": 1, "icl_clinic150_7050shot_balance": 1},
    **{"icl_nlu_8296shot_balance": 1, "icl_trec_coarse_6600shot_balance": 1},
    "icl_trec_fine_6400shot_balance": 1,
}
_BALANCED = {
    **{"pubmed-rct": 90, "lme_train": 45, "squad": 100, "hotpotqa": 100, "perltqa": 27},
    **{"ttl_train": 100, "booksum": 100},
}
_FULL = _BALANCED | {"squad": 264, "hotpotqa": 1966, "ttl_train": 360, "booksum": 1387}

RECIPES = {
    "balanced": Recipe(
        "the paper's 562 training instances, ttl_train without evaluation rows",
        *(tuple(_BALANCED), _BALANCED, 100),
    ),
    "balanced_release": Recipe(
        "the release's, 567: all of lme_train, and ttl_train cut from evaluation rows (a leak)",
        *(tuple(_BALANCED), _BALANCED | {"lme_train": 50}, 100, "release"),
    ),
    "full": Recipe("all 4,139 training instances of the paper", tuple(_FULL), _FULL),
    "memoryagentbench": Recipe(
        "the paper's 112 evaluation instances", tuple(_EVALUATION), _EVALUATION
    ),
}
"""Counts: data.md 4.3 and the paper's tables 6 to 8. The paper prints 50 for lme_train in table 7,
and a total of 562 that holds with the 45 of table 6 only."""


def merge(
    parts: Sequence[Dataset],
    name: str,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = RELEASE_SEED,
    compat: Behaviour = "fixed",
) -> Dataset:
    """One data set of several: training parts sampled, joined and shuffled; test parts in order.

    `limit` is the largest training part of any one; `limits` says the same by name of a part, or of
    a source inside a part (D35). Test parts are never limited. Raises InputError for a limit of
    nothing that is there and, unless `compat` is "release", for an instance that occurs twice, a
    part that was built with the release's leaks, and a group on both sides.
    Source: data.md 4.2, draw for draw.
    """
    limits = dict(limits or {})
    known = {part.name for part in parts} | {i.source for part in parts for i in part.train}
    for wrong in sorted(limits.keys() - known):
        raise InputError(
            f"limit: expected a part or source, found {wrong!r}{closest(wrong, known)}"
        )
    train: list[Instance] = []
    for part in parts:
        kept = part.train
        for source in sorted(limits.keys() - {part.name}):
            kept = _sampled_source(kept, source, limits[source], seed)
        train += sample(kept, limits.get(part.name, limit), seed)
    random.Random(seed).shuffle(train)
    merged = Dataset(name, tuple(train), tuple(i for part in parts for i in part.test))
    if compat == "fixed":
        _check_unique(merged)
        _check_clean(parts, merged)
    return merged


def sample(instances: Sequence[Instance], n: int | None, seed: int) -> list[Instance]:
    """`n` of the instances, or all in order if there are no more. Raises InputError below 1.

    Draws what `DataFrame.sample(n, random_state=seed)` of pandas does.
    """
    if n is not None and n < 1:
        raise InputError(f"limit: expected at least 1, found {n}")
    if n is None or len(instances) <= n:
        return list(instances)
    drawn = np.random.RandomState(seed).choice(len(instances), size=n, replace=False)
    return [instances[i] for i in drawn]


def _sampled_source(
    instances: Sequence[Instance], source: str, n: int, seed: int
) -> tuple[Instance, ...]:
    """The instances with at most `n` of one source, in the old order."""
    kept = {i.id for i in sample([i for i in instances if i.source == source], n, seed)}
    return tuple(i for i in instances if i.source != source or i.id in kept)


def _check_unique(merged: Dataset) -> None:
    for part, instances in merged.parts.items():
        seen: set[str] = set()
        for instance in instances:
            if instance.id in seen:
                where = f"{merged.name}: {part}"
                raise InputError(f"{where}: expected an instance once, found {instance.id} twice")
            seen.add(instance.id)


def _check_clean(parts: Sequence[Dataset], merged: Dataset) -> None:
    for part in parts:
        if part.train and part.card.get("settings", {}).get("compat") == "release":
            raise InputError(
                f"{part.name}: expected a part built without --compat release, which leaks; "
                "--compat release takes it all the same"
            )
    if shared := shared_groups(merged.train, merged.test):
        raise InputError(
            f"{merged.name}: expected training and test without a common group, found "
            f"{len(shared)}, e.g. {shared[0]!r}; --compat release takes it all the same"
        )


# --- Folders -------------------------------------------------------------------------------------


def read(path: Path) -> Dataset:
    """The data set in a folder, ours or published, or the part of one in a parquet file.

    A part may be one file, several (`train-00000-of-00002.parquet`) or a sub-folder; the published
    names `validation` and `test` mean the same (data.md 1.4). The name is that of the source the
    folder was built from, else the folder's. A file is a training part if its name begins with
    "train". Raises InputError if there is no part at all.
    """
    path = Path(path)
    if path.is_file():
        name = path.resolve().parent.name
        held = tuple(load_instances(path, name))
        return Dataset(name, *((held, ()) if path.stem.startswith("train") else ((), held)))
    files = {part: part_files(path, part) for part in ("train", "test")}
    if not any(files.values()):
        raise InputError(
            f"{path}: expected a folder with {TRAIN} or {TEST}, or a parquet file, found none; "
            "`memalpha data build` makes one"
        )
    card = read_card(path)
    name = card.get("name", path.resolve().name)
    train, test = (
        tuple(i for file in files[part] for i in load_instances(file, name))
        for part in ("train", "test")
    )
    return Dataset(name, train, test, card)


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of a part ("train" or "test"); empty if there is none."""
    for name in {"train": ("train",), "test": ("test", "validation")}[part]:
        for pattern in (f"{name}.parquet", f"{name}-*.parquet", f"{name}/*.parquet"):
            for below in (folder, folder / "data"):
                if found := sorted(below.glob(pattern)):
                    return found
    old = folder / OLD
    return [old] if part == "test" and old.is_file() else []


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder, empty if there is none. Raises InputError for what is no card."""
    if not (folder / CARD).is_file():
        return {}
    card = store.load_json(folder / CARD)
    if not isinstance(card, dict):
        raise InputError(f"{folder / CARD}: expected an object, found {type(card).__name__}")
    return card


def save(folder: Path, dataset: Dataset) -> None:
    """Writes both parts and the card as the folder's only content, whole or not at all.

    `data_sha256` of both files is added to the card. Raises InputError for a folder that holds
    anything but an earlier data set, DiskError if it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{x}") for x in ("tmp", "old"))
    try:
        save_instances(temporary / TRAIN, dataset.train)
        save_instances(temporary / TEST, dataset.test)
        hashes = {name: store.sha256(temporary / name) for name in (TRAIN, TEST)}
        store.save_json(temporary / CARD, {**dataset.card, "data_sha256": hashes})
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except DiskError as error:  # the user knows the folder by its final name
        raise DiskError(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        raise DiskError(f"{folder}: expected to write a folder, found: {error.strerror}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Nothing; raises InputError if a data set would replace something else in that place."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder or nothing, found a file")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name not in (*FILES, OLD):
            raise InputError(
                f"{folder}: expected an empty folder or an earlier data set, found {path.name}"
            )
