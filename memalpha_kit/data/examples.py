"""Every source built from made-up raw files: what the data side gives, without a download.

The raw files are the kit's own (`rawgen`), small and in each source's true format, so this shows
layouts, framings, splits and the leak report as they are; its numbers say nothing about the public
data. With downloads in place the same functions run on them: `memalpha data build`, `check`.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path

from memalpha_kit.data import card as datacard
from memalpha_kit.data import dataset
from memalpha_kit.data.rawgen import make_raw
from memalpha_kit.data.sources import SOURCES, source, ttl_train
from memalpha_kit.progress import progress
from memalpha_kit.settings import BuildConfig, Profile

LEAKY = "ttl_train, release"
"""The one data set that is also built as the release does: its questions are the evaluation's."""


LARGER = ("squad", "hotpotqa", "booksum", "perltqa")
"""Sources of which small raw files hold too few articles or people for two parts."""
BESIDE = {
    **{name: "ttl_train" for name in SOURCES if name.startswith("icl_")},
    "longmemeval_s*": "lme_train",
}
"""Evaluation sources whose rows lie beside a training source's raw files, to be left out there."""


def build_examples(profile: Profile, out: Path) -> dict[str, Path]:
    """Folders of data sets by name: all training and evaluation sources, and `LEAKY`.

    Each has train.parquet, test.parquet and card.json.
    """
    config = dataclasses.replace(profile.data, stage="rules", rows="any")
    names = [name for name, row in SOURCES.items() if row.role != "ours"]
    built = {}
    for name in progress(names, label="made-up raw files"):
        built[name] = _build(name, name, config, profile.seed, out)
    leaky = dataclasses.replace(config, compat="release")
    ttl_train.log.setLevel(logging.ERROR)  # its warning says what the report is to show
    try:
        built[LEAKY] = _build(LEAKY, "ttl_train", leaky, profile.seed, out)
    finally:
        ttl_train.log.setLevel(logging.NOTSET)
    return built


def _build(name: str, made_from: str, config: BuildConfig, seed: int, out: Path) -> Path:
    """The folder of one data set, made from raw files that are not kept."""
    named, folder = source(made_from), out / name.replace("*", "").replace(", ", "_")
    ratio = dataset.share(named, config.compat)
    with tempfile.TemporaryDirectory() as raw:
        size = "medium" if made_from in LARGER else "small"
        make_raw(Path(raw), BESIDE.get(made_from, made_from), seed, size)
        built, skips = dataset.build(made_from, Path(raw), config, seed, ratio)
        card = datacard.build_card(built, named, Path(raw), config, seed, skips, ratio)
    dataset.save(folder, dataclasses.replace(built, name=name, card={**card, "name": name}))
    return folder
