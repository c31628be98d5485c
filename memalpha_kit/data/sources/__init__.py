"""The table of sources: every raw data set the kit can turn into instances.

To add one: a file here that reads its raw rows and has `build(raw, config, seed, skips)`, and a row
of `SOURCES`, and of `tasks.TASKS`, which says how a source is asked and scored. Names are exact.

>>> SOURCES["squad"].files
('squad*.json|squad*.parquet|train-*.parquet',)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memalpha_kit.data.sources import (
    banking77,
    booksum,
    hotpotqa,
    lme_train,
    longmemeval,
    memory_agent_bench,
    perltqa,
    pubmed_rct,
    squad,
    trec,
    ttl_train,
)
from memalpha_kit.data.sources.building import HubFile, Skips, matches
from memalpha_kit.errors import InputError, closest
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig


@dataclass(frozen=True)
class Source:
    """One raw data set: where it comes from and how it is built. `tasks.TASKS` says the rest."""

    name: str  # exact; every instance carries it
    licence: str  # of the raw data, which is never part of the kit
    files: tuple[str, ...]  # name patterns of the raw files, one match each
    build: Callable[[Path, BuildConfig, int, Skips], list[Instance]]
    labels: Callable[[Path], tuple[str, ...]] | None = None  # names of the classes, by number
    revision: str = "unknown"  # pinned revision of the raw data upstream
    hub: HubFile | None = None  # where the raw data can be fetched from


def _benchmark(name: str) -> Source:
    """The row of an evaluation source, all of which have one raw data set."""
    split = memory_agent_bench.KNOWN[name].split
    return Source(
        name=name,
        licence=memory_agent_bench.LICENCE,
        files=(f"{split}*",),
        build=memory_agent_bench.builder(name),
        hub=HubFile(memory_agent_bench.REPOSITORY, (f"*{split}-*.parquet",)),
    )


_LONGMEMEVAL = HubFile("xiaowu0162/longmemeval-cleaned", ("longmemeval_s*.json",))

_ROWS = (
    Source(
        name="squad",
        licence="CC BY-SA 4.0; cite Rajpurkar et al. (2016)",
        files=squad.FILES,
        build=squad.build,
        hub=HubFile("rajpurkar/squad", ("plain_text/train-*.parquet",)),
    ),
    Source(
        name="hotpotqa",
        licence="CC BY-SA 4.0; cite Yang et al. (2018)",
        files=hotpotqa.FILES,
        build=hotpotqa.build,
        hub=HubFile("hotpotqa/hotpot_qa", ("fullwiki/train-*.parquet",)),
    ),
    Source(
        name="perltqa",
        licence="CC BY-NC 4.0; cite Du et al. (2024)",
        files=perltqa.FILES,
        build=perltqa.build,
        revision="67f8351aa6cedddcfc9985e475cfb5565ffd6fa8",  # on GitHub; Dataset/en_v2
    ),
    Source(
        name="pubmed-rct",
        licence="none: PubMed abstracts, some under copyright; cite Dernoncourt and Lee (2017)",
        files=pubmed_rct.FILES,
        build=pubmed_rct.build,
        labels=pubmed_rct.labels,
        hub=HubFile("pietrolesci/pubmed-200k-rct", ("data/train-*.parquet",)),
    ),
    Source(
        name="booksum",
        licence="unknown; made for research from public texts; cite Kryscinski et al. (2022)",
        files=booksum.FILES,
        build=booksum.build,
        hub=HubFile("ubaada/booksum-complete-cleaned", ("chapters/train-*.parquet",)),
    ),
    Source(
        name="ttl_train",
        licence="TREC: none stated; intents: CC BY 4.0, cite Liu et al. (2019)",
        files=ttl_train.FILES,
        build=ttl_train.build,
        hub=HubFile(memory_agent_bench.REPOSITORY, ("*Test_Time_Learning-*.parquet",)),
    ),
    Source(
        name="lme_train",
        licence="MIT; cite Wu et al. (2025)",
        files=lme_train.FILES,
        build=lme_train.build,
        hub=_LONGMEMEVAL,
    ),
    *map(_benchmark, memory_agent_bench.KNOWN),
    Source(
        name="trec_coarse",
        licence="no licence stated by its authors; cite Li and Roth (2002)",
        files=trec.FILES,
        build=trec.build_coarse,
        labels=trec.labels_coarse,
    ),
    Source(
        name="trec_fine",
        licence="no licence stated by its authors; cite Li and Roth (2002)",
        files=trec.FILES,
        build=trec.build_fine,
        labels=trec.labels_fine,
    ),
    Source(
        name="banking77",
        licence="CC BY 4.0; cite Casanueva et al. (2020)",
        files=banking77.FILES,
        build=banking77.build,
        labels=banking77.labels,
    ),
    Source(
        name="longmemeval",
        licence="MIT; cite Wu et al. (2025)",
        files=longmemeval.FILES,
        build=longmemeval.build,
        hub=_LONGMEMEVAL,
    ),
)

SOURCES: dict[str, Source] = {row.name: row for row in _ROWS}


def source(name: str) -> Source:
    """The row of that name. Raises InputError with the closest known name."""
    if name not in SOURCES:
        raise InputError(f"source: expected a known name, found {name!r}{closest(name, SOURCES)}")
    return SOURCES[name]


def missing_files(name: str, raw: Path) -> list[str]:
    """Patterns of the source's raw files that nothing in folder `raw` matches."""
    return [pattern for pattern in source(name).files if not matches(Path(raw), pattern)]


def build(
    name: str, raw: Path, config: BuildConfig, seed: int, skips: Skips | None = None
) -> list[Instance]:
    """The instances of a source from the raw files in folder `raw`.

    The same files, settings and seed give the same instances, with the same ids, everywhere.
    `skips` receives what was left out. Raises InputError naming file, line and field for
    everything that is not as it must be, unless `config.on_error` says to skip it.
    """
    return source(name).build(Path(raw), config, seed, skips or Skips(config.on_error))
