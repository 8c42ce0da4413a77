"""Pass@k: the chance that at least one of k sampled answers is right."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import comb


def pass_at_k(n: int, right: int, k: int) -> float:
    """The unbiased estimator of arXiv 2107.03374, eq. 1: 1 - C(n - right, k) / C(n, k).

    Args:
        n: answers sampled for one question.
        right: how many of them are right.
        k: answers that may be tried, at most n.

    Raises:
        ValueError: a count that cannot be.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k({n=}, {right=}, {k=}): needs 0 <= right <= n and 1 <= k <= n")
    return 1.0 - comb(n - right, k, exact=True) / comb(n, k, exact=True)


def mean_pass_at_k(scores: Sequence[Sequence[float]], k: int) -> float:
    """Mean of `pass_at_k` over questions.

    Args:
        scores: one list a question, one score a sampled answer; 1 is right.
    """
    return sum(pass_at_k(len(s), sum(score == 1.0 for score in s), k) for s in scores) / len(scores)
