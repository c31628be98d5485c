"""The table of sources: every raw data set the kit can turn into instances.

To add one: a file here that reads its raw rows and has `build(raw, config, seed, skips)`, and a row
of `SOURCES`. Names are exact, and metric and question prefix are looked up by them, never guessed
from a part of a name. Sources with the role "ours" are built from other raw data than the published
ones, so they have names of their own (data.md 1.6).

>>> SOURCES["squad"].metric
'contains'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

CLASSIFY = (
    "The core memory holds rules for sorting sentences into numbered classes. Work out what each "
    "class means, decide which one the sentence belongs to, and give that one number in \\boxed{}."
)
CLASSIFY_BY_EXAMPLE = f"{CLASSIFY} The semantic memory is likely to hold labelled examples."

BOOK_SUMMARY = (
    "The core memory holds a summary of the whole book and the other memories hold its details. "
    "Use them to do what is asked."
)


@dataclass(frozen=True)
class Source:
    """One raw data set: how it is built, asked and scored."""

    name: str  # exact; every instance carries it
    metric: str  # name in metrics.METRICS
    question_prefix: str | None  # put before a question, with a blank line (method.md 3.7)
    licence: str  # of the raw data, which is never part of the kit
    files: tuple[str, ...]  # name patterns of the raw files, one match each
    build: Callable[[Path, BuildConfig, int, Skips], list[Instance]]
    labels: Callable[[Path], tuple[str, ...]] | None = None  # names of the classes, by number
    role: Literal["train", "eval", "ours"] = "ours"  # ours: from other raw data than the published
    category: Literal["AR", "TTL", "LRU", "CR", ""] = ""  # as in the paper's tables
    revision: str = "unknown"  # pinned revision of the raw data upstream
    hub: HubFile | None = None  # where the raw data can be fetched from


def _benchmark(name: str) -> Source:
    """The row of an evaluation source, all of which have one raw data set."""
    split = memory_agent_bench.KNOWN[name].split
    category, metric, prefix = _SPLITS[split]
    return Source(
        name=name,
        metric=metric,
        question_prefix=CLASSIFY if name in _BY_RULE else prefix,
        licence=memory_agent_bench.LICENCE,
        files=(f"{split}*",),
        build=memory_agent_bench.builder(name),
        role="eval",
        category=category,
        hub=HubFile(memory_agent_bench.REPOSITORY, (f"*{split}-*.parquet",)),
    )


_BY_RULE = (memory_agent_bench.TREC, memory_agent_bench.TREC_FINE)  # data.md 1.6
_SPLITS = {  # substring of longmemeval_s*: needs no judge; published scores use one
    memory_agent_bench.RETRIEVAL: ("AR", "substring", None),
    memory_agent_bench.LEARNING: ("TTL", "label", CLASSIFY_BY_EXAMPLE),
    memory_agent_bench.UNDERSTANDING: ("LRU", "keywords", BOOK_SUMMARY),
    memory_agent_bench.CONFLICTS: ("CR", "substring", None),
}
_LONGMEMEVAL = HubFile("xiaowu0162/longmemeval-cleaned", ("longmemeval_s*.json",))

_ROWS = (
    Source(
        name="squad",
        metric="contains",
        question_prefix=None,
        licence="CC BY-SA 4.0; cite Rajpurkar et al. (2016)",
        files=squad.FILES,
        build=squad.build,
        role="train",
        category="AR",
        hub=HubFile("rajpurkar/squad", ("plain_text/train-*.parquet",)),
    ),
    Source(
        name="hotpotqa",
        metric="contains",
        question_prefix=None,
        licence="CC BY-SA 4.0; cite Yang et al. (2018)",
        files=hotpotqa.FILES,
        build=hotpotqa.build,
        role="train",
        category="AR",
        hub=HubFile("hotpotqa/hotpot_qa", ("fullwiki/train-*.parquet",)),
    ),
    Source(
        name="perltqa",
        metric="perltqa",
        question_prefix=None,
        licence="CC BY-NC 4.0; cite Du et al. (2024)",
        files=perltqa.FILES,
        build=perltqa.build,
        role="train",
        category="AR",
        revision="67f8351aa6cedddcfc9985e475cfb5565ffd6fa8",  # on GitHub; Dataset/en_v2
    ),
    Source(
        name="pubmed-rct",
        metric="label",
        question_prefix=CLASSIFY,
        licence="none: PubMed abstracts, some under copyright; cite Dernoncourt and Lee (2017)",
        files=pubmed_rct.FILES,
        build=pubmed_rct.build,
        labels=pubmed_rct.labels,
        role="train",
        category="TTL",
        hub=HubFile("pietrolesci/pubmed-200k-rct", ("data/train-*.parquet",)),
    ),
    Source(
        name="booksum",
        metric="keywords",
        question_prefix=BOOK_SUMMARY,
        licence="unknown; made for research from public texts; cite Kryscinski et al. (2022)",
        files=booksum.FILES,
        build=booksum.build,
        role="train",
        category="LRU",
        hub=HubFile("ubaada/booksum-complete-cleaned", ("chapters/train-*.parquet",)),
    ),
    Source(
        name="ttl_train",
        metric="label",
        question_prefix=CLASSIFY_BY_EXAMPLE,
        licence="TREC: none stated; intents: CC BY 4.0, cite Liu et al. (2019)",
        files=ttl_train.FILES,
        build=ttl_train.build,
        role="train",
        category="TTL",
        hub=HubFile(memory_agent_bench.REPOSITORY, ("*Test_Time_Learning-*.parquet",)),
    ),
    Source(
        name="lme_train",
        metric="substring",  # as for longmemeval
        question_prefix=None,
        licence="MIT; cite Wu et al. (2025)",
        files=lme_train.FILES,
        build=lme_train.build,
        role="train",
        category="AR",
        hub=_LONGMEMEVAL,
    ),
    *map(_benchmark, memory_agent_bench.KNOWN),
    Source(
        name="trec_coarse",
        metric="label",
        question_prefix=CLASSIFY,
        licence="no licence stated by its authors; cite Li and Roth (2002)",
        files=trec.FILES,
        build=trec.build_coarse,
        labels=trec.labels_coarse,
    ),
    Source(
        name="trec_fine",
        metric="label",
        question_prefix=CLASSIFY,
        licence="no licence stated by its authors; cite Li and Roth (2002)",
        files=trec.FILES,
        build=trec.build_fine,
        labels=trec.labels_fine,
    ),
    Source(
        name="banking77",
        metric="label",
        question_prefix=CLASSIFY_BY_EXAMPLE,
        licence="CC BY 4.0; cite Casanueva et al. (2020)",
        files=banking77.FILES,
        build=banking77.build,
        labels=banking77.labels,
    ),
    Source(
        name="longmemeval",
        metric="substring",  # needs no judge; the published scores use one (evaluation.md 3.4)
        question_prefix=None,
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
