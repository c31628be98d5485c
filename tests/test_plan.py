"""`memalpha plan`: what runs will cost, what cannot fit, and how a probe changes it."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from memalpha_kit import cli
from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json, save_json
from memalpha_kit.lab import miniature, toy
from memalpha_kit.lab.lessons import tokenizer
from memalpha_kit.lab.plan import REFERENCE, miniature_parameters, miniature_plan, planned
from memalpha_kit.models.tiny import build_policy
from memalpha_kit.settings import load_profile, profile_names
from memalpha_kit.training import probe
from memalpha_kit.training.plan import (
    SHAPES,
    Assumptions,
    fitting,
    known_card,
    known_shape,
    plan,
    planned_data,
)

LAPTOP = load_profile("laptop")
PUBLISHED = Assumptions(cards=32, vllm_cards=8, reader_cards=8)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_a_plan_whose_numbers_are_not_negative(name):
    profile = load_profile(name)
    made = plan(profile, PUBLISHED) if "paper" in name else planned(profile)
    table = made.table()
    assert (table.value.dropna() >= 0).all() and not made.problems
    assert {"episodes", "generations", "reader calls", "judge calls"} <= set(table.what)
    assert {"work", "memory", "time", "disk"} <= set(table.part)


def test_shapes_have_the_published_numbers_of_parameters_and_the_data_is_table_7():
    published = {"0.6B": 0.6, "4B": 4.0, "8B": 8.2, "32B": 32.8}
    for name, billions in published.items():
        found = SHAPES[f"Qwen/Qwen3-{name}"].parameters / 1e9
        assert found == pytest.approx(billions, rel=0.02)
    small = known_shape("models/smollm2-135m")  # by the name of its folder, there or not
    assert small.parameters == pytest.approx(134.5e6, rel=0.001)
    data = planned_data(Assumptions())  # weighted by instances
    assert data.chunks == pytest.approx(10.65, abs=0.01)  # of 567 printed instances
    assert 50 < data.questions < 70 and 1000 < data.tokens < 1400


def test_profile_small_is_planned_for_one_core_with_its_own_short_chunks(capsys):
    assert cli.main(["plan", "--profile", "small"]) == 0
    page = capsys.readouterr().out
    assert "156 per generation" in page and "x 1 cards (cpu)" in page
    made = plan(load_profile("small"), Assumptions(card="cpu", chunks=1, chunk_tokens=112))
    assert made.value("warm start") > 0 and not made.problems
    assert plan(load_profile("gpu")).value("warm start") == 0
    assert known_card(16.0) != "cpu"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("small", "x 1 cards (cpu)"),
        (
            "small --card h100",
            "x 1 cards (h100)",
        ),  # what is given holds, also where it is a default
        ("paper", "x 48 cards (h100)"),
        ("paper --cards 1", "x 17 cards (h100)"),
        ("gpu --set model.reader=endpoint", "x 1 cards (h100)"),  # with its engine on the card
    ],
)
def test_what_is_given_comes_before_what_a_profile_assumes(options, line, capsys):
    cli.main(["plan", "--profile", *options.split()])
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("gpu --cards 4", "model.backend unsloth trains on one card, found 4 cards"),
        ("paper --cards 24", "grpo.instances 32 is no multiple of 24 cards"),
        ("paper --cards 0", "cards: expected at least 1, found 0"),
        ("gpu --chunks 0", "chunks: expected more than 0, found 0"),
        ("gpu --set model.reader=rule", "reward.content: expected 0 without a judge"),
        ("gpu --set grpo.overlap=true", "grpo.overlap: expected false with model.reader base"),
        ("gpu --set model.max_seq_length=99", "model.max_seq_length: expected at least 8192"),
        ("gpu --set memory.counter=typo", "counter: expected a known name, found 'typo'"),
        ("gpu --training-share 30", "training_share: expected at most 1, found 30"),
    ],
)
def test_what_cannot_be_trained_or_assumed_is_refused(options, message, capsys):
    assert cli.main(["plan", "--profile", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_probe_s_seconds_are_the_plan_s_seconds(monkeypatch):
    small, given = load_profile("small"), Assumptions("cpu", chunks=1, chunk_tokens=112)
    monkeypatch.setattr(probe, "_seconds", lambda *_: (7.0, 20.0))
    made = probe.probed(small, given)
    assert 3600 * made.value("warm start") == pytest.approx(7.0 * small.warm_start.steps)
    assert 3600 * made.value("generation") == pytest.approx(20.0 * small.grpo.steps)
    table = plan(small, given)
    slower = [made.value(part) / table.value(part) for part in ("warm start", "training")]
    assert slower[0] == pytest.approx(slower[1])
    with pytest.raises(InputError, match="expected the miniature or profile small, found gpu"):
        probe.probed(load_profile("gpu"), given)
    with pytest.raises(InputError, match="expected --card cpu, found h100"):
        probe.probed(small, Assumptions())


def test_a_probe_trains_and_writes_with_the_model_of_the_profile(tmp_path):
    profile, _ = toy.stand_in(load_profile("small", ["warm_start.batch=2"]), tmp_path)
    assert all(seconds > 0 for seconds in probe._seconds(profile, 12, 4))


def test_work_of_the_published_run_by_hand():
    made, data = plan(load_profile("paper"), PUBLISHED), planned_data(Assumptions())
    episodes, looks = 205 * 32 * 8, -(-205 // 50) * 463
    assert made.value("episodes") == episodes
    assert made.value("generations") == pytest.approx((episodes + looks) * data.chunks)
    assert made.value("reader calls") == pytest.approx((episodes + looks) * data.questions)
    # eight rollouts of one instance of 23.3 chunks are 187 rows: 3 for each of 80 slices
    a_row = (made.value("prompt tokens") + made.value("reply tokens")) / made.value("generations")
    assert made.value("training tokens") / a_row == pytest.approx(205 * 32 * 240)
    how = {line.what: line.how for line in made.lines}
    assert how["activations"].startswith("3 x 8192 tokens")


def test_passes_adapters_exports_and_rules_count_as_in_a_run():
    def small(*settings):
        return plan(load_profile("small", settings), Assumptions(card="cpu", chunks=1))

    once, twice, held = small(), small("grpo.iterations=2"), small("grpo.kl=0.1")
    assert twice.value("training") == pytest.approx(once.value("training") * (2 * 4 + 2) / 4)
    assert held.value("training") == pytest.approx(once.value("training") * 6 / 4)
    assert {made.value("warm start") for made in (twice, held)} == {once.value("warm start")}
    assert once.value("checkpoints") == pytest.approx(0.57, abs=0.02)  # its export is 0.54 GB
    queries = small("model.lora_targets=[q_proj]").value("training states")
    assert queries / once.value("training states") == pytest.approx(
        2 * 576 / (2 * (2 * 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    )
    assert once.value("reader calls") and not once.value("reader tokens in")
    known = [made.value("total per card") for made in (small(), small("grpo.slices=1"))]
    assert known == pytest.approx([5, 14], rel=0.1)  # as profiles/small.yaml says of a run
    held, free = (
        plan(load_profile("gpu", [f"model.gradient_checkpointing={on}"])) for on in (True, False)
    )
    assert free.value("activations") > 5 * held.value("activations")
    assert free.value("training") == pytest.approx(held.value("training") * 6 / 8)
    engine, none = (plan(load_profile("gpu", [f"model.vllm={v}"])) for v in ("colocate", "none"))
    assert engine.value("training") == pytest.approx(none.value("training") * 8 / 6)


def test_what_cannot_fit_is_refused_with_the_sum(capsys):
    with pytest.raises(InputError, match=r"GB per card needed, rtx4090 has 24 .*model.lora_rank"):
        plan(load_profile("paper"), Assumptions(card="rtx4090")).refuse()
    argv = ["plan", "--profile", "gpu", "--card", "rtx4090", "--set", "model.name=Qwen/Qwen3-8B"]
    assert cli.main(argv) == 2
    assert "load_in_4bit" in capsys.readouterr().err
    smaller = ["--set", "model.load_in_4bit=true", "--set", "model.gpu_memory_utilization=0.45"]
    assert cli.main([*argv, *smaller]) == 0
    tight = plan(load_profile("gpu", ["model.gpu_memory_utilization=0.12"]))
    assert "one sequence of 8192 tokens needs" in tight.problems[0]


def test_the_card_at_hand_is_found_by_its_memory_and_its_name():
    names = {
        (25.3, "NVIDIA GeForce RTX 4090"): "rtx4090",
        (85.0, "NVIDIA H100 80GB HBM3"): "h100",
        (16.0, "Tesla T4"): None,
        (85.1, "NVIDIA A100-SXM4-80GB"): "a100-80",
        (47.7, "NVIDIA L40S"): "l40s",
        (150.1, "NVIDIA H200"): "h200",
    }
    assert {named: known_card(*named) for named in names} == names
    profile = load_profile("gpu")
    assert fitting(profile, 1, 0.0) is None  # no card, no plan
    assert fitting(profile, 1, 85.0).value("total") > 0
    with pytest.raises(InputError, match="does not fit"):
        fitting(load_profile("paper"), 1, 25.3)


def test_a_folder_counts_as_the_model_that_has_its_sizes(tmp_path):
    named = {"num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32}
    named |= {"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728}
    config = tmp_path / "config.json"
    save_json(config, named | {"tie_word_embeddings": True, "vocab_size": 151936})
    here, profile = load_profile("gpu", [f"model.name={tmp_path}"]), load_profile("gpu")
    pd.testing.assert_frame_equal(plan(here).table(), plan(profile).table())
    save_json(config, named)
    assert known_shape(str(tmp_path)) is None and planned(here) is None


def test_an_unknown_card_or_model_is_refused():
    known = "card 'h1000' is not in the tables of the plan; did you mean 'h100'"
    with pytest.raises(InputError, match=known):
        plan(load_profile("gpu"), Assumptions(card="h1000"))
    with pytest.raises(InputError, match="model.name 'Qwen/Qwen3-4b' is not in the tables"):
        plan(load_profile("gpu", ["model.name=Qwen/Qwen3-4b"]))


def test_prices_are_only_there_when_they_are_given():
    profile = load_profile("paper")
    assert "cost" not in set(plan(profile, PUBLISHED).table().part)
    prices = {"usd_per_card_hour": 2.0, "usd_per_million_in": 0.1, "usd_per_million_out": 0.3}
    made = plan(profile, replace(PUBLISHED, **prices))
    assert made.value("cards") == pytest.approx(2.0 * made.value("GPU hours"))
    tokens_in = made.value("reader tokens in") + made.value("judge tokens in")
    tokens_out = made.value("reader tokens out") + made.value("judge tokens out")
    usd = (0.1 * tokens_in + 0.3 * tokens_out) / 1e6
    assert made.value("reader and judge") == pytest.approx(usd)


# --- The miniature --------------------------------------------------------------------------------


def test_the_miniature_s_parameters_and_work_are_those_of_the_experiment():
    words = tokenizer()
    counted = build_policy(LAPTOP.policy, words, 0).num_parameters()
    assert miniature_parameters(LAPTOP.policy, len(words)) == pytest.approx(counted, rel=0.01)
    made, instances = miniature_plan(LAPTOP), miniature.training_instances(LAPTOP)
    assert made.value("episodes") == len(instances) * LAPTOP.grpo.rollouts
    chunks = sum(len(i.chunks) for i in instances) * LAPTOP.grpo.rollouts
    assert made.value("generations") == chunks


def test_times_are_those_of_a_recorded_run_and_scale_with_steps_and_with_the_probe():
    reference = load_json(REFERENCE)  # a run with fewer steps of warm start than today's
    skills = LAPTOP.warm_start.copy_steps + LAPTOP.warm_start.transcribe_steps
    steps = reference["warm_start"]["rows"] // LAPTOP.warm_start.batch - skills
    recorded = replace(LAPTOP, warm_start=replace(LAPTOP.warm_start, steps=steps))
    base = miniature_plan(recorded)
    parts = sum(reference[part]["seconds"] for part in ("warm_start", "grpo", "evaluation"))
    assert base.value("total") == pytest.approx(parts + reference["other_s"])
    half = replace(recorded, grpo=replace(LAPTOP.grpo, steps=LAPTOP.grpo.steps // 2))
    assert miniature_plan(half).value("GRPO") == pytest.approx(base.value("GRPO") / 2)
    slow = miniature_plan(recorded, speed=2 * reference["probe_s"])
    assert slow.value("total") == pytest.approx(2 * base.value("total"))
