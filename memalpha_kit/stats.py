"""Means with intervals: bootstrap clustered by instance, and paired differences.

The one law: None is a measurement that is missing; it is left out of every mean and counted. With
clusters the estimate is the mean over instances of their mean scores (the table rule of spec
evaluation.md 5: one instance, one voice), and whole instances are drawn, because questions about
one memory succeed and fail together.

>>> mean_interval([1, 1, 0, 0, 1], seed=0, clusters=["a", "a", "a", "a", "b"]).mean
0.75
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from memalpha_kit.errors import InputError

_BLOCK = 2_000_000  # draws held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval.

    `n` values were used, from `n_clusters` clusters; `missing` were None. All three numbers are
    None without a value; `low` and `high` are None with a single cluster, which says nothing
    about spread.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0
    n_clusters: int = 0


def mean_interval(
    values: Sequence[float | None],
    seed: int,
    n: int = 2000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `values` with a bootstrap interval from `n` draws; None values are counted.

    `clusters` names each value's instance; without it every value stands for itself. Raises
    InputError if `clusters` has another length, or `level` is not between 0 and 1.
    """
    if clusters is not None and len(clusters) != len(values):
        raise InputError(f"clusters: expected {len(values)} names, found {len(clusters)}")
    if not 0 < level < 1:
        raise InputError(f"level: expected a number between 0 and 1, found {level}")
    present = [i for i, value in enumerate(values) if value is not None]
    missing = len(values) - len(present)
    if not present:
        return Interval(None, None, None, 0, missing)
    used = np.array([float(values[i]) for i in present])
    means = used if clusters is None else _cluster_means(used, [clusters[i] for i in present])
    low, high = _percentiles(means, seed, n, level) if len(means) > 1 else (None, None)
    return Interval(float(means.mean()), low, high, len(used), missing, len(means))


def paired_interval(
    before: Sequence[float | None],
    after: Sequence[float | None],
    seed: int,
    n: int = 2000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `after - before`, pair by pair; a pair with a None on either side is missing.

    Pairs stand at the same place in both lists. Raises InputError if the lengths differ.
    """
    if len(before) != len(after):
        raise InputError(f"paired: expected {len(before)} values on both sides, found {len(after)}")
    gains = [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]
    return mean_interval(gains, seed, n, level, clusters)


def _cluster_means(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """The mean per cluster, in order of first appearance. (n,) -> (k,)"""
    place: dict[Hashable, int] = {}
    index = np.array([place.setdefault(name, len(place)) for name in clusters])
    return np.bincount(index, weights=values) / np.bincount(index)


def _percentiles(means: np.ndarray, seed: int, n: int, level: float) -> tuple[float, float]:
    """Low and high end of the middle `level` of `n` bootstrap means."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(means))
    draws = [
        means[rng.integers(0, len(means), (min(rows, n - start), len(means)))].mean(axis=1)
        for start in range(0, n, rows)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return float(low), float(high)
