"""The miniature at ci size: data, writers by rule, and the whole way twice, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from memalpha_kit.data.instances import load_instances
from memalpha_kit.errors import InputError
from memalpha_kit.lab import miniature, world
from memalpha_kit.lab.lessons import tokenizer
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.readers import reader
from memalpha_kit.models.tiny import build_policy
from memalpha_kit.settings import load_profile

CI = load_profile("ci")
COLUMNS = {
    *("length", "instance", "qa", "missing"),
    *("memory_tokens", "chunk_tokens", "compression"),
    *vars(world.Behaviour()),
}


def words_of(instances):
    texts = [t for i in instances for t in (*i.chunks, *(q.question for q in i.questions))]
    return {word.rstrip(".") for text in texts for word in text.split()}


def test_a_profile_of_another_prompt_is_no_profile_of_the_miniature(tmp_path):
    with pytest.raises(InputError, match="profile small: expected the miniature's"):
        miniature.warm_start(load_profile("small"), tmp_path)


def test_under_a_profile_of_a_real_model_the_miniature_says_whose_settings_it_has(caplog):
    settings = miniature.own_settings(replace(load_profile("small"), seed=3))
    assert settings == replace(load_profile("laptop"), name="small", seed=3)
    assert "profile small is of a real model" in caplog.text
    caplog.clear()
    assert miniature.own_settings(CI) is CI and not caplog.text


@pytest.mark.parametrize("name", ["01", "02", "03", "05", "06", "07"])
def test_notebooks_of_the_miniature_have_its_settings_under_any_profile(root, name):
    (path,) = (root / "notebooks").glob(f"{name}_*.ipynb")
    assert "miniature.own_settings(here.profile)" in path.read_text("utf-8")


# --- Data ----------------------------------------------------------------------------------------


def test_data_files_come_back_equal_and_held_out_ones_are_the_same_bytes_for_all_seeds(tmp_path):
    first = miniature.build_data(CI, tmp_path / "a")
    assert first == miniature.data_files(CI, tmp_path / "a")
    assert list(first) == ["train", *(f"test_{n}x" for n in CI.evaluation.lengths)]
    assert load_instances(first["train"]) == miniature.training_instances(CI)
    for name, instances in miniature.held_out(CI).items():
        assert load_instances(first[name]) == instances
    again = miniature.build_data(CI, tmp_path / "b")
    other = miniature.build_data(replace(CI, seed=1), tmp_path / "c")
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes()
        same = other[name].read_bytes() == first[name].read_bytes()
        assert same == (name != "train")


def test_training_instances_are_about_training_names_only_and_held_out_ones_about_the_others():
    train, held_out = map(set, world.names(CI.world))
    trained = words_of(miniature.training_instances(CI))
    tested = words_of(i for part in miniature.held_out(CI).values() for i in part)
    assert trained & train and not trained & held_out
    assert tested & held_out and not tested & train


def test_there_is_a_training_instance_for_every_place_and_chunks_are_multiples():
    trained, tested = miniature.training_instances(CI), miniature.held_out(CI)
    assert len({i.id for i in trained}) == CI.grpo.steps * CI.grpo.instances
    assert {len(i.chunks) for i in trained} == {CI.world.chunks}
    for length, n in zip(CI.evaluation.lengths, CI.evaluation.instances, strict=True):
        part = tested[f"test_{length}x"]
        assert [len(i.chunks) for i in part] == [length * CI.world.chunks] * n


# --- Evaluation without a model ------------------------------------------------------------------


def test_references_are_a_row_per_writer_and_length_and_the_perfect_one_is_never_worse():
    table = miniature.table_references(CI, miniature.held_out(CI))
    assert list(table.columns) == ["writer", "length", "qa"]
    wide = table.pivot(index="writer", columns="length", values="qa")
    assert list(wide.columns) == list(CI.evaluation.lengths)
    assert set(wide.index) == {teacher.name for teacher in miniature.references(CI)}
    assert (wide.loc["perfect"] == 1.0).all()
    assert (wide.loc["never updates"] < 1.0).all()
    assert (wide.max() == wide.loc["perfect"]).all()


def test_a_row_of_the_evaluation_is_what_the_records_say():
    teacher = miniature.references(CI)[0]
    parts = miniature.held_out(CI)
    table = miniature.evaluate(CI, teacher, parts)
    assert set(table.columns) == COLUMNS
    first = next(iter(parts.values()))
    episodes = write(first, teacher, CI.memory, CI.protocol)
    asked = ask(episodes, first, reader(miniature.READER), miniature.METRIC)
    for (_, row), episode, instance in zip(table.iterrows(), asked, first, strict=False):
        scores = [answer.score for answer in episode.answers]
        assert row["instance"] == instance.id
        assert row["qa"] == pytest.approx(sum(scores) / len(scores))
        assert row["compression"] == pytest.approx(1 - row.memory_tokens / row.chunk_tokens)
        counts = vars(world.behaviour(episode, instance))
        assert {name: row[name] for name in counts} == counts


def test_the_policy_is_a_qwen3_of_far_less_than_a_million_parameters(tmp_path):
    words = tokenizer()
    for profile in (CI, load_profile("laptop")):
        model = build_policy(profile.policy, words, 0)
        assert model.num_parameters() < 1_000_000 and model.config.model_type == "qwen3"
        assert len(words) <= model.config.vocab_size < len(words) + 8
    with pytest.raises(InputError, match=r"model .*gone: expected a folder with config.json"):
        miniature.policy_writer(CI, tmp_path / "gone")


# --- The whole way -------------------------------------------------------------------------------


def whole(profile, folder):
    """The experiment by its functions, as notebooks 03 and 05 do it: the results."""
    first = miniature.warm_start(profile, folder / "warm_start")
    second = miniature.train(profile, first, miniature.training_instances(profile), folder / "grpo")
    policies = {"warm_start": first, "grpo": second}
    return miniature.before_and_after(profile, policies, miniature.held_out(profile))


WEIGHTS = "policy/model.safetensors"
SAME = (
    *("warm_start/metrics.csv", f"warm_start/{WEIGHTS}", "warm_start/policy/tokenizer.json"),
    *(
        "grpo/metrics.csv",
        "grpo/settings.json",
        f"grpo/{WEIGHTS}",
        "grpo/episodes/step_00001.jsonl",
    ),
)


def test_the_same_profile_and_seed_give_the_same_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pd.testing.assert_frame_equal(whole(CI, first), whole(CI, second), check_exact=True)
    for name in SAME:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
