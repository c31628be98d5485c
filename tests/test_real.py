"""Real raw files in one call: what is built, what is skipped and why, and the table they give."""

from __future__ import annotations

import os
import shutil

import pytest
from test_real_path import write_raw

from memalpha_kit import evaluation, store
from memalpha_kit.config import load_profile
from memalpha_kit.errors import InputError
from memalpha_kit.real import build_real, evaluate_real
from memalpha_kit.records import QA, make_instance

CI = load_profile("ci", ["real.instances=2"])
SOURCES = ["trec_coarse", "banking77", "longmemeval", "squad"]
METHODS = {
    "trec_coarse": {"keep_examples"},
    "banking77": {"keep_examples"},
    "longmemeval": {"keep_sentences", "keep_turns"},
    "squad": {"keep_sentences"},
}


@pytest.fixture
def raw(tmp_path):
    """Tiny made-up raw files of all four sources."""
    return write_raw(tmp_path / "raw")


def parquets(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_every_source_whose_raw_files_are_there_is_built(raw, tmp_path):
    built, absent = build_real(CI, raw, tmp_path / "out")
    assert (list(built), absent) == (SOURCES, {})
    for name, path in built.items():
        instances = store.load_instances(path)
        assert 1 <= len(instances) <= CI.real.instances
        assert {instance.source for instance in instances} == {name}


def test_the_same_raw_files_give_the_same_bytes(raw, tmp_path):
    one, _ = build_real(CI, raw, tmp_path / "one")
    two, _ = build_real(CI, raw, tmp_path / "two")
    for name in SOURCES:
        assert one[name].read_bytes() == two[name].read_bytes()


def test_a_source_without_raw_files_is_skipped_with_the_reason(raw, tmp_path):
    (raw / "squad_tiny.json").unlink()
    (raw / "banking77_test.csv").unlink()
    built, absent = build_real(CI, raw, tmp_path / "out")
    assert list(built) == ["trec_coarse", "longmemeval"]
    assert set(absent) == {"banking77", "squad"}
    assert absent["squad"] == (
        f"nothing called squad*.json or squad*.parquet or train-*.parquet in {raw}"
    )
    assert "banking77_test.csv" in absent["banking77"]
    assert "banking77_train.csv" not in absent["banking77"]


def test_a_folder_that_does_not_exist_skips_everything(tmp_path):
    built, absent = build_real(CI, tmp_path / "nowhere", tmp_path / "out")
    assert (built, list(absent)) == ({}, SOURCES)
    table = evaluate_real(CI, tmp_path / "out")
    assert table.empty and list(table.columns) == list(evaluation.COLUMNS)


def test_what_an_earlier_call_built_is_removed_when_its_raw_files_are_gone(raw, tmp_path):
    out = tmp_path / "out"
    build_real(CI, raw, out)
    (raw / "squad_tiny.json").unlink()
    build_real(CI, raw, out)
    assert parquets(out) == [f"{name}.parquet" for name in sorted(set(SOURCES) - {"squad"})]
    shutil.rmtree(raw)
    build_real(CI, raw, out)
    assert parquets(out) == []


def test_what_an_earlier_call_built_is_removed_when_it_is_not_asked_for_any_more(raw, tmp_path):
    """A table of `real.sources=[squad]` once had the rows of an earlier, longer list too."""
    out = tmp_path / "out"
    build_real(CI, raw, out)
    build_real(load_profile("ci", ["real.sources=[squad]"]), raw, out)
    assert parquets(out) == ["squad.parquet"]
    assert set(evaluate_real(CI, out).source) == {"squad"}


def test_raw_files_that_are_broken_are_an_error_and_not_a_skip(raw, tmp_path):
    (raw / "squad_tiny.json").write_text("{")
    with pytest.raises(InputError, match=r"squad_tiny.json:1: expected JSON"):
        build_real(CI, raw, tmp_path / "out")


def test_a_source_that_nobody_knows_is_refused_with_the_closest(raw, tmp_path):
    profile = load_profile("ci", ["real.sources=[squid]"])
    with pytest.raises(InputError, match="did you mean 'squad'"):
        build_real(profile, raw, tmp_path / "out")


def test_tiny_files_are_evaluated_with_floors_and_methods_of_their_kind(raw, tmp_path):
    build_real(CI, raw, tmp_path / "out")
    table = evaluate_real(CI, tmp_path / "out")
    assert list(table.columns) == list(evaluation.COLUMNS)
    for name, part in table.groupby("source"):
        assert set(part.writer) - {"(none)"} == METHODS[name], name
        assert (part.metric == part.metric.iloc[0]).all() and (part.missing == 0).all()
        floors = set(part.reader[part.writer == "(none)"])
        assert floors == {"read_nothing"} | (
            {"majority_label"} if part.metric.iloc[0] == "label" else set()
        )
    best = table[table.writer != "(none)"].groupby("source").score.max()
    assert (best == 1.0).all()


def test_the_table_is_the_same_again_but_for_the_seconds(raw, tmp_path):
    build_real(CI, raw, tmp_path / "out")
    one, two = (evaluate_real(CI, tmp_path / "out") for _ in range(2))
    assert one.drop(columns="duration_s").equals(two.drop(columns="duration_s"))


def test_a_parquet_file_of_a_source_that_nobody_knows_is_an_input_error(tmp_path):
    instance = make_instance("squid", ["Nora keeps bees."], [QA("q0", "Who?", ("Nora",))])
    store.save_instances(tmp_path / "squid.parquet", [instance])
    with pytest.raises(InputError, match="did you mean 'squad'"):
        evaluate_real(CI, tmp_path)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_real_files_give_scores_above_their_floors(real_data, tmp_path):
    """Banking77 in full takes some more seconds; the command line's test has a share of it."""
    names = ["trec_coarse", "longmemeval", "squad"]
    profile = load_profile("ci", [f"real.sources=[{', '.join(names)}]"])
    before = sorted(os.listdir(real_data))
    built, absent = build_real(profile, real_data, tmp_path)
    assert (list(built), absent) == (names, {})
    assert sorted(os.listdir(real_data)) == before
    table = evaluate_real(profile, tmp_path).set_index(["source", "writer", "reader"])
    vote = table.loc[("trec_coarse", "keep_examples", "label_vote")]
    floor = table.loc[("trec_coarse", "(none)", "majority_label")]
    assert vote.low > floor.high and vote.questions == floor.questions > 50
    assert table.loc[("squad", "keep_sentences", "best_entry")].score > 0.5
    assert set(table.loc["longmemeval"].index.get_level_values("writer")) >= {"keep_turns"}
    scored = table[table.index.get_level_values("writer") != "(none)"]
    assert (scored.missing == 0).all() and (scored.call_success > 0.5).all()
    assert ("squad", "keep_turns", "best_entry") not in table.index
    several = scored[scored.questions > 1]
    assert several.low.le(several.score).all() and several.score.le(several.high).all()
