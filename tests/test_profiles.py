"""The profiles of real models: the published run, its variants, and one card."""

from __future__ import annotations

import dataclasses
import re

import pytest

from memalpha_kit.settings import PROFILES, load_profile, profile_names

SCRIPTS = {  # the published scripts: beta, gamma, model
    "paper": (0.05, 0.1, "Qwen/Qwen3-4B"),
    "paper_4b_beta0": (0.0, 0.1, "Qwen/Qwen3-4B"),
    "paper_4b_gamma0": (0.05, 0.0, "Qwen/Qwen3-4B"),
    "paper_4b_beta0.2": (0.2, 0.1, "Qwen/Qwen3-4B"),
    "paper_4b_beta0.4": (0.4, 0.1, "Qwen/Qwen3-4B"),
    "paper_8b": (0.05, 0.1, "Qwen/Qwen3-8B"),
    "paper_8b_gamma0": (0.05, 0.0, "Qwen/Qwen3-8B"),
    "paper_8b_beta0.2": (0.2, 0.1, "Qwen/Qwen3-8B"),
}


def settings(name):
    profile = load_profile(name)
    return profile.reward.compression, profile.reward.content, profile.model.name


@pytest.mark.parametrize(("name", "expected"), SCRIPTS.items())
def test_every_released_script_is_a_profile(name, expected):
    assert settings(name) == expected


def test_the_variants_are_all_there_and_differ_from_the_main_run_in_nothing_else():
    assert [name for name in profile_names() if name.startswith("paper")] == sorted(SCRIPTS)
    main = load_profile("paper")
    for name in SCRIPTS:
        variant = load_profile(name)
        same = dataclasses.replace(
            variant,
            name="paper",
            reward=dataclasses.replace(
                variant.reward, compression=main.reward.compression, content=main.reward.content
            ),
            model=dataclasses.replace(variant.model, name=main.model.name),
        )
        assert same == main


def test_every_number_of_the_published_run_has_its_source():
    lines = (PROFILES / "paper.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"^  \w+: |^\w+: \S", line)]
    unsourced = [line for line in values if not re.search(r"# ([SDHP](:|;|$| )|differs)", line)]
    assert unsourced == ["  backend: transformers", "  prompt: paper"]  # ours, not hyperparameters


def test_one_card_needs_nothing_else_to_be_served():
    profile = load_profile("gpu")
    assert profile.model.reader == "base" and profile.model.vllm == "colocate"
    assert profile.model.lora_rank > 0 and not profile.model.reader_url
