"""Bootstrap intervals over facts: by hand, against a plain loop and SciPy, and where they are wide and narrow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from lifelong_edit.eval.metrics.intervals import RESAMPLES, bootstrap, estimates, per_fact


def test_sums_and_counts_of_each_fact() -> None:
    values = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.5]])
    sums, counts = per_fact(values, ["b", "a", "b"])
    assert sums.tolist() == [[2.0, 2.5], [0.0, 1.0]]
    assert counts.tolist() == [2.0, 1.0]


def test_two_facts_by_hand() -> None:
    """Of two facts, one right and one wrong, a quarter of the resamples has none right and a quarter both."""
    (found,) = estimates(np.array([[1.0], [0.0]]), ["a", "b"])
    assert (found.value, found.low, found.high, found.facts) == (0.5, 0.0, 1.0, 2)
    low, high = bootstrap(np.array([[1.0], [0.0]]), np.array([1.0, 1.0]), level=0.4)
    assert (low.tolist(), high.tolist()) == ([0.5], [0.5])


def test_one_fact_and_equal_facts_have_no_width_and_no_fact_has_nothing() -> None:
    (one,) = estimates(np.array([[1.0], [0.0]]), ["a", "a"])
    assert (one.value, one.low, one.high, one.facts) == (0.5, 0.5, 0.5, 1)
    (alike,) = estimates(np.ones((30, 1)), range(30))
    assert (alike.low, alike.high) == (1.0, 1.0)
    (none,) = estimates(np.zeros((0, 1)), [])
    assert none.facts == 0
    assert all(math.isnan(value) for value in (none.value, none.low, none.high))


def test_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many resamples are drawn at once."""
    generator = np.random.default_rng(7)
    counts = generator.integers(1, 5, size=23).astype(float)
    sums = np.stack([generator.binomial(counts.astype(int), 0.7), generator.random(23)], 1).astype(float)
    draws = np.random.default_rng(3)
    means = []
    for _ in range(RESAMPLES):
        total, count = np.zeros(2), 0.0
        for fact in draws.integers(23, size=23):
            total, count = total + sums[fact], count + counts[fact]
        means.append(total / count)
    expected = np.quantile(np.array(means), [0.025, 0.975], axis=0)
    assert np.allclose(bootstrap(sums, counts, seed=3), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr("lifelong_edit.eval.metrics.intervals._DRAWN_AT_ONCE", 23 * 7)
    assert np.allclose(bootstrap(sums, counts, seed=3), expected, rtol=0, atol=1e-12)
    assert not np.allclose(bootstrap(sums, counts, seed=4), expected, rtol=0, atol=1e-12)


def test_agrees_with_scipy() -> None:
    """Of one question per fact it is SciPy's percentile interval, up to the draws: 0.01 is four of their deviations."""
    values = np.random.default_rng(1).random(80)
    (found,) = estimates(values[:, None], range(80))
    judged = scipy.stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1)
    assert found.low == pytest.approx(judged.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(judged.confidence_interval.high, abs=0.01)


def test_questions_of_one_fact_count_as_one_observation() -> None:
    """40 facts with 10 equal questions each: as wide as 40 questions, √10 wider than 400."""
    right = np.repeat(np.arange(40) % 4 > 0, 10).astype(float)[:, None]
    (clustered,) = estimates(right, [i // 10 for i in range(400)])
    (alone,) = estimates(right, range(400))
    assert clustered.value == alone.value == 0.75
    ratio = (clustered.high - clustered.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)
    deviation = math.sqrt(0.75 * 0.25 / 40)
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
