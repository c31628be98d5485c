"""The made-up raw files: shipped as made, true formats, text that holds up."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile

import pyarrow.parquet as pq
import pytest

from memalpha_kit.data.examples import write_raw
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import DiskError, InputError
from tools import sample_data
from tools.sample_data import benchmark, make_raw


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


# --- Text that holds up: what every row of a made-up file must be ---------------------------------


def load(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def squad(folder):
    """Every answer stands where the file says."""
    for article in load(folder, "squad_train-v1.1.json")["data"]:
        for paragraph in article["paragraphs"]:
            for (answer,) in (qa["answers"] for qa in paragraph["qas"]):
                yield paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


def hotpotqa(folder):
    """The answer stands in the evidence, unless it is yes or no."""
    for row in load(folder, "hotpotqa_train.json"):
        context = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        facts = zip(
            row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True
        )
        told = " ".join(context[title][sentence] for title, sentence in facts)
        yield row["answer"] in ("yes", "no") or row["answer"] in told


def booksum(folder):
    """A chapter is long and has an array of summaries."""
    for line in (folder / "booksum_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield 10_000 <= len(row["text"].split()) <= 20_000
        yield row["summary"] and all(summary["text"].strip() for summary in row["summary"])


def pubmed(folder):
    """Sentences come in the order of an abstract: an earlier part only after a conclusion."""
    labels = pq.read_table(folder / "pubmed_train.parquet")["labels"].to_pylist()
    order = [0, 3, 2, 4, 1]
    yield set(labels) == set(order)
    for before, after in zip(labels, labels[1:], strict=False):
        yield order.index(before) <= order.index(after) or (before, after) == (1, 0)


def perltqa(folder, tail=""):
    """Every question's memory exists, in both layouts."""
    memories = load(folder, f"perltmem_en{tail}.json")
    yield isinstance(memories, dict if tail else list)
    by_name = memories if tail else {m["profile"]["Protagonist"]: m for m in memories}
    for (name, asked), *_ in (c.items() for c in load(folder, f"perltqa_en{tail}.json")):
        for section in ("events", "dialogues", "social_relationship"):
            for (key, questions), *_ in (entry.items() for entry in asked[section]):
                yield key in by_name[name][section]
                yield all(qa["Reference Memory"] == f"['{key}']" for qa in questions)


def perltqa_traps(folder):
    """What broke the release: ids that begin with another, a second ": ", HTML entities."""
    memories = load(folder, "perltmem_en.json")
    yield {"1_0_1", "1_0_10"} <= set(memories[0]["events"])
    yield "&#39;" in json.dumps(memories)
    yield re.search(r'"\w+ \w+: [^"]*: ', json.dumps(memories))


def lme_train(folder):
    """The marked turn holds the answer, and evaluation has some of the questions."""
    records = load(folder, "longmemeval_s.json")
    for record in records:
        held = record["haystack_session_ids"].index(*record["answer_session_ids"])
        (turn,) = [t for t in record["haystack_sessions"][held] if t.get("has_answer")]
        yield record["answer"].removeprefix("the ") in turn["content"]
    (file,) = folder.glob("Accurate*.parquet")
    rows = [row["metadata"] for row in rows_of(file.read_bytes())]
    asked = {n for m in rows if m["source"] == "longmemeval_s*" for n in m["question_ids"]}
    yield asked and asked < {record["question_id"] for record in records}


def memoryagentbench(folder):
    """Sources that are kept and some that are refused; dialogues are a list as Python prints it."""
    rows = [row for file in folder.iterdir() for row in rows_of(file.read_bytes())]
    sources = [row["metadata"]["source"] for row in rows]
    yield {"ruler_qa1_197K", "eventqa_full", "recsys_redial_full"} < set(sources)
    yield {*benchmark.ICL, *benchmark.CONFLICTS} < set(sources)
    for name, n in (("longmemeval_s*", 5), ("infbench_sum_eng_shots2", 100)):
        yield sources.count(name) == n
    for row in rows:
        yield len(row["questions"]) == len(row["answers"])
        yield all(accepted and isinstance(accepted[0], str) for accepted in row["answers"])
    date, turns, *_ = ast.literal_eval(rows[sources.index("longmemeval_s*")]["context"])
    yield isinstance(date, str) and {"role", "content"} == set(turns[0])


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        *(("squad", squad), ("hotpotqa", hotpotqa), ("booksum", booksum), ("pubmed-rct", pubmed)),
        *(("perltqa", perltqa), ("perltqa_v2", lambda folder: perltqa(folder, "_v2"))),
        *(("perltqa", perltqa_traps), ("lme_train", lme_train)),
        ("memoryagentbench", memoryagentbench),
    ],
)
def test_a_made_up_file_holds_up(tmp_path, name, holds):
    make_raw(tmp_path, name, seed=3)
    found = list(holds(tmp_path))
    assert found and all(found)
