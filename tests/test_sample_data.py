"""The made-up raw files: shipped as made, true formats, text that holds up."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import zipfile

import pyarrow.parquet as pq
import pytest

from memalpha_kit.data.examples import write_raw
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.data.sources.sentences import read_banking77, read_trec
from memalpha_kit.errors import DiskError, InputError
from tools import sample_data
from tools.sample_data import benchmark, make_raw

DOWNLOADS = ("squad", "hotpotqa", "booksum", "pubmed-rct", "perltqa", "perltqa_v2")
DOWNLOADS += ("ttl_train", "lme_train", "banking77", "nlu", "memoryagentbench")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Folder of each download, by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in DOWNLOADS}
    for name, folder in folders.items():
        make_raw(folder, name, seed=3)
    return folders


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def rows_of(content):
    return pq.read_table(io.BytesIO(content)).to_pylist()


def test_the_shipped_files_are_what_the_tool_makes():
    """The content is compared: another version of pyarrow writes other bytes."""
    with zipfile.ZipFile(sample_data.SAMPLES) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist()}
    made = sample_data.shipped()
    assert list(shipped) == list(made)
    for name, content in made.items():
        same = rows_of if name.endswith(".parquet") else bytes
        assert same(shipped[name]) == same(content), name
    assert sample_data.SAMPLES.stat().st_size < 500_000


def test_every_source_has_shipped_files(tmp_path):
    assert set(SOURCES) - {"text"} <= set(json.loads(sample_data.shipped()["index.json"]))
    (path,) = write_raw("squad", tmp_path / "squad")
    assert path == tmp_path / "squad" / "squad_train-v1.1.json" and path.is_file()
    with pytest.raises(InputError, match="source: .* found 'squat'; did you mean 'squad'"):
        write_raw("squat", tmp_path)
    with pytest.raises(DiskError, match="squad_train"):
        write_raw("squad", path)


def test_another_seed_gives_other_text_and_a_factor_more(tmp_path):
    ((one,), (two,), (five,)) = (
        make_raw(tmp_path / name, "pubmed-rct", seed, factor)
        for name, seed, factor in (("a", 0, 1), ("b", 1, 1), ("c", 0, 5))
    )
    assert pq.read_table(one) != pq.read_table(two)
    assert pq.read_table(five).num_rows == 5 * pq.read_table(one).num_rows == 12_500


def test_every_answer_of_squad_stands_where_the_file_says(raw):
    content = read(raw["squad"], "squad_train-v1.1.json")
    titles = [article["title"] for article in content["data"]]
    assert len(set(titles)) == len(titles)
    for paragraph in (p for article in content["data"] for p in article["paragraphs"]):
        for qa in paragraph["qas"]:
            (answer,) = qa["answers"]
            assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


def test_the_answer_of_hotpotqa_stands_in_its_evidence(raw):
    rows = read(raw["hotpotqa"], "hotpotqa_train.json")
    for row in rows:
        context = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        facts = row["supporting_facts"]
        told = [context[t][s] for t, s in zip(facts["title"], facts["sent_id"], strict=True)]
        assert row["answer"] in ("yes", "no") or row["answer"] in " ".join(told)
    assert len({row["question"] for row in rows}) == len(rows)


def test_a_chapter_of_booksum_is_long_and_has_an_array_of_summaries(raw):
    lines = (raw["booksum"] / "booksum_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
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


@pytest.mark.parametrize(("layout", "kind"), [("perltqa", list), ("perltqa_v2", dict)])
def test_perltqa_has_both_layouts_and_every_reference_exists(raw, layout, kind):
    tail = "_v2" if layout == "perltqa_v2" else ""
    memories = read(raw[layout], f"perltmem_en{tail}.json")
    assert isinstance(memories, kind)
    by_name = memories if kind is dict else {m["profile"]["Protagonist"]: m for m in memories}
    for character in read(raw[layout], f"perltqa_en{tail}.json"):
        ((name, asked),) = character.items()
        for section in ("events", "dialogues", "social_relationship"):
            for entry in asked[section]:
                ((key, questions),) = entry.items()
                assert key in by_name[name][section]
                assert all(qa["Reference Memory"] == f"['{key}']" for qa in questions)


def test_perltqa_has_what_broke_the_release(raw):
    """Event ids that begin with another one, messages with a second ": ", HTML entities."""
    memories = read(raw["perltqa"], "perltmem_en.json")
    assert {"1_0_1", "1_0_10"} <= set(memories[0]["events"])
    text = json.dumps(memories)
    assert "&#39;" in text and re.search(r'"\w+ \w+: [^"]*: ', text)


def test_labelled_files_are_read_by_their_readers(raw):
    train = read_trec(raw["ttl_train"] / "trec_train.label", fine=True)
    test = read_trec(raw["ttl_train"] / "trec_test.label", fine=True)
    labels = {sample.label for sample in train}
    assert {sample.label for sample in test} <= labels and len(labels) == 50
    assert not {s.text for s in train} & {s.text for s in test}
    customers = read_banking77(raw["banking77"] / "banking77_train.csv")
    assert len(customers) == 225 and any("," in sample.text for sample in customers)
    text = (raw["nlu"] / "NLU-Data-Home-Domain-Annotated-All.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";"))
    assert len(rows) == 400
    assert {"scenario", "intent", "status", "answer_annotation", "answer"} <= set(rows[0])


def test_the_marked_turn_of_a_longmemeval_record_holds_its_answer(raw):
    records = read(raw["lme_train"], "longmemeval_s.json")
    assert len({record["question_id"] for record in records}) == len(records) == 40
    for record in records:
        held = record["haystack_session_ids"].index(*record["answer_session_ids"])
        (turn,) = [t for t in record["haystack_sessions"][held] if t.get("has_answer")]
        assert record["answer"].removeprefix("the ") in turn["content"]
    (benchmark_file,) = raw["lme_train"].glob("Accurate*.parquet")
    rows = [row["metadata"] for row in pq.read_table(benchmark_file).to_pylist()]
    asked = {n for m in rows if m["source"] == "longmemeval_s*" for n in m["question_ids"]}
    assert asked < {record["question_id"] for record in records} and len(asked) == 20


def test_the_benchmark_has_the_kept_and_the_refused_sources(raw):
    rows = {
        path.name.split("-")[0]: pq.read_table(path).to_pylist()
        for path in raw["memoryagentbench"].iterdir()
    }
    named = {split: [r["metadata"]["source"] for r in table] for split, table in rows.items()}
    retrieval = named["Accurate_Retrieval"]
    assert {"ruler_qa1_197K", "ruler_qa2_421K", "eventqa_full"} <= set(retrieval)
    assert retrieval.count("longmemeval_s*") == 5
    assert set(named["Test_Time_Learning"]) == {*benchmark.ICL, "recsys_redial_full"}
    assert named["Long_Range_Understanding"].count("infbench_sum_eng_shots2") == 100
    assert set(named["Conflict_Resolution"]) == set(benchmark.CONFLICTS)
    for row in (row for table in rows.values() for row in table):
        assert len(row["questions"]) == len(row["answers"])
        assert all(accepted and isinstance(accepted[0], str) for accepted in row["answers"])
    history = rows["Accurate_Retrieval"][retrieval.index("longmemeval_s*")]
    parsed = ast.literal_eval(history["context"])
    assert isinstance(parsed[0], str) and {"role", "content"} == set(parsed[1][0])
