"""`memalpha data`: from raw files to a checked, merged data set, on made-up raw files."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_bad_input import command

from memalpha_kit import files as store
from memalpha_kit.data import dataset, sources
from memalpha_kit.data.build import RECIPES, build_source
from memalpha_kit.data.dataset import Dataset
from memalpha_kit.errors import InputError
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tasks import TASKS
from tools.sample_data import make_raw

ICL = ("icl_trec_coarse_6600shot_balance", "icl_nlu_8296shot_balance")
SMALL = {
    "hotpotqa": ("--article-tokens", 800),
    "lme_train": ("--chunk-max-tokens", 400, "--dialogue-close-tokens", 300),
}
"""Settings that give several instances where the defaults give one from so little raw text."""


run = partial(command, "data")


def raw(folder: Path, source: str) -> Path:
    """A folder with made-up raw files of a source."""
    make_raw(folder / source, source)
    return folder / source


def build(folder: Path, source: str, *options, out: str | None = None) -> Path:
    """The folder of a data set, built from made-up raw files."""
    target, files = folder / (out or source), folder / "raw" / source
    files = files if files.is_dir() else raw(folder / "raw", source)
    assert run("build", "--source", source, "--raw", files, "--out", target, *options) == 0
    return target


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ids(instances) -> list[str]:
    return [instance.id for instance in instances]


def read_card(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text())


def test_an_evaluation_source_has_no_training_part_and_lists_as_answers(tmp_path):
    folder = build(tmp_path, ICL[0], "--rows", "any")
    assert pq.read_table(folder / "train.parquet").num_rows == 0
    [row] = pq.read_table(folder / "test.parquet").to_pylist()
    assert row["prompt"] and row["data_source"] == ICL[0]
    assert all(isinstance(p["answer"], list) for p in json.loads(row["questions_and_answers"]))


def test_the_card_is_what_a_reviewer_asks_for(tmp_path):
    files = raw(tmp_path / "raw", "trec_coarse")
    fetched = {path.name: {"sha256": store.sha256(path)} for path in files.iterdir()}
    (files / "hub.json").write_text(json.dumps({"revision": "c0ffee", "files": fetched}))
    folder = build(tmp_path, "trec_coarse", "--seed", 7)
    card, written = read_card(folder), (folder / "card.json").read_text()
    assert card["seed"] == 7 and card["settings"]["counter"] == "wordpunct"
    assert card["labels"] == {"trec_coarse": ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]}
    assert sorted(card["raw_sha256"]) == ["trec_test.label", "trec_train.label"]
    for place, kind in ((tmp_path / "raw" / "trec_coarse", "raw"), (folder, "data")):
        hashes = card[f"{kind}_sha256"]
        assert hashes == {name: store.sha256(place / name) for name in hashes}
    both = [i for part in dataset.read(folder).parts.values() for i in part]
    assert (card["instances"], card["questions"]) == (1, sum(len(i.questions) for i in both))
    assert card["parts_counts"]["test"]["chunks"] == sum(len(i.chunks) for i in both)
    assert card["revision"] == "c0ffee"  # the files are those that were downloaded
    assert {"licence", "metric", "skipped", "dropped", "versions"} <= card.keys()
    assert "NaN" not in written and str(tmp_path) not in written


def test_an_empty_part_is_said_with_how_many_sets_belong_together(tmp_path, capsys):
    card = read_card(build(tmp_path, "hotpotqa", "--train-ratio", 0.01))
    there = (card["instances"], card["split"]["components"])
    message = "one part is empty: {} instances in {} sets that belong together".format(*there)
    assert min(there) > 1 and message in capsys.readouterr().out


def test_the_card_counts_questions_that_were_sampled_away(tmp_path, capsys):
    sums = set()
    for limit in (5, 50):
        card = read_card(build(tmp_path, "hotpotqa", "--max-questions", limit))
        assert card["questions"] == limit * card["instances"]
        sums.add(card["questions"] + card["dropped"]["questions above the limit, sampled away"])
    assert sums == {400}  # as many as the raw file has
    assert (
        "left out by rule: 250 questions above the limit, sampled away" in capsys.readouterr().out
    )


def test_the_same_command_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    first = content(build(tmp_path, "hotpotqa", "--workers", 1))
    assert first == content(build(tmp_path, "hotpotqa", "--workers", 4))
    assert first == content(build(tmp_path, "hotpotqa", out="elsewhere"))
    assert first != content(build(tmp_path, "hotpotqa", "--seed", 1))


def test_a_build_that_fails_leaves_the_old_data_set_and_nothing_else(tmp_path, capsys):
    folder = build(tmp_path / "x", "trec_coarse")
    before, files = content(folder), tmp_path / "x" / "raw" / "trec_coarse"
    with open(files / "trec_train.label", "a") as file:
        file.write("no label here\n")
    for out in (folder, tmp_path / "y" / "new"):
        assert run("build", "--source", "trec_coarse", "--raw", files, "--out", out) == 2
        assert "trec_train.label:" in capsys.readouterr().err.splitlines()[0]
    assert content(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert sorted(os.listdir(tmp_path / "x")) == ["raw", "trec_coarse"]


def test_bad_records_can_be_left_out_and_are_listed(tmp_path, capsys):
    path = raw(tmp_path / "raw", "hotpotqa") / "hotpotqa_train.json"
    records = json.loads(path.read_text())
    records[3].pop("question")
    path.write_text(json.dumps(records))
    options = ("--source", "hotpotqa", "--raw", path.parent, "--out", tmp_path / "h")
    assert run("build", *options) == 2 and not (tmp_path / "h").exists()
    assert run("build", *options, "--on-error", "skip") == 0
    assert "1 raw records left out, listed in" in capsys.readouterr().out
    [line] = read_card(tmp_path / "h")["skipped"]
    assert "record 3" in line and "question" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--max-chunks 1 --min-questions 101",
            "expected an instance with 101 questions, found none; left out: ",
        ),
        ("--train-ratio 2", "train ratio: expected a number from 0 to 1, found 2.0"),
        ("--workers 0", "workers: expected at least 1"),
        ("--max-chunks 0", "max_chunks: expected at least 1"),
        ("--compat releas", "compat: found 'releas'; did you mean 'release'"),
        ("--on-error ignore", "on_error: found 'ignore'"),
        ("--max-questions 101", "max_questions: expected at most 100 questions, found 101"),
        ("--sed 3", "did you mean '--seed'"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, options, message):
    folder = raw(tmp_path, "squad")
    words = ("--source", "squad", "--raw", folder, "--out", tmp_path / "o")
    assert run("build", *words, *options.split()) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "o").exists()


def part(root: Path, name: str, n_train: int, n_test: int = 1, compat: str = "fixed") -> Path:
    """A data set whose card says that it was built from a source."""
    asked = {f"{name} {i}": [QA("q", f"{name} {i}?", ("x",))] for i in range(n_train + n_test)}
    rows = tuple(make_instance(name, [chunk], questions) for chunk, questions in asked.items())
    card = {"name": name, "source": name, "role": TASKS[name].role, "settings": {"compat": compat}}
    dataset.save(root / name, Dataset(name, rows[:n_train], rows[n_train:], card))
    return root / name


@pytest.fixture
def parts(tmp_path) -> Path:
    """All seven training sources with the paper's numbers of training instances."""
    sizes = RECIPES["balanced"].instances | {"squad": 264, "hotpotqa": 150, "ttl_train": 360}
    for name, n in sizes.items():
        part(tmp_path / "data", name, n)
    return tmp_path / "data"


def test_the_default_recipe_is_the_balanced_set_of_562(parts, tmp_path, capsys):
    assert run("merge", "--data", parts, "--out", tmp_path / "memalpha") == 0
    shown = capsys.readouterr().out
    assert "562 training and 7 test instances" in shown and "squad: 100 (the paper: 100)" in shown
    card = read_card(tmp_path / "memalpha")
    assert card["settings"]["recipe"] == "balanced" and len(card["parts"]) == 7
    assert {n["found"] == n["expected"] for n in card["instances_by_part"].values()} == {True}
    assert run("split", tmp_path / "memalpha", "--out", tmp_path / "new") == 0
    assert "instances_by_part" not in read_card(tmp_path / "new")  # they are the merge's counts
    order = [i.source for i in dataset.read(tmp_path / "memalpha").test]
    assert order == list(RECIPES["balanced"].instances)
    named = [parts / name for name in reversed(RECIPES["balanced"].instances)]
    assert run("merge", *named, "--recipe", "balanced", "--out", tmp_path / "again") == 0
    assert dataset.read(tmp_path / "again").parts == dataset.read(tmp_path / "memalpha").parts


def test_the_default_recipe_refuses_the_leaking_ttl_train(parts, tmp_path, capsys):
    shutil.rmtree(parts / "ttl_train")
    part(parts, "ttl_train", 360, compat="release")
    for words in (("--data", parts), (parts / "ttl_train" / "train.parquet",)):
        assert run("merge", *words, "--out", tmp_path / "m") == 2
        assert "ttl_train: expected a part built without --compat rel" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    words = ("--data", parts, "--recipe", "balanced_release", "--out", tmp_path / "m")
    assert run("merge", *words) == 0


def test_missing_parts_are_errors(parts, tmp_path, capsys):
    """The published code warns and goes on with a smaller set."""

    def refused(message, *words):
        assert run("merge", *words, "--out", tmp_path / "m") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "m").exists()

    shutil.rmtree(parts / "perltqa")
    refused("found none of perltqa", "--data", parts)
    missing = "perltqa: expected a folder with train.parquet"
    refused(missing, parts / "squad", parts / "perltqa")
    shutil.copytree(parts / "squad", parts / "squad2")
    part(parts, "perltqa", 27)
    refused("expected one data set of squad, found", "--data", parts)
    named = [parts / name for name in (*RECIPES["balanced"].instances, "squad2")]
    refused("expected one data set of squad, found", *named, "--recipe", "balanced")
    other = part(tmp_path, "trec_coarse", 1)
    refused("only, found trec_coarse too", *named[:-1], other, "--recipe", "balanced")


def test_a_part_that_is_all_test_counts_as_none_in_training(parts, tmp_path, capsys):
    part(parts, "squad", 0, 1)
    assert run("merge", "--data", parts, "--out", tmp_path / "m") == 0
    assert "squad: 0 (the paper: 100)" in capsys.readouterr().out
    assert run("merge", parts / "squad" / "test.parquet", "--out", tmp_path / "n") == 0
    assert "squad: 1\n" in capsys.readouterr().out  # where it is all that there is


def test_limits_are_read_from_the_command_line_and_wrong_options_refused(parts, tmp_path, capsys):
    words = (parts / "squad", parts / "hotpotqa", "--out", tmp_path / "m")
    assert run("merge", *words, "--limit", 20, "--limit", "squad=7") == 0
    assert "27 training and 2 test instances" in capsys.readouterr().out
    assert read_card(tmp_path / "m")["settings"]["limits"] == {"squad": 7}
    for option, message in (
        (("--limit", "x"), "expected N or NAME=N"),
        (("--limit", "squat=3"), "did you mean 'squad'"),
        (("--limit", 0), "limit: expected at least 1, found 0"),
        (("--recipe", "balancd"), "did you mean 'balanced'"),
        (("--recipe", "memoryagentbench"), "found none of ruler_qa1_197K"),
        (("--out", parts / "squad"), "expected another folder than those that are merged"),
    ):
        assert run("merge", *words, *option) == 2
        assert message in capsys.readouterr().err


def test_evaluation_sets_are_merged_as_one(tmp_path, capsys):
    for name in RECIPES["memoryagentbench"].instances:
        part(tmp_path / "data", name, 0, 1)
    words = ("--data", tmp_path / "data", "--recipe", "memoryagentbench")
    assert run("merge", *words, "--out", tmp_path / "memoryagentbench") == 0
    assert "longmemeval_s*: 1 (the paper: 5)" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "memoryagentbench" / "train.parquet").num_columns == 8
    assert run("merge", part(tmp_path, "trec_coarse", 0, 3), "--out", tmp_path / "ours") == 0
    assert "trec_coarse: 3" in capsys.readouterr().out


def test_a_published_file_is_split_without_leaks(tmp_path, capsys):
    path = part(tmp_path, "squad", 0, 20) / "test.parquet"
    assert run("split", path, "--out", tmp_path / "new", "--seed", 3) == 0
    assert "18 training and 2 test instances" in capsys.readouterr().out
    assert read_card(tmp_path / "new")["split"]["rule"] == "groups"
    assert run("split", tmp_path / "new", "--compat", "release", "--out", tmp_path / "old") == 0
    card = read_card(tmp_path / "old")
    assert card["split"]["rule"] == "instances" and card["made_by"] == "split"


def test_the_check_finds_the_known_leak_and_the_default_does_not_have_it(tmp_path, capsys):
    """The release cuts ttl_train from the rows that MemoryAgentBench is scored on."""
    few, files = ("--rows", "any", "--instances", 5), raw(tmp_path / "raw", "ttl_train")
    for name in ICL:
        words = ("--source", name, "--raw", files, "--out", tmp_path / name)
        assert run("build", *words, "--rows", "any") == 0
    evaluation = [tmp_path / name for name in ICL]
    leaking = build(tmp_path, "ttl_train", "--compat", "release", *few, out="leaking")
    clean = build(tmp_path, "ttl_train", *few, out="clean")
    capsys.readouterr()
    out = tmp_path / "report"
    assert run("check", leaking, *evaluation, "--out", out, "--strict") == 1
    assert "ttl_train/icl_nlu_8296shot_balance" in capsys.readouterr().out
    table = pd.read_csv(out / "leaks.csv").set_index(["train", "test"])
    for name in ICL:
        row = table.loc[(f"ttl_train/{name}", name)]
        assert row["leak"] == "groups, questions, contexts"
        assert row["repeated"] == row["questions"] == row["same_question"]
        assert row["same_number"] == row["shared_samples"] > 0
    assert run("check", clean, *evaluation, "--out", out, "--strict") == 0
    table = pd.read_csv(out / "leaks.csv")
    assert (table[["groups", "same_question", "shown", "shared_samples"]] == 0).all(axis=None)


def test_the_check_saves_what_it_prints(tmp_path, capsys):
    folder = build(tmp_path, "hotpotqa", *SMALL["hotpotqa"])
    assert run("check", folder, "--out", tmp_path / "report", "--counter", "words") == 0
    shown = capsys.readouterr().out
    names = ("statistics", "paper", "provenance", "leaks")
    assert sorted(os.listdir(tmp_path / "report")) == sorted(f"{name}.csv" for name in names)
    rows = pd.read_csv(tmp_path / "report" / "statistics.csv")
    assert set(rows["counter"]) == {"words"} and set(rows["category"]) == {"AR"}
    origin = pd.read_csv(tmp_path / "report" / "provenance.csv").iloc[0]
    assert origin["licence"] in shown and origin["data_sha256"].count(" ") == 3
    assert "/ 1,966" in shown


def test_a_dry_run_names_everything_that_can_be_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("download", "--dry-run") == 0
    shown = capsys.readouterr().out
    for name in ("Memalpha", "Memalpha-Memoryagentbench"):
        assert f"dataset: YuWangX/{name}\n" in shown and f"to: data/{name.lower()}\n" in shown
    for words, message in (
        (["YuWangX/Memalpa", "--dry-run"], "did you mean 'YuWangX/Memalpha'"),
        ([], "expected a data set"),
        (["YuWangX/Memalpha"], "40 hex digits"),
    ):
        assert run("download", *words) == 2 and message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_every_source_says_what_to_expect_of_a_folder_without_its_files(tmp_path):
    for name in sources.SOURCES:
        with pytest.raises(InputError, match="expected"):
            build_source(name, tmp_path, BuildConfig())
