"""Building data sets: raw files to parquet, beside the bare tokenizer on the same chunks.

Made-up raw files of the size of the real ones, each built in a process of its own by what `memalpha
data build` runs: raw file, instances, split, card, parquet. The bare tokenizer counts the very
chunks that were built; of HotpotQA the articles of the file, each once, because their mean length
says how many make an instance (as in the published code) and eight of ten are in no chunk. Two
counters: the default "wordpunct", and a byte-level BPE, the kind that
Qwen3 has. The ratio is bare / build in tokens per second, 0.5: half of the bare tokenizer's speed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build_memory
import pytest

from memalpha_kit.data.sources.hotpotqa import titled, whole_text

ROOT = Path(__file__).resolve().parents[1]


def pubmed(path: Path, n: int) -> None:
    """Sentences of abstracts."""
    from tools.sample_data import pubmed_parquet

    path.write_bytes(pubmed_parquet(n, random.Random("speed")))


def utterances(path: Path, n: int) -> None:
    """Customers' messages, all of them different, with 77 labels."""
    rng = random.Random("speed")
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "category"))
        for i in range(n):
            rows.writerow((f"{build_memory.text(rng.randint(6, 14))} ({i})", f"intent_{i % 77}"))
    test = [f"test {build_memory.text(8)},intent_{i}\n" for i in range(77)]
    (path.parent / "banking77_test.csv").write_text("text,category\n" + "".join(test))


Make = Callable[[Path, int], object]
SOURCES: dict[str, tuple[str, int, Make]] = {
    "pubmed-rct": ("pubmed_train.parquet", 200_000, pubmed),
    "banking77": ("banking77_train.csv", 25_000, utterances),
    "longmemeval": (
        "longmemeval_s.json",
        520,
        lambda path, n: build_memory.make(path, n, build_memory.memories),
    ),
    "hotpotqa": (
        "hotpot_train_v1.1.json",
        102_000,
        lambda path, n: build_memory.make(path, n, build_memory.articles),
    ),
}
"""The file, its records (257 MB of dialogues, 560 MB of questions with articles), its maker."""


def subwords(folder: Path) -> str:
    """The counter's name of a byte-level BPE of 8,192 tokens, trained on the same kinds of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from tools.sample_data import documents

    texts = [text for text, _ in documents.pubmed(3000, random.Random("tokenizer"))]
    texts += [build_memory.text(40) for _ in range(3000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return f"hf:{folder}"


def child(source: str, raw: str, counter_name: str, out: str) -> None:
    """One build, timed, in a process of its own for the sake of its largest memory."""
    from memalpha_kit.data import dataset
    from memalpha_kit.data.build import build_source
    from memalpha_kit.settings import BuildConfig
    from memalpha_kit.tokens import counter

    config = BuildConfig(counter=counter_name, instances=200_000, rows="any", examples=500)
    count = counter(counter_name).count
    count("The tokenizer is loaded before the clock starts.")
    started = time.process_time()
    built = build_source(source, Path(raw), config, 0, 0.9)
    dataset.save(Path(out), built)
    build_s = time.process_time() - started
    peak_mb = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    texts = [chunk for instance in (*built.train, *built.test) for chunk in instance.chunks]
    if source == "hotpotqa":
        texts = articles(Path(raw) / SOURCES[source][0])
    started = time.process_time()
    tokens = sum(map(count, texts))
    found = {"tokens": tokens, "bare_s": time.process_time() - started, "build_s": build_s}
    print(json.dumps(found | {"peak_mb": peak_mb}))


def articles(file: Path) -> list[str]:
    """All articles of a file in HotpotQA's format, each once, as the build measures them."""
    rows = json.loads(file.read_text())
    found = {title: sentences for row in rows for title, sentences in row["context"]}
    return [titled(title, whole_text(sentences)) for title, sentences in found.items()]


def measured(source: str, raw: Path, counter_name: str, out: Path) -> dict[str, Any]:
    """`child` in a new process."""
    code = "import sys, bench_data; bench_data.child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, source, str(raw), counter_name, str(out)]
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("source", SOURCES)
def bench_build(meter, source, tmp_path):
    """The full size, and half of it, for growth."""
    name, n, make = SOURCES[source]
    if meter.quick:
        if source in ("banking77", "hotpotqa"):
            pytest.skip("not in a look")
        n = 6 if source == "longmemeval" else 4_000
    counters = {"subwords": subwords(tmp_path / "tokenizer")}
    if source in ("pubmed-rct", "banking77") and not meter.quick:  # of the others it takes minutes
        counters["wordpunct"] = "wordpunct"

    def row(share: float, counter_name: str) -> dict[str, Any]:
        raw = tmp_path / f"raw-{share}"
        if not raw.exists():
            raw.mkdir()
            make(raw / name, int(n * share))
        size_mb = (raw / name).stat().st_size / 1e6
        out = tmp_path / f"built-{time.monotonic_ns()}"
        return measured(source, raw, counter_name, out) | {"mb": size_mb}

    def rows() -> None:
        for label, counter_name in counters.items():
            half, whole = (row(share, counter_name) for share in (0.5, 1.0))
            size = f"{n:,} records, {whole['mb']:.3g} MB, {label}"
            ratio = whole["bare_s"] / whole["build_s"]
            values = {"ours_s": whole["build_s"], "plain_s": whole["bare_s"], "ratio": ratio}
            want = ("ratio", ">=", 0.5) if label == "subwords" else None
            meter.add(f"build {source} (plain: the bare tokenizer)", size, want=want, **values)
            want = ("value", "<=", 1000)
            meter.add(
                f"build {source}, largest memory",
                size,
                value=whole["peak_mb"],
                unit="MB",
                want=want,
            )
            grown = whole["build_s"] / half["build_s"]
            want = ("value", "<=", 2.5)
            meter.add(f"build {source}, beside half the size", size, value=grown, want=want)

    meter.once(rows)
