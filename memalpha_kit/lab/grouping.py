"""The grouping laboratory: the same rollouts, compared in every way that a setting offers.

The one law: nothing but the advantages differs. Rollouts are sampled once, rewarded once and saved;
each setting (who is compared with whom, divided by the spread or not) then gives its own advantages
and, with the policy they were sampled from, its own gradient of the loss.

    batches = collect(profile, policy, n=24)          one batch = the rollouts of one GRPO step
    table_advantages(batches)                         spread, zero rows, sign flips, ingredients
    table_cosine(step_gradients(lm.model, batches, profile.grpo))

How far a step can be trusted is measured against rollouts that it has not seen: the cosine between
one batch's gradient and the mean of the other batches'. `leave_one_out` without scaling has a
baseline that does not depend on the row, so its mean over the other batches is an independent
estimate of the unbiased direction, the same for all settings. Cosines are taken of the gradient as
it is, of which a few rows of the embedding may be nearly all, and as Adam sees it, each weight
divided by its root mean square over batches and settings.
The settings are those of `AdvantageConfig` (paper, section 3.3).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from memalpha_kit.errors import InputError
from memalpha_kit.figures.curves import columns
from memalpha_kit.figures.grouping import plot_grouping
from memalpha_kit.lab import miniature
from memalpha_kit.lab.runner import Stage, record
from memalpha_kit.method.advantages import episode_advantages, training_rows
from memalpha_kit.method.episode import play
from memalpha_kit.method.rewards import step_rewards
from memalpha_kit.method.saved import save_episodes
from memalpha_kit.progress import bar
from memalpha_kit.records import TrainingRow
from memalpha_kit.settings import AdvantageConfig, GrpoConfig, Profile
from memalpha_kit.stats import mean_interval, paired_interval

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GROUPINGS: Any = ("instance", "chunk", "rollout", "leave_one_out")
SCALES: Any = ("std", "none")
SETTINGS = tuple(AdvantageConfig(grouping=g, scale=s) for g in GROUPINGS for s in SCALES)
RELEASED = AdvantageConfig(grouping="instance", scale="std")
UNBIASED = AdvantageConfig(grouping="leave_one_out", scale="none")
ZERO = 1e-9
"""Advantages closer to 0 than this are 0."""


@dataclass(frozen=True)
class Batch:
    """The rollouts of one GRPO step: rewards per episode and step, and the rows in that order."""

    instances: tuple[str, ...]  # one per episode
    rewards: tuple[tuple[float | None, ...], ...]  # one per episode and step
    rows: tuple[TrainingRow, ...]

    def advantages(self, setting: AdvantageConfig) -> np.ndarray:
        """The advantage of every row under a setting, (rows,)."""
        found = episode_advantages(self.rewards, self.instances, setting)
        return np.array([value for episode in found for value in episode])


def collect(
    profile: Profile, policy: Path, n: int, first: int = 0, folder: Path | None = None
) -> list[Batch]:
    """`n` batches of rollouts of a policy, on fresh instances of training, from place `first` on.

    Episodes go to `folder`, a JSONL file per batch, if one is given.
    """
    env, size = miniature.environment(profile), profile.grpo.instances
    longer = replace(profile, grpo=replace(profile.grpo, steps=first + n))
    everyone = miniature.training_instances(longer)
    writer = miniature.policy_writer(profile, policy, profile.grpo.temperature)
    batches = []
    with bar(n, "rollouts") as shown:
        for step in range(first, first + n):
            part = everyone[step * size : (step + 1) * size]
            seed = random.Random(f"{profile.seed}/grouping/{step}").getrandbits(31)
            played = play(part, writer, env, profile.grpo.rollouts, seed)
            episodes, parts = played.episodes, played.rewards
            names = tuple(episode.instance for episode in episodes)
            rewards = tuple(step_rewards(parts[e.id], env.reward) for e in episodes)
            rows = tuple(training_rows(episodes, parts, env.reward, RELEASED))
            batches.append(Batch(names, rewards, rows))
            if folder:
                save_episodes(folder / f"batch_{step:03d}.jsonl", episodes)
            shown.advance()
    return batches


def statistics(batch: Batch, setting: AdvantageConfig) -> dict[str, float]:
    """What one setting makes of one batch, rows without a reward left out.

    variance of the advantages; zero_rows, the share that is not trained on; sign_flips, the share
    of rows that are pushed the other way than as released (of those that both push); and what the
    advantages encode, as shares of their sum of squares: by_chunk, what the instance's chunk index
    alone explains (which no action can change), and by_rollout, what the rollout alone explains.
    """
    known = np.array([row.reward is not None for row in batch.rows])
    values, released = batch.advantages(setting)[known], batch.advantages(RELEASED)[known]
    rows = [row for row in batch.rows if row.reward is not None]
    pushed = (abs(values) > ZERO) & (abs(released) > ZERO)
    chunks = [f"{row.episode.rpartition('#')[0]}/{row.step}" for row in rows]
    return {
        "variance": float(values.var()),
        "zero_rows": float((abs(values) <= ZERO).mean()),
        "sign_flips": float((values * released < 0)[pushed].mean()) if pushed.any() else np.nan,
        "by_chunk": explained(values, chunks),
        "by_rollout": explained(values, [row.episode for row in rows]),
    }


def explained(values: np.ndarray, groups: Sequence[str]) -> float:
    """Share of the sum of squares that the groups' means account for; NaN if all values are 0."""
    total = float((values**2).sum())
    if total <= ZERO:
        return np.nan
    table = pd.Series(values).groupby(np.asarray(groups)).agg(["mean", "size"])
    return float((table["mean"] ** 2 * table["size"]).sum() / total)


def table_advantages(batches: Sequence[Batch]) -> pd.DataFrame:
    """A row per grouping, scale and measure of `statistics`: mean over batches with its interval.

    Columns: grouping, scale, measure, mean, low, high (95 %), batches.
    """
    records = []
    for setting in SETTINGS:
        found = pd.DataFrame([statistics(batch, setting) for batch in batches])
        records += [_names(setting) | {"measure": n} | _interval(c) for n, c in found.items()]
    return pd.DataFrame(records)


def step_gradients(
    model: PreTrainedModel, batches: Sequence[Batch], config: GrpoConfig
) -> np.ndarray:
    """Gradient of one step's loss for every batch and setting, (batches, SETTINGS, weights).

    At the policy that sampled, where the ratio is 1 and nothing is clipped; no divergence. A row's
    gradient is made once and weighted by each setting's advantage.
    """
    import torch

    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = np.zeros((len(batches), len(SETTINGS), size), dtype=np.float32)
    with bar(sum(len(batch.rows) for batch in batches), "gradients") as shown:
        for place, batch in enumerate(batches):
            weights = np.stack([batch.advantages(s) for s in SETTINGS])  # (SETTINGS, rows)
            total = torch.zeros(len(SETTINGS), size)
            for row, weight in zip(batch.rows, weights.T, strict=True):
                if any(row.loss_mask) and (abs(weight) > ZERO).any():
                    column = torch.tensor(weight, dtype=torch.float32)[:, None]
                    total += column * row_gradient(model, row, config)
            result[place] = total.numpy()
            shown.advance(len(batch.rows))
    return result


def row_gradient(model: PreTrainedModel, row: TrainingRow, config: GrpoConfig) -> torch.Tensor:
    """Gradient of a row's loss at advantage 1, up to a factor that all rows share, (weights,).

    The row's tokens count by their mean under loss grpo, by their sum under the others.
    """
    import torch

    from memalpha_kit.training.loss import row_logprobs

    logprobs = row_logprobs(model, row, config.temperature)
    loss = -(logprobs.mean() if config.loss == "grpo" else logprobs.sum())
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def table_cosine(gradients: np.ndarray) -> pd.DataFrame:
    """Cosines between gradients, (batches, SETTINGS, weights), with intervals over batches.

    Three kinds: `same rollouts`, of two settings on one batch; `other rollouts`, of a batch and the
    mean of the other batches under the same setting; `unbiased direction`, of a batch and the mean
    of the other batches under `UNBIASED`. Columns: view, kind, grouping, scale, other_grouping,
    other_scale, mean, low, high, batches, and gain, gain_low, gain_high, the difference to the
    released setting on the same batches (the last two kinds). Batches of these kinds share most of
    what they are compared with, so their intervals are a little too narrow. Raises InputError for
    one batch.
    """
    if len(gradients) < 2:
        raise InputError(f"grouping: expected at least 2 batches, found {len(gradients)}")
    size = np.sqrt(np.nansum(_unit(gradients) ** 2, axis=(0, 1)))  # (weights,), no one's favour
    scaled = np.divide(gradients, size, out=np.zeros_like(gradients), where=size > 0)
    return pd.DataFrame(
        {"view": view, **record}
        for view, vectors in (("as it is", gradients), ("as Adam sees it", scaled))
        for record in _cosines(vectors)
    )


def _cosines(gradients: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows of one view."""
    unit = _unit(gradients)
    rest = _unit(gradients.sum(axis=0) - gradients)  # what the other batches say
    target = rest[:, SETTINGS.index(UNBIASED)]
    for i, setting in enumerate(SETTINGS):
        for j, other in enumerate(SETTINGS[:i]):
            values = (unit[:, i] * unit[:, j]).sum(axis=-1)
            yield _record("same rollouts", setting, other, values)
    kinds = {"other rollouts": lambda i: rest[:, i], "unbiased direction": lambda i: target}
    for kind, towards in kinds.items():
        found = [(unit[:, i] * towards(i)).sum(axis=-1) for i in range(len(SETTINGS))]
        released = found[SETTINGS.index(RELEASED)]
        for setting, values in zip(SETTINGS, found, strict=True):
            other = UNBIASED if kind == "unbiased direction" else setting
            gain = paired_interval(list(released), list(values), 0)
            yield _record(kind, setting, other, values) | columns(gain, "gain")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis; NaN for one of length 0, which has no direction."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, np.nan)


def _record(
    kind: str, setting: AdvantageConfig, other: AdvantageConfig, values: np.ndarray
) -> dict[str, Any]:
    return {"kind": kind, **_names(setting), **_names(other, "other_"), **_interval(values)}


def _names(setting: AdvantageConfig, prefix: str = "") -> dict[str, str]:
    return {f"{prefix}grouping": setting.grouping, f"{prefix}scale": setting.scale}


def _interval(values: Any) -> dict[str, Any]:
    found = mean_interval([float(value) for value in values], seed=0)
    return columns(found) | {"batches": found.n}


def run_grouping(profile: Profile, n: int, steps: int, runs: Path, out: Path) -> list[Path]:
    """The paths of `advantages.csv`, `cosine.csv`, a figure and `run.json` in `out`.

    Measured on `n` batches at the profile's warm start and, if `steps` is not 0, after so many
    steps of GRPO with the profile's own setting, on the same instances, which it was not trained
    on. Both tables have a column `stage`. What was trained in `runs` under the same settings is
    used again; episodes are kept there.
    """
    from memalpha_kit.models.tiny import load_policy

    started = time.time()
    profile = replace(profile, grpo=replace(profile.grpo, steps=steps))
    last = Stage(profile, runs)
    stages = {"warm start": last.warm.train()}
    if steps:
        stages[f"after {steps} steps"] = last.train()
    tables: dict[str, list[pd.DataFrame]] = {"advantages": [], "cosine": []}
    for stage, folder in stages.items():
        batches = collect(profile, folder, n, steps, runs / "episodes" / stage.replace(" ", "_"))
        gradients = step_gradients(load_policy(folder).model, batches, profile.grpo)
        tables["advantages"].append(table_advantages(batches).assign(stage=stage))
        tables["cosine"].append(table_cosine(gradients).assign(stage=stage))
        print(f"{stage}: {n} batches, {sum(len(batch.rows) for batch in batches)} rows")
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    figure = plot_grouping(whole["advantages"], whole["cosine"])
    rounded = {name: table.round(4) for name, table in whole.items()}
    return record(out / "grouping.png", rounded, figure, profile, started, {"batches": n})
