"""Real raw files through the whole path, with writers and readers that need no model.

These are floors, not a method: a rule keeps everything of one kind and a reader looks it up. What a
trained writer claims on the same files must be held against them. The notebooks use this; the
command line does the same one step at a time (`memalpha data build`, `write`, `ask`, `report`).
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from memalpha_kit import evaluation, sources, store
from memalpha_kit.config import MemoryConfig, Profile, ProtocolConfig
from memalpha_kit.episode import ask, write
from memalpha_kit.progress import progress
from memalpha_kit.readers import reader
from memalpha_kit.records import Instance
from memalpha_kit.writers import writer

SENTENCES = ("keep_sentences", "best_entry")
METHODS = {
    "label": (("keep_examples", "label_vote"),),
    "substring": (SENTENCES, ("keep_turns", "best_entry")),
}
"""Writers and readers by the source's metric; for all other metrics `SENTENCES`.

`keep_turns` is for real dialogues: a document in its frame is one dated turn, and an entry that is
the whole chunk answers whatever is asked about it.
"""


def build_real(profile: Profile, raw: Path, out: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Parquet files of the real sources whose raw files are in `raw`, and why others are not there.

    Raises InputError for raw files that are there but broken. Files of an earlier call are removed
    first, so that nobody takes one whose raw files have gone for this call's.
    """
    built, absent = {}, {}
    for path in out.glob("*.parquet"):
        path.unlink()
    for name in profile.real.sources:
        missing = sources.missing_files(name, raw)
        if missing:
            patterns = ", ".join(pattern.replace("|", " or ") for pattern in missing)
            absent[name] = f"nothing called {patterns} in {raw}"
            continue
        instances = sources.build(name, raw, profile.data, profile.seed)
        built[name] = out / f"{name}.parquet"
        store.save_instances(built[name], instances[: profile.real.instances])
    return built, absent


def evaluate_real(profile: Profile, folder: Path) -> pd.DataFrame:
    """The table of `evaluation.evaluate` for all files of `build_real`; empty without any.

    Writers that find nothing of their kind in a source's chunks are left out.
    """
    settings = profile.evaluation
    bootstrap = evaluation.Bootstrap(profile.seed, settings.resamples, settings.level)
    tables = []
    for path in progress(sorted(folder.glob("*.parquet")), label="real files"):
        instances = store.load_instances(path)
        runs = [run for pair in _methods(instances) if (run := _run(instances, *pair))]
        tables.append(evaluation.evaluate(instances, runs, profile.data.counter, bootstrap))
    if not tables:
        return pd.DataFrame(columns=list(evaluation.COLUMNS))
    return pd.concat(tables, ignore_index=True)


def _methods(instances: list[Instance]) -> tuple[tuple[str, str], ...]:
    return METHODS.get(sources.source(instances[0].source).metric, (SENTENCES,))


def _run(instances: list[Instance], rule: str, reading: str) -> evaluation.Run | None:
    """The answered episodes of one writer and reader; None if the writer made no call."""
    started = time.monotonic()
    episodes = write(instances, writer(rule), MemoryConfig(), ProtocolConfig())
    if not any(episode.calls for episode in episodes):
        return None
    asked = ask(episodes, instances, reader(reading))
    return evaluation.Run(asked, reading, duration_s=round(time.monotonic() - started, 2))
