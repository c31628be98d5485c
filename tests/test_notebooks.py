"""All notebooks under profile ci, run once as by `memalpha run`, and what they leave."""

from __future__ import annotations

import ast
import json
import re
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from stub_server import StubServer
from test_real_path import write_raw

from memalpha_kit import files
from memalpha_kit.data.instances import load_instances
from memalpha_kit.figures.curves import table_lengths
from memalpha_kit.figures.targets import TARGETS
from memalpha_kit.method.rewards import step_rewards
from memalpha_kit.notebooks import repository, run
from memalpha_kit.records import Rewards
from memalpha_kit.settings import RewardConfig, load_profile, profile_dict

CI = load_profile("ci")
PRINTED = "method,Avg. printed,Avg. recomputed,off by,k tokens printed,k tokens recomputed"
TABLES = {
    "00_ten_minutes": {
        "conversation.csv": "chunk text",
        "memory_growth.csv": "chunk read_tokens memory_tokens",
        "answers.csv": "question found answer accepted score",
        "rewards.csv": "chunk r1 r2 r3 r4 R",
        "group.csv": "rollout,r1,mean r2,r3,mean r4,mean R",
        "advantages.csv": "grouping,rollout,chunk 0,chunk 1,chunk 2,chunk 3,chunk 4",
    },
    "01_data_processing": {
        "miniature.csv": "source instances chunks_mean questions_mean chunk_tokens",
        "real.csv": "source instances questions chunks_per_instance tokens_per_chunk counter",
        "sources_statistics.csv": "dataset part source category instances questions",
        "sources_paper.csv": "dataset part source table instances instances_paper",
        "sources_provenance.csv": "dataset licence revision raw_sha256 data_sha256",
        "sources_leaks.csv": "train test groups questions repeated shown leak",
    },
    "02_memory_environment": {"rewards.csv": "chunk r1 r2 r3 r4 R"},
    "03_grpo_training": {
        "warm_start.csv": "phase step loss smoothed rate tokens",
        "metrics.csv": "step reward accuracy format compression content",
        "one_step.csv": "advantage change",
    },
    "04_unsloth_grpo": {
        "warm_start.csv": "phase step loss",
        "group.csv": "rollout chunk tokens R A",
        "loss.csv": "policy loss",
        "metrics.csv": "step reward accuracy format compression",
        "recorded_speed.csv": "shape backend vllm device run n step_s peak_mb overhead",
    },
    "05_evaluation": {
        "results.csv": "seed stage length instance qa",
        "lengths.csv": "length n before after gain gain_low gain_high kept",
        "beside.csv": "length measure recorded low high seeds smallest largest this_run inside",
        "behaviour.csv": "stage length what share low high n",
        "references.csv": "writer length qa",
        "methods.csv": "method metric questions missing score low high memory_tokens",
        "pairs.csv": "method against source difference low high p detectable p_holm",
        "waterfall.csv": "source writer reader stage n answers share",
        "real.csv": "method source metric questions missing score low high",
        "real_pairs.csv": "method against source difference p detectable p_holm",
        "parity.csv": "source profile metric questions score above below",
    },
    "06_figures": {
        "lengths.csv": "length seeds n warm_start grpo gain gain_low gain_high kept",
        "behaviour.csv": "stage length what share low high n",
        "targets.csv": "target,at least,at most,measured,met",
        **{f"table{n}_paper.csv": PRINTED for n in (1, 2, 3, 4, 9)},
        "margins_paper.csv": "table best_other lead_printed lead_recomputed",
        "averages_off.csv": "table,method,score_printed,score_recomputed,off_by",
        "beside.csv": "length,measure,recorded,low,high,smallest,largest,this_run,inside",
    },
    "07_ablations": {
        **{
            f"{name}.csv": "point length seeds qa qa_low qa_high gap gap_low gap_high"
            for name in ("grouping", "rewards", "memory")
        },
        "credit_of_entries.csv": "id type text tokens credit low high",
        "credit_reward.csv": "measure length point mean low high gap gap_low gap_high seeds n",
        "lengths.csv": "writer measure length chunk_tokens mean low high n missing",
        "exploits.csv": "exploit,mode,as published,here,strict judge",
    },
}
SMALL = repository() / "reports" / "recorded" / "small"
FIGURES = {
    "00_ten_minutes": ["memory_growth", "advantages"],
    "01_data_processing": ["chunk_tokens", "sources_sizes", "sources_categories"],
    "02_memory_environment": ["memory_growth"],
    "03_grpo_training": ["warm_start", "advantages", "one_step", "rewards"],
    "04_unsloth_grpo": [
        "recorded_phases",
        *(["recorded_small"] if (SMALL / "curves.csv").is_file() else []),
    ],
    "05_evaluation": ["behaviour", "waterfall", "real"],
    "06_figures": [
        *("qa_by_length", "gain_by_seed", "behaviour", "rewards"),
        *("performance_memory", "ablation", "memory_sizes", "data_statistics"),
        *(f"table{n}_paper" for n in (1, 2, 3, 4, 9)),
        "memory_before_after",
    ],
    "07_ablations": [
        *("grouping", "grouping_curves", "grouping_lab", "paper_and_ours", "rewards", "memory"),
        *("pareto_beta", "pareto_methods", "credit_of_entries", "credit_reward", "lengths"),
    ],
}
NOTEBOOKS = list(TABLES)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A root in which all notebooks have run, with tiny made-up files as the real ones."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_raw(home / CI.real.folder)
    with endpoint({}):
        run("ci", root=home)
    return home


MODEL_SETTINGS = (
    *("QWEN_URL", "QWEN_MODEL_NAME", "OPENAI_BASE_URL", "OPENAI_MODEL"),
    *("OPENROUTER_API_KEY", "OPENAI_API_KEY"),
)


@contextmanager
def endpoint(settings):
    """Exactly these settings of a model server in the environment, whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MODEL_SETTINGS:
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def folder(home, notebook):
    return home / "reports" / notebook / "ci"


def cells(path, kind="code"):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_every_notebook_is_listed_here(root):
    assert sorted(path.stem for path in (root / "notebooks").glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_ran_every_cell_without_a_warning_and_nothing_unfinished_is_left(home, name):
    executed = cells(folder(home, name) / f"{name}.ipynb")
    assert all(cell.execution_count for cell in executed)
    outputs = [output for cell in executed for output in cell.outputs]
    assert outputs
    assert [o.traceback for o in outputs if o.output_type == "error"] == []
    said = [line for o in outputs if o.get("name") == "stderr" for line in o.text.splitlines()]
    assert [line for line in said if "mtime may not be reliable" not in line] == []  # of the disk
    html = (folder(home, name) / f"{name}.html").read_text(encoding="utf-8")
    assert f"<title>{name}</title>" in html
    assert html.count("data:image/png;base64") >= len(FIGURES[name])
    left = {path.name for path in folder(home, name).iterdir()}
    expected = {f"{name}.ipynb", f"{name}.html", "run.json", *TABLES[name]}
    expected |= {f"{figure}.{ending}" for figure in FIGURES[name] for ending in ("png", "pdf")}
    assert left - {"episode.jsonl"} == expected


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_leaves_a_card_tables_with_rows_and_figures_that_show_something(home, name):
    import matplotlib.image

    made = folder(home, name)
    card = json.loads((made / "run.json").read_text())
    assert (card["profile"], card["seed"]) == ("ci", CI.seed)
    assert card["settings"] == json.loads(json.dumps(profile_dict(CI)))
    assert set(files.PACKAGES) <= set(card["versions"])
    assert len(card["data_sha256"]) == 64 and card["inputs"] and card["duration_s"] > 0
    for table, columns in TABLES[name].items():
        read = pd.read_csv(made / table)
        assert set(columns.split("," if "," in columns else " ")) <= set(read.columns), table
        assert len(read) > 0, table
    for figure in FIGURES[name]:
        image = matplotlib.image.imread(made / f"{figure}.png")
        assert image.shape[0] > 200 and image.shape[1] > 200 and image.std() > 0.01, figure


def test_notebook_00_shows_the_rewards_that_its_text_works_out_by_hand(home):
    made = folder(home, "00_ten_minutes")
    table = pd.read_csv(made / "rewards.csv")
    saved = 1 - 39 / 172
    assert table.r1.tolist() == [0.8] * 5 and table.r3.tolist() == pytest.approx([saved] * 5)
    assert table.r2.tolist() == pytest.approx([1, 0, 1, 1 / 3, 1])
    assert table.r4.tolist() == pytest.approx([1, 0, 1, 2 / 3, 1])
    assert table.R[3] == pytest.approx(0.8 + 1 / 3 + 0.05 * saved + 0.1 * 2 / 3)
    group = pd.read_csv(made / "group.csv").set_index("rollout")
    assert group.loc["silent", ["r1", "mean r2", "r3"]].tolist() == [0, 0, 1]
    assert group.loc["everything", ["mean r2", "r3"]].tolist() == [1, 0]
    assert group["mean R"].idxmax() == "without mistakes"


def test_notebook_00_shows_every_fate_of_a_call_every_formula_and_the_advantages(home):
    executed = cells(folder(home, "00_ten_minutes") / "00_ten_minutes.ipynb")
    tables = shown(home, "00_ten_minutes")
    assert all(word in tables for word in (">ok<", ">rejected<", "not_found", ">malformed<"))
    checks = [cell.source for cell in executed if "assert " in cell.source]
    formulas = ("accuracy(", "success(", "compression(", "content(", "total(", "advantage(")
    assert all(any(f"def {name}" in check for check in checks) for name in formulas)
    made = pd.read_csv(folder(home, "00_ten_minutes") / "advantages.csv")
    for grouping, rows in made.groupby("grouping"):
        values = rows.filter(like="chunk ")
        assert values.to_numpy().mean() == pytest.approx(0, abs=1e-9), grouping
        assert (values.iloc[-1] < 0).all(), "silent is the worst everywhere"
    assert set(made.grouping) == {"instance", "chunk", "rollout"}


def shown(home, name):
    """All that the executed notebook shows, as text."""
    outputs = [o for c in cells(folder(home, name) / f"{name}.ipynb") for o in c.outputs]
    parts = [o.get("text", "") or "".join(map(str, o.get("data", {}).values())) for o in outputs]
    return "\n".join(parts)


def test_notebook_01_shows_a_raw_file_its_packing_and_what_leaks(home):
    text = shown(home, "01_data_processing")
    assert '"context": "The school of Saint Fenmere has 133 pupils.' in text
    assert "ours (wordpunct)" in text and "paper (Qwen3-32B)" in text
    assert "ttl_train, release/icl_trec_coarse_6600shot_balance" in text and ">1.00<" in text
    assert "no raw files" not in text


def test_notebook_02_shows_failing_calls_what_is_found_and_an_explorer(home):
    text = shown(home, "02_memory_environment")
    for word in ("rejected", "not_found", "malformed truncated", "malformed bad_json"):
        assert word in text, word
    assert all(wire in text for wire in ("--- qwen", "--- text\n✿FUNCTION✿", "--- compact"))
    assert ">133<" in text and "Explorer: 2 episodes" in text


def test_notebook_05_stands_beside_the_recorded_seeds_and_says_that_it_is_one(home):
    beside = pd.read_csv(folder(home, "05_evaluation") / "beside.csv")
    assert {"QA after GRPO", "chit-chat stored, after GRPO"} <= set(beside.measure)
    assert set(beside.inside) <= {"yes", "below", "above", "not measured"}
    assert "of one seed" in shown(home, "05_evaluation")


def test_the_glossary_explains_twenty_words_in_a_sentence_each(root):
    text = (root / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = [line.split(" | ") for line in text.splitlines() if line.startswith("| **")]
    assert len(words) == 20 and all(row[1].endswith(". |") for row in words)
    first, *_ = cells(root / "notebooks" / "00_ten_minutes.ipynb", "markdown")
    assert "(../docs/glossary.md)" in first.source


def test_the_notebooks_hand_over_through_files(home):
    data = home / "data" / "miniature" / "ci"
    assert {p.name for p in data.iterdir()} == {
        *("train.parquet",),
        *(f"test_{length}x.parquet" for length in CI.evaluation.lengths),
    }
    weights = {(home / "runs" / "ci" / stage / "policy" / "model.safetensors").read_bytes()
               for stage in ("warm_start", "grpo")}  # fmt: skip
    assert len(weights) == 2  # GRPO moved them
    results = pd.read_csv(folder(home, "05_evaluation") / "results.csv")
    assert set(results.stage) == {"warm_start", "grpo"}
    assert len(results) == 2 * sum(CI.evaluation.instances)
    train = load_instances(data / "train.parquet")
    assert len(train) == CI.grpo.steps * CI.grpo.instances


def test_notebook_03_computes_what_the_kit_and_trl_compute_and_makes_good_rows_likelier(home):
    text = shown(home, "03_grpo_training")
    assert "advantages equal the kit's under 8 settings: True" in text
    assert "training/loss.py and TRL agree before and after the step: True" in text
    assert "resumed, and the policy is the same: True" in text
    assert "the same replies: True" in text
    sources = "".join(
        cell.source for cell in cells(folder(home, "03_grpo_training") / "03_grpo_training.ipynb")
    )
    functions = ("reward(", "advantage(", "logprobs(", "grpo_loss(")
    assert all(f"def {name}" in sources for name in functions)
    assert "compute_loss is GRPOTrainer.compute_loss" in sources
    step = pd.read_csv(folder(home, "03_grpo_training") / "one_step.csv")
    assert step.change[step.advantage.idxmax()] > 0 > step.change[step.advantage.idxmin()]
    assert (step.advantage * step.change).sum() > 0
    assert len(step) == 8 * CI.world.chunks


def test_the_reward_of_notebook_03_is_the_kit_s_under_any_weights(root):
    (cell,) = (
        c for c in cells(root / "notebooks" / "03_grpo_training.ipynb") if "def reward" in c.source
    )
    made = {"np": np}
    exec(cell.source.partition("\n\n\n")[0], made)
    parts = Rewards(0.75, 0.9, (1.0, 0.5), (None, None), {"mine": (0.25, 0.0)})
    unjudged, nothing = RewardConfig(content=0.0), RewardConfig(0, 0, 0, 0)
    others = replace(unjudged, others={"mine": 2.0}, accuracy_threshold=0.7)
    for weights in (unjudged, nothing, others):
        assert list(made["reward"](parts, weights)) == pytest.approx(step_rewards(parts, weights))


def test_notebook_04_trains_a_toy_for_two_steps_and_says_so(home):
    made, text = folder(home, "04_unsloth_grpo"), shown(home, "04_unsloth_grpo")
    assert "Profile ci names no model: a toy with random weights takes its place." in text
    assert "transformers loads what FastLanguageModel would load on a card" in text
    learned = pd.read_csv(made / "warm_start.csv").loss
    assert learned.iloc[-1] < learned.iloc[0]
    assert pd.read_csv(made / "metrics.csv").step.tolist() == [1, 2]
    group = pd.read_csv(made / "group.csv")
    assert group.A.sum() == pytest.approx(0, abs=1e-6) and group.A.abs().max() > 0.1
    loss = pd.read_csv(made / "loss.csv").set_index("policy").loss
    assert loss.before == pytest.approx(pd.read_csv(made / "metrics.csv").loss[0], abs=1e-5)
    assert loss.after < loss.before


def test_notebook_04_explains_its_words_and_shows_what_was_recorded(home, root):
    path = folder(home, "04_unsloth_grpo") / "04_unsloth_grpo.ipynb"
    text = cells(path, "markdown")[0].source
    for word in ("TRL", "LoRA", "QLoRA", "Unsloth", "vLLM"):
        assert re.search(rf"^- \*\*{word}\*\*[^\n]*\.$", text, re.MULTILINE), word
    tables = shown(home, "04_unsloth_grpo")
    for name in ("fast_inference", "load_in_4bit", "lora_alpha", "steps_per_generation", "epsilon"):
        assert f">{name}</th>" in tables, name
    assert "if memory runs out" in tables
    recorded = [pd.read_csv(p) for p in (root / "reports/recorded/gpu_training").glob("*.csv")]
    rows = pd.concat(recorded)
    speed = pd.read_csv(folder(home, "04_unsloth_grpo") / "recorded_speed.csv")
    assert speed.n.sum() == len(rows) and set(speed["device"]) == set(rows.device)
    on_card = rows.device.str.startswith("cuda").any()
    assert ("No run on a card is recorded yet" in tables) != on_card


def test_notebook_05_measures_what_the_recorded_seeds_and_its_own_runs_measure(home):
    results = pd.read_csv(folder(home, "05_evaluation") / "results.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = table_lengths(results, resamples=50)
    own = pd.read_csv(folder(home, "05_evaluation") / "lengths.csv")
    assert own.before.round(3).tolist() == table.warm_start.round(3).tolist()
    assert own.gain.round(3).tolist() == table.gain.round(3).tolist()
    means = results[results.length == 1].groupby("stage").qa.mean()
    methods = pd.read_csv(folder(home, "05_evaluation") / "methods.csv").set_index("method")
    assert methods.score["memory, after GRPO"] == pytest.approx(means["grpo"], abs=1e-4)
    assert methods.score["memory, before GRPO"] == pytest.approx(means["warm_start"], abs=1e-4)
    assert methods.score["memory, perfect rule"] == 1.0 and methods.score["nothing"] == 0.0
    kept = methods.memory_tokens
    assert kept["as many tokens, at random"] <= kept["memory, after GRPO"]
    stages = pd.read_csv(folder(home, "05_evaluation") / "waterfall.csv")
    assert (stages.groupby("writer").n.sum() == methods.questions.iloc[0]).all()


def test_notebook_05_asks_a_model_where_a_server_is_configured(home, tmp_path):
    """A server that repeats its prompt: right with the evidence in it, wrong without."""
    for name in ("data", "runs", "reports"):
        shutil.copytree(home / name, tmp_path / name)
    named = {"QWEN_MODEL_NAME": "stub", "OPENAI_API_KEY": "sk-planted-key"}
    with StubServer() as stub, endpoint(named | {"QWEN_URL": stub.url}):
        run("ci", only=["05"], root=tmp_path)
    made = folder(tmp_path, "05_evaluation")
    table = pd.read_csv(made / "endpoint.csv").set_index("method")
    assert list(table.index) == ["memory", "gold-chunk", "long-context", "bm25", "closed-book"]
    assert (table.missing == 0).all() and (table.prompt_tokens > 0).all()
    assert table.score["long-context"] == table.score["gold-chunk"] == 1.0
    assert table.score["closed-book"] == 0.0
    assert stub.n_requests == table.questions.sum()
    assert len(pd.read_csv(made / "endpoint_pairs.csv")) == 4
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"sk-planted-key" in path.read_bytes()]


def test_notebook_06_draws_from_what_is_recorded_in_the_checkout(home, root):
    recorded = root / "reports" / "recorded" / "miniature"
    seeds = pd.read_csv(recorded / "results.csv").seed.unique()
    table = pd.read_csv(folder(home, "06_figures") / "lengths.csv")
    assert (table.seeds == len(seeds)).all()
    card = json.loads((folder(home, "06_figures") / "run.json").read_text())
    assert card["inputs"] == sorted(path.name for path in recorded.glob("*.csv"))
    assert card["data_sha256"] == files.fingerprint(recorded.glob("*.csv"))
    targets = pd.read_csv(folder(home, "06_figures") / "targets.csv")
    assert list(targets.target) == list(TARGETS)
    off = pd.read_csv(folder(home, "06_figures") / "averages_off.csv")
    assert off.set_index(["table", "method"]).off_by[2, "RAG-Top2"] == 0.030


def test_notebook_06_sets_this_run_beside_the_recorded_seeds(home):
    beside = pd.read_csv(folder(home, "06_figures") / "beside.csv")
    assert set(beside.length) == {1}  # the one length that both have
    own = pd.read_csv(folder(home, "05_evaluation") / "lengths.csv").set_index("length")
    rows = beside.set_index("measure")
    assert rows.this_run["QA after GRPO"] == pytest.approx(own.after[1], abs=1e-3)
    assert rows.inside["QA after GRPO"] == "below"  # two steps of training teach nothing
    outside = beside.inside.isin(["below", "above"]).sum()
    text = shown(home, "06_figures")
    assert f"profile ci: {outside} of {len(beside)} measures outside" in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_source_is_short_celled_and_tells_its_story(root, name):
    path = root / "notebooks" / f"{name}.ipynb"
    first, *_, last = cells(path, "markdown")
    assert first.source.startswith(f"# {name[:2]} · ") and "**Question.**" in first.source
    assert last.source.startswith("**What we ")
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(path))
    for cell in cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 15, f"{len(lines)} lines:\n{cell.source}"
        defined = [node for node in ast.parse(cell.source).body if hasattr(node, "decorator_list")]
        lines = 10 if name[:2] == "03" else 8  # there the formulas are what is read
        assert all(node.end_lineno - node.lineno < lines for node in defined), "belongs elsewhere"
