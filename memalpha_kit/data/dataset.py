"""Data sets: a training part, a test part and a card, split and merged without leaks.

    data/squad/{train.parquet, test.parquet, card.json}

The one law: nothing that belongs together is on both sides of a split. What belongs together is
named by the builders (`groups` in the metadata of an instance: an article, a book, a person); two
instances that share a name, or are linked by others that do, go to the same side. The published
`process_data.py` splits single instances instead, so that articles, books and questions are on both
sides; `release/data.py` does the same, draw for draw.

A folder is written whole or not at all: beside its final name, and renamed at the end. If the
process is killed between two renames, the next command that meets the folder finishes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memalpha_kit.data.instances import check_ids, load_instances, save_instances
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.files import load_json, save_json, sha256
from memalpha_kit.records import Instance
from memalpha_kit.registry import Registry

TRAIN, TEST, CARD = FILES = ("train.parquet", "test.parquet", "card.json")
MERGE_SEED = 42
"""The published code's seed of merges and splits."""
Parts = tuple[list[Instance], list[Instance]]
"""Training and test part."""


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


def groups(instance: Instance) -> tuple[str, ...]:
    """Names of what may not be on both sides: the builder's, or else the questions and answers.

    The id of the instance is always one of them, so that a copy never straddles.
    """
    named = list(instance.listed("groups"))
    if not named:
        asked = json.dumps(sorted((qa.question, qa.answers) for qa in instance.questions))
        named = [f"questions:{hashlib.sha256(asked.encode()).hexdigest()[:16]}"]
    return (*named, instance.id)


def shared_groups(train: Iterable[Instance], test: Iterable[Instance]) -> list[str]:
    """Names that are on both sides, sorted."""
    left, right = ({name for i in part for name in groups(i)} for part in (train, test))
    return sorted(left & right)


def linked(names: Iterable[Iterable[str]]) -> list[list[int]]:
    """Positions of the lists of names that share one, directly or through others, in old order.

    >>> linked([["a", "b"], ["c"], ["d", "b"]])
    [[0, 2], [1]]
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    firsts = []
    for first, *others in names:
        firsts.append(first)
        for name in others:
            parent[root(name)] = root(first)
    members: dict[str, list[int]] = defaultdict(list)
    for position, first in enumerate(firsts):
        members[root(first)].append(position)
    return list(members.values())


def split(instances: Sequence[Instance], ratio: float, seed: int) -> Parts:
    """Training and test part, each in the old order, that share no group; source by source.

    Whole components are drawn for the test part while they fit into its n - int(n * ratio)
    instances. If none fits, the smallest one is taken unless it is more than half of all, so a
    source that hangs together as a whole has no test part. Raises InputError for a wrong ratio.
    """
    by_source: dict[str, list[list[int]]] = defaultdict(list)
    for component in linked(map(groups, instances)):
        by_source[instances[component[0]].source].append(component)
    held_out: set[int] = set()
    for source, drawn in by_source.items():
        n = sum(map(len, drawn))
        wanted = n - n_train(n, ratio)
        random.Random(f"{seed}/{source}/split").shuffle(drawn)
        chosen: list[int] = []
        for component in drawn:
            if len(chosen) + len(component) <= wanted:
                chosen += component
        smallest = min(drawn, key=len)
        held_out.update(smallest if wanted and not chosen and 2 * len(smallest) <= n else chosen)
    train = [instance for i, instance in enumerate(instances) if i not in held_out]
    test = [instances[i] for i in sorted(held_out)]
    assert not shared_groups(train, test)
    return train, test


def n_train(n: int, ratio: float) -> int:
    """How many of `n` instances go to the training part. Raises InputError for a wrong ratio."""
    if not 0 <= ratio <= 1:
        raise InputError(f"train ratio: expected a number from 0 to 1, found {ratio}")
    return int(n * ratio)


@dataclass(frozen=True)
class Separation:
    """How training and test are kept apart; the setting `compat` names one."""

    rule: str  # what is kept together, for cards: "groups" or "instances"
    split: Callable[[Sequence[Instance], float, int], Parts]
    strict: bool  # a merge refuses what occurs twice or on both sides
    all_train: tuple[str, ...] = ()  # training sources that have no test part


SEPARATIONS: Registry[Separation] = Registry("compat")
SEPARATIONS.add("fixed", Separation("groups", split, strict=True))


def merge(
    parts: Sequence[Dataset],
    name: str,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = MERGE_SEED,
    compat: str = "fixed",
) -> Dataset:
    """One data set of several: training parts sampled, joined and shuffled; test parts in order.

    `limit` is the largest training part of any one; `limits` says the same by name of a part, or of
    a source inside a part. Test parts are never limited. Raises InputError for a limit of nothing
    that is there and, unless `compat` is "release", for an instance that occurs twice, a part that
    was built with the release's leaks, and a group on both sides.
    Source: the merge of the published `process_data.py`, draw for draw.
    """
    limits = dict(limits or {})
    known = {part.name for part in parts} | {i.source for part in parts for i in part.train}
    for wrong in sorted(limits.keys() - known):
        expected = f"expected a part or source, found {wrong!r}{closest(wrong, known)}"
        raise InputError(f"limit: {expected}")
    train: list[Instance] = []
    for part in parts:
        kept = list(part.train)
        for source in sorted(limits.keys() - {part.name}):
            of_source = [i for i in kept if i.source == source]
            drawn = {i.id for i in sample(of_source, limits[source], seed)}
            kept = [i for i in kept if i.source != source or i.id in drawn]
        train += sample(kept, limits.get(part.name, limit), seed)
    random.Random(seed).shuffle(train)
    merged = Dataset(name, tuple(train), tuple(i for part in parts for i in part.test))
    if SEPARATIONS[compat].strict:
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


def _check_clean(parts: Sequence[Dataset], merged: Dataset) -> None:
    anyway = "--compat release takes it all the same"
    for side, instances in merged.parts.items():
        check_ids(instances, f"{merged.name}: {side}")
    for part in parts:
        if part.train and part.card.get("settings", {}).get("compat") == "release":
            leaks = "expected a part built without --compat release, which leaks"
            raise InputError(f"{part.name}: {leaks}; {anyway}")
    if shared := shared_groups(merged.train, merged.test):
        raise InputError(
            f"{merged.name}: expected training and test without a common group, found "
            f"{len(shared)}, e.g. {shared[0]!r}; {anyway}"
        )


# --- Folders -------------------------------------------------------------------------------------


def read(path: Path) -> Dataset:
    """The data set in a folder, ours or published, or the part of one in a parquet file.

    A part may be one file, several (`train-00000-of-00002.parquet`) or a sub-folder; the published
    names `validation` and `test` mean the same. The name is that in the card of the folder, else
    the folder's. A file is a training part if its name begins with "train". Raises InputError if
    there is no part at all, or an instance occurs twice in one.
    """
    path = Path(path)
    if path.is_file():
        card = read_card(path.parent)
        card = card if path.name in card.get("data_sha256", ()) else {}  # another's
        name = card.get("name", path.resolve().parent.name)
        found, training = tuple(load_instances(path, name)), path.stem.startswith("train")
        return Dataset(name, found if training else (), () if training else found, card)
    files = {part: part_files(path, part) for part in ("train", "test")}
    if not any(files.values()):
        raise InputError(
            f"{path}: expected a folder with {TRAIN} or {TEST}, or a parquet file, found none; "
            "`memalpha data build` makes one"
        )
    card = read_card(path)
    name = card.get("name", path.resolve().name)
    parts = {part: tuple(i for f in files[part] for i in load_instances(f, name)) for part in files}
    for part, instances in parts.items():
        check_ids(instances, f"{path}: {part}")
    return Dataset(name, **parts, card=card)


def train_and_held_out(data: Sequence[Path], validation: Sequence[Path] = ()) -> Parts:
    """What is trained on, and what is held out, in an order that mixes its sources.

    Training parts of `data`, a parquet file as a whole; held-out parts of `validation`, else of the
    folders in `data`. Raises InputError for data without a training part, an instance that is there
    twice, and a group on both sides.
    """
    train: list[Instance] = []
    held_out = [i for found in map(read, validation) for i in found.test or found.train]
    for path in data:
        found = read(path)
        part = found.train or (found.test if path.is_file() else ())
        if not part:
            raise InputError(f"{path}: expected a training part ({TRAIN}), found none")
        train += part
        held_out += () if validation or path.is_file() else found.test
    for side in (train, held_out):
        check_ids(side, "data")
    if shared := shared_groups(train, held_out):
        expected = "expected nothing that is trained on, found a common group"
        raise InputError(f"validation: {expected}, e.g. {shared[0]!r}")
    random.Random("validation").shuffle(held_out)
    return train, held_out


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of a part ("train" or "test"); empty if there is none."""
    finish_swaps(folder.absolute().parent)
    for name in {"train": ("train",), "test": ("test", "validation")}[part]:
        for pattern in (f"{name}.parquet", f"{name}-*.parquet", f"{name}/*.parquet"):
            for below in (folder, folder / "data"):
                if found := sorted(path for path in below.glob(pattern) if path.is_file()):
                    return found
    return []


def data_files(path: Path) -> list[Path]:
    """The parquet files that a path means: itself, or the test part of a data set in a folder.

    Raises InputError if there is none.
    """
    if found := [path] if path.is_file() else part_files(path, "test"):
        return found
    raise InputError(
        f"{path}: expected a parquet file or a folder with {TEST}, found none; "
        "`memalpha data build` makes one"
    )


def load_data(path: Path) -> list[Instance]:
    """The instances of a parquet file, or of the test part of a data set: at least one."""
    found = data_files(path)
    if not (instances := [i for file in found for i in load_instances(file)]):
        other = [f"; {part} is the training part" for part in part_files(found[0].parent, "train")]
        expected = "expected at least one instance, found none"
        raise InputError(f"{found[0]}: {expected}{''.join(other)}")
    check_ids(instances, str(path))
    return instances


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder, empty if there is none. Raises InputError for what is no card."""
    card = load_json(folder / CARD) if (folder / CARD).is_file() else {}
    if not isinstance(card, dict):
        raise InputError(f"{folder / CARD}: expected an object, found {type(card).__name__}")
    return card


def save(folder: Path, data: Dataset) -> None:
    """Writes both parts and the card as the folder's only content, whole or not at all.

    `data_sha256` of both files is added to the card. Raises InputError for a folder that holds
    anything but an earlier data set, DiskError if it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        save_instances(new / TRAIN, data.train)
        save_instances(new / TEST, data.test)
        hashes = {name: sha256(new / name) for name in (TRAIN, TEST)}
        save_json(new / CARD, {**data.card, "data_sha256": hashes})
        _swap(folder, new, old)
    except DiskError as error:  # the user knows the folder by its final name
        raise DiskError(str(error).replace(str(new), str(folder))) from error
    except OSError as error:
        raise DiskError(f"{folder}: expected to write a folder, found: {error.strerror}") from error
    finally:
        if new.exists() and old.exists() and not folder.exists():  # it failed on the way
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _swap(folder: Path, new: Path, old: Path) -> None:
    """Puts `new` in the place of `folder`, the last one of several processes that do so at once.

    Nothing is locked: a notebook saves below a folder that its own run holds.
    """
    while new.exists():
        with suppress(FileNotFoundError):  # there was none, or another process moved it away
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise
            shutil.rmtree(old, ignore_errors=True)


def finish_swaps(parent: Path) -> None:
    """Finishes what `save` left in this folder when it was killed between two renames.

    A new data set that is whole takes its place, else the old one returns; the rest is removed.
    What a process that still runs has written is left alone.
    """
    for path in sorted(parent.glob(".*.[0-9]*.*"), reverse=True):  # the old one before the new one
        name = re.fullmatch(r"\.(.+)\.(\d+)\.(new|old)", path.name)
        if not name or not path.is_dir() or _is_other_process(int(name[2])):
            continue
        folder, new = parent / name[1], path.with_suffix(".new")
        if path.suffix == ".old" and not folder.exists():
            (new if (new / CARD).is_file() else path).rename(folder)
        shutil.rmtree(path, ignore_errors=True)


def _is_other_process(number: int) -> bool:
    """Whether another process of this number runs."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs for somebody else
        return True
    return number != os.getpid()


def check_free(folder: Path) -> None:
    """Nothing; raises InputError if a data set would replace something else in that place."""
    folder = Path(folder)
    finish_swaps(folder.absolute().parent)
    try:
        names = os.listdir(folder)  # asked once, for another process may swap it
    except FileNotFoundError:
        names = []
    except NotADirectoryError:
        raise InputError(f"{folder}: expected a folder or nothing, found a file") from None
    if other := min({*names} - {*FILES}, default=""):
        found = f"found {other}"
        raise InputError(f"{folder}: expected an empty folder or an earlier data set, {found}")
