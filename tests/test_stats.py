"""Intervals, tests and fronts against independent formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from text_sdft.experiments.stats import Accuracy, Interval, Paired, pareto_front


def test_intervals_and_tests_agree_with_independent_formulas():
    values = [0.91, 0.95, 0.87, 0.92]
    ours = Interval.over_seeds(values)
    assert (ours.low, ours.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert Interval.over_seeds([0.5]) == Interval(0.5, None, None)
    n, k, z = 50, 37, stats.norm.ppf(0.975)
    centre, half = k / n + z * z / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    wilson = Accuracy.of([1.0] * k + [0.0] * (n - k))
    assert (wilson.low, wilson.high) == pytest.approx([(centre + s * half) / (1 + z * z / n) for s in (-1, 1)])
    paired = Paired.of([1.0] * 9 + [0.0] * 11, [0.0] * 7 + [1.0] * 4 + [0.0] * 9)
    assert (paired.better, paired.worse) == (7, 2)
    assert paired.p == pytest.approx(2 * sum(math.comb(9, i) for i in (0, 1, 2)) / 2**9)
    assert Paired.of([1.0, 0.0], [1.0, 0.0]).p == 1.0


def test_the_sign_flip_test_counts_every_draw_of_signs():
    """For scores of 0 and 1 that is McNemar's exact test; for means over seeds, here thirds, all draws are tried."""
    for better, worse in ((1, 0), (3, 3), (8, 1), (10, 3)):
        first = [1.0] * better + [0.0] * worse + [1.0] * 20
        second = [0.0] * better + [1.0] * worse + [1.0] * 20
        assert Paired.of(first, second).p == pytest.approx(stats.binomtest(better, better + worse).pvalue)
    g = np.random.default_rng(1)
    first, second = g.integers(0, 4, (2, 12)) / 3
    moved = [round(3 * d) for d in first - second if abs(d) > 0.1]
    sums = [
        abs(sum(d * s for d, s in zip(moved, signs, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(moved))
    ]
    assert Paired.of(first, second).p == pytest.approx(np.mean([total >= abs(sum(moved)) for total in sums]))
    many = Paired.of([1.0] * 40 + [0.0] * 25, [0.0] * 40 + [1.0] * 25)
    assert many.p == pytest.approx(stats.binomtest(40, 65).pvalue, abs=0.01)
    assert many == Paired.of([1.0] * 40 + [0.0] * 25, [0.0] * 40 + [1.0] * 25), "the same draws each time"


def test_the_front_is_what_nothing_dominates():
    g = np.random.default_rng(0)
    points = [tuple(point) for point in g.random((30, 2)).round(1)]
    front = [points[i] for i in pareto_front(points)]
    dominated = [any(a >= p and b >= q and (a, b) != (p, q) for a, b in points) for p, q in points]
    assert set(front) == {point for point, beaten in zip(points, dominated, strict=True) if not beaten}
    assert front == sorted(front) and len(front) == len(set(front))


def test_intervals_of_right_and_wrong_answers_are_wilsons():
    cases = [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
    for right, n, low, high in (*cases, (1, 1, 0.2065, 1.0)):
        check_interval(right, n, low, high)


def check_interval(right, n, low, high):
    accuracy = Accuracy.of([1.0] * right + [0.0] * (n - right))
    assert (accuracy.accuracy, accuracy.n) == (right / n, n)
    assert accuracy.low == pytest.approx(low, abs=1e-4) and accuracy.high == pytest.approx(high, abs=1e-4)


def test_intervals_of_graded_answers_are_normal_and_within_0_and_1():
    accuracy = Accuracy.of([0.5, 0.6, 0.7, 0.8])
    half = 1.96 * 0.1290994 / 2
    assert (accuracy.low, accuracy.high) == (pytest.approx(0.65 - half), pytest.approx(0.65 + half))
    assert Accuracy.of([0.0, 0.1, 1.0]).low == 0.0
