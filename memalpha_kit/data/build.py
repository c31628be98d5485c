"""Whole steps of `memalpha data`: raw files or data sets in, one data set with its card out.

data = build_source("squad", Path("raw/squad"), BuildConfig())
dataset.save(Path("data/squad"), data)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import pyarrow
import yaml

from memalpha_kit import __version__
from memalpha_kit.data import dataset
from memalpha_kit.data.dataset import MERGE_SEED, SEPARATIONS, Dataset
from memalpha_kit.data.hub import revision
from memalpha_kit.data.instances import ANSWER_TYPE, check_limit
from memalpha_kit.data.raw import matches
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import SOURCES, Source
from memalpha_kit.data.sources import build as build_instances
from memalpha_kit.errors import InputError, closest
from memalpha_kit.files import sha256
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import task

PROMPTS = {
    "AR": "You read texts one piece after the other. Keep the facts that questions may ask for.",
    "TTL": "You read labelled examples. Later you give the number of the label of new sentences.",
    "LRU": "You read a long text in parts. Keep what a summary of the whole text needs.",
    "CR": "You read facts one after the other, of which a later one may replace an earlier one.",
    "": "You read a text piece by piece. Keep what later questions may need.",
}
"""What the column `prompt` says where a builder says nothing, by category. It names no tool: the
published prompts name tools that do not exist."""
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Recipe:
    """A merged data set by name."""

    about: str
    instances: Mapping[str, int]  # names of the parts in order, and how many to expect of each
    limit: int | None = None  # largest training part of any one
    compat: str = "fixed"


RECIPES = {
    name: Recipe(**fields)
    for name, fields in yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text()).items()
}


def build_source(
    name: str, raw: Path, config: BuildConfig, seed: int = 0, ratio: float | None = None
) -> Dataset:
    """The data set of a source from its raw files, split, with its card.

    `ratio` is the share of the instances that goes to the training part; by default nothing of an
    evaluation source, else nine tenths.
    Raises InputError for raw files that are not as they must be.
    """
    named, kind, skips = SOURCES[name], task(name), Skips(config.on_error)
    rule = SEPARATIONS[config.compat]
    check_limit("max_questions", name, config.max_questions)
    if ratio is None:
        share = 1.0 if name in rule.all_train else TRAIN_SHARE
        ratio = share if kind.role == "train" else 0.0
    lists = {ANSWER_TYPE: "list"} if kind.role == "eval" else {}  # answers are lists, as published
    built = build_instances(name, raw, config, seed, skips)
    instances = [
        replace(i, prompt=i.prompt or PROMPTS[kind.category], metadata={**i.metadata, **lists})
        for i in {i.id: i for i in built}.values()
    ]
    skips.drop("instances that occur twice", len(built) - len(instances))
    train, test = rule.split(instances, ratio, seed)
    data = Dataset(name, tuple(train), tuple(test))
    made = {"seed": seed, "train_ratio": ratio, "rule": rule.rule}
    return replace(data, card=build_card(data, named, Path(raw), config, skips, **made))


def merge_sets(
    name: str,
    folders: Sequence[Path] = (),
    recipe: str | None = None,
    root: Path = Path("data"),
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = MERGE_SEED,
    compat: str = "fixed",
) -> Dataset:
    """Several data sets as one, with its card: those in `folders` or, without any, those below
    `root` that were built from the recipe's sources.

    With folders and no recipe they are merged as given; else parts come in the recipe's order, and
    its `limit` and `compat` hold where none is given. Raises InputError for a part that is missing,
    twice there or not in the recipe, and as `dataset.merge`.
    """
    recipe = recipe or (None if folders else "balanced")
    if recipe is not None and recipe not in RECIPES:
        found = f"found {recipe!r}{closest(recipe, RECIPES)}"
        raise InputError(f"recipe: expected a known name, {found}")
    chosen, where = RECIPES[recipe] if recipe else None, "recipe" if folders else str(root)
    if chosen and not folders:
        dataset.finish_swaps(root)
        cards = ((path.parent, dataset.read_card(path.parent)) for path in root.glob("*/card.json"))
        folders = sorted(path for path, card in cards if card.get("name") in chosen.instances)
    parts = [dataset.read(path) for path in folders]
    if chosen:
        parts = _in_order(parts, folders, chosen, where)
        limit = chosen.limit if limit is None else limit
        compat = chosen.compat if compat == "fixed" else compat
    merged = dataset.merge(parts, name, limit, limits, seed, compat)
    settings = {"recipe": recipe, "limit": limit, "limits": dict(limits or {})}
    settings |= {"seed": seed, "compat": compat}
    expected = chosen.instances if chosen else {}
    return replace(merged, card=merge_card(merged, parts, settings, expected))


def _in_order(
    parts: Sequence[Dataset], folders: Sequence[Path], recipe: Recipe, where: str
) -> list[Dataset]:
    """The parts of the recipe, one each and no other."""
    places: dict[str, list[str]] = {name: [] for name in recipe.instances}
    for part, folder in zip(parts, folders, strict=True):
        places.setdefault(part.name, []).append(str(folder))
    wanted = ", ".join(recipe.instances)
    if missing := [name for name, found in places.items() if not found]:
        raise InputError(
            f"{where}: expected data sets of {wanted}, found none of {', '.join(missing)}; "
            "`memalpha data build` makes them"
        )
    if extra := sorted(places.keys() - recipe.instances.keys()):
        raise InputError(f"{where}: expected {wanted} only, found {extra[0]} too")
    for name, found in places.items():
        if len(found) > 1:
            raise InputError(f"{where}: expected one data set of {name}, found {', '.join(found)}")
    by_name = {part.name: part for part in parts}
    return [by_name[name] for name in recipe.instances]


def split_set(
    path: Path, ratio: float = TRAIN_SHARE, seed: int = 0, compat: str = "fixed"
) -> Dataset:
    """Both parts of a data set (or of a parquet file) together, split anew, with a card."""
    old, rule = dataset.read(path), SEPARATIONS[compat]
    train, test = rule.split((*old.train, *old.test), ratio, seed)
    new = Dataset(old.name, tuple(train), tuple(test))
    kept = {k: v for k, v in old.card.items() if k not in ("data_sha256", "instances_by_part")}
    made = {"train_ratio": ratio, "rule": rule.rule, "seed": seed, **separation(new)}
    card = {**kept, "name": new.name, "made_by": "split", **totals(new)}
    return replace(new, card={**card, "split": made, "versions": versions()})


# A card says settings, seed, licence, revision, hashes of the raw files and of both parts, counts,
# what was left out, how the split was made. It says nothing of the day, the folder or the number of
# processes, so the same command gives the same card. It says what was seen: a revision stands in it
# only if the raw files have the hashes that were recorded when they were downloaded.


def build_card(
    data: Dataset, named: Source, raw: Path, config: BuildConfig, skips: Skips, **split: Any
) -> dict[str, Any]:
    """The card of a data set that was built from raw files; `split` has seed, rule and ratio."""
    paths = {path for pattern in named.files for path in matches(raw, pattern)}
    hashes = {path.relative_to(raw).as_posix(): sha256(path) for path in sorted(paths)}
    if named.name == "text":
        asked = Path(config.questions)
        hashes |= {path.name: sha256(path) for path in matches(asked.parent, escape(asked.name))}
    kind = task(named.name)
    speed = "workers", "llm_cache"  # how fast a build is, never what it gives
    return {
        **{"name": data.name, "made_by": "build", "source": named.name},
        **{"role": kind.role, "category": kind.category, "metric": kind.metric},
        "licence": named.licence,
        "revision": revision(raw, hashes),
        "seed": split.pop("seed"),
        "settings": {k: v for k, v in asdict(config).items() if k not in speed},
        "raw_sha256": hashes,
        **totals(data),
        "split": split | separation(data),
        **skips.card(),
        "labels": {named.name: list(named.labels(raw))} if named.labels else {},
        "versions": versions(),
    }


def merge_card(
    merged: Dataset,
    parts: Sequence[Dataset],
    settings: Mapping[str, Any],
    expected: Mapping[str, int],
) -> dict[str, Any]:
    """The card of a data set that was merged; the cards of its parts are in it.

    `expected` is the paper's number of instances by part, beside ours.
    """
    inner = [dict(part.card) or {"name": part.name} for part in parts]
    kept = {i.id for i in (*merged.train, *merged.test)}

    def n_kept(part: Dataset) -> int:
        counted = part.test if part.card.get("role") == "eval" else part.train
        if part.name not in expected:  # a file of the other part, say
            counted = counted or part.train or part.test
        return sum(i.id in kept for i in counted)

    return {
        **{"name": merged.name, "made_by": "merge"},
        "settings": dict(settings),
        "instances_by_part": {
            part.name: {"found": n_kept(part), "expected": expected.get(part.name)}
            for part in parts
        },
        **totals(merged),
        "split": {"shared_groups": len(dataset.shared_groups(merged.train, merged.test))},
        "labels": {k: v for card in inner for k, v in card.get("labels", {}).items()},
        "parts": inner,
        "versions": versions(),
    }


def separation(data: Dataset) -> dict[str, int]:
    """How many sets of instances belong together, and how many names are on both sides."""
    return {
        "components": len(dataset.linked(map(dataset.groups, (*data.train, *data.test)))),
        "shared_groups": len(dataset.shared_groups(data.train, data.test)),
    }


def totals(data: Dataset) -> dict[str, Any]:
    """Counts of all instances and of each part.

    Characters, not tokens: those would cost a build as much again as its packing, and `data check`
    prints them, with a counter of one's choice.
    """

    def count(chosen: Sequence[Instance]) -> dict[str, int]:
        return {
            "instances": len(chosen),
            "chunks": sum(len(i.chunks) for i in chosen),
            "questions": sum(len(i.questions) for i in chosen),
            "characters": sum(len(chunk) for i in chosen for chunk in i.chunks),
        }

    parts = {part: count(instances) for part, instances in data.parts.items()}
    return {**count([*data.train, *data.test]), "parts_counts": parts}


def versions() -> dict[str, str]:
    """Versions of what shapes the bytes of a data set."""
    return {
        "memalpha_kit": __version__,
        "python": platform.python_version(),
        "pyarrow": pyarrow.__version__,
    }
