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

import yaml

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


def _source(
    name: str, files: tuple[str, ...], build: Builder, labels: Callable | None = None
) -> Source:
    """The source with what `sources.yaml` says of its raw data."""
    facts = dict(_FACTS[name])
    repo, *paths = facts.pop("hub", [None])
    hub = HubFile(repo, tuple(paths)) if repo else None
    return SOURCES.add(
        name, Source(name, files=files, build=build, labels=labels, hub=hub, **facts)
    )


def _labelled(name: str, files: tuple[str, ...], read: Callable) -> None:
    """A source whose two files hold labelled sentences to show and to ask."""

    def labels(raw: Path) -> tuple[str, ...]:
        return sentences.label_table(read(raw_file(raw, files[0])))

    _source(name, files, partial(labelled.from_files, name, files, read), labels)


_FACTS = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
for _name, _module in {
    **{"squad": squad, "hotpotqa": hotpotqa, "perltqa": perltqa, "pubmed-rct": pubmed_rct},
    **{"booksum": booksum, "ttl_train": ttl_train, "lme_train": lme_train},
}.items():
    _source(_name, _module.FILES, _module.build, getattr(_module, "labels", None))
for _name, _known in memory_agent_bench.KNOWN.items():
    _hub = HubFile(memory_agent_bench.REPOSITORY, (f"*{_known.split}-*.parquet",))
    _files = (f"{_known.split}*|data/{_known.split}*",)
    _build = partial(memory_agent_bench.build, _name)
    SOURCES.add(_name, Source(_name, memory_agent_bench.LICENCE, _files, _build, hub=_hub))
_labelled("trec_coarse", sentences.TREC_FILES, sentences.read_trec)
_labelled("trec_fine", sentences.TREC_FILES, partial(sentences.read_trec, fine=True))
_labelled("banking77", sentences.BANKING_FILES, sentences.read_banking77)
_source("longmemeval", longmemeval.FILES, longmemeval.build)
_source("text", text.FILES, text.build)


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
