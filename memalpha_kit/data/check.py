"""What is in data sets: statistics, ours beside the paper's, provenance, leaks.

    tables([Path("data/memalpha"), Path("data/memoryagentbench")], "wordpunct")["leaks"]

Token numbers depend on the counter. The paper counts with Qwen3-32B's tokenizer; our default needs
no download, and its name stands beside every number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memalpha_kit.data import dataset
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.hub import read_manifest, revision
from memalpha_kit.data.leaks import leaks
from memalpha_kit.data.sources.building import sizes
from memalpha_kit.files import sha256
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

PAPER = Path(__file__).parents[1] / "paper_tables" / "statistics.csv"
PAPER_COUNTER = "Qwen3-32B"
PLACE = ["dataset", "part", "source"]
RANGES = ("chunks_per_instance", "tokens_per_chunk", "tokens_per_instance")
PRINTED = ("instances", "chunks_per_instance", "tokens_per_chunk", "questions_per_instance")
"""What the paper's tables 6 to 8 have."""


def tables(paths: Sequence[Path], counter_name: str, workers: int = 1) -> dict[str, pd.DataFrame]:
    """What `memalpha data check` saves, by name: statistics, paper, provenance, leaks.

    A path that is given twice is read once. Raises InputError for one that holds no data set.
    """
    paths = list(dict.fromkeys(map(Path, paths)))
    found = [dataset.read(path) for path in paths]
    choices = ([d.name for d in found], [path.resolve().name for path in paths])
    distinct = (names for names in choices if len(set(names)) == len(names))
    names = next(distinct, list(map(str, paths)))  # their own, else their folders', else paths
    datasets = [replace(data, name=name) for data, name in zip(found, names, strict=True)]
    rows = statistics(datasets, counter_name, workers)
    return {
        "statistics": rows,
        "paper": beside_paper(rows, datasets),
        "provenance": provenance(paths, datasets),
        "leaks": leaks(datasets),
    }


def measure(data: Dataset, counter_name: str, workers: int = 1) -> pd.DataFrame:
    """A row per chunk: its tokens, and part, source, number and questions of its instance.

    Training part first. Any number of processes gives the same.
    """
    import pandas as pd

    instances = [(part, i) for part, found in data.parts.items() for i in found]
    rows = [
        (data.name, part, i.source, number, len(i.questions))
        for number, (part, i) in enumerate(instances)
        for _ in i.chunks
    ]
    config = BuildConfig(counter=counter_name, workers=workers)
    tokens = list(sizes((chunk for _, i in instances for chunk in i.chunks), config))
    table = pd.DataFrame(rows, columns=[*PLACE, "instance", "questions"])
    return table.assign(tokens=tokens).astype({"questions": "int64", "tokens": "int64"})


def statistics(datasets: Iterable[Dataset], counter_name: str, workers: int = 1) -> pd.DataFrame:
    """A row per data set, part and source: instances, questions; mean and range of each quantity.

    A training or test part without instances has no row.
    """
    import pandas as pd

    chunks = pd.concat([measure(data, counter_name, workers) for data in datasets])
    by_instance = chunks.groupby([*PLACE, "instance", "questions"], sort=False).tokens
    instances = by_instance.agg(chunks_per_instance="size", tokens_per_instance="sum").reset_index()
    instances = instances.rename(columns={"questions": "questions_per_instance"})
    chunks = chunks.rename(columns={"tokens": "tokens_per_chunk"})
    place = instances.groupby(PLACE, sort=False)
    columns = {"instances": place.size(), "questions": place.questions_per_instance.sum()}
    for name in ("chunks_per_instance", *RANGES[1:], "questions_per_instance"):
        groups = (chunks if name in chunks else instances).groupby(PLACE, sort=False)[name]
        columns |= {name: groups.mean(), f"{name}_min": groups.min(), f"{name}_max": groups.max()}
    table = pd.DataFrame(columns).reset_index()
    table.insert(3, "category", [TASKS[s].category if s in TASKS else "" for s in table.source])
    return table.assign(counter=counter_name)


def paper() -> pd.DataFrame:
    """The paper's tables 6 to 8, as printed."""
    import pandas as pd

    return pd.read_csv(PAPER, comment="#")


def beside_paper(table: pd.DataFrame, datasets: Iterable[Dataset]) -> pd.DataFrame:
    """Rows of `statistics` with what the paper prints for the same source and part, if it does.

    Training sources are held against table 6, or 7 for a merged set with the recipe "balanced";
    data sets without a training part against table 8. `counter` says which tokenizer counted ours,
    `counter_paper` which one theirs.
    """
    numbers = {data.name: _paper_table(data) for data in datasets}
    ours = table[[*PLACE, "counter", *PRINTED]].assign(table=table.dataset.map(numbers))
    theirs = paper()[["table", "split", "source", *PRINTED]].rename(columns={"split": "part"})
    both = ours.merge(theirs, "left", on=["table", "part", "source"], suffixes=("", "_paper"))
    pairs = [name for quantity in PRINTED for name in (quantity, f"{quantity}_paper")]
    return both.assign(counter_paper=PAPER_COUNTER)[
        [*PLACE, "table", *pairs, "counter", "counter_paper"]
    ]


def _paper_table(data: Dataset) -> int:
    if not data.train:
        return 8
    recipe = data.card.get("settings", {}).get("recipe") or ""
    return 7 if recipe.startswith("balanced") else 6


def provenance(paths: Sequence[Path], datasets: Sequence[Dataset]) -> pd.DataFrame:
    """A row per raw source of every data set: licence, revision, hashes of raw files and parts.

    `files` is "as in the card" or "as downloaded", "changed since" if a part's hash is another one,
    or "no card".
    """
    import pandas as pd

    rows = []
    for path, data in zip(paths, datasets, strict=True):
        state, hashes, cards = _state(path, data)
        place = {"dataset": data.name, "files": state, "data_sha256": _short(hashes)}
        for card in cards:
            known = {name: card.get(name, "unknown") for name in ("source", "licence", "revision")}
            raw = _short(card.get("raw_sha256", {}))
            rows.append({**place, **known, "seed": card.get("seed"), "raw_sha256": raw})
    return pd.DataFrame(rows)


def _state(path: Path, data: Dataset) -> tuple[str, dict[str, str], Sequence[Mapping[str, Any]]]:
    """Whether the files are those that were recorded, their hashes, and the cards of the parts."""
    folder, files = (path.parent, [path]) if path.is_file() else (path, [])
    files = files or [file for part in ("train", "test") for file in dataset.part_files(path, part)]
    hashes = {file.name: sha256(file) for file in files}
    cards = _built(data.card)
    if recorded := data.card.get("data_sha256"):
        expected = {path.name: recorded.get(path.name)} if path.is_file() else recorded
        return "as in the card" if expected == hashes else "changed since", hashes, cards
    manifest = read_manifest(folder)
    if data.card or not manifest["files"]:
        return "no card", hashes, cards
    seen = revision(folder, hashes)
    state = "changed since" if seen == "unknown" else "as downloaded"
    return state, hashes, [{"source": manifest.get("dataset", "unknown"), "revision": seen}]


def _built(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cards of the builds that a data set was merged of, or its own."""
    return [built for part in card.get("parts", ()) for built in _built(part)] or [card]


def _short(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in hashes.items())


SHOWN = (
    *("train", "test", "leak", "groups", "questions", "same_question", "repeated", "shown"),
    *("gram_share", "shared_labels", "shared_samples", "same_number"),
)


def as_text(report: Mapping[str, pd.DataFrame]) -> str:
    """The report for a terminal; of the leaks only pairs that have anything in common."""
    rows, pairs = report["statistics"], report["leaks"]

    def with_range(row: pd.Series, name: str) -> str:
        return f"{row[name]:,.1f} [{row[f'{name}_min']:,}-{row[f'{name}_max']:,}]"

    ranges = {name: rows.apply(with_range, axis=1, name=name) for name in RANGES}
    shown = rows[[*PLACE, "instances", "questions"]].assign(**ranges)
    common = pairs[(pairs[["groups", "same_question", "shown", "shared_grams"]] > 0).any(axis=1)]
    counters = ", ".join(sorted(set(rows["counter"])))
    origins = report["provenance"][["dataset", "files", "source", "revision", "licence"]]
    texts = {
        f"Statistics (tokens of {counters}; mean and range)": _plain(shown),
        f"Beside the paper, tables 6 to 8 (ours in tokens of {counters} / the paper's in those of "
        f"{PAPER_COUNTER})": _plain(_beside(report["paper"])),
        "Provenance (hashes: provenance.csv)": _plain(origins),
        f"Leaks: {sum(pairs['leak'] != '')} in {len(pairs)} pairs of a training and a test source; "
        f"{len(common)} have something in common": _plain(common[list(SHOWN)]),
    }
    return "\n\n".join(f"{title}\n{text}" for title, text in texts.items())


def _beside(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with "ours / the paper's" in one cell."""
    cells = {}
    for name in PRINTED:
        ours = table[name].map("{:,.5g}".format).astype(object)
        theirs = table[f"{name}_paper"].map("{:,.5g}".format, na_action="ignore")
        cells[name] = ours + " / " + theirs.astype(object).fillna("-")
    return table[[*PLACE, "table"]].assign(**cells)


def _plain(table: pd.DataFrame) -> str:
    if table.empty:
        return "none"
    return table.to_string(index=False, float_format="{:.3f}".format, na_rep="")
