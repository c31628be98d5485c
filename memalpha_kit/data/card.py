"""Cards: what a data set was made from, for a reviewer.

A card (`card.json`) says settings, seed, licence, revision, hashes of the raw files and of both
parts, counts, what was left out, how the split was made. It says nothing of the day, the folder or
the number of processes, so the same command gives the same card. It says what was seen: a revision
stands in it only if the raw files have the hashes that were recorded when they were downloaded.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from memalpha_kit import __version__
from memalpha_kit.data import dataset
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.hub import read_manifest
from memalpha_kit.data.raw import matches
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import Source
from memalpha_kit.files import sha256
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import task

NOT_IN_CARD = ("workers", "llm_cache")
"""Settings that change how fast a build is, never what it gives."""


def build_card(
    data: Dataset, named: Source, raw: Path, config: BuildConfig, skips: Skips, **split: Any
) -> dict[str, Any]:
    """The card of a data set that was built from raw files; `split` has seed, rule and ratio."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IN_CARD}
    files = [path for pattern in named.files for path in matches(raw, pattern)]
    hashes = {path.name: sha256(path) for path in files}
    kind = task(named.name)
    return {
        **{"name": data.name, "made_by": "build", "source": named.name},
        **{"role": kind.role, "category": kind.category, "metric": kind.metric},
        "licence": named.licence,
        "revision": revision(raw, hashes),
        "seed": split.pop("seed"),
        "settings": settings,
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
    return {
        **{"name": merged.name, "made_by": "merge"},
        "settings": dict(settings),
        "instances_by_part": {
            part.name: {"found": _count_kept(part, kept), "expected": expected.get(part.name)}
            for part in parts
        },
        **totals(merged),
        "split": {"shared_groups": len(dataset.shared_groups(merged.train, merged.test))},
        "labels": {k: v for card in inner for k, v in card.get("labels", {}).items()},
        "parts": inner,
        "versions": versions(),
    }


def _count_kept(part: Dataset, kept: set[str]) -> int:
    """Instances of the part that are in the merged set: of its test part in evaluation."""
    evaluation = part.card.get("role", "train" if part.train else "eval") == "eval"
    return sum(instance.id in kept for instance in (part.test if evaluation else part.train))


def split_card(data: Dataset, old: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a data set whose instances were split anew."""
    return {
        **{k: v for k, v in old.card.items() if k != "data_sha256"},
        **{"name": data.name, "made_by": "split"},
        **totals(data),
        "split": {**settings, **separation(data)},
        "versions": versions(),
    }


def separation(data: Dataset) -> dict[str, int]:
    """How many sets of instances belong together, and how many names are on both sides."""
    return {
        "components": len(dataset.components([*data.train, *data.test])),
        "shared_groups": len(dataset.shared_groups(data.train, data.test)),
    }


def totals(data: Dataset) -> dict[str, Any]:
    """Counts of all instances and of each part.

    Characters, not tokens: those would cost a build as much again as its packing, and `data check`
    prints them, with a counter of one's choice.
    """

    def count(chosen: Iterable[Instance]) -> dict[str, int]:
        chosen = list(chosen)
        return {
            "instances": len(chosen),
            "chunks": sum(len(i.chunks) for i in chosen),
            "questions": sum(len(i.questions) for i in chosen),
            "characters": sum(len(chunk) for i in chosen for chunk in i.chunks),
        }

    parts = {part: count(instances) for part, instances in data.parts.items()}
    return {**count([*data.train, *data.test]), "parts_counts": parts}


def revision(folder: Path, hashes: Mapping[str, str]) -> str:
    """The revision that the files in a folder were downloaded at, "unknown" if one was not.

    `hashes` are what the files have now; `memalpha data download` has recorded the same.
    """
    manifest = read_manifest(folder)
    recorded = {Path(name).name: facts["sha256"] for name, facts in manifest["files"].items()}
    same = hashes and all(recorded.get(name) == digest for name, digest in hashes.items())
    return manifest.get("revision", "unknown") if same else "unknown"


def versions() -> dict[str, str]:
    """Versions of what shapes the bytes of a data set."""
    return {
        "memalpha_kit": __version__,
        "python": platform.python_version(),
        "pyarrow": pyarrow.__version__,
    }
