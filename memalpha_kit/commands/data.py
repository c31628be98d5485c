"""`memalpha data build`: raw files of one source to instances.parquet and card.json."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memalpha_kit import sources, store
from memalpha_kit.commands.files import CARD, INSTANCES
from memalpha_kit.config import BuildConfig
from memalpha_kit.errors import InputError
from memalpha_kit.records import Instance
from memalpha_kit.sources import SOURCES, Source, source
from memalpha_kit.text import counter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand `build` and its options, one per field of `BuildConfig`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    build = steps.add_parser("build", help="raw files to instances", allow_abbrev=False)
    build.set_defaults(parser=build)
    build.add_argument("--source", required=True, metavar="NAME", help=", ".join(SOURCES))
    build.add_argument("--raw", required=True, type=Path, metavar="FOLDER", help="the raw files")
    build.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="what is written")
    build.add_argument("--seed", type=int, default=0, help="starts every draw (default: 0)")
    for field in dataclasses.fields(BuildConfig):
        kind = str if isinstance(field.default, str) else int
        option = f"--{field.name.replace('_', '-')}"
        text = "not set" if field.default is None else str(field.default)
        build.add_argument(option, type=kind, default=field.default, help=f"default: {text}")


def main(args: argparse.Namespace) -> int:
    """Builds, saves, prints one line. Raises InputError."""
    named = source(args.source)
    names = [field.name for field in dataclasses.fields(BuildConfig)]
    config = BuildConfig(**{name: getattr(args, name) for name in names})
    instances = sources.build(named.name, args.raw, config, args.seed)
    store.save_instances(args.out / INSTANCES, instances)
    card = data_card(named, args.raw, config, args.seed, instances)
    card["data_sha256"] = store.fingerprint([args.out / INSTANCES])
    store.save_json(args.out / CARD, card)
    print(
        f"{args.out / INSTANCES}: {card['instances']} instances, {card['chunks']} chunks, "
        f"{card['questions']} questions, {card['chunk_tokens']} {config.counter} tokens"
    )
    return 0


def data_card(
    named: Source, raw: Path, config: BuildConfig, seed: int, instances: Sequence[Instance]
) -> dict[str, Any]:
    """What was built from what: settings, hashes of the raw files, counts."""
    measure = counter(config.counter)
    return {
        "source": named.name,
        "metric": named.metric,
        "licence": named.licence,
        "seed": seed,
        "settings": dataclasses.asdict(config),
        "raw_sha256": {
            path.name: _sha256(path)
            for pattern in named.files
            for path in sorted(raw.glob(pattern))
        },
        "instances": len(instances),
        "chunks": sum(len(instance.chunks) for instance in instances),
        "questions": sum(len(instance.questions) for instance in instances),
        "chunk_tokens": sum(measure.count(c) for instance in instances for c in instance.chunks),
    }


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error
