"""Intervals against the textbook's, their coverage, and their seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from alignmask.evaluation.bootstrap import Estimate, Measure, intervals, paired_intervals


def mean_of(values_I: np.ndarray) -> Measure:
    return lambda weight_I: {"mean": float(np.average(values_I, weights=weight_I))}


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values_I = np.random.default_rng(1).normal(3, 2, 400)
    found = intervals(mean_of(values_I), 400, resamples=4000)["mean"]
    assert found.value == values_I.mean()
    error = values_I.std() / 20
    assert found.low == pytest.approx(values_I.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values_I.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(150):
        found = intervals(mean_of(rng.normal(0, 1, 100)), 100, resamples=100, seed=seed, level=0.9)[
            "mean"
        ]
        covered += found.low <= 0 <= found.high
    assert binom.ppf(0.001, 150, 0.88) <= covered <= binom.ppf(0.999, 150, 0.92)


def test_a_paired_difference_is_more_certain_than_two_models_apart() -> None:
    """Images differ much, and on each one the other model is better by 1: that difference has no
    spread at all."""
    values_I = np.random.default_rng(3).normal(0, 10, 50)
    found = paired_intervals(mean_of(values_I), mean_of(values_I + 1), 50)["mean"]
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_level_of_a_paired_difference() -> None:
    """Of a normal distribution, half lies within 0.674 standard deviations, 95 % within 1.96."""
    values_I = np.random.default_rng(4).normal(0, 1, 200)
    half, most = (
        paired_intervals(
            lambda _: {"mean": 0.0}, mean_of(values_I), 200, level=level, resamples=2000
        )["mean"]
        for level in (0.5, 0.95)
    )
    error = values_I.std() / 200**0.5
    assert half.high - half.low == pytest.approx(2 * 0.674 * error, rel=0.15)
    assert most.high - most.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_what_is_not_defined() -> None:
    def measure(weight_I: np.ndarray | None) -> dict[str, float | None]:
        return {"never": None, "at times": 1.0 if weight_I is None or weight_I[0] else None}

    found = intervals(measure, 3, resamples=20)
    assert found == {"never": Estimate(None), "at times": Estimate(1.0, 1.0, 1.0)}
    assert intervals(measure, 3, resamples=0) == {
        "never": Estimate(None),
        "at times": Estimate(1.0),
    }
    assert paired_intervals(measure, lambda _: {"at times": 3.0}, 3, resamples=20)[
        "at times"
    ] == Estimate(2.0, 2.0, 2.0)


def test_seeded() -> None:
    measure = mean_of(np.arange(10.0))
    assert (
        intervals(measure, 10, seed=1)
        == intervals(measure, 10, seed=1)
        != intervals(measure, 10, seed=2)
    )


def test_how_it_reads() -> None:
    assert Estimate(-0.12345, -0.2, 0.1).signed() == "-0.123 [-0.200, +0.100]"
    assert [Estimate(None).signed(), Estimate(0.5).signed()] == ["-", "+0.500"]
    assert Estimate(0.12345, 0.1, 0.2).percent() == "12.3 [10.0, 20.0]"
    assert [Estimate(None).percent(), Estimate(0.5).percent()] == ["-", "50.0"]
