"""Advantages: who is compared with whom, and the rows that a trainer gets (paper, section 3.3).

    A[i,t] = (R[i,t] - mean) / (std + eps)    over the group; std is the unbiased one

The one law: a row whose reward is None has advantage 0, enters no mean and no standard deviation,
and is not trained on. numpy's float64; the published code computes advantages in float32, which
differs in the seventh digit.

>>> advantages([1.0, 0.0, None], ["a", "a", "a"], AdvantageConfig(epsilon=0.0))
[0.7071067811865475, -0.7071067811865475, 0.0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from memalpha_kit.method.rewards import mean, step_rewards
from memalpha_kit.records import Episode, Rewards, TrainingRow
from memalpha_kit.settings import AdvantageConfig, RewardConfig


def advantages(
    rewards: Sequence[float | None], groups: Sequence[str], config: AdvantageConfig
) -> list[float]:
    """One advantage per reward, normalised within its group: (R - mean) / (std + epsilon).

    Rewards None get 0 and are in no mean. Equal rewards give exactly 0.0, whatever their mean
    rounds to. A group of one gives 0, with `single="raw"` its reward, with "release" R / (1 +
    epsilon) as published. `scale="none"` leaves out the division (Dr. GRPO).
    """
    members: dict[str, list[tuple[int, float]]] = {}
    for index, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        if reward is not None:
            members.setdefault(group, []).append((index, reward))
    result = np.zeros(len(rewards))
    for pairs in members.values():
        places, values = map(list, zip(*pairs, strict=True))
        result[places] = _normalised(np.array(values, dtype=np.float64), config)
    return result.tolist()


def _normalised(rewards: np.ndarray, config: AdvantageConfig) -> np.ndarray:
    """Advantages of one group. (members,) -> (members,)"""
    if len(rewards) == 1 and config.single != "zero":
        return rewards if config.single == "raw" else rewards / (1 + config.epsilon)
    if rewards.min() == rewards.max():
        return np.zeros(len(rewards))
    scale = rewards.std(ddof=1) + config.epsilon if config.scale == "std" else 1.0
    return (rewards - rewards.mean()) / scale


def group(instance: str, step: int, grouping: str) -> str:
    """Name of the group that a step's reward is compared in: the chunk's, or the instance's."""
    return f"{instance}#{step}" if grouping == "chunk" else instance


def episode_advantages(
    steps: Sequence[Sequence[float | None]], instances: Sequence[str], config: AdvantageConfig
) -> list[tuple[float, ...]]:
    """Advantages of every step of every episode, given their rewards and their instances' names.

    With grouping `instance` all steps of all rollouts of an instance are compared (as published),
    with `chunk` those of the same chunk. With `rollout` a rollout's reward is the mean over its
    steps, rollouts of an instance are compared, and each step carries its rollout's advantage (what
    TRL calls an advantage). With `leave_one_out` a step is compared with all steps of the
    instance's *other* rollouts, so its baseline does not depend on what its own rollout did; the
    standard deviation is the instance's. A step without reward always has advantage 0.
    """
    if config.grouping == "rollout":
        means = advantages([mean(rewards) for rewards in steps], instances, config)
        return [
            tuple(0.0 if reward is None else mean for reward in rewards)
            for rewards, mean in zip(steps, means, strict=True)
        ]
    if config.grouping == "leave_one_out":
        return _left_out(steps, instances, config)
    flat = [reward for rewards in steps for reward in rewards]
    names = [
        group(instance, step, config.grouping)
        for rewards, instance in zip(steps, instances, strict=True)
        for step in range(len(rewards))
    ]
    values = iter(advantages(flat, names, config))
    return [tuple(next(values) for _ in rewards) for rewards in steps]


def _left_out(
    steps: Sequence[Sequence[float | None]], instances: Sequence[str], config: AdvantageConfig
) -> list[tuple[float, ...]]:
    """Each step's reward minus the mean over the steps of the instance's other rollouts."""
    pooled: dict[str, list[float]] = {}
    for rewards, instance in zip(steps, instances, strict=True):
        pooled.setdefault(instance, []).extend(r for r in rewards if r is not None)
    result = []
    for rewards, instance in zip(steps, instances, strict=True):
        own, everyone = [r for r in rewards if r is not None], pooled[instance]
        n_others = len(everyone) - len(own)
        if not own or not n_others or min(everyone) == max(everyone):
            result.append((0.0,) * len(rewards))
            continue
        baseline = (sum(everyone) - sum(own)) / n_others
        scale = float(np.std(everyone, ddof=1)) + config.epsilon if config.scale == "std" else 1.0
        result.append(tuple(0.0 if r is None else (r - baseline) / scale for r in rewards))
    return result


def training_rows(
    episodes: Sequence[Episode],
    parts: Mapping[str, Rewards],
    reward_config: RewardConfig,
    advantage_config: AdvantageConfig,
) -> list[TrainingRow]:
    """One row per chunk of every episode, episode by episode, with reward, advantage and group.

    `parts` maps episode ids to their `Rewards`. The token ids are the sampled ones, end marker
    included; rows without a reward have a loss mask of zeros.
    """
    steps = [step_rewards(parts[episode.id], reward_config) for episode in episodes]
    values = episode_advantages(steps, [episode.instance for episode in episodes], advantage_config)
    rows = []
    for episode, rewarded, advantage in zip(episodes, steps, values, strict=True):
        for index, step in enumerate(episode.steps):
            done, missing = step.completion, rewarded[index] is None
            rows.append(
                TrainingRow(
                    prompt_ids=done.prompt_ids,
                    completion_ids=done.completion_ids,
                    loss_mask=(0,) * len(done.mask) if missing else done.mask,
                    reward=rewarded[index],
                    advantage=advantage[index],
                    group=group(episode.instance, index, advantage_config.grouping),
                    episode=episode.id,
                    step=index,
                    logprobs=done.logprobs or (),
                )
            )
    return rows
