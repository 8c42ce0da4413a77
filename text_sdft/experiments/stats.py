"""Uncertainty of a comparison: intervals over seeds, and exact tests on paired items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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
        p: two-sided exact p value of McNemar's test (of the sign test, where scores are not 0 or 1).
    """

    better: int
    worse: int
    p: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Paired:
        """From both methods' scores, item by item."""
        better = sum(a > b for a, b in zip(first, second, strict=True))
        worse = sum(a < b for a, b in zip(first, second, strict=True))
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return cls(better, worse, p)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in one number without losing in the other, by the first number."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    front, best = [], float("-inf")
    for i in order:
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front[::-1]
