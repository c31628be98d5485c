"""The made-up raw files: shipped as made, true formats, text that holds up."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from memalpha_kit.data import dataset
from memalpha_kit.data.examples import LEAKY, build_examples, write_raw
from memalpha_kit.data.sources import SOURCES, build
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.settings import BuildConfig, load_profile
from memalpha_kit.tasks import TASKS
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
    assert set(SOURCES) <= set(json.loads(sample_data.shipped()["index.json"]))
    (path,) = write_raw("squad", tmp_path / "squad")
    assert path == tmp_path / "squad" / "squad_train-v1.1.json" and path.is_file()
    *_, asked = write_raw("text", tmp_path)
    assert len(build("text", tmp_path / "notes", BuildConfig(questions=str(asked)), seed=0)) == 2
    with pytest.raises(InputError, match="source: .* found 'squat'; did you mean 'squad'"):
        write_raw("squat", tmp_path)
    with pytest.raises(DiskError, match="squad_train"):
        write_raw("squad", path)


def test_every_source_of_the_paper_is_built(tmp_path):
    """What the report says of `LEAKY` is tested with the command `data check`."""
    folders = build_examples(load_profile("ci"), tmp_path)
    assert set(folders) == {name for name in SOURCES if TASKS[name].role != "ours"} | {LEAKY}
    for name, folder in folders.items():
        found = dataset.read(folder)
        assert found.name == name and (found.train or found.test)
        assert not dataset.shared_groups(found.train, found.test) or name == LEAKY


def test_another_seed_gives_other_text_and_a_factor_more(tmp_path):
    ((one,), (two,), (five,)) = (
        make_raw(tmp_path / name, "pubmed-rct", seed, factor)
        for name, seed, factor in (("a", 0, 1), ("b", 1, 1), ("c", 0, 5))
    )
    assert pq.read_table(one) != pq.read_table(two)
    assert pq.read_table(five).num_rows == 5 * pq.read_table(one).num_rows == 12_500


# Text that holds up: what every row of a made-up file must be.


def built(source):
    """Every question's gold stands in the chunk that is its evidence, unless it is yes or no."""

    def holds(folder):
        for instance in build(source, folder, BuildConfig(exclude="none"), seed=0):
            for qa in instance.questions:
                chunk = "".join(instance.chunks) if qa.chunk is None else instance.chunks[qa.chunk]
                gold = qa.answers[0].removeprefix("the ")
                yield gold in ("yes", "no") or gold in chunk

    return source, holds


def booksum(folder):
    """A chapter is long and has an array of summaries."""
    for line in (folder / "booksum_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield 10_000 <= len(row["text"].split()) <= 20_000
        yield row["summary"] and all(summary["text"].strip() for summary in row["summary"])


def perltqa(folder):
    """Every question's memory exists, in both layouts; and what broke the release is there.

    That is ids that begin with another, a second ": " and HTML entities.
    """
    ([memories], [asked]) = (folder.glob(f"perlt{part}_en*.json") for part in ("mem", "qa"))
    text = memories.read_text(encoding="utf-8")
    held, v2 = json.loads(text), memories.stem.endswith("_v2")
    yield isinstance(held, dict if v2 else list)
    by_name = held if v2 else {memory["profile"]["Protagonist"]: memory for memory in held}
    for (name, sections), *_ in map(dict.items, json.loads(asked.read_text(encoding="utf-8"))):
        for section in ("events", "dialogues", "social_relationship"):
            for (key, questions), *_ in map(dict.items, sections[section]):
                yield key in by_name[name][section]
                yield all(qa["Reference Memory"] == f"['{key}']" for qa in questions)
    yield {"1_0_1", "1_0_10"} <= set(next(iter(by_name.values()))["events"])
    yield "&#39;" in text
    yield re.search(r'"\w+ \w+: [^"]*: ', text)


def locomo(folder):
    """Every category; an answer stands in its labelled turns, unless it is an opinion or a date."""
    for sample in json.loads((folder / "locomo10.json").read_text(encoding="utf-8")):
        talks = sample["conversation"].values()
        told = {t["dia_id"]: t["text"] for turns in talks if type(turns) is list for t in turns}
        yield {qa["category"] for qa in sample["qa"]} == {1, 2, 3, 4, 5}
        yield len({qa["question"] for qa in sample["qa"]}) == len(sample["qa"])
        for qa in sample["qa"]:
            evidence = " ".join(told[place] for place in qa["evidence"])
            yield qa["category"] not in (1, 4) or all(
                part in evidence for part in qa["answer"].split(", ")
            )


def pubmed(folder):
    """Sentences come in the order of an abstract: an earlier part only after a conclusion."""
    labels = pq.read_table(folder / "pubmed_train.parquet")["labels"].to_pylist()
    order = [0, 3, 2, 4, 1]
    yield set(labels) == set(order)
    for before, after in pairwise(labels):
        yield order.index(before) <= order.index(after) or (before, after) == (1, 0)


def memoryagentbench(folder):
    """Sources that are kept and some that are refused; dialogues are a list as Python prints it."""
    rows = [row for file in folder.iterdir() for row in rows_of(file.read_bytes())]
    sources = [row["metadata"]["source"] for row in rows]
    yield {"eventqa_full", "recsys_redial_full", *benchmark.ICL, *benchmark.CONFLICTS} < set(
        sources
    )
    for name, n in (("ruler_qa1_197K", 1), ("longmemeval_s*", 5), ("infbench_sum_eng_shots2", 100)):
        yield sources.count(name) == n
    for row in rows:
        yield len(row["questions"]) == len(row["answers"])
        yield all(accepted and isinstance(accepted[0], str) for accepted in row["answers"])
    date, turns, *_ = ast.literal_eval(rows[sources.index("longmemeval_s*")]["context"])
    yield isinstance(date, str) and {"role", "content"} == set(turns[0])


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        *map(built, ("squad", "hotpotqa", "lme_train")),
        *(("booksum", booksum), ("pubmed-rct", pubmed), ("locomo", locomo)),
        *(("perltqa", perltqa), ("perltqa_v2", perltqa), ("memoryagentbench", memoryagentbench)),
    ],
)
def test_a_made_up_file_holds_up(tmp_path, name, holds):
    make_raw(tmp_path, name, seed=3)
    found = list(holds(tmp_path))
    assert found and all(found)
