"""Small raw files of every source, in the source's true format, with text of our own.

They let every pipeline run end to end without a download. The package ships one zip of them
(`memalpha data example`); tests and benchmarks make others, of other sizes and seeds:

    make_raw(Path("raw/squad"), "squad", seed=0)  ->  [raw/squad/squad_train-v1.1.json]

`python -m tools.sample_data` writes the zip anew. The same seed gives the same content on every
machine. Nothing in the files is broken: what a builder does with broken ones is the matter of its
tests.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tools.sample_data import benchmark, dialogues, documents, labelled

Files = dict[str, bytes]
SAMPLES = Path(__file__).parents[2] / "memalpha_kit" / "data" / "samples.zip"
SHIPPED = (
    *("squad", "hotpotqa", "booksum", "pubmed-rct", "perltqa", "trec_coarse", "banking77", "nlu"),
    *("longmemeval", "memoryagentbench", "locomo", "text"),
)
"""What the zip is made of: smallest sizes, which are enough for two parts each."""


def make_raw(folder: Path, source: str, seed: int = 0, factor: int = 1) -> list[Path]:
    """Paths of the raw files written for a source, named as its builder expects them.

    `factor` 1 is enough for a few instances. Besides the sources there are "perltqa_v2" (the object
    layout) and "booksum_parquet".
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in MAKERS[source](random.Random(f"{seed}/raw"), factor).items():
        paths.append(folder / name)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(content)
    return paths


def shipped() -> Files:
    """The files in the zip by name, with `index.json`: the files that each source is built from."""
    files: Files = {}
    for source in SHIPPED:
        files |= MAKERS[source](random.Random("0/raw"), 1)
    return {**files, "index.json": _json(NEEDED)}


def write_samples(path: Path = SAMPLES) -> None:
    """Writes the zip that the package ships; the same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in shipped().items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)


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
    """The columns of the authors' file; `answer_annotation` has slots in brackets."""
    columns = "userid answerid scenario intent status answer_annotation notes suggested_entities"
    rows: list[tuple] = [(*columns.split(), "answer_normalised", "answer", "question")]
    for number, (text, label) in enumerate(_samples(labelled.NLU, 400 * factor, rng)):
        scenario, _, intent = label.partition("_")
        annotated = re.sub(r"(\d+)", r"[number : \1]", text)
        said = (text, f"{text.capitalize()}.", f"How do you ask for {scenario}?")
        rows.append((number % 17, number, scenario, intent, "", annotated, "", "", *said))
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


def _locomo(rng: random.Random, factor: int) -> Files:
    return {"locomo10.json": _json(dialogues.locomo(2 * factor, 4, rng))}


def _text(rng: random.Random, factor: int) -> Files:
    """Own notes: `notes/` is the raw folder, the questions are beside it."""
    lake = "# Lake Orvane\n\nThe ferry was built by Mira Holt in 1911. It runs in summer.\n"
    asked = [
        {"question": "Who built the ferry?", "answer": "Mira Holt", "file": "lakes/orvane.md"},
        {"question": "What grows at Tessin?", "answers": ["barley", "rye"], "file": "tessin.txt"},
    ]
    files = {"notes/lakes/orvane.md": lake, "notes/tessin.txt": "Tessin grows barley and rye.\n"}
    return {name: text.encode() for name, text in files.items()} | {"q.jsonl": _lines(asked)}


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
        f"{name}-00000-of-00001.parquet": benchmark_parquet(
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
    "locomo": _locomo,
    "text": _text,
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


_LABELLED = ("trec_train.label", "trec_test.label", "NLU-Data-Home-Domain-Annotated-All.csv")
_PARTS = {name: f"{name}-00000-of-00001.parquet" for name in benchmark.SPLITS}
NEEDED: dict[str, tuple[str, ...]] = {
    "squad": ("squad_train-v1.1.json",),
    "hotpotqa": ("hotpotqa_train.json",),
    "booksum": ("booksum_train.jsonl", "booksum_test.jsonl"),
    "pubmed-rct": ("pubmed_train.parquet",),
    "perltqa": ("perltmem_en.json", "perltqa_en.json"),
    "ttl_train": (*_LABELLED, _PARTS["Test_Time_Learning"]),
    "lme_train": ("longmemeval_s.json", _PARTS["Accurate_Retrieval"]),
    **dict.fromkeys(("trec_coarse", "trec_fine"), _LABELLED[:2]),
    "banking77": ("banking77_train.csv", "banking77_test.csv"),
    "longmemeval": ("longmemeval_s.json",),
    "locomo": ("locomo10.json",),
    "text": ("notes/lakes/orvane.md", "notes/tessin.txt", "q.jsonl"),
    "memoryagentbench": tuple(_PARTS.values()),
    **dict.fromkeys(
        ("ruler_qa1_197K", "ruler_qa2_421K", "longmemeval_s*"), (_PARTS["Accurate_Retrieval"],)
    ),
    **dict.fromkeys(benchmark.ICL, (_PARTS["Test_Time_Learning"],)),
    "infbench_sum_eng_shots2": (_PARTS["Long_Range_Understanding"],),
    **dict.fromkeys(benchmark.CONFLICTS, (_PARTS["Conflict_Resolution"],)),
}
"""The shipped files that each source is built from."""

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
    return _table(pa.Table.from_pylist(rows))


def benchmark_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows of MemoryAgentBench; columns that are empty in this split keep their type."""
    texts = pa.list_(pa.string())
    turn = pa.struct({"content": pa.string(), "has_answer": pa.bool_(), "role": pa.string()})
    kinds = {"source": pa.string(), "demo": pa.string()}
    kinds["haystack_sessions"] = pa.list_(pa.list_(pa.list_(turn)))
    metadata = pa.struct({name: kinds.get(name, texts) for name in benchmark.FIELDS})
    schema = {"context": pa.string(), "questions": texts, "answers": pa.list_(texts)}
    return _table(pa.Table.from_pylist(rows, pa.schema({**schema, "metadata": metadata})))


def _table(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")  # the zip packs it better
    return sink.getvalue().to_pybytes()
