"""What is in a data set, for a reviewer: cards, statistics, ours beside the paper's, provenance.

A card (`card.json`) says what was made from what: settings, seed, licence, revision, hashes of the
raw files and of both parts, counts, what was left out, how the split was made. It says nothing of
the day, the folder or the number of processes, so the same command gives the same card.

Token numbers depend on the counter. The paper counts with Qwen3-32B's tokenizer; our default needs
no download, and its name stands beside every number.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from memalpha_kit import __version__
from memalpha_kit import files as store
from memalpha_kit.data import dataset
from memalpha_kit.data.dataset import Dataset, Recipe
from memalpha_kit.data.hub import MANIFEST
from memalpha_kit.data.leaks import leaks
from memalpha_kit.data.sources import Source
from memalpha_kit.data.sources.building import Skips, matches, sizes
from memalpha_kit.records import Instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS, task

if TYPE_CHECKING:
    import pandas as pd

PAPER = Path(__file__).parents[1] / "paper_tables" / "statistics.csv"
NOT_IN_CARD = ("workers", "llm_cache")
"""Settings that change how fast a build is, never what it gives."""
BINS = 10


# --- Measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The sizes of one instance."""

    part: str  # "train" or "test"
    source: str
    tokens: tuple[int, ...]  # of each chunk
    questions: int


def measure(data: Dataset, counter_name: str, workers: int = 1) -> list[Measured]:
    """Sizes of all instances, training part first. Any number of processes gives the same."""
    instances = [(part, i) for part, held in data.parts.items() for i in held]
    config = BuildConfig(counter=counter_name, workers=workers)
    tokens = sizes((chunk for _, i in instances for chunk in i.chunks), config)
    return [
        Measured(part, i.source, tuple(next(tokens) for _ in i.chunks), len(i.questions))
        for part, i in instances
    ]


# --- Cards ---------------------------------------------------------------------------------------


def build_card(
    data: Dataset,
    named: Source,
    raw: Path,
    config: BuildConfig,
    seed: int,
    skips: Skips,
    ratio: float,
) -> dict[str, Any]:
    """The card of a data set that was built from raw files."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IN_CARD}
    files = [path for pattern in named.files for path in matches(Path(raw), pattern)]
    labels = {named.name: list(named.labels(Path(raw)))} if named.labels else {}
    return {
        "name": data.name,
        "made_by": "build",
        "source": named.name,
        "role": task(named.name).role,
        "category": task(named.name).category,
        "metric": task(named.name).metric,
        "licence": named.licence,
        "revision": named.revision,
        "seed": seed,
        "settings": settings,
        "raw_sha256": {path.name: store.sha256(path) for path in files},
        **totals(data),
        "split": {
            "train_ratio": ratio,
            "rule": "instances" if config.compat == "release" else "groups",
            "components": len(dataset.components([*data.train, *data.test])),
            "shared_groups": len(dataset.shared_groups(data.train, data.test)),
        },
        **skips.card(),
        "labels": labels,
        "versions": versions(),
    }


def merge_card(
    merged: Dataset, parts: Sequence[Dataset], settings: Mapping[str, Any], recipe: Recipe | None
) -> dict[str, Any]:
    """The card of a data set that was merged; the cards of its parts are in it.

    Under a recipe every part has the number of instances that the paper has beside ours.
    """
    inner = [dict(part.card) or {"name": part.name} for part in parts]
    expected = dict(recipe.expected) if recipe else {}
    kept = (*(i.id for i in merged.train), *(i.id for i in merged.test))
    found = {part.name: _count_kept(part, set(kept)) for part in parts}
    return {
        "name": merged.name,
        "made_by": "merge",
        "settings": dict(settings),
        "instances_by_part": {
            name: {"found": n, "expected": expected.get(name)} for name, n in found.items()
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
        "name": data.name,
        "made_by": "split",
        **totals(data),
        "split": {
            **settings,
            "components": len(dataset.components([*data.train, *data.test])),
            "shared_groups": len(dataset.shared_groups(data.train, data.test)),
        },
        "versions": versions(),
    }


def totals(data: Dataset) -> dict[str, Any]:
    """Counts of all instances and of each part.

    Characters, not tokens: those would cost a build as much again as its packing, and `data check`
    prints them, with a counter of one's choice.
    """

    def count(chosen: Sequence[Instance]) -> dict[str, int]:
        return {
            "instances": len(chosen),
            "chunks": sum(len(i.chunks) for i in chosen),
            "questions": sum(len(i.questions) for i in chosen),
            "characters": sum(len(chunk) for i in chosen for chunk in i.chunks),
        }

    parts = {part: count(held) for part, held in data.parts.items()}
    return {**count([*data.train, *data.test]), "parts_counts": parts}


def versions() -> dict[str, str]:
    """Versions of what shapes the bytes of a data set."""
    return {
        "memalpha_kit": __version__,
        "python": platform.python_version(),
        "pyarrow": pyarrow.__version__,
    }


# --- Statistics ----------------------------------------------------------------------------------


def values(measured: Iterable[Measured]) -> dict[str, list[int]]:
    """All values of each quantity that has a mean, a range and a histogram."""
    held = list(measured)
    return {
        "chunks_per_instance": [len(m.tokens) for m in held],
        "tokens_per_chunk": [n for m in held for n in m.tokens],
        "tokens_per_instance": [sum(m.tokens) for m in held],
        "questions_per_instance": [m.questions for m in held],
    }


def statistics(
    datasets: Iterable[Dataset], counter_name: str, workers: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables: a row per data set, part and source; a row per bin of each histogram.

    The first has `instances`, `questions`, and mean, `_min` and `_max` of each quantity; a training
    or test part without instances has no row.
    """
    import pandas as pd

    rows, bins = [], []
    for data in datasets:
        for (part, source), held in _by_source(measure(data, counter_name, workers)):
            place = {"dataset": data.name, "part": part, "source": source}
            row: dict[str, Any] = {**place, "category": _category(source), "instances": len(held)}
            row["questions"] = sum(m.questions for m in held)
            for name, found in values(held).items():
                row[name] = sum(found) / len(found)
                row[f"{name}_min"], row[f"{name}_max"] = min(found), max(found)
                bins += [{**place, "quantity": name, **b} for b in histogram(found)]
            rows.append({**row, "counter": counter_name})
    return pd.DataFrame(rows), pd.DataFrame(bins)


def _by_source(measured: Iterable[Measured]) -> list[tuple[tuple[str, str], list[Measured]]]:
    found: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        found.setdefault((one.part, one.source), []).append(one)
    return sorted(found.items(), key=lambda item: (item[0][0] != "train", item[0][1]))


def _category(source: str) -> str:
    return TASKS[source].category if source in TASKS else ""


def histogram(found: Sequence[int]) -> list[dict[str, int]]:
    """At most `BINS` bins of one width from the smallest value to the largest, ends included."""
    low, high = min(found), max(found)
    width = -(-(high - low + 1) // BINS)
    counts = [0] * ((high - low) // width + 1)
    for value in found:
        counts[(value - low) // width] += 1
    return [
        {"low": low + k * width, "high": low + (k + 1) * width - 1, "count": n}
        for k, n in enumerate(counts)
    ]


# --- Ours beside the paper's ---------------------------------------------------------------------

PRINTED = ("instances", "chunks_per_instance", "tokens_per_chunk", "questions_per_instance")


def paper() -> pd.DataFrame:
    """The paper's tables 6 to 8, as printed."""
    import pandas as pd

    return pd.read_csv(PAPER, comment="#")


def beside_paper(table: pd.DataFrame, datasets: Iterable[Dataset]) -> pd.DataFrame:
    """Rows of `statistics` with what the paper prints for the same source and part, if it does.

    Training sources are held against table 6, or 7 for a merged set with the recipe "balanced";
    data sets without a training part against table 8.
    """
    import pandas as pd

    known = {(row["table"], row["split"], row["source"]): row for row in paper().to_dict("records")}
    tables = {data.name: _paper_table(data) for data in datasets}
    rows = []
    for ours in table.to_dict("records"):
        number = tables[ours["dataset"]]
        theirs = known.get((number, ours["part"], ours["source"]), {})
        row = {**{name: ours[name] for name in ("dataset", "part", "source")}, "table": number}
        for name in PRINTED:
            row |= {name: ours[name], f"{name}_paper": theirs.get(name)}
        rows.append(row)
    return pd.DataFrame(rows)


def _paper_table(data: Dataset) -> int:
    if not data.train:
        return 8
    recipe = data.card.get("settings", {}).get("recipe") or ""
    return 7 if recipe.startswith("balanced") else 6


# --- Provenance ----------------------------------------------------------------------------------


def provenance(folders: Mapping[str, Path], datasets: Iterable[Dataset]) -> pd.DataFrame:
    """A row per raw source of every data set: licence, revision, hashes of raw files and parts.

    `files` is "as in the card", "changed since" if a part's hash is another one, or "no card".
    """
    import pandas as pd

    rows = []
    for data in datasets:
        folder = folders[data.name]
        hashes, recorded = _hashes(folder), data.card.get("data_sha256")
        state = "as in the card" if recorded == hashes else "changed since"
        state = "no card" if recorded is None else state
        place = {"dataset": data.name, "files": state, "data_sha256": _short(hashes)}
        cards = data.card.get("parts") or [data.card or _downloaded(folder)]
        rows += [{**place, **_origin(card)} for card in cards]
    return pd.DataFrame(rows)


def _origin(card: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source": card.get("source", "unknown"),
        "licence": card.get("licence", "unknown"),
        "revision": card.get("revision", "unknown"),
        "seed": card.get("seed"),
        "raw_sha256": _short(card.get("raw_sha256", {})),
    }


def _downloaded(folder: Path) -> dict[str, Any]:
    """What the manifest of a download says; empty without one."""
    if not (folder / MANIFEST).is_file():
        return {}
    found = store.load_json(folder / MANIFEST)
    return {"source": found.get("dataset", "unknown"), "revision": found.get("revision", "unknown")}


def _hashes(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.name: store.sha256(path)}
    files = [file for part in ("train", "test") for file in dataset.part_files(path, part)]
    return {file.name: store.sha256(file) for file in files}


def _short(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in hashes.items())


# --- The whole report ----------------------------------------------------------------------------


def tables(paths: Sequence[Path], counter_name: str, workers: int = 1) -> dict[str, pd.DataFrame]:
    """What `memalpha data check` saves: statistics, histograms, paper, provenance, leaks.

    Raises InputError for a path that holds no data set.
    """
    found = [dataset.read(path) for path in paths]
    datasets = [replace(d, name=n) for d, n in zip(found, _names(paths, found), strict=True)]
    folders = {data.name: Path(path) for path, data in zip(paths, datasets, strict=True)}
    rows, bins = statistics(datasets, counter_name, workers)
    return {
        "statistics": rows,
        "histograms": bins,
        "paper": beside_paper(rows, datasets),
        "provenance": provenance(folders, datasets),
        "leaks": leaks(datasets),
    }


def _names(paths: Sequence[Path], datasets: Sequence[Dataset]) -> list[str]:
    """Names that tell the data sets apart: their own, else their folders', else their paths."""
    for names in ([d.name for d in datasets], [Path(path).resolve().name for path in paths]):
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


BARS = "▁▂▃▄▅▆▇█"


def as_text(report: Mapping[str, pd.DataFrame]) -> str:
    """The report for a terminal; of the leaks only pairs that have anything in common."""
    rows = report["statistics"]
    shown = [
        {
            **{name: row[name] for name in ("dataset", "part", "source", "instances", "questions")},
            **{name: _with_range(row, name) for name in RANGES},
            "tokens": _bars(report["histograms"], row, "tokens_per_instance"),
        }
        for row in rows.to_dict("records")
    ]
    pairs = report["leaks"]
    common = pairs[(pairs[["groups", "same_question", "shown", "shared_grams"]] > 0).any(axis=1)]
    texts = {
        f"Statistics ({', '.join(sorted(set(rows['counter'])))} tokens; mean, range, "
        "histogram of tokens per instance)": _plain(shown),
        "Beside the paper (tables 6 to 8)": _plain(_beside(report["paper"])),
        "Provenance": _origins(report["provenance"]),
        f"Leaks: {sum(pairs['leak'] != '')} in {len(pairs)} pairs of a training and a test source; "
        f"{len(common)} have something in common": _plain(common[list(SHOWN)].to_dict("records")),
    }
    return "\n\n".join(f"{title}\n{text}" for title, text in texts.items())


RANGES = ("chunks_per_instance", "tokens_per_chunk", "tokens_per_instance")
SHOWN = (
    *("train", "test", "leak", "groups", "questions", "same_question", "repeated", "shown"),
    *("gram_share", "shared_labels", "shared_samples", "same_number"),
)


def _with_range(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:,.1f} [{row[f'{name}_min']:,}-{row[f'{name}_max']:,}]"


def _bars(bins: pd.DataFrame, row: Mapping[str, Any], quantity: str) -> str:
    held = bins[bins["quantity"] == quantity]
    for name in ("dataset", "part", "source"):
        held = held[held[name] == row[name]]
    top = max(held["count"])
    return "".join(BARS[-(-n * (len(BARS) - 1) // top)] for n in held["count"])


def _beside(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with "ours / the paper's" in one cell."""

    def cell(row: Mapping[str, Any], name: str) -> str:
        theirs = row[f"{name}_paper"]
        return f"{row[name]:,.5g} / " + (f"{theirs:,.5g}" if theirs == theirs and theirs else "-")

    return [
        {name: row[name] for name in ("dataset", "part", "source", "table")}
        | {name: cell(row, name) for name in PRINTED}
        for row in table.to_dict("records")
    ]


def _origins(table: pd.DataFrame) -> str:
    """A few lines per data set, hashes cut to twelve digits; the saved table has them whole."""
    lines = []
    for place, held in table.groupby(["dataset", "files", "data_sha256"], sort=False):
        lines.append(f"{place[0]}: {place[1]}; sha256 {_cut(place[2])}")
        lines += [
            f"  {row.source}: {row.licence}; revision {row.revision}; raw {_cut(row.raw_sha256)}"
            for row in held.itertuples()
        ]
    return "\n".join(lines) or "none"


def _cut(hashes: str) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", hashes) or "unknown"


def _plain(rows: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    if not rows:
        return "none"
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format, na_rep="")
