"""`memalpha write`: a writer reads every instance chunk by chunk and leaves one line per episode.

Episodes are appended as they are finished. The same command again goes on where it stopped; other
settings are refused, because one file never holds episodes of two settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memalpha_kit import files
from memalpha_kit.commands import add_profile_arguments, profile_of
from memalpha_kit.commands.files import card_path, check_jsonl, data_file
from memalpha_kit.data.instances import load_instances
from memalpha_kit.errors import InputError
from memalpha_kit.method.episode import episode_id, write
from memalpha_kit.method.saved import episode_fields, load_episodes
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
    settings = _settings(args, profile, files.fingerprint([file]))
    made = _writer(args, profile)
    if out.exists() and not card_path(out).exists():
        raise InputError(f"{out}: is there without {card_path(out).name}; choose another --out")

    def mark(**state: object) -> None:
        """Says in the card how far the file is."""
        free = ("complete", "duration_s")
        files.resume_or_refuse(out.parent, settings | state, free, card_path(out).name)

    mark()
    with files.Log(out) as log:
        written = _write_missing(args, profile, instances, made, log, mark)
    episodes = load_episodes(out)
    mark(complete=True)
    calls = [call for episode in episodes for call in episode.calls]
    steps = [step for episode in episodes for step in episode.steps]
    worked = sum(call.status == "ok" for call in calls)
    silent = sum(not step.calls for step in steps)
    print(f"{out}: {len(episodes)} episodes, {written} of them new")
    print(f"{len(calls)} calls, {worked} worked; no call in {silent} of {len(steps)} chunks")
    if args.model and 2 * silent > len(steps):
        print(
            "memalpha: the model made no call in most chunks; does its chat template show tools? "
            "--set protocol.wire=text asks for marker text instead",
            file=sys.stderr,
        )
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


def _write_missing(
    args: argparse.Namespace,
    profile: Profile,
    instances: list[Instance],
    made: Writer,
    log: files.Log,
    mark: Callable[..., None],
) -> int:
    """How many episodes were written and appended, batch by batch."""
    there = {episode.id for episode in load_episodes(log.path)}
    todo = [
        instance
        for instance in instances
        if not all(episode_id(instance.id, number) in there for number in range(args.rollouts))
    ]
    written, started = 0, time.monotonic()
    with bar(sum(len(i.chunks) for i in todo) * args.rollouts, f"write {made.name}") as shown:
        for start in range(0, len(todo), args.batch):
            batch, settings = todo[start : start + args.batch], (profile.memory, profile.protocol)
            for episode in write(batch, made, *settings, args.rollouts, args.seed, shown.advance):
                if episode.id not in there:
                    log.append(episode_fields(episode))
                    written += 1
    if written:
        mark(duration_s=round(time.monotonic() - started, 3))
    return written
