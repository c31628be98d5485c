"""Intervals: worked by hand where possible, coverage by simulation."""

import numpy as np
import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.stats import (
    detectable,
    mean_interval,
    nested_interval,
    paired_interval,
    stratified_interval,
)


def test_the_mean_over_instances_is_the_mean_of_their_means():
    """d1 has instances [1, 1, 0, 0] and [1]; d2 has [0.5]."""
    d1 = mean_interval([1, 1, 0, 0, 1], 0, clusters=list("aaaab")).mean
    d2 = mean_interval([0.5], 0, clusters=["c"]).mean
    assert (d1, d2) == (0.75, 0.5)
    assert (d1 + d2) / 2 == 0.625
    assert mean_interval([1, 1, 0, 0, 1], 0).mean == 0.6


def test_none_is_left_out_and_counted():
    result = mean_interval([1.0, None, 0.0], 0)
    assert (result.mean, result.n, result.missing) == (0.5, 2, 1)


def test_an_instance_without_any_score_has_no_voice():
    result = mean_interval([1.0, None, None], 0, clusters=["a", "b", "b"])
    assert (result.mean, result.n, result.missing, result.n_clusters) == (1.0, 1, 2, 1)


def test_without_values_there_is_no_mean():
    assert mean_interval([None], 0).mean is None
    assert mean_interval([], 0).low is None


def test_one_cluster_has_a_mean_and_no_interval():
    result = mean_interval([0.0, 1.0], 0, clusters=["a", "a"])
    assert (result.mean, result.low, result.high) == (0.5, None, None)


def test_the_same_seed_gives_the_same_interval():
    values = list(np.random.default_rng(1).random(30))
    assert mean_interval(values, 3) == mean_interval(values, 3)
    assert mean_interval(values, 3) != mean_interval(values, 4)


def test_equal_values_give_a_point():
    result = mean_interval([0.5] * 10, 0)
    assert (result.low, result.mean, result.high) == (0.5, 0.5, 0.5)


def test_the_interval_agrees_with_the_normal_one_on_many_values():
    values = np.random.default_rng(0).normal(size=400)
    result = mean_interval(list(values), 0, n=4000)
    half = 1.96 * values.std() / 20
    assert result.low == pytest.approx(values.mean() - half, abs=0.015)
    assert result.high == pytest.approx(values.mean() + half, abs=0.015)


@pytest.mark.parametrize("n_instances", [4, 5, 8, 30])
def test_intervals_hold_as_often_as_they_say_with_few_instances(n_instances):
    """Percentiles as they are held in 81 % of the cases with 5 instances (LME has as many)."""
    rng, held = np.random.default_rng(1), 0
    for seed in range(200):
        scores = rng.binomial(60, rng.beta(2, 2, n_instances)) / 60  # their mean is 0.5
        found = mean_interval(scores.tolist(), seed, n=1000)
        held += found.low <= 0.5 <= found.high
    assert held >= 200 * (0.85 if n_instances == 4 else 0.9)


def test_the_interval_of_an_average_holds_where_one_column_has_few_instances():
    rng, held, sizes = np.random.default_rng(2), 0, (5, 100, 100)
    strata = np.repeat(range(3), sizes).tolist()
    for seed in range(200):
        found = stratified_interval(rng.beta(2, 2, 205).tolist(), strata, range(205), seed, n=1000)
        held += found.low <= 0.5 <= found.high
    assert held >= 180


def test_with_so_few_instances_that_no_test_finds_anything_there_is_no_detectable_difference():
    gains = [0.1, 0.2, 0.3, 0.15, 0.25, 0.2]
    assert detectable(gains[:5], "sssss", range(5)) is None  # the smallest p is 2 / 32
    assert detectable(gains, "ssssss", range(6)) > 0
    assert detectable(gains[:5], "sssss", range(5), level=0.9) > 0


def test_questions_of_one_instance_do_not_narrow_the_interval():
    by_instance = mean_interval([0.0, 1.0, 0.0, 1.0], 0)
    values = [v for v in (0.0, 1.0, 0.0, 1.0) for _ in range(50)]
    clusters = [c for c in "abcd" for _ in range(50)]
    clustered = mean_interval(values, 0, clusters=clusters)
    assert (clustered.low, clustered.high) == (by_instance.low, by_instance.high)
    assert clustered.n == 200


def test_a_paired_gain_is_seen_through_large_differences_between_instances():
    rng = np.random.default_rng(0)
    level = rng.random(40)
    gain = paired_interval(list(level), list(level + 0.1 + rng.normal(0, 0.01, 40)), 0)
    assert gain.low > 0.09 and gain.high < 0.11


def test_a_pair_with_one_missing_side_is_missing():
    result = paired_interval([0.0, None, 0.0], [1.0, 1.0, None], 0)
    assert (result.mean, result.n, result.missing) == (1.0, 1, 2)


def test_intervals_of_many_values_do_not_depend_on_the_block_size(monkeypatch):
    values = list(np.random.default_rng(1).random(50))
    whole = mean_interval(values, 0)
    monkeypatch.setattr("memalpha_kit.stats._BLOCK", 500)
    assert mean_interval(values, 0) == whole


def test_nan_is_missing_as_none_is():
    assert mean_interval([1.0, float("nan")], 0) == mean_interval([1.0, None], 0)


def test_a_two_level_interval_sees_the_spread_between_seeds_and_within_them():
    rng = np.random.default_rng(0)
    seeds = [s for s in range(5) for _ in range(30)]
    between = [s / 10 for s in seeds]  # seeds differ, their instances do not
    within = list(rng.random(150))
    flat = mean_interval(between, 0)
    nested = nested_interval(between, seeds, 0)
    clustered = mean_interval(between, 0, clusters=seeds)
    assert nested.mean == pytest.approx(0.2)
    assert nested.high - nested.low > 2 * (flat.high - flat.low)
    assert clustered.low < nested.low < 0.1  # that of clusters is expanded
    both = nested_interval([a + b for a, b in zip(between, within, strict=True)], seeds, 0)
    assert both.high - both.low > nested.high - nested.low
    assert nested == nested_interval(between, seeds, 0)


def test_a_two_level_interval_takes_seeds_of_unequal_size():
    result = nested_interval([0.0, 1.0, 1.0, 1.0, None], list("aabbb"), 0)
    assert (result.mean, result.n, result.missing, result.n_clusters) == (0.75, 4, 1, 2)
    assert 0.0 <= result.low < result.high <= 1.0
    assert nested_interval([None], ["a"], 0).mean is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0], 0, clusters=["a", "b"]), "clusters"),
        (lambda: mean_interval([1.0], 0, level=95), "level"),
        (lambda: paired_interval([1.0], [1.0, 2.0], 0), "paired"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
