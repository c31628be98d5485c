"""The made-up raw files: true formats, the same bytes for the same seed, text that holds up."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from memalpha_kit.data import rawgen
from memalpha_kit.data.rawgen import MAKERS, make_raw
from memalpha_kit.data.sources import SOURCES, banking77, build, trec
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.settings import BuildConfig

DOWNLOADS = (
    *("squad", "hotpotqa", "booksum", "booksum_parquet", "pubmed-rct", "perltqa", "perltqa_v2"),
    *("ttl_train", "lme_train", "banking77", "nlu", "memoryagentbench"),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Folder of each download, by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in DOWNLOADS}
    for name, folder in folders.items():
        make_raw(folder, name, seed=3)
    return folders


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def fingerprint(folder):
    files = sorted(path for path in folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_in_every_process(raw, tmp_path):
    code = (
        "import sys; from pathlib import Path; from memalpha_kit.data.rawgen import make_raw\n"
        f"for name in {DOWNLOADS!r}: make_raw(Path(sys.argv[1]) / name, name, seed=3)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "17"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    for name in DOWNLOADS:
        assert fingerprint(tmp_path / name) == fingerprint(raw[name]), name


def test_another_seed_gives_other_text(raw, tmp_path):
    make_raw(tmp_path, "squad", seed=4)
    assert fingerprint(tmp_path) != fingerprint(raw["squad"])


def test_medium_has_ten_times_as_much(tmp_path):
    (small,) = make_raw(tmp_path / "s", "pubmed-rct")
    (medium,) = make_raw(tmp_path / "m", "pubmed-rct", size="medium")
    assert pq.read_table(medium).num_rows == 10 * pq.read_table(small).num_rows == 25_000


def test_unknown_names_and_unwritable_folders_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="source: found 'squat'; did you mean 'squad'"):
        make_raw(tmp_path, "squat")
    with pytest.raises(InputError, match="size: found 'big'"):
        make_raw(tmp_path, "squad", size="big")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be written"):
        make_raw(tmp_path / "file", "squad")


def test_every_answer_of_squad_stands_where_the_file_says(raw):
    content = read(raw["squad"], "squad_train-v1.1.json")
    titles = [article["title"] for article in content["data"]]
    assert len(set(titles)) == len(titles)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                (answer,) = qa["answers"]
                start = answer["answer_start"]
                assert paragraph["context"][start:].startswith(answer["text"])


def test_the_answer_of_hotpotqa_stands_in_its_evidence(raw):
    rows = read(raw["hotpotqa"], "hotpotqa_train.json")
    for row in rows:
        context = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        facts = row["supporting_facts"]
        told = [context[t][s] for t, s in zip(facts["title"], facts["sent_id"], strict=True)]
        assert len(told) == 2
        assert row["answer"] in ("yes", "no") or row["answer"] in " ".join(told)
    assert {row["answer"] for row in rows} >= {"yes", "no"} or len(rows) < 100
    assert len({row["question"] for row in rows}) == len(rows)


@pytest.mark.parametrize("layout", ["booksum", "booksum_parquet"])
def test_a_chapter_of_booksum_is_long_and_has_an_array_of_summaries(raw, layout):
    if layout == "booksum":
        lines = (raw[layout] / "booksum_train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    else:
        rows = pq.read_table(raw[layout] / "booksum_train.parquet").to_pylist()
    assert len(rows) == 8 and len({row["book_title"] for row in rows}) == 4
    for row in rows:
        assert 10_000 <= len(row["text"].split()) <= 20_000
        assert all(summary["text"].strip() for summary in row["summary"])


def test_sentences_of_pubmed_come_in_the_order_of_an_abstract(raw):
    table = pq.read_table(raw["pubmed-rct"] / "pubmed_train.parquet")
    assert table.column_names == ["text", "labels", "uid"] and str(table["labels"].type) == "int64"
    labels = table["labels"].to_pylist()
    rank = {0: 0, 3: 1, 2: 2, 4: 3, 1: 4}
    starts = [i for i in range(1, len(labels)) if rank[labels[i]] < rank[labels[i - 1]]]
    assert all(labels[i] == 0 and labels[i - 1] == 1 for i in starts)
    assert set(labels) == set(rank)
    assert len(set(table["text"].to_pylist())) > 0.9 * len(labels)


@pytest.mark.parametrize(("layout", "kind"), [("perltqa", list), ("perltqa_v2", dict)])
def test_perltqa_has_both_layouts_and_every_reference_exists(raw, layout, kind):
    tail = "_v2" if layout == "perltqa_v2" else ""
    memories = read(raw[layout], f"perltmem_en{tail}.json")
    assert isinstance(memories, kind)
    by_name = memories if kind is dict else {m["profile"]["Protagonist"]: m for m in memories}
    for character in read(raw[layout], f"perltqa_en{tail}.json"):
        ((name, asked),) = character.items()
        memory = by_name[name]
        assert len(memory["events"]) == 24
        assert {"events", "dialogues", "profile", "social_relationship"} == set(asked)
        for section in ("events", "dialogues", "social_relationship"):
            for entry in asked[section]:
                ((key, questions),) = entry.items()
                assert key in memory[section]
                assert all(qa["Reference Memory"] == f"['{key}']" for qa in questions)
        for key, dialogue in memory["dialogues"].items():
            assert key.split("#")[0] == dialogue["events"]


def test_perltqa_has_what_broke_the_release(raw):
    """Event ids that begin with another one, messages with a second ": ", HTML entities."""
    memories = read(raw["perltqa"], "perltmem_en.json")
    assert {"1_0_1", "1_0_10"} <= set(memories[0]["events"])
    text = json.dumps(memories)
    assert "&#39;" in text and re.search(r'"\w+ \w+: [^"]*: ', text)


def test_labelled_files_are_read_by_their_readers(raw):
    train = trec.read_samples(raw["ttl_train"] / "trec_train.label", fine=True)
    test = trec.read_samples(raw["ttl_train"] / "trec_test.label", fine=True)
    assert len(trec.read_samples(raw["ttl_train"] / "trec_train.label", fine=False)) == 500
    labels = {sample.label for sample in train}
    assert {sample.label for sample in test} <= labels and len(labels) == 50
    assert not {s.text for s in train} & {s.text for s in test}
    customers = banking77.read_samples(raw["banking77"] / "banking77_train.csv")
    assert len(customers) == 225 and any("," in sample.text for sample in customers)


def test_nlu_is_the_semicolon_file_of_its_authors(raw):
    text = (raw["nlu"] / "NLU-Data-Home-Domain-Annotated-All.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";"))
    assert len(rows) == 400 and {"scenario", "intent", "answer_normalised"} <= set(rows[0])


def test_the_marked_turn_of_a_longmemeval_record_holds_its_answer(raw):
    records = read(raw["lme_train"], "longmemeval_s.json")
    assert len({record["question_id"] for record in records}) == len(records) == 40
    for record in records:
        held = record["haystack_session_ids"].index(*record["answer_session_ids"])
        (turn,) = [t for t in record["haystack_sessions"][held] if t.get("has_answer")]
        assert record["answer"].removeprefix("the ") in turn["content"]


def test_the_benchmark_asks_half_of_the_longmemeval_records(raw):
    records = {r["question_id"] for r in read(raw["lme_train"], "longmemeval_s.json")}
    rows = pq.read_table(next(raw["lme_train"].glob("Accurate*.parquet"))).to_pylist()
    asked = {
        name
        for row in rows
        if row["metadata"]["source"] == "longmemeval_s*"
        for name in row["metadata"]["question_ids"]
    }
    assert asked < records and len(asked) == len(records) // 2


def test_the_benchmark_has_the_kept_and_the_refused_sources(raw):
    rows = {
        path.name.split("-")[0]: pq.read_table(path).to_pylist()
        for path in raw["memoryagentbench"].iterdir()
    }
    named = {
        split: Counter(row["metadata"]["source"] for row in table) for split, table in rows.items()
    }
    assert {"ruler_qa1_197K", "ruler_qa2_421K", "longmemeval_s*", "eventqa_full"} <= set(
        named["Accurate_Retrieval"]
    )
    assert set(named["Test_Time_Learning"]) == {*rawgen.benchmark.ICL, "recsys_redial_full"}
    assert set(named["Long_Range_Understanding"]) == {"infbench_sum_eng_shots2", "detective_qa"}
    assert all(name.startswith("factconsolidation_") for name in named["Conflict_Resolution"])
    assert named["Accurate_Retrieval"]["longmemeval_s*"] == 5
    assert named["Long_Range_Understanding"]["infbench_sum_eng_shots2"] == 100
    for row in (row for table in rows.values() for row in table):
        assert len(row["questions"]) == len(row["answers"])
        assert all(accepted and isinstance(accepted[0], str) for accepted in row["answers"])
    history = next(
        row for row in rows["Accurate_Retrieval"] if row["metadata"]["source"] == "longmemeval_s*"
    )
    parsed = ast.literal_eval(history["context"])
    assert isinstance(parsed[0], str) and {"role", "content"} == set(parsed[1][0])


def test_every_source_has_raw_files():
    assert set(SOURCES) <= set(MAKERS)


@pytest.mark.parametrize("source", ["squad", "longmemeval", "trec_fine", "banking77"])
def test_files_build_with_the_default_settings(tmp_path, source):
    make_raw(tmp_path, source)
    assert build(source, tmp_path, BuildConfig(), 0)
