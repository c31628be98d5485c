"""Files that the steps hand to each other: data, episodes, and the card beside each.

The card of `episodes.jsonl` is `episodes.json`: settings, whether the step was finished, seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memalpha_kit.data import dataset
from memalpha_kit.data.instances import load_instances
from memalpha_kit.errors import InputError
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


def load_card(path: Path) -> dict[str, Any] | None:
    """The card beside a JSONL file, None if there is none. Raises InputError if it is broken."""
    card = card_path(path)
    if not card.exists():
        return None
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{card}: expected the card of {path.name} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{card}: expected an object, found {type(content).__name__}")
    return content


def finished_card(path: Path, made_by: str) -> dict[str, Any]:
    """The card of a finished step. Raises InputError, naming the command, if it is not finished."""
    card = load_card(path)
    if card is None:
        raise InputError(
            f"{card_path(path)}: expected beside {path.name}; `memalpha {made_by}` makes both"
        )
    if not card.get("complete"):
        raise InputError(f"{path}: `memalpha {made_by}` did not finish; run it again to go on")
    return card


def check_jsonl(path: Path) -> Path:
    """`path`, if its name ends in .jsonl. Raises InputError otherwise."""
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: expected a name that ends in .jsonl")
    return path
