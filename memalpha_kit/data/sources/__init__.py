"""The table of sources: every raw data set the kit can turn into instances.

To add one, in the kit or in a module of your own: a function that makes instances of a `Job`, a row
of `SOURCES`, and a row of `tasks.TASKS`, which says how the source is asked and scored.

    SOURCES.add("mine", Source("mine", "my own", ("mine*.jsonl",), build))
    TASKS["mine"] = Task("mine", "contains")

>>> SOURCES["perltqa"].files
('perltmem_en*.json', 'perltqa_en*.json')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import yaml

from memalpha_kit.data.raw import matches
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import labelled, memory_agent_bench
from memalpha_kit.data.sources.building import Job
from memalpha_kit.records import Instance
from memalpha_kit.registry import Registry
from memalpha_kit.settings import BuildConfig

Builder = Callable[[Job], list[Instance]]


@dataclass(frozen=True)
class Source:
    """One raw data set: where it comes from and how it is built. `tasks.TASKS` says the rest."""

    name: str  # exact; every instance carries it
    licence: str  # of the raw data, which is never part of the kit
    files: tuple[str, ...]  # name patterns of the raw files, one match each
    build: Builder
    labels: Callable[[Path], tuple[str, ...]] | None = None  # names of the classes, by number
    hub: tuple[str, ...] = ()  # the data set on the Hugging Face hub, name patterns of its files


SOURCES: Registry[Source] = Registry("source")
RULES: Registry[dict[str, Builder]] = Registry("compat")
"""What the setting `compat` names: builders that take the place of a source's own."""
RULES.add("fixed", {})

_FACTS = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
for _name, _facts in _FACTS.items():
    _facts["hub"] = tuple(_facts.get("hub", ()))
    if _name in labelled.CORPORA:
        _facts |= {"files": labelled.CORPORA[_name][0], "build": labelled.build}
        _facts["labels"] = partial(labelled.labels, _name)
    else:
        _module = import_module(f"{__package__}.{_name.replace('-', '_')}")
        _facts |= {"files": _module.FILES, "build": _module.build}
        _facts["labels"] = getattr(_module, "labels", None)
    SOURCES.add(_name, Source(_name, **_facts))
for _name, _known in memory_agent_bench.KNOWN.items():
    _hub = (memory_agent_bench.REPOSITORY, f"*{_known.split}-*.parquet")
    _files, _licence = (memory_agent_bench.files(_known.split),), memory_agent_bench.LICENCE
    SOURCES.add(_name, Source(_name, _licence, _files, memory_agent_bench.build, hub=_hub))


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
    return builder(Job(name, Path(raw), config, seed, skips or Skips(config.on_error)))
