"""Uncertainty of what is measured: intervals of scores, of differences and over seeds, and a test on paired items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Draws of signs, where there are too many for all of them: no p value is below 2 / (FLIPS + 1).
FLIPS = 9_999
#: Decimals by which differences, and their sums, are told apart: means over seeds are rounded.
DIGITS = 9


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    values = list(values)
    return sum(values) / len(values)


@dataclass(frozen=True)
class Accuracy:
    """Mean score of n examples, in [0, 1], with its 95 % interval.

    It is Wilson's where every score is 0 or 1, else the normal approximation.
    """

    accuracy: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Accuracy:
        """From one score an example; at least one."""
        n, mean = len(scores), sum(scores) / len(scores)
        if set(scores) <= {0.0, 1.0}:
            return cls(mean, n, *_wilson(round(sum(scores)), n))
        half = 1.96 * math.sqrt(sum((score - mean) ** 2 for score in scores) / max(n - 1, 1) / n)
        return cls(mean, n, max(0.0, mean - half), min(1.0, mean + half))


@dataclass(frozen=True)
class Gap:
    """Mean difference of two scores of the same examples, with its 95 % interval; n examples."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Gap:
        """First minus second, one score an example each; at least one.

        Right-or-wrong scores: Newcombe's interval for paired proportions (Statistics in Medicine 17, 1998, 2635-2650,
        method 10), which keeps its width where all answers agree. Other scores: Student's of the mean difference.
        """
        n, pairs = len(first), list(zip(first, second, strict=True))
        mean = sum(a - b for a, b in pairs) / n
        if {*first, *second} <= {0.0, 1.0}:
            return cls(mean, *_newcombe(pairs, mean), n)
        if n < 2:
            return cls(mean, -1.0, 1.0, n)
        variance = sum((a - b - mean) ** 2 for a, b in pairs) / (n - 1)
        half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(variance / n)
        return cls(mean, max(-1.0, mean - half), min(1.0, mean + half), n)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval (Student's t); no interval from one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def over_seeds(cls, values: Sequence[float]) -> Interval:
        """From one value a seed; at least one."""
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, None, None)
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Paired:
    """Two methods on the same items.

    Attributes:
        better, worse: items on which the first scored higher, or lower, than the second.
        p: two-sided p value of the sign-flip test: how often the sum of differences would be as far from 0 if each one's
            sign were drawn. Exact where at most 13 items differ, then McNemar's exact test for scores of 0 and 1; else
            from `FLIPS` draws, always the same ones.
    """

    better: int
    worse: int
    p: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Paired:
        """From both methods' scores, one an item: seeds of an item are not independent, so give their mean."""
        differences = np.subtract(first, second)
        moved = differences[differences.round(DIGITS) != 0]
        p = 1.0  # of one item too: its sign is as far from 0 either way
        if len(moved) > 1:
            drawn = stats.permutation_test(
                (moved,),
                lambda flipped, axis: flipped.sum(axis).round(DIGITS),  # ties must stay ties
                permutation_type="samples",
                n_resamples=FLIPS,
                batch=1_000,
                rng=np.random.default_rng(0),
            )
            p = float(drawn.pvalue)
        return cls(int((moved > 0).sum()), int((moved < 0).sum()), p)


def _wilson(right: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _newcombe(pairs: Sequence[tuple[float, float]], mean: float) -> tuple[float, float]:
    """Bounds of a mean difference from pairs of 0 and 1: the proportions' own bounds, joined by their correlation."""
    n = len(pairs)
    both, only, other = (pairs.count(pair) for pair in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    neither = n - both - only - other
    p1, p2 = (both + only) / n, (both + other) / n
    low1, high1 = _wilson(both + only, n)
    low2, high2 = _wilson(both + other, n)
    product = (both + only) * (other + neither) * (both + other) * (only + neither)
    excess = both * neither - only * other
    excess_c = excess if excess < 0 else max(0.0, excess - n / 2)  # Newcombe's continuity correction
    phi = excess_c / math.sqrt(product) if product else 0.0

    def half(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return mean - half(p1 - low1, high2 - p2), mean + half(high1 - p1, p2 - low2)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in one number without losing in the other, by the first number; of
    equal points one."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    front, best = [], float("-inf")
    for i in order:
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front[::-1]
