"""Uncertainty of a comparison: intervals over seeds, and tests on paired items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Draws of signs, where there are too many for all of them: no p value is below 2 / (FLIPS + 1).
FLIPS = 9_999
#: Decimals by which differences, and their sums, are told apart: means over seeds are rounded.
DIGITS = 9


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
                (moved,), _total, permutation_type="samples", n_resamples=FLIPS, batch=1_000, rng=np.random.default_rng(0)
            )
            p = float(drawn.pvalue)
        return cls(int((moved > 0).sum()), int((moved < 0).sum()), p)


def _total(differences: np.ndarray, axis: int) -> np.ndarray:
    return differences.sum(axis).round(DIGITS)  # ties must stay ties


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
