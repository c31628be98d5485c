"""How fast raw files become data sets, beside how fast their text can be tokenised at all.

    nice -n 19 python benchmarks/data_speed.py          # a few minutes, one core
    python benchmarks/data_speed.py --scale 0.02        # a look, in seconds

Two made-up raw files, of a size and of twice that size: a PubMed file of 200,000 sentences and a
LongMemEval file of 10 MB. Each is built in a process of its own by what `memalpha data build` runs:
raw file, instances, split, card, parquet. The bare tokenizer counts the very chunks that were
built. Two counters: the default "wordpunct", and a byte-level BPE trained on the same text, which
is the kind of tokenizer that Qwen3 has and runs in the same library.

Seconds are processor time, so that other work on the machine does not count. `ratio` is tokens per
second of the build over those of the bare tokenizer; `growth` is the time of this row over that of
half the input; `peak_mb` is the process's largest memory until the data set is saved.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is not installed

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "reports" / "recorded" / "data_speed.csv"
SENTENCES, DIALOGUE_MB = 200_000, 10
SOURCES = {"pubmed-rct": "pubmed_train.parquet", "longmemeval": "longmemeval_s.json"}
COLUMNS = (
    *("source", "counter", "input", "input_mb", "instances", "chunks", "tokens"),
    *("build_s", "bare_s", "build_tokens_per_s", "bare_tokens_per_s", "ratio"),
    *("growth", "peak_mb"),
)


def write_pubmed(path: Path, n_sentences: int) -> None:
    """A raw PubMed file of so many sentences."""
    from tools.sample_data import pubmed_parquet

    path.write_bytes(pubmed_parquet(n_sentences, random.Random("speed")))


def write_dialogues(path: Path, megabytes: float) -> None:
    """A raw LongMemEval file of about this size."""
    from tools.sample_data import dialogues

    like_real = dialogues.Answers(fewest=10, most=45, huge=0.002)
    records, size, rng = [], 0, random.Random("speed")
    while size < megabytes * 1e6:
        (record,) = dialogues.longmemeval(1, 40, rng, like_real)
        record["question_id"] = f"q{len(records)}"
        records.append(json.dumps(record))
        size += len(records[-1])
    path.write_text(f"[{','.join(records)}]", encoding="utf-8")


def train_tokenizer(folder: Path, texts: list[str]) -> str:
    """The counter's name of a byte-level BPE of 8,192 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return f"hf:{folder}"


def measure(source: str, raw: Path, counter_name: str, out: Path) -> dict[str, float]:
    """One build, timed; runs in a process of its own for the sake of its peak memory."""
    from memalpha_kit.data import dataset
    from memalpha_kit.data.build import build_source
    from memalpha_kit.settings import BuildConfig
    from memalpha_kit.tokens import counter

    config = BuildConfig(counter=counter_name, instances=100_000)  # all that the file is enough for
    count = counter(counter_name).count
    count("The tokenizer is loaded before the clock starts.")
    started = time.process_time()
    built = build_source(source, raw, config, 0, 0.9)
    dataset.save(out, built)
    build_s = time.process_time() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    chunks = [chunk for instance in (*built.train, *built.test) for chunk in instance.chunks]
    started = time.process_time()
    tokens = sum(map(count, chunks))
    bare_s = time.process_time() - started
    return {
        "instances": len(built.train) + len(built.test),
        "chunks": len(chunks),
        "tokens": tokens,
        "build_s": build_s,
        "bare_s": bare_s,
        "peak_mb": peak_mb,
    }


def row(source: str, raw: Path, counter_name: str, work: Path) -> dict[str, float]:
    """`measure` in a new process."""
    out = work / f"built-{time.monotonic_ns()}"
    command = [sys.executable, __file__, "--child", source, raw, counter_name, out]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(list(map(str, command)), capture_output=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return json.loads(done.stdout)


def table(scale: float, work: Path) -> list[dict[str, object]]:
    """All rows, those of the doubled input after those of the single one."""
    rows = []
    for source, name in SOURCES.items():
        before: dict[str, float] = {}
        for times in (1, 2):
            raw = work / f"{source}-{times}"
            raw.mkdir()
            if source == "pubmed-rct":
                write_pubmed(raw / name, int(SENTENCES * scale * times))
            else:
                write_dialogues(raw / name, DIALOGUE_MB * scale * times)
            for label, counter_name in (("wordpunct", "wordpunct"), ("bpe", tokenizer(work))):
                found = row(source, raw, counter_name, work)
                speed = found["tokens"] / found["build_s"], found["tokens"] / found["bare_s"]
                growth = found["build_s"] / before[label] if label in before else None
                before[label] = found["build_s"]
                rows.append(
                    {
                        **{k: round(v, 3) for k, v in found.items()},
                        "source": source,
                        "counter": label,
                        "input": f"x{times}",
                        "input_mb": round((raw / name).stat().st_size / 1e6, 2),
                        "build_tokens_per_s": round(speed[0]),
                        "bare_tokens_per_s": round(speed[1]),
                        "ratio": round(speed[0] / speed[1], 3),
                        "growth": None if growth is None else round(growth, 2),
                        "peak_mb": round(found["peak_mb"]),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def tokenizer(work: Path) -> str:
    """The trained tokenizer, made once."""
    from tools.sample_data import documents

    folder = work / "tokenizer"
    if folder.exists():
        return f"hf:{folder}"
    rng = random.Random("tokenizer")
    texts = [text for text, _ in documents.pubmed(5000, rng)]
    return train_tokenizer(folder, texts + [r["text"] for r in documents.booksum(2, 2, 5000, rng)])


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs (default: 1)")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        source, raw, counter_name, out = args.child
        print(json.dumps(measure(source, Path(raw), counter_name, Path(out))))
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as work:
        rows = table(args.scale, Path(work))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(args.out)


if __name__ == "__main__":
    main()
