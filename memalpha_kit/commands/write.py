"""`memalpha write`: a writer reads every instance chunk by chunk and leaves one line per episode.

Episodes are appended as they are finished. The same command again goes on where it stopped; other
settings are refused, because one file never holds episodes of two settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memalpha_kit import files as store
from memalpha_kit.commands import add_profile_arguments, profile_of
from memalpha_kit.commands.files import card_path, check_jsonl, data_file, load_card
from memalpha_kit.data.instances import load_instances
from memalpha_kit.errors import InputError
from memalpha_kit.method.episode import episode_id, write
from memalpha_kit.method.saved import append_episode, load_episodes
from memalpha_kit.method.writers import WRITERS, ModelWriter, Writer, writer
from memalpha_kit.progress import bar
from memalpha_kit.records import Instance
from memalpha_kit.settings import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha write`."""
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help="built data")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--writer", metavar="NAME", help=f"a scripted writer: {', '.join(WRITERS.names())}"
    )
    who.add_argument("--model", type=Path, metavar="FOLDER", help="a local causal language model")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="episodes")
    parser.add_argument(
        "--instances", type=int, metavar="N", help="only the first N (default: all)"
    )
    parser.add_argument(
        "--rollouts", type=int, default=1, metavar="N", help="episodes per instance"
    )
    parser.add_argument("--seed", type=int, default=0, help="starts every draw (default: 0)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="instances at a time")
    parser.add_argument("--temperature", type=float, default=0.0, help="of --model; 0 is greedy")
    parser.add_argument("--device", default="cpu", help="of --model, e.g. cuda (default: cpu)")
    add_profile_arguments(parser, default="real")


def main(args: argparse.Namespace) -> int:
    """Writes all episodes that are not there yet. Raises InputError."""
    out, file = check_jsonl(args.out), data_file(args.data)
    for option in ("instances", "rollouts", "batch"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise InputError(f"--{option}: expected at least 1, found {value}")
    profile = profile_of(args)
    instances = load_instances(file)[: args.instances]
    settings = _settings(args, profile, store.fingerprint([file]))
    made = _writer(args, profile)
    card = _open(out, settings)
    written = _write_missing(args, profile, instances, made, out, card)
    card |= {"complete": True, "episodes": len(instances) * args.rollouts}
    store.save_json(card_path(out), card)
    print(f"{out}: {card['episodes']} episodes, {written} of them new")
    return 0


def _settings(args: argparse.Namespace, profile: Profile, data: str) -> dict[str, Any]:
    """Everything that the episodes depend on, as plain values."""
    settings = {
        "data_sha256": data,
        "writer": args.writer or f"model:{args.model.name}",
        "temperature": args.temperature if args.model else None,
        "instances": args.instances,
        "rollouts": args.rollouts,
        "seed": args.seed,
        "memory": dataclasses.asdict(profile.memory),
        "protocol": dataclasses.asdict(profile.protocol),
    }
    return json.loads(json.dumps(settings))  # as they come back from disk


def _writer(args: argparse.Namespace, profile: Profile) -> Writer:
    if args.writer:
        return writer(args.writer, profile.protocol.wire)
    from memalpha_kit.models.local import Sampling, load_lm

    sampling = Sampling(args.temperature, profile.protocol.max_reply_tokens)
    lm = load_lm(args.model, args.device)
    return ModelWriter(lm, profile.memory, profile.protocol, sampling)


def _open(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The card of `out`: a new one, or the old one if its settings are the same."""
    card = load_card(out)
    if card is None:
        if out.exists():
            raise InputError(f"{out}: is there without {card_path(out).name}; choose another --out")
        card = {"settings": settings, "complete": False, "duration_s": 0.0}
        store.save_json(card_path(out), card)
        return card
    old, new = store.flat(card.get("settings") or {}), store.flat(settings)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise InputError(
                f"{out}: was begun with {key} = {old.get(key)}, now it is {new.get(key)}; "
                "choose another --out or delete it"
            )
    return card


def _write_missing(
    args: argparse.Namespace,
    profile: Profile,
    instances: list[Instance],
    made: Writer,
    out: Path,
    card: dict[str, Any],
) -> int:
    """How many episodes were written and appended, batch by batch."""
    there = {episode.id for episode in load_episodes(out, resume=True)}
    todo = [i for i in instances if not _done(i, args.rollouts, there)]
    written = 0
    with bar(sum(len(i.chunks) for i in todo) * args.rollouts, f"write {made.name}") as shown:
        for start in range(0, len(todo), args.batch):
            started = time.monotonic()
            batch = todo[start : start + args.batch]
            episodes = write(
                batch,
                made,
                profile.memory,
                profile.protocol,
                args.rollouts,
                args.seed,
                shown.advance,
            )
            for episode in episodes:
                if episode.id not in there:
                    append_episode(out, episode)
                    written += 1
            card["duration_s"] = round(card["duration_s"] + time.monotonic() - started, 3)
            store.save_json(card_path(out), card)
    return written


def _done(instance: Instance, rollouts: int, there: set[str]) -> bool:
    return all(episode_id(instance.id, number) in there for number in range(rollouts))
