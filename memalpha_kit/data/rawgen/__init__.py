"""Small raw files of every source, in the source's true format, with text of our own.

They let every pipeline run end to end without a download: `make_raw` writes what the public
download would hold, smaller, made up, and the same for the same seed on every machine.

    make_raw(Path("raw/squad"), "squad", seed=0)  ->  [raw/squad/squad_train-v1.1.json]

Nothing in the files is broken: what a builder does with broken ones is the matter of its tests.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from memalpha_kit.data.rawgen import benchmark, dialogues, documents, labelled
from memalpha_kit.errors import DiskError, InputError, closest

Files = dict[str, bytes]
FACTORS = {"small": 1, "medium": 10}


def make_raw(
    folder: Path, source: str, seed: int = 0, size: Literal["small", "medium"] = "small"
) -> list[Path]:
    """Paths of the raw files written for a source, named as its builder expects them.

    "small" is enough for a few instances, "medium" has ten times as much. Besides the sources
    there are "perltqa_v2" (the object layout) and "booksum_parquet". Raises InputError for an
    unknown source or size, DiskError for a folder that cannot be written.
    """
    for what, name, known in (("source", source, MAKERS), ("size", size, FACTORS)):
        if name not in known:
            raise InputError(f"raw files: {what}: found {name!r}{closest(name, known)}")
    files = MAKERS[source](random.Random(f"{seed}/raw"), FACTORS[size])
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            paths.append(Path(folder) / name)
            paths[-1].write_bytes(content)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written: {error.strerror}") from error
    return paths


# --- One maker per download -----------------------------------------------------------------------


def _squad(rng: random.Random, factor: int) -> Files:
    return {"squad_train-v1.1.json": _json(documents.squad(100 * factor, rng))}


def _hotpotqa(rng: random.Random, factor: int) -> Files:
    return {"hotpotqa_train.json": _json(documents.hotpotqa(400 * factor, rng))}


def _booksum(rng: random.Random, factor: int) -> Files:
    train = _chapters(4 * factor, rng)
    return {"booksum_train.jsonl": _lines(train), "booksum_test.jsonl": _lines(_chapters(1, rng))}


def _booksum_parquet(rng: random.Random, factor: int) -> Files:
    train = _chapters(4 * factor, rng)
    test = _chapters(1, rng)
    return {"booksum_train.parquet": parquet(train), "booksum_test.parquet": parquet(test)}


def _chapters(n_books: int, rng: random.Random) -> list[dict[str, Any]]:
    return documents.booksum(n_books, 2, 10_000, rng)


def _pubmed(rng: random.Random, factor: int) -> Files:
    return {"pubmed_train.parquet": pubmed_parquet(2500 * factor, rng)}


def pubmed_parquet(n_sentences: int, rng: random.Random) -> bytes:
    """A PubMed RCT file: columns text, labels (whole numbers) and uid."""
    import pyarrow as pa

    texts, labels = zip(*documents.pubmed(n_sentences, rng), strict=True)
    table = {"text": texts, "labels": labels, "uid": range(n_sentences)}
    return _table(pa.table({name: pa.array(list(column)) for name, column in table.items()}))


def _perltqa(rng: random.Random, factor: int) -> Files:
    memories, questions = dialogues.perltqa(4 * factor, 24, rng)
    return {
        "perltmem_en.json": _json(list(memories.values())),
        "perltqa_en.json": _json(questions),
    }


def _perltqa_v2(rng: random.Random, factor: int) -> Files:
    memories, questions = dialogues.perltqa(4 * factor, 24, rng)
    return {"perltmem_en_v2.json": _json(memories), "perltqa_en_v2.json": _json(questions)}


def _trec(rng: random.Random, factor: int) -> Files:
    pairs = [f"{label} {text}" for text, label in _samples(labelled.TREC, 600 * factor, rng)]
    cut = len(pairs) * 5 // 6
    return {
        "trec_train.label": "".join(f"{line}\n" for line in pairs[:cut]).encode("latin-1"),
        "trec_test.label": "".join(f"{line}\n" for line in pairs[cut:]).encode("latin-1"),
    }


def _banking77(rng: random.Random, factor: int) -> Files:
    pairs = _samples(labelled.BANKING, 300 * factor, rng)
    cut = len(pairs) * 3 // 4
    header = ("text", "category")
    return {
        "banking77_train.csv": _csv([header, *pairs[:cut]]),
        "banking77_test.csv": _csv([header, *pairs[cut:]]),
    }


def _nlu(rng: random.Random, factor: int) -> Files:
    rows: list[tuple] = [
        ("userid", "answerid", "scenario", "intent", "answer_normalised", "answer")
    ]
    for number, (text, label) in enumerate(_samples(labelled.NLU, 400 * factor, rng)):
        scenario, _, intent = label.partition("_")
        rows.append((number % 17, number, scenario, intent, text, f"{text.capitalize()}."))
    return {"NLU-Data-Home-Domain-Annotated-All.csv": _csv(rows, delimiter=";")}


def _samples(kinds, n: int, rng: random.Random) -> list[tuple[str, str]]:
    return list(labelled.sentences(kinds, n, rng))


def _ttl_train(rng: random.Random, factor: int) -> Files:
    """Both corpora and the benchmark rows whose sentences must not be trained on."""
    corpora = {**_trec(rng, factor), **_nlu(rng, factor)}
    return {**corpora, **_benchmark(["Test_Time_Learning"], 1, [], rng)}


def _records(rng: random.Random, factor: int) -> list[dict[str, Any]]:
    return dialogues.longmemeval(40 * factor, 10, rng)


def _longmemeval(rng: random.Random, factor: int) -> Files:
    return {"longmemeval_s.json": _json(_records(rng, factor))}


def _lme_train(rng: random.Random, factor: int) -> Files:
    """LongMemEval's records and the benchmark rows whose questions must not be trained on."""
    records = _records(rng, factor)
    files = {"longmemeval_s.json": _json(records)}
    return {**files, **_benchmark(["Accurate_Retrieval"], 1, records, rng)}


def _memoryagentbench(rng: random.Random, factor: int) -> Files:
    return _benchmark(benchmark.SPLITS, factor, _records(rng, factor), rng)


def _benchmark(
    splits: Iterable[str], factor: int, records: list[dict[str, Any]], rng: random.Random
) -> Files:
    return {
        f"{name}-00000-of-00001.parquet": _benchmark_parquet(
            benchmark.split(name, factor, records, rng)
        )
        for name in splits
    }


MAKERS: dict[str, Callable[[random.Random, int], Files]] = {
    "squad": _squad,
    "hotpotqa": _hotpotqa,
    "booksum": _booksum,
    "booksum_parquet": _booksum_parquet,
    "pubmed-rct": _pubmed,
    "perltqa": _perltqa,
    "perltqa_v2": _perltqa_v2,
    "ttl_train": _ttl_train,
    "lme_train": _lme_train,
    "trec_coarse": _trec,
    "trec_fine": _trec,
    "banking77": _banking77,
    "nlu": _nlu,
    "longmemeval": _longmemeval,
    "memoryagentbench": _memoryagentbench,
    **dict.fromkeys(
        (
            *("accurate_retrieval", "test_time_learning", "long_range_understanding"),
            *("conflict_resolution", "ruler_qa1_197K", "ruler_qa2_421K", "longmemeval_s*"),
            *(*benchmark.ICL, "infbench_sum_eng_shots2", *benchmark.CONFLICTS),
        ),
        _memoryagentbench,
    ),
}


# --- Formats --------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _lines(rows: Iterable[Any]) -> bytes:
    return b"".join(_json(row) + b"\n" for row in rows)


def _csv(rows: Iterable[Iterable[Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows as a parquet file."""
    import pyarrow as pa

    return _table(pa.Table.from_pylist(rows))


def _benchmark_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows of MemoryAgentBench; columns that are empty in this split keep their type."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    turn = pa.struct({"content": pa.string(), "has_answer": pa.bool_(), "role": pa.string()})
    kinds = {"source": pa.string(), "demo": pa.string()}
    kinds["haystack_sessions"] = pa.list_(pa.list_(pa.list_(turn)))
    metadata = pa.struct({name: kinds.get(name, texts) for name in benchmark.FIELDS})
    schema = {"context": pa.string(), "questions": texts, "answers": pa.list_(texts)}
    return _table(pa.Table.from_pylist(rows, pa.schema({**schema, "metadata": metadata})))


def _table(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
