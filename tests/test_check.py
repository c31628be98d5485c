"""Statistics, ours beside the paper's, provenance, and the report that shows them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memalpha_kit.data import check, dataset
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.data.hub import MANIFEST, revision
from memalpha_kit.records import QA, make_instance


def plain(source, *chunks):
    asked = [QA(name, f"About {chunks[0]}?", ("x",)) for name in ("q0", "q1")]
    return make_instance(source, chunks, asked)


SMALL = Dataset("a", (plain("squad", "a b c", "d"), plain("squad", "e f")), (plain("ruler", "g"),))


def test_statistics_are_means_and_ranges_by_part_and_source():
    rows = check.statistics([SMALL, Dataset("b", (), ())], "words")
    assert rows[["part", "source", "category", "instances", "questions"]].values.tolist() == [
        ["train", "squad", "AR", 2, 4],
        ["test", "ruler", "", 1, 2],
    ]
    first = rows.iloc[0]
    assert (first.chunks_per_instance, first.chunks_per_instance_max) == (1.5, 2)
    assert (first.tokens_per_chunk, first.tokens_per_chunk_min) == (2.0, 1)
    assert (first.tokens_per_instance, first.questions_per_instance) == (3.0, 2.0)
    assert check.statistics([Dataset("a", (), ())], "words").empty


def test_any_number_of_processes_counts_the_same():
    texts = [" ".join(["w"] * n) for n in range(1, 40)]
    many = Dataset("a", tuple(plain("squad", *texts) for _ in "ab"), ())
    one = check.measure(many, "wordpunct")
    assert one.tokens[one.instance == 1].tolist() == list(range(1, 40))
    assert one.equals(check.measure(many, "wordpunct", workers=3))


def test_the_paper_tables_add_up_as_printed():
    table = check.paper()
    totals = table.groupby(["table", "split"])["instances"].sum().to_dict()
    sums = [4139, 463, 567, 458, 112]
    parts = [(6, "train"), (6, "test"), (7, "train"), (7, "test"), (8, "test")]
    assert totals == dict(zip(parts, sums, strict=True))
    assert not table.duplicated(["table", "split", "source"]).any()


def test_ours_stands_beside_the_table_it_belongs_to_and_says_who_counted():
    train, test = plain("squad", "a"), plain("icl_nlu_8296shot_balance", "b")
    named = [
        Dataset("squad", (train,), ()),
        Dataset("m", (train,), (), {"settings": {"recipe": "balanced"}}),
        Dataset("nlu", (), (test,)),
        Dataset("ttl", (train,), (test,)),
        Dataset("own", (), (plain("notes", "c"),)),
    ]
    rows = check.statistics(named, "words")
    beside = check.beside_paper(rows, named).set_index(["dataset", "part"])
    assert beside["table"].to_dict() == {
        **{("squad", "train"): 6, ("m", "train"): 7, ("nlu", "test"): 8},
        **{("ttl", "train"): 6, ("ttl", "test"): 6, ("own", "test"): 8},
    }
    assert beside.loc[("m", "train"), "tokens_per_chunk_paper"] == 1084.1
    assert beside.loc[("nlu", "test"), "instances_paper"] == 1
    assert beside.loc[("ttl", "test"), "instances_paper"] == 20
    assert set(beside["counter"]) == {"words"} and set(beside["counter_paper"]) == {"Qwen3-32B"}


SEEN = {"a.json": "1" * 64, "b.json": "2" * 64}


@pytest.mark.parametrize(
    ("recorded", "hashes", "said"),
    [
        (SEEN, SEEN, "c0ffee"),
        ({"data/a.json": "1" * 64, "b.json": "2" * 64}, SEEN, "c0ffee"),
        (SEEN, {"a.json": "1" * 64}, "c0ffee"),
        (SEEN, SEEN | {"b.json": "3" * 64}, "unknown"),  # another file in its place
        (SEEN, SEEN | {"c.json": "3" * 64}, "unknown"),  # one that was not downloaded
        (SEEN, {}, "unknown"),
        (None, SEEN, "unknown"),
    ],
)
def test_a_revision_is_named_only_if_the_hashes_of_the_files_say_so(
    tmp_path, recorded, hashes, said
):
    if recorded is not None:
        files = {name: {"sha256": digest} for name, digest in recorded.items()}
        (tmp_path / MANIFEST).write_text(json.dumps({"revision": "c0ffee", "files": files}))
    assert revision(tmp_path, hashes) == said


def test_a_file_that_was_changed_after_its_card_is_named(tmp_path):
    for name in "abcd":
        dataset.save(tmp_path / name, Dataset(name, SMALL.train, SMALL.test))
    (tmp_path / "a" / "train.parquet").replace(tmp_path / "b" / "test.parquet")
    (tmp_path / "b" / "test.parquet").replace(tmp_path / "a" / "train.parquet")
    dataset.save(tmp_path / "b", Dataset("b", SMALL.test, ()))
    (tmp_path / "c" / "train.parquet").replace(tmp_path / "b" / "train.parquet")
    for name in "cd":
        (tmp_path / name / "card.json").unlink()
        facts = {"sha256": check.sha256(tmp_path / name / "test.parquet")}
        manifest = {"dataset": "Owner/Set", "revision": "a1", "files": {"test.parquet": facts}}
        (tmp_path / name / MANIFEST).write_text(json.dumps(manifest))
    report = check.tables([tmp_path / name for name in "abcd"], "words")
    states = report["provenance"].set_index("dataset")
    assert states["files"].to_dict() == {
        **{"a": "as in the card", "b": "changed since"},
        **{"c": "as downloaded", "d": "changed since"},  # its train.parquet was not downloaded
    }
    assert states.loc[["c", "d"], "revision"].tolist() == ["a1", "unknown"]
    assert states.loc["c", "source"] == "Owner/Set"


def test_a_set_given_twice_is_counted_once_and_merged_ones_have_their_origins(tmp_path):
    card = {"parts": [{"parts": [{"source": "a"}, {"source": "b"}]}, {"source": "c"}]}
    dataset.save(tmp_path, replace(SMALL, card=card))
    once, twice = (check.tables([tmp_path] * n, "words") for n in (1, 2))
    assert twice["statistics"].equals(once["statistics"]) and not once["statistics"].empty
    assert once["provenance"]["source"].tolist() == ["a", "b", "c"]
    one_file = check.tables([tmp_path / "train.parquet"], "words")["provenance"]
    assert one_file["source"].tolist() == ["a", "b", "c"]
    assert set(one_file["files"]) == {"as in the card"}
    beside = (tmp_path / "train.parquet").rename(tmp_path / "mine.parquet")
    assert check.tables([beside], "words")["provenance"]["files"].tolist() == ["no card"]


def test_the_report_reads_well(tmp_path):
    dataset.save(tmp_path / "a", SMALL)
    dataset.save(tmp_path / "b", Dataset("b", (), SMALL.train))
    shown = check.as_text(check.tables([tmp_path / "a", tmp_path / "b"], "words"))
    assert "1.5 [1-2]" in shown and "2 / 264" in shown and "1 / -" in shown
    assert "ours in tokens of words / the paper's in those of Qwen3-32B" in shown
    assert "Leaks: 1 in 2 pairs of a training and a test source; 1 have" in shown
    assert str(tmp_path) not in shown
    assert max(map(len, shown.splitlines())) < 200
