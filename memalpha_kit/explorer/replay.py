"""Replay: an episode made again from its replies, and every difference from what was recorded.

The one law: a reply and the rules decide everything. Reading each recorded reply and applying its
calls gives the recorded episode byte for byte, and its rewards are those that were saved. A
difference means that a file was edited, or that the kit reads or rewards in another way today.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memalpha_kit.errors import InputError
from memalpha_kit.explorer.recordings import beside, episode_files, episode_lines
from memalpha_kit.explorer.view import RULES
from memalpha_kit.files import json_line
from memalpha_kit.method.calls import read_calls
from memalpha_kit.method.episode import scored_answer
from memalpha_kit.method.memory import apply, empty
from memalpha_kit.method.rewards import rewards
from memalpha_kit.method.saved import episode_fields, read_episode
from memalpha_kit.records import Answer, Episode, Instance, Rewards, Step
from memalpha_kit.settings import ProtocolConfig, RewardConfig
from memalpha_kit.tasks import metric_of
from memalpha_kit.tokens import counter


@dataclass(frozen=True)
class Replayed:
    """How many episodes were made again, how many of them rewarded again, and what differs."""

    episodes: int
    rewarded: int
    differences: tuple[str, ...]


def replay(paths: Iterable[Path], instances: Iterable[Instance] = ()) -> Replayed:
    """Every episode of files and folders made again, and rewarded where its instance is known.

    Settings are those that lie beside the episodes. Raises InputError for a path without episodes
    and a line that is none.
    """
    known = {instance.id: instance for instance in instances}
    n_episodes, n_rewarded, found = 0, 0, []
    for file in (file for path in paths for file in episode_files(path)):
        made = beside(file)
        rules, before = made.reward or RewardConfig(), n_episodes
        for where, line in episode_lines(file):
            n_episodes += 1
            found += (new := differences(line, where, made.protocol))
            if not new and line["answers"] and line["instance"] in known:
                n_rewarded += 1
                episode, instance = read_episode(line, where), known[line["instance"]]
                found += reward_differences(episode, instance, made.rewards.get(episode.id), rules)
        if n_episodes == before:
            raise InputError(f"{file}: expected episodes, found none")
    return Replayed(n_episodes, n_rewarded, tuple(found))


def replayed(episode: Episode, protocol: ProtocolConfig | None = None) -> Episode:
    """The episode that its replies make: read, applied call by call, and nothing taken over."""
    config, state, steps = episode.memory_config, empty(episode.memory_config), []
    wire: Any = episode.wire  # which ProtocolConfig checks
    protocol = replace(protocol or ProtocolConfig(), wire=wire)
    for step in episode.steps:
        calls = []
        for call in read_calls(step.completion, config, protocol):
            state, applied = apply(state, call, config)
            calls.append(applied)
        steps.append(Step(step.chunk, step.completion, tuple(calls), state))
    return replace(episode, steps=tuple(steps))


def differences(
    recorded: Mapping[str, Any], where: str, protocol: ProtocolConfig | None = None
) -> list[str]:
    """What is not as it was recorded, a line each; `recorded` is what `episode_fields` gave.

    Raises InputError, starting with `where`, for what is no episode.
    """
    again = episode_fields(replayed(read_episode(recorded, where, check=False), protocol))
    old, new = (dict(_places(json.loads(json_line(one)))) for one in (recorded, again))
    pairs = ((place, old.get(place, "nothing"), new.get(place, "nothing")) for place in old | new)
    return [
        f"{where}: {place}: recorded {then:.80}, found {now:.80}"
        for place, then, now in pairs
        if then != now
    ]


def _places(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Whatever in a JSON value holds nothing else, as JSON, by its place: `steps[0].chunk`."""
    inner = isinstance(value, dict | list) and value
    if not inner:
        yield place.lstrip("."), json.dumps(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _places(part, f"{place}.{key}")
    else:
        for number, part in enumerate(value):
            yield from _places(part, f"{place}[{number}]")


def reward_differences(
    episode: Episode,
    instance: Instance,
    saved: Rewards | None,
    config: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
) -> list[str]:
    """Scores of the answers, and saved rewards, that come out otherwise today, a line each.

    Scores are made by the metric of the source that needs no judge. Nobody asks a model again: r4
    is compared where a rule judges, and a term of `reward.others` where it is known here.
    """
    again = replace(episode, answers=tuple(_scored(episode, instance)))
    found = [
        f"{episode.id}: question {old.qa}: score: recorded {old.score}, found {new.score}"
        for old, new in zip(episode.answers, again.answers, strict=True)
        if old.score != new.score
    ]
    judge = RULES.get(episode.source)
    if saved:
        made = rewards(again, instance, counter(episode.memory_config.counter), judge, config)
        then, now = (vars(parts) | dict(parts.others) for parts in (saved, made))
        known = [name for name in saved.others if set(now.get(name, (None,))) != {None}]
        names = ["accuracy", "compression", "format", *(["content"] if judge else ()), *known]
        found += [
            f"{episode.id}: {name}: recorded {then[name]}, found {now[name]}"
            for name in names
            if then[name] != now[name]
        ]
    return found


def _scored(episode: Episode, instance: Instance) -> Iterator[Answer]:
    gold = {qa.id: qa.answers for qa in instance.questions}
    metric = metric_of(episode.source, judged=False)
    for answer in episode.answers:
        if answer.qa not in gold:
            raise InputError(f"{episode.id}: question {answer.qa}: expected it in the data")
        yield scored_answer(answer, gold[answer.qa], metric, episode.id)
