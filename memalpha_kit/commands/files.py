"""Files that the steps hand to each other: data, episodes, and the card beside each.

The card of `episodes.jsonl` is `episodes.json`: settings, whether the step was finished, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memalpha_kit.data import dataset
from memalpha_kit.data.instances import load_instances
from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json
from memalpha_kit.records import Instance


def data_file(path: Path) -> Path:
    """The parquet file that a path means: itself, or the test part of a data set in a folder.

    Raises InputError if there is none, or if the part is in several files.
    """
    if path.is_file():
        return path
    found = dataset.part_files(path, "test")
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"{path}: expected a parquet file or a folder with {dataset.TEST}, found {names}; "
            "`memalpha data build` makes one"
        )
    return found[0]


def load_data(paths: Sequence[Path]) -> list[Instance]:
    """All instances of several files or folders, in order."""
    return [instance for path in paths for instance in load_instances(data_file(path))]


def card_path(path: Path) -> Path:
    """Where the card of a JSONL file is."""
    return path.with_suffix(".json")


def check_written(path: Path) -> None:
    """Raises InputError if `memalpha write` did not make these episodes, or did not finish."""
    if not card_path(path).exists():
        name = card_path(path)
        raise InputError(f"{name}: expected beside {path.name}; `memalpha write` makes both")
    if not load_json(card_path(path)).get("complete"):
        raise InputError(f"{path}: `memalpha write` did not finish; run it again to go on")


def check_jsonl(path: Path) -> Path:
    """`path`, if its name ends in .jsonl. Raises InputError otherwise."""
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: expected a name that ends in .jsonl")
    return path
