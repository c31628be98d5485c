"""Real raw files in one call: what is built, what is skipped and why, and the table they give."""

from __future__ import annotations

import os
import shutil

import pytest
from test_real_path import write_raw

from memalpha_kit import files
from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import scores, tables
from memalpha_kit.evaluation.runs import load_run
from memalpha_kit.lab.real import BY_RULE, HALF, MAJORITY, NOTHING, TURNS, answer_real, build_real
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import load_profile

CI = load_profile("ci", ["real.instances=2"])
SOURCES = ["trec_coarse", "banking77", "longmemeval", "squad"]
EVERY = {BY_RULE, HALF, NOTHING}
METHODS = {
    "trec_coarse": EVERY | {MAJORITY},
    "banking77": EVERY | {MAJORITY},
    "longmemeval": EVERY | {TURNS},
    "squad": EVERY,
}


@pytest.fixture
def raw(tmp_path):
    """Tiny made-up raw files of all four sources."""
    return write_raw(tmp_path / "raw")


def parquets(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_every_source_whose_raw_files_are_there_is_built_the_same_each_time(raw, tmp_path):
    built, absent = build_real(CI, raw, tmp_path / "out")
    again, _ = build_real(CI, raw, tmp_path / "again")
    assert (list(built), absent) == (SOURCES, {})
    for name, path in built.items():
        instances = load_instances(path)
        assert 1 <= len(instances) <= CI.real.instances
        assert {instance.source for instance in instances} == {name}
        assert again[name].read_bytes() == path.read_bytes()


def test_a_source_without_raw_files_is_skipped_with_the_reason(raw, tmp_path):
    (raw / "squad_tiny.json").unlink()
    (raw / "banking77_test.csv").unlink()
    built, absent = build_real(CI, raw, tmp_path / "out")
    assert list(built) == ["trec_coarse", "longmemeval"]
    assert set(absent) == {"banking77", "squad"}
    assert absent["squad"].startswith("nothing called squad*train*.json or squad*.json")
    assert absent["squad"].endswith(f" in {raw}")
    assert "banking77_test.csv" in absent["banking77"]
    assert "banking77_train.csv" not in absent["banking77"]


def test_what_an_earlier_call_built_and_this_one_does_not_is_removed(raw, tmp_path):
    """A table of `real.sources=[squad]` once had the rows of an earlier, longer list too."""
    out = tmp_path / "out"
    build_real(CI, raw, out)
    (raw / "squad_tiny.json").rename(raw / "hidden")
    build_real(CI, raw, out)
    assert parquets(out) == [f"{name}.parquet" for name in sorted(set(SOURCES) - {"squad"})]
    (raw / "hidden").rename(raw / "squad_tiny.json")
    build_real(load_profile("ci", ["real.sources=[squad]"]), raw, out)
    assert parquets(out) == ["squad.parquet"]
    found = answer_real(CI, out, tmp_path / "runs")
    assert {name: len(several) for name, several in found.items()} == dict.fromkeys(EVERY, 1)
    shutil.rmtree(raw)
    built, absent = build_real(CI, raw, out)
    assert (parquets(out), built, list(absent)) == ([], {}, SOURCES)
    assert answer_real(CI, out, tmp_path / "none") == {}


def test_raw_files_that_are_broken_and_sources_nobody_knows_are_errors_and_not_skips(raw, tmp_path):
    (raw / "squad_tiny.json").write_text("{")
    with pytest.raises(InputError, match=r"squad_tiny.json:1: expected JSON"):
        build_real(CI, raw, tmp_path / "out")
    with pytest.raises(InputError, match="did you mean 'squad'"):
        build_real(load_profile("ci", ["real.sources=[squid]"]), raw, tmp_path / "out")
    instance = make_instance("squid", ["Nora keeps bees."], [QA("q0", "Who?", ("Nora",))])
    save_instances(tmp_path / "odd" / "squid.parquet", [instance])
    with pytest.raises(InputError, match="did you mean 'squad'"):
        answer_real(CI, tmp_path / "odd", tmp_path / "runs")


def test_tiny_files_are_answered_once_by_floors_and_methods_of_their_kind(raw, tmp_path):
    build_real(CI, raw, tmp_path / "out")
    first, found = (answer_real(CI, tmp_path / "out", tmp_path / "runs") for _ in range(2))
    assert scores.frames(first)[0].equals(scores.frames(found)[0])
    counted = {
        name: [load_run(one.folder, memories=False) for one in found[name]] for name in found
    }
    assert all(a.equals(b) for a, b in zip(*map(scores.frames, (found, counted)), strict=True))
    assert not any(made.episode for made in counted[BY_RULE][0].prepared.values())
    lines = [len(files.read_jsonl(path)) for path in tmp_path.glob("runs/*/answers.jsonl")]
    answered = [run for several in found.values() for run in several]
    assert sum(lines) == sum(len(run.prepared) + len(run.answers) for run in answered)
    table = tables.table_sources(*scores.frames(found))
    assert list(dict.fromkeys(table.method)) == [BY_RULE, TURNS, HALF, MAJORITY, NOTHING]
    for name, part in table[table.source != tables.AVERAGE].groupby("source"):
        assert set(part.method) == METHODS[name], name
        assert part.metric.nunique() == 1 and (part.missing == 0).all()
        assert part.score[part.method == NOTHING].tolist() == [0.0]
        assert part.score.max() == 1.0
    average = table[table.source == tables.AVERAGE].set_index("method")
    assert average.score[BY_RULE] == 1.0 and average.metric[BY_RULE] == "4 columns"


@pytest.mark.filterwarnings("error::FutureWarning")
def test_real_files_give_scores_above_their_floors(real_data, tmp_path):
    """Banking77 in full takes some more seconds; the command line's test has a share of it."""
    names = ["trec_coarse", "longmemeval", "squad"]
    profile = load_profile("ci", [f"real.sources=[{', '.join(names)}]"])
    before = sorted(os.listdir(real_data))
    built, absent = build_real(profile, real_data, tmp_path)
    assert (list(built), absent) == (names, {})
    assert sorted(os.listdir(real_data)) == before
    found = answer_real(profile, tmp_path, tmp_path / "runs")
    table = tables.table_sources(*scores.frames(found)).set_index(["source", "method"])
    vote, floor = table.loc["trec_coarse", BY_RULE], table.loc["trec_coarse", MAJORITY]
    assert vote.low > floor.high and vote.questions == floor.questions > 50
    assert table.loc["squad", BY_RULE].score > 0.5
    written = table[table.calls > 0]
    assert (written.missing == 0).all() and ("longmemeval", TURNS) in written.index
    assert (written.call_success.dropna() > 0.5).all()
    several = written[(written.questions > 1) & written.low.notna()]
    assert several.low.le(several.score).all() and several.score.le(several.high).all()
