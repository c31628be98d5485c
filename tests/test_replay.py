"""Replay makes an episode again from its replies, byte for byte, and reports what differs."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from random_episodes import random_case

from memalpha_kit import cli
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import InputError
from memalpha_kit.explorer.replay import differences, replay, replayed, reward_differences
from memalpha_kit.files import json_line, save_json
from memalpha_kit.method.rewards import TERMS, rewards
from memalpha_kit.method.saved import episode_fields, load_rewards, save_episodes, save_rewards
from memalpha_kit.records import Rewards
from memalpha_kit.settings import RewardConfig
from memalpha_kit.tokens import counter

WIRES = ("qwen", "text", "compact")


def rewarded(episode, instance):
    return rewards(episode, instance, counter("wordpunct"))


def test_a_thousand_random_episodes_are_replayed_byte_for_byte():
    for seed in range(1000):
        episode, instance = random_case(seed, WIRES[seed % 3])
        line = json_line(episode_fields(episode))
        again = replayed(episode)
        assert json_line(episode_fields(again)) == line
        assert again.memory == episode.memory
        assert differences(json.loads(line), "file:1") == []
        assert reward_differences(episode, instance, rewarded(episode, instance)) == []


EDITS = {
    'steps[0].calls[0].status: recorded "rejected", found "ok"': (
        lambda step: step["calls"][0].update(status="rejected")
    ),
    'steps[0].calls[0].arguments.content: recorded "Tom lies."': (
        lambda step: step["calls"][0]["arguments"].update(content="Tom lies.")
    ),
    'steps[0].calls[0].name: recorded "new_memory_insert", found nothing': (
        lambda step: step["completion"].update(text="Nothing to do.")
    ),
    'status: recorded "ok", found nothing': lambda step: step["calls"].append(step["calls"][0]),
}


@pytest.mark.parametrize("said", EDITS)
def test_an_edited_episode_is_reported_with_its_place(said):
    line = json.loads(json_line(episode_fields(first_inserting())))
    EDITS[said](line["steps"][0])
    assert any(said in found for found in differences(line, "file:1"))


def first_inserting():
    """The first random episode that begins with an insert that ran."""
    for seed in range(100):
        episode, _ = random_case(seed)
        calls = episode.steps[0].calls
        if calls and (calls[0].name, calls[0].status) == ("new_memory_insert", "ok"):
            return episode
    raise AssertionError("no such episode")


def test_scores_and_saved_rewards_that_come_out_otherwise_are_reported():
    episode, instance = random_case(3)
    saved = replace(rewarded(episode, instance), compression=0.125)
    (said,) = reward_differences(episode, instance, saved)
    assert said.startswith(f"{episode.id}: compression: recorded 0.125, found ")
    wrong = tuple(replace(answer, score=0.5) for answer in episode.answers)
    said = reward_differences(replace(episode, answers=wrong), instance, None)
    assert len(said) == 3 and "score: recorded 0.5, found" in said[0]


def test_terms_by_name_are_compared_where_they_are_known_here(monkeypatch):
    episode, instance = random_case(3)
    steps = len(episode.steps)
    monkeypatch.setitem(TERMS._things, "brief", lambda scene: 1.0)
    weights = RewardConfig(others={"brief": 0.5, "credit": 1.0})  # credit would ask a reader
    saved = replace(rewarded(episode, instance), others={"brief": (0.0,) * steps})
    saved = replace(saved, others=saved.others | {"credit": (0.25,) * steps})
    (said,) = reward_differences(episode, instance, saved, weights)
    assert f"brief: recorded {(0.0,) * steps}, found {(1.0,) * steps}" in said


def test_rewards_come_back_as_they_were_saved(tmp_path):
    parts = {"a#0": Rewards(None, -0.5, (1.0, 0.0), (None, 0.5), {"mine": (0.1, None)})}
    save_rewards(tmp_path / "rewards.json", parts)
    assert load_rewards(tmp_path / "rewards.json") == parts
    assert load_rewards(tmp_path / "rewards.json")["a#0"].others == parts["a#0"].others
    save_json(tmp_path / "rewards.json", {"a#0": {"accuracy": 1.0}})
    with pytest.raises(InputError, match=r"rewards.json: a#0.compression: Field required"):
        load_rewards(tmp_path / "rewards.json")


@pytest.fixture
def training(tmp_path):
    """A training's folder with an episode and its rewards, and the data set beside it."""
    episode, instance = random_case(3)
    save_instances(tmp_path / "data.parquet", [instance])
    save_episodes(tmp_path / "run" / "episodes" / "step_00001.jsonl", [episode])
    file = tmp_path / "run" / "rewards" / "step_00001.json"
    save_rewards(file, {episode.id: rewarded(episode, instance)})
    settings = {"reward": {"compression": 0.5, "content": 0.0}, "advantage": {"scale": "none"}}
    save_json(tmp_path / "run" / "settings.json", settings)
    return tmp_path


def test_the_command_replays_a_training_and_its_rewards(training, capsys):
    run, data = str(training / "run"), str(training / "data.parquet")
    assert cli.main(["replay", run, "--data", data]) == 0
    said = "1 episodes replayed, 1 rewarded again: no difference\n"
    assert capsys.readouterr().out == said
    settings = training / "run" / "settings.json"
    save_json(settings, {"reward": {"others": {"credit": 1.0}}})  # which asks a reader
    found = replay([training / "run"], [random_case(3)[1]])
    assert (found.episodes, found.rewarded, found.differences) == (1, 1, ())
    file = training / "run" / "rewards" / "step_00001.json"
    file.write_text(file.read_text().replace('"accuracy": ', '"accuracy": 1'))
    assert cli.main(["replay", run, "--data", data]) == 1
    assert "accuracy: recorded 1" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_file_of_episodes(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "none.jsonl").touch()
    for name, said in (
        ("none.jsonl", "none.jsonl: expected episodes, found none"),
        ("", "expected a file of episodes"),
        ("x.jsonl", "x.jsonl:1: expected a field 'memory_config', found none"),
    ):
        assert cli.main(["replay", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def places(value, place=()):
    """Where every value in a JSON value stands."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*place, key))


ODD = (None, 0, -1, 1e300, True, "x", "0", "\u202e", [], [1], {}, {"a": 1}, 999_999)


@pytest.mark.parametrize("seed", range(30))
def test_a_spoilt_file_is_shown_replayed_or_refused_and_never_a_traceback(seed, tmp_path, capsys):
    rng = random.Random(seed)
    episode, instance = random_case(seed % 20)
    save_instances(tmp_path / "data.parquet", [instance])
    line = json.loads(json_line(episode_fields(episode)))
    *way, last = rng.choice(list(places(line)))
    holder = line
    for key in way:
        holder = holder[key]
    holder[last] = rng.choice(ODD)
    file, data = tmp_path / "e.jsonl", ("--data", str(tmp_path / "data.parquet"))
    file.write_bytes(json_line(line))
    for command in ("explore", "replay"):
        for more in ((), data):
            code = cli.main([command, str(file), *more])
            said = capsys.readouterr().err
            assert code in (0, 1) or (said.startswith("memalpha: error:") and said[-1] == "\n")
            assert said.count("\n") <= 1
