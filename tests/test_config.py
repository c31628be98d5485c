"""Profiles: what a YAML file and `--set` may say, and how a mistake is answered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_type_hints

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.sections import settings_from
from memalpha_kit.settings import (
    BuildConfig,
    MemoryConfig,
    Profile,
    load_profile,
    profile_dict,
    profile_names,
)


def refused(message, *profile):
    """Loading it is an error of one line with this message."""
    with pytest.raises(InputError) as caught:
        load_profile(*profile)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_of_the_kit_loads_and_becomes_json(name):
    profile = load_profile(name)
    assert profile.name == name
    assert json.loads(json.dumps(profile_dict(profile))) == profile_dict(profile)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["grpo.steps=3", "grpo.steps=4"], 4),  # the last one wins
        (["grpo.learning_rate=5e-3"], 0.005),
        (["evaluation.lengths=[2, 3]"], (2, 3)),
        (["reward.accuracy=1"], 1.0),
        (["reward.accuracy_threshold=null"], None),
        (["reward.accuracy_threshold=0.5"], 0.5),
        (["memory.core=false"], False),
        (["memory.counter=words"], "words"),
    ],
)
def test_overrides_win_over_the_file_and_arrive_with_the_type_of_the_field(overrides, expected):
    section, name = next(iter(overrides)).partition("=")[0].split(".")
    found = getattr(getattr(load_profile("ci", overrides), section), name)
    assert found == expected and type(found) is type(expected)


def test_a_profile_file_may_extend_a_profile_of_the_kit_or_a_file_beside_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: ci\ngrpo: {steps: 5}\n")
    (tmp_path / "short.yaml").write_text("extends: mine.yaml\nseed: 3\n")
    profile = load_profile(tmp_path / "short.yaml")
    assert (profile.name, profile.seed, profile.grpo.steps) == ("short", 3, 5)
    assert profile.policy == load_profile("ci").policy


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.step=3", "unknown key 'grpo.step'; did you mean 'grpo.steps'?"),
        ("gpro.steps=3", "unknown key 'gpro'; did you mean 'grpo'?"),
        ("grpo.steps=many", "grpo.steps: expected a whole number, found 'many'"),
        ("grpo.steps=1.5", "grpo.steps: expected a whole number, found 1.5"),
        ("grpo.steps=true", "grpo.steps: expected a whole number, found True"),
        ("grpo.steps=-1", "grpo.steps: expected at least 0, found -1"),
        ("grpo.steps=", "grpo.steps: expected a whole number, found None"),
        ("world.correction=1.2", "world.correction: expected at most 1, found 1.2"),
        ("reward.content=.nan", "reward.content: expected a number, found nan"),
        ("reward.content=high", "reward.content: expected a number, found 'high'"),
        ("grpo=3", "grpo: expected a section with settings, found 3"),
        ("memory.display=recnt", "memory.display: found 'recnt'; did you mean 'recent'?"),
        ("memory.core=1", "memory.core: expected true or false, found 1"),
        ("world.facts=[1]", "world.facts[1]: expected another number of values, found [1]"),
        ("world.facts=3", "world.facts: expected a list, found 3"),
        ("world.facts=[1, x]", "world.facts[1]: expected a whole number, found 'x'"),
        ("grpo.steps=[", "grpo.steps: expected a value, found '['"),
        ("grpo.steps", "'grpo.steps': expected section.key=value"),
        ("name=other", "unknown key 'name'"),
        ("seed=-1", "seed: expected at least 0, found -1"),
        ("seed=18446744073709551616", "seed: expected at most 4.29497e+09"),
        (f"seed={'9' * 5000}", "override seed: expected a value"),
        ("world.facts=[3, 1]", "world.facts: expected the smaller number first, found [3, 1]"),
        ("data.chunk_min_tokens=9999", "chunk_min_tokens: expected at most 2048"),
        ("evaluation.lengths=[1]", "evaluation.instances: expected lists of one length"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line_that_names_it(override, message):
    refused(message, "ci", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpo: {stepz: 3}", "unknown key 'grpo.stepz'; did you mean 'grpo.steps'?"),
        ("grpo: {steps: [}", "expected YAML"),
        ("- a\n- b\n", "expected sections with settings"),
        ("extends: labtop", "unknown profile 'labtop'; did you mean 'laptop'?"),
        ("extends: wrong.yaml", "the profile extends itself"),
        ("extends: none.yaml", "none.yaml: expected a profile (a YAML file), found no such file"),
        ("grpo: {steps: 1}\ngrpo: {steps: 2}", "'grpo' is there twice"),
        ("grpo:\n", "grpo: expected a section with settings, found None"),
    ],
)
def test_a_wrong_profile_file_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "wrong.yaml").write_text(text)
    refused(message, tmp_path / "wrong.yaml")


def test_the_error_names_the_file_that_is_wrong_and_not_the_one_that_extends_it(tmp_path):
    (tmp_path / "below.yaml").write_text("grpo: {steps: no}\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\n")
    refused("below.yaml: grpo.steps: expected a whole number", tmp_path / "above.yaml")
    refused("unknown profile 'labtop'; did you mean 'laptop'?", "labtop")
    refused("nowhere.yaml: expected a profile (a YAML file), found no such", Path("nowhere.yaml"))


def test_every_setting_has_a_default_of_its_own_type_and_a_line_about_it():
    for name, kind in get_type_hints(Profile).items():
        if dataclasses.is_dataclass(kind):
            assert settings_from(kind, dataclasses.asdict(kind()), name) == kind()
            assert all(field.metadata["about"] for field in dataclasses.fields(kind))


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(InputError, match="shown: expected at least 0, found -1"):
        MemoryConfig(shown=-1)
    with pytest.raises(InputError, match="unknown key 'show'; did you mean 'shown'"):
        MemoryConfig(show=1)
    with pytest.raises(InputError, match="chunk_min_tokens: expected at most 50, found 100"):
        dataclasses.replace(BuildConfig(), chunk_max_tokens=50)


def test_a_part_may_need_what_stands_in_another_part(tmp_path):
    (tmp_path / "large.yaml").write_text("data: {chunk_max_tokens: 9000}\n")
    profile = load_profile(tmp_path / "large.yaml", ["data.chunk_min_tokens=4000"])
    assert profile.data.chunk_min_tokens == 4000
