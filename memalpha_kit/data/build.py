"""Whole steps of `memalpha data`: from raw files or data sets to a data set with its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from memalpha_kit.data import card, dataset
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.sources import source
from memalpha_kit.settings import BuildConfig


def build_source(
    name: str, raw: Path, config: BuildConfig, seed: int = 0, ratio: float | None = None
) -> Dataset:
    """The data set of a source from its raw files, split, with its card.

    `ratio` is the share of the instances that goes to the training part; by default
    `dataset.share`. Raises InputError for raw files that are not as they must be.
    """
    named = source(name)
    ratio = dataset.share(named, config.compat) if ratio is None else ratio
    built, skips = dataset.build(name, raw, config, seed, ratio)
    facts = card.build_card(built, named, raw, config, seed, skips, ratio)
    return dataclasses.replace(built, card=facts)
