"""`memalpha ask`: a reader answers every instance's questions from the memories, scored."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from memalpha_kit import files as store
from memalpha_kit.commands.files import card_path, check_jsonl, finished_card, load_data
from memalpha_kit.errors import InputError
from memalpha_kit.method.episode import ask
from memalpha_kit.method.readers import READERS, reader
from memalpha_kit.method.saved import load_episodes, save_episodes
from memalpha_kit.progress import bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha ask`."""
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help="built data")
    parser.add_argument("--episodes", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--reader", required=True, metavar="NAME", help=", ".join(READERS.names()))
    parser.add_argument("--k", type=int, metavar="N", help="entries that the reader looks at")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="answers")
    parser.add_argument("--metric", metavar="NAME", help="default: the source's own")


def main(args: argparse.Namespace) -> int:
    """Asks, saves, prints one line. Raises InputError."""
    out = check_jsonl(args.out)
    if out.resolve() == args.episodes.resolve():
        raise InputError(f"{out}: expected another name than the episodes'")
    reading = reader(args.reader, **({} if args.k is None else {"k": args.k}))
    card = finished_card(args.episodes, "write")
    instances, episodes = load_data([args.data]), load_episodes(args.episodes)
    started = time.monotonic()
    with bar(len(episodes), f"ask {reading.name}") as shown:
        asked = ask(episodes, instances, reading, args.metric, shown.advance)
    seconds = time.monotonic() - started
    card_path(out).unlink(missing_ok=True)  # never an old card beside new answers
    save_episodes(out, asked)
    store.save_json(
        card_path(out),
        {
            "reader": reading.name,
            "metric": args.metric,
            "settings": card["settings"],
            "complete": True,
            "duration_s": round(card["duration_s"] + seconds, 3),
        },
    )
    scores = [answer.score for episode in asked for answer in episode.answers]
    print(f"{out}: {len(scores)} answers, {scores.count(None)} without a score")
    return 0
