"""`memalpha data`: raw files to data sets, and what a reviewer wants to know about them.

build     raw files of one source -> FOLDER/{train.parquet, test.parquet, card.json}
merge     several data sets -> one, by a recipe or as given
split     a data set -> the same instances, split anew
check     statistics, provenance, ours beside the paper's, leaks
download  raw files or published data sets from the Hugging Face hub
example   small made-up raw files of a source
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from memalpha_kit import files as store
from memalpha_kit.data import dataset
from memalpha_kit.data.dataset import MERGE_SEED, Dataset
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands; `build` has an option per field of `BuildConfig`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    _add_build(_step(steps, "build", "raw files to a data set", build))
    _add_merge(_step(steps, "merge", "several data sets to one", merge))
    _add_split(_step(steps, "split", "the same instances, split anew", split))
    _add_check(_step(steps, "check", "statistics, provenance and leaks", check))
    _add_download(_step(steps, "download", "data sets from the Hugging Face hub", download))
    _add_example(_step(steps, "example", "made-up raw files of a source", example))


def main(args: argparse.Namespace) -> int:
    """Runs the step. Raises InputError."""
    return args.step(args)


def _step(steps, name: str, about: str, step) -> argparse.ArgumentParser:
    parser = steps.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(parser=parser, step=step)
    return parser


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="what is written")


# --- build ---------------------------------------------------------------------------------------


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--raw", required=True, type=Path, metavar="FOLDER", help="the raw files")
    _out(parser)
    parser.add_argument("--seed", type=int, default=0, help="starts every draw (default: 0)")
    parser.add_argument(
        "--train-ratio",
        type=float,
        metavar="X",
        help="share of the training part (default: 0.9, or 0 for evaluation sources)",
    )
    for field in dataclasses.fields(BuildConfig):
        kind = str if isinstance(field.default, str) else int
        option = f"--{field.name.replace('_', '-')}"
        text = "not set" if field.default is None else str(field.default)
        parser.add_argument(option, type=kind, default=field.default, help=f"default: {text}")


def build(args: argparse.Namespace) -> int:
    """Builds, splits, saves with a card, prints one line; nothing is written if anything fails."""
    from memalpha_kit.data.build import build_source

    names = [field.name for field in dataclasses.fields(BuildConfig)]
    config = BuildConfig(**{name: getattr(args, name) for name in names})
    dataset.check_free(args.out)
    data = build_source(args.source, args.raw, config, args.seed, args.train_ratio)
    _save(args.out, data)
    card, several = data.card, len(data.train) + len(data.test) > 1
    if 0 < card["split"]["train_ratio"] < 1 and several and not (data.train and data.test):
        print("all instances belong together, so one part is empty (groups in their metadata)")
    if card["skipped"]:
        print(f"{len(card['skipped'])} raw records left out, listed in {args.out / dataset.CARD}")
    return 0


def _save(out: Path, data: Dataset) -> None:
    dataset.save(out, data)
    print(
        f"{out}: {len(data.train)} training and {len(data.test)} test instances, "
        f"{data.card['chunks']} chunks, {data.card['questions']} questions, "
        f"{data.card['characters']} characters"
    )


# --- merge ---------------------------------------------------------------------------------------


def _add_merge(parser: argparse.ArgumentParser) -> None:
    from memalpha_kit.data.build import DEFAULT_RECIPE, RECIPES

    recipes = "; ".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items())
    parser.add_argument(
        "parts",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help=f"data sets, merged as given; without any, those in --data that {DEFAULT_RECIPE!r} or "
        "--recipe names",
    )
    parser.add_argument("--recipe", metavar="NAME", help=recipes)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="FOLDER", help="default: data"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="N|NAME=N",
        help="largest training part of each, or of this one or this source; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=MERGE_SEED, help="default: 42")
    parser.add_argument(
        "--compat",
        default="fixed",
        choices=("fixed", "release"),
        help="release: leaks between training and test are allowed",
    )
    _out(parser)


def merge(args: argparse.Namespace) -> int:
    """Merges, saves with a card, prints the counts beside the expected ones."""
    from memalpha_kit.data.build import merge_sets

    limit, limits = _limits(args.limit)
    dataset.check_free(args.out)
    merged = merge_sets(
        *(args.out.resolve().name, args.parts, args.recipe, args.data),
        **{"limit": limit, "limits": limits, "seed": args.seed, "compat": args.compat},
    )
    _save(args.out, merged)
    for name, n in merged.card["instances_by_part"].items():
        expected = "" if n["expected"] is None else f" (the paper: {n['expected']})"
        print(f"  {name}: {n['found']}{expected}")
    return 0


def _limits(texts: Sequence[str]) -> tuple[int | None, dict[str, int]]:
    """The limit of every part and those by name. Raises InputError for what is no number."""
    limit, limits = None, {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal():
            raise InputError(f"--limit: expected N or NAME=N, found {text!r}")
        if equals:
            limits[name] = int(number)
        else:
            limit = int(number)
    return limit, limits


# --- split ---------------------------------------------------------------------------------------


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="PATH", help="a data set or a parquet file")
    parser.add_argument("--train-ratio", type=float, default=0.9, metavar="X", help="default: 0.9")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--compat",
        default="fixed",
        choices=("fixed", "release"),
        help="fixed: by groups; release: single instances, with seed 42",
    )
    _out(parser)


def split(args: argparse.Namespace) -> int:
    """Puts both parts together, splits them, saves with a card."""
    from memalpha_kit.data.build import split_set

    dataset.check_free(args.out)
    _save(args.out, split_set(args.data, args.train_ratio, args.seed, args.compat))
    return 0


# --- check ---------------------------------------------------------------------------------------


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", type=Path, metavar="PATH", help="data sets")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/data_check"),
        metavar="FOLDER",
        help="where the CSV files go (default: reports/data_check)",
    )
    parser.add_argument("--counter", default="wordpunct", help="of the token columns")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if there is a leak")


def check(args: argparse.Namespace) -> int:
    """Prints and saves the tables of `data.check`. 1 if there is a leak under `--strict`."""
    from memalpha_kit.data.check import as_text, tables

    if args.workers < 1:
        raise InputError(f"--workers: expected at least 1, found {args.workers}")
    report = tables(args.data, args.counter, args.workers)
    for name, table in report.items():
        store.save_table(args.out / f"{name}.csv", table)
    print(as_text(report))
    print(f"\n{args.out}: {', '.join(f'{name}.csv' for name in report)}")
    return int(args.strict and any(report["leaks"]["leak"]))


# --- download ------------------------------------------------------------------------------------


def _add_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="OWNER/NAME", help="the data set; none with --dry-run: all"
    )
    parser.add_argument("--revision", metavar="HEX", help="commit of the data set, 40 hex digits")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: data/NAME, raw files data/raw/NAME"
    )
    parser.add_argument("--any-rows", action="store_true", help="accept other numbers of rows")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def download(args: argparse.Namespace) -> int:
    """Fetches and checks a data set, or says what that would be."""
    from memalpha_kit.data import hub

    if args.name is None and not args.dry_run:
        raise InputError(f"download: expected a data set: {', '.join(hub.hub_sets())}")
    for name in [args.name] if args.name else hub.hub_sets():
        done = hub.download(name, args.revision, args.out, args.dry_run, args.any_rows)
        print("\n".join(hub.describe(done)))
    return 0


# --- example -------------------------------------------------------------------------------------


def _add_example(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="NAME", help="whose raw files")
    _out(parser)


def example(args: argparse.Namespace) -> int:
    """Writes made-up raw files and prints their names."""
    from memalpha_kit.data.examples import write_raw

    for path in write_raw(args.source, args.out):
        print(path)
    return 0
