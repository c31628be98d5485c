"""Small made-up raw files of every source, which the package ships, and data sets built from them.

The files are in each source's true format, so they show layouts, framings, splits and the leak
report as they are; their numbers say nothing about the public data. With downloads in place the
same functions run on them: `memalpha data build`, `check`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path

from memalpha_kit import files as store
from memalpha_kit.data import dataset
from memalpha_kit.data.build import build_source
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import InputError, closest
from memalpha_kit.progress import progress
from memalpha_kit.settings import Profile
from memalpha_kit.tasks import TASKS

log = logging.getLogger(__name__)

LEAKY = "ttl_train, release"
"""The one data set that is also built as the release does: its questions are the evaluation's."""


def write_raw(source: str, out: Path) -> list[Path]:
    """Paths of the made-up raw files of a source, written into folder `out`.

    Raises InputError with the closest known name, DiskError if they cannot be written.
    """
    packed = files("memalpha_kit.data").joinpath("samples.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        index = json.loads(archive.read("index.json"))
        if source not in index:
            found = f"found {source!r}{closest(source, index)}"
            raise InputError(f"source: expected a known name, {found}")
        for name in index[source]:
            store.write_bytes(out / name, archive.read(name))
    return [out / name for name in index[source]]


def build_examples(profile: Profile, out: Path) -> dict[str, Path]:
    """Folders of data sets by name: all training and evaluation sources, and `LEAKY`.

    What comes to nothing under the profile's settings is left out, with a warning.
    """
    config = dataclasses.replace(profile.data, stage="rules", rows="any")
    kinds = {name: (name, config) for name in SOURCES if TASKS[name].role in ("train", "eval")}
    kinds[LEAKY] = ("ttl_train", dataclasses.replace(config, compat="release"))
    built = {}
    leaky = logging.getLogger("memalpha_kit.release.data")
    leaky.setLevel(logging.ERROR)  # its warning says what the report is to show
    try:
        for name, (made_from, chosen) in progress(kinds.items(), label="made-up raw files"):
            with tempfile.TemporaryDirectory() as raw:
                try:
                    write_raw(made_from, Path(raw))
                    data = build_source(made_from, Path(raw), chosen, profile.seed)
                except InputError as error:
                    log.warning("%s is left out: %s", name, error)
                    continue
            built[name] = out / name.replace("*", "").replace(", ", "_")
            card = {**data.card, "name": name}
            dataset.save(built[name], dataclasses.replace(data, name=name, card=card))
    finally:
        leaky.setLevel(logging.NOTSET)
    return built
