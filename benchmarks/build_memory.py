"""How much memory builds of full-size raw files take: made-up files as large as the real ones.

    python benchmarks/build_memory.py                    # about 5 minutes and 1 GB of disk
    python benchmarks/build_memory.py --scale 0.02 --sources longmemeval

LongMemEval-S has 500 records of 50 sessions (265 MB of JSON), HotpotQA's training file 90,447
questions with ten articles each (565 MB). Words are drawn from a vocabulary of 50,000. Each build
is a process of its own; prints the file's size, the largest memory of that process (pages of its
own and shared ones) and its time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANCE = random.Random(0)
WORDS = ["".join(CHANCE.choices("abcdefghijklmnopqrstuvwxyz", k=1 + n % 9)) for n in range(50_000)]


def text(n: int) -> str:
    """`n` words as a sentence."""
    return " ".join(CHANCE.choices(WORDS, k=n)).capitalize() + "."


def memories(n: int) -> Iterator[dict[str, Any]]:
    """Records of LongMemEval: 50 sessions of ten turns, with an answer in one of them."""
    for number in range(n):
        sessions = [
            [
                {"role": ("user", "assistant")[i % 2], "content": text(25 if i % 2 == 0 else 290)}
                for i in range(10)
            ]
            for _ in range(50)
        ]
        sessions[7][0] |= {"has_answer": True}
        yield {
            "question_id": f"q{number}",
            "question_type": "single-session-user",
            "question": text(12),
            "answer": text(3),
            "question_date": "2023/05/30 (Tue) 23:40",
            "haystack_dates": [f"2023/05/{1 + i // 2:02} (Mon) 0{i % 10}:00" for i in range(50)],
            "haystack_session_ids": [f"s{number}_{i}" for i in range(50)],
            "haystack_sessions": sessions,
            "answer_session_ids": [f"s{number}_7"],
        }


def articles(n: int) -> Iterator[dict[str, Any]]:
    """Rows of HotpotQA: ten articles of four sentences, two of which are needed."""
    for number in range(n):
        titles = [f"Article {CHANCE.randrange(4 * n)} {i}" for i in range(10)]
        yield {
            "_id": f"h{number}",
            "question": text(18),
            "answer": text(2),
            "type": "bridge",
            "level": "medium",
            "supporting_facts": [[titles[0], 0], [titles[1], 1]],
            "context": [[title, [text(20) for _ in range(4)]] for title in titles],
        }


FULL: dict[str, tuple[str, int, Callable[[int], Iterator[dict[str, Any]]], list[str]]] = {
    "longmemeval": ("longmemeval_s.json", 500, memories, ["--rows", "any"]),
    "lme_train": ("longmemeval_s.json", 500, memories, ["--exclude", "none"]),
    "hotpotqa": ("hotpot_train_v1.1.json", 90_447, articles, []),
}


def make(path: Path, n: int, records: Callable[[int], Iterator[dict[str, Any]]]) -> None:
    """A JSON list of `n` records."""
    with open(path, "w") as file:
        for number, record in enumerate(records(n)):
            file.write("," if number else "[")
            file.write(json.dumps(record))
        file.write("]")


def measured(command: list[str]) -> tuple[float, float]:
    """Megabytes and seconds of a command in a process of its own. Raises if it fails."""
    inner = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    inner += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", inner, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - start


def main() -> None:
    """Prints a line per source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", nargs="*", choices=FULL, default=list(FULL))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for source in options.sources:
            name, n, records, more = FULL[source]
            raw = Path(folder) / Path(name).stem
            raw.mkdir(exist_ok=True)
            if not (raw / name).exists():
                make(raw / name, max(4, int(n * options.scale)), records)
            command = [sys.executable, "-m", "memalpha_kit", "data", "build", "--source", source]
            command += ["--raw", str(raw), "--out", f"{folder}/out/{source}", *more]
            peak_mb, seconds = measured(command)
            size_mb = (raw / name).stat().st_size / 1e6
            print(
                f"{source}: {size_mb:.0f} MB of JSON, {peak_mb:.0f} MB, {seconds:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
