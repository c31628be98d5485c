"""The table of sources: every raw data set the kit can turn into instances.

To add one, in the kit or in a module of your own: a function that reads raw rows, a row of
`SOURCES`, and a row of `tasks.TASKS`, which says how the source is asked and scored.

    SOURCES.add("mine", Source("mine", "my own", ("mine*.jsonl",), build))
    TASKS["mine"] = Task("mine", "contains")

>>> SOURCES["perltqa"].files
('perltmem_en*.json', 'perltqa_en*.json')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memalpha_kit.data.sources import (
    booksum,
    hotpotqa,
    labelled,
    lme_train,
    longmemeval,
    memory_agent_bench,
    perltqa,
    pubmed_rct,
    sentences,
    squad,
    text,
    ttl_train,
)
from memalpha_kit.data.sources.building import HubFile, Skips
from memalpha_kit.data.sources.raw import matches, raw_file
from memalpha_kit.records import Instance
from memalpha_kit.registry import Registry
from memalpha_kit.settings import BuildConfig

Builder = Callable[[Path, BuildConfig, int, Skips], list[Instance]]


@dataclass(frozen=True)
class Source:
    """One raw data set: where it comes from and how it is built. `tasks.TASKS` says the rest."""

    name: str  # exact; every instance carries it
    licence: str  # of the raw data, which is never part of the kit
    files: tuple[str, ...]  # name patterns of the raw files, one match each
    build: Builder
    labels: Callable[[Path], tuple[str, ...]] | None = None  # names of the classes, by number
    revision: str = "unknown"  # pinned revision of the raw data upstream
    hub: HubFile | None = None  # where the raw data can be fetched from


SOURCES: Registry[Source] = Registry("source")
RULES: Registry[dict[str, Builder]] = Registry("compat")
"""What the setting `compat` names: builders that take the place of a source's own."""
RULES.add("fixed", {})

_LONGMEMEVAL = HubFile("xiaowu0162/longmemeval-cleaned", ("longmemeval_s*.json",))


def _labelled(name: str, licence: str, files: tuple[str, ...], read: Callable) -> Source:
    """A source whose two files hold labelled sentences to show and to ask."""

    def labels(raw: Path) -> tuple[str, ...]:
        return sentences.label_table(read(raw_file(raw, files[0])))

    return Source(name, licence, files, partial(labelled.from_files, name, files, read), labels)


def _benchmark(name: str) -> Source:
    """An evaluation source, all of which have one raw data set."""
    split = memory_agent_bench.KNOWN[name].split
    return Source(
        name,
        memory_agent_bench.LICENCE,
        (f"{split}*|data/{split}*",),
        partial(memory_agent_bench.build, name),
        hub=HubFile(memory_agent_bench.REPOSITORY, (f"*{split}-*.parquet",)),
    )


_TREC_LICENCE = "no licence stated by its authors; cite Li and Roth (2002)"

for _source in (
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
        labels=lambda raw: pubmed_rct.LABELS,
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
    _labelled("trec_coarse", _TREC_LICENCE, sentences.TREC_FILES, sentences.read_trec),
    _labelled(
        "trec_fine", _TREC_LICENCE, sentences.TREC_FILES, partial(sentences.read_trec, fine=True)
    ),
    _labelled(
        "banking77",
        "CC BY 4.0; cite Casanueva et al. (2020)",
        sentences.BANKING_FILES,
        sentences.read_banking77,
    ),
    Source(
        name="longmemeval",
        licence="MIT; cite Wu et al. (2025)",
        files=longmemeval.FILES,
        build=longmemeval.build,
        hub=_LONGMEMEVAL,
    ),
    Source(name="text", licence="your own", files=text.FILES, build=text.build),
):
    SOURCES.add(_source.name, _source)


def missing_files(name: str, raw: Path) -> list[str]:
    """Patterns of the source's raw files that nothing in folder `raw` matches."""
    return [pattern for pattern in SOURCES[name].files if not matches(Path(raw), pattern)]


def build(
    name: str, raw: Path, config: BuildConfig, seed: int, skips: Skips | None = None
) -> list[Instance]:
    """The instances of a source from the raw files in folder `raw`.

    The same files, settings and seed give the same instances, with the same ids, everywhere.
    `skips` receives what was left out. Raises InputError naming file, line and field for
    everything that is not as it must be, unless `config.on_error` says to skip it.
    """
    builder = RULES[config.compat].get(name, SOURCES[name].build)
    return builder(Path(raw), config, seed, skips or Skips(config.on_error))
