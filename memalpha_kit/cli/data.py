"""Commands of `memalpha data`: build, merge, split, check, download, example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from memalpha_kit.cli.options import NONE, Compat, Folder, Seed, with_fields
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig

if TYPE_CHECKING:
    from memalpha_kit.data.dataset import Dataset

SourceName = Annotated[str, Option(metavar="NAME", help="{sources}")]


@with_fields
def build(
    source: SourceName,
    raw: Annotated[Path, Option(metavar="FOLDER", help="the raw files")],
    out: Folder,
    config: BuildConfig,
    seed: Seed = 0,
    train_ratio: Annotated[
        float | None,
        Option(metavar="X", help="training share [default: 0.9, or 0 for evaluation sources]"),
    ] = None,
) -> None:
    """Raw files of one source to a data set: train.parquet, test.parquet and card.json.

    Nothing is written if anything fails.
    """
    from memalpha_kit.data import dataset
    from memalpha_kit.data.build import build_source

    dataset.check_free(out)
    data = build_source(source, raw, config, seed, train_ratio)
    _save(out, data)
    card, several = data.card, len(data.train) + len(data.test) > 1
    if 0 < card["split"]["train_ratio"] < 1 and several and not (data.train and data.test):
        found = f"{card['instances']} instances in {card['split']['components']} sets that belong"
        print(f"one part is empty: {found} together (a name in `groups`, or the same questions)")
    if left := [f"{n} {rule}" for rule, n in card["dropped"].items()]:
        print(f"left out by rule: {', '.join(left)}")
    if card["skipped"]:
        print(f"{len(card['skipped'])} raw records left out, listed in {out / dataset.CARD}")


def merge(
    out: Folder,
    parts: Annotated[
        list[Path],
        Argument(metavar="FOLDER...", help="data sets, merged as given; none: those of --recipe"),
    ] = NONE,
    recipe: Annotated[str | None, Option(metavar="NAME", help="{recipes}")] = None,
    data: Annotated[Path, Option(metavar="FOLDER", help="where a recipe's data sets are")] = Path(
        "data"
    ),
    limit: Annotated[
        list[str],
        Option(metavar="N|NAME=N", help="largest training part, of all or one; may be repeated"),
    ] = NONE,
    seed: Seed = 42,
    compat: Compat = "fixed",
) -> None:
    """Several data sets to one, by a recipe or as given, beside the numbers of the paper.

    `--compat release` allows leaks between training and test.
    """
    from memalpha_kit.data import dataset
    from memalpha_kit.data.build import merge_sets

    limits = _limits(limit)
    dataset.check_free(out)
    if out.resolve() in (part.resolve() for part in parts):
        raise InputError(f"--out {out}: expected another folder than those that are merged")
    merged = merge_sets(out.resolve().name, list(parts), recipe, data, *limits, seed, compat)
    _save(out, merged)
    for name, n in merged.card["instances_by_part"].items():
        expected = "" if n["expected"] is None else f" (the paper: {n['expected']})"
        print(f"  {name}: {n['found']}{expected}")


def split(
    data: Annotated[Path, Argument(metavar="PATH", help="a data set or a parquet file")],
    out: Folder,
    train_ratio: Annotated[float, Option(metavar="X", help="training share")] = 0.9,
    seed: Seed = 0,
    compat: Compat = "fixed",
) -> None:
    """A data set, split anew: by groups, or with `--compat release` single instances, seed 42."""
    from memalpha_kit.data import dataset
    from memalpha_kit.data.build import split_set

    dataset.check_free(out)
    _save(out, split_set(data, train_ratio, seed, compat))


def check(
    data: Annotated[list[Path], Argument(metavar="PATH...", help="data sets")],
    out: Annotated[Path, Option(metavar="FOLDER", help="where the CSV files go")] = Path(
        "reports/data_check"
    ),
    counter: Annotated[str, Option(help="token counter of the columns")] = "wordpunct",
    workers: Annotated[int, Option(metavar="N", min=1, help="processes")] = 1,
    strict: Annotated[bool, Option("--strict", help="exit code 1 if there is a leak")] = False,
) -> int:
    """Statistics, provenance, ours beside the paper's, and leaks."""
    from memalpha_kit import files
    from memalpha_kit.data.check import as_text, tables

    report = tables(data, counter, workers)
    for name, table in report.items():
        files.save_table(out / f"{name}.csv", table)
    print(as_text(report))
    print(f"\n{out}: {', '.join(f'{name}.csv' for name in report)}")
    return int(strict and any(report["leaks"]["leak"]))


def download(
    name: Annotated[
        str | None, Argument(metavar="OWNER/NAME", help="none with --dry-run: all")
    ] = None,
    revision: Annotated[
        str | None, Option(metavar="HEX", help="commit of the data set, 40 hex digits")
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FOLDER", help="[default: data/NAME, raw files data/raw/NAME]")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="only say what would be done")] = False,
) -> None:
    """Raw files or published data sets from the Hugging Face hub, checked."""
    from memalpha_kit.data import hub

    if name is None and not dry_run:
        raise InputError(f"download: expected a data set: {', '.join(hub.hub_sets())}")
    for one in [name] if name else hub.hub_sets():
        print("\n".join(hub.describe(hub.download(one, revision, out, dry_run))))


def example(source: SourceName, out: Folder) -> None:
    """Small made-up raw files of a source, in the true format."""
    from memalpha_kit.data.examples import write_raw

    for path in write_raw(source, out):
        print(path)


def _save(out: Path, data: Dataset) -> None:
    from memalpha_kit.data import dataset

    dataset.save(out, data)
    print(
        f"{out}: {len(data.train)} training and {len(data.test)} test instances, "
        f"{data.card['chunks']} chunks, {data.card['questions']} questions, "
        f"{data.card['characters']} characters"
    )


def _limits(texts: Sequence[str]) -> tuple[int | None, dict[str, int]]:
    """The limit of every part and those by name. Raises InputError for what is no number."""
    limits = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or text[0] == "=":
            raise InputError(f"--limit: expected N or NAME=N, found {text!r}")
        limits[name] = int(number)
    return limits.pop("", None), limits
