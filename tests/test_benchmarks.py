"""The benchmarks run at toy size; what they measure is not asserted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from memalpha_kit import cli
from memalpha_kit.notebooks import repository
from memalpha_kit.records import QA, make_instance


def test_a_quick_look_measures_every_kind_of_thing_and_writes_both_reports(tmp_path):
    """Both ways must give equal results, or it fails; times are not asserted."""
    command = [sys.executable, "-m", "memalpha_kit", "bench", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    table = pd.read_csv(tmp_path / "report.csv")
    assert table.group.nunique() == 5 and len(table) > 60
    page = (tmp_path / "report.md").read_text()
    assert all(f"## {group}" in page for group in table.group)
    assert all(f"- {fact}:" in page for fact in ("processor", "cores", "vector flags", "libraries"))


def test_a_benchmark_of_another_name_is_one_line(capsys):
    assert cli.main(["bench", "--only", "memroy"]) == 2
    assert "did you mean 'memory'?" in capsys.readouterr().err


def test_no_promise_breaks_on_random_texts():
    script = repository() / "benchmarks" / "fuzz.py"
    command = [sys.executable, script, "--tries", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 300 | 0 |") == 12


def train(*arguments):
    script = repository() / "benchmarks" / "gpu_training.py"
    command = [sys.executable, script, "--shape", "toy", "--backends", "trl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_training_benchmark_compares_the_kit_with_trl_alone(tmp_path):
    out = tmp_path / "toy.csv"
    small = ["--instances", "2", "--rollouts", "2", "--slices", "1", "--chunks", "2"]
    small += ["--reply-tokens", "4", "--steps", "2", "--device", "cpu", "--out", out]
    done = train(*small)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out)
    assert list(table.run) == ["kit", "alone"]
    assert (table[["rows", "reply_tokens"]] == [8, 32]).all(axis=None)  # of both, per step
    phases = table[["generate_s", "prepare_s", "train_s", "rest_s"]]
    assert (phases > 0).all(axis=None)
    assert phases.sum(axis=1).to_numpy() == pytest.approx(table.step_s.to_numpy(), abs=1e-3)
    assert table.overhead.notna().tolist() == [True, False]
    assert "not measured: shape 0.6b; shape 4b; backend unsloth" in done.stdout
    assert "toy transformers kit: step 3, sums so far" in done.stdout  # as it happens
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["settings"]["grpo"]["rollouts"] == 2 and card["card"] is None
    recorded = repository() / "reports" / "recorded" / "gpu_training" / "toy_cpu.csv"
    assert list(table) == list(pd.read_csv(recorded))


def test_a_case_without_time_is_left_out_and_named(tmp_path):
    done = train("--device", "cpu", "--minutes", "0", "--out", tmp_path / "toy.csv")
    assert done.returncode == 0, done.stderr
    assert "toy transformers kit; toy transformers alone" in done.stdout
    assert not (tmp_path / "toy.csv").exists() and (tmp_path / "toy.json").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_training_benchmark_says_that_it_measured_nothing(tmp_path):
    done = train("--out", tmp_path / "gpu.csv")
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA card here, so nothing was measured")
    assert not (tmp_path / "gpu.csv").exists()


@pytest.fixture(scope="module")
def small():
    """The script that records profile `small`, as a module."""
    script = repository() / "benchmarks" / "small.py"
    spec = importlib.util.spec_from_file_location("small", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [1, 3, 9])
def test_what_is_cut_around_a_question_holds_its_evidence(small, size):
    chunks = [f"chunk {number}" for number in range(5)]
    asked = [QA(f"q{n}", "What?", ("it",), n) for n in range(5)] + [QA("both", "What?", ("it",))]
    whole = make_instance("lme_train", chunks, asked, metadata={"groups": ["a"]})
    parts = list(small.windows(whole, size))
    assert len(parts) == 5  # a question whose evidence is in several chunks is left out
    for number, part in enumerate(parts):
        (qa,) = part.questions
        assert len(part.chunks) == min(size, 5) and part.chunks[qa.chunk] == f"chunk {number}"
        assert part.metadata["groups"] == ["a"]


def test_what_grpo_gains_is_paired_by_seed_and_article(small):
    scores = {
        (0, "a"): (0.0, 0.5),
        (0, "b"): (0.5, 0.5),
        (1, "a"): (0.5, 0.75),
        (1, "b"): (0, 0.25),
    }
    rows = [
        {"stage": stage, "seed": seed, "article": name} | dict.fromkeys(small.MEASURES, score)
        for (seed, name), pair in scores.items()
        for stage, score in zip(("warm start", "GRPO"), pair, strict=True)
    ]
    made = small.summary(pd.DataFrame(rows)).set_index(["stage", "measure"]).value
    assert made["GRPO", "qa"] == 0.5 and made["warm start", "qa"] == 0.25
    assert made["gain of GRPO, seed 0", "qa"] == made["gain of GRPO, seed 1", "qa"] == 0.25
    assert made["gain of GRPO", "memory tokens"] == 0.25
    assert ("gain of GRPO, greedy", "qa") not in made
