"""Pass@k: the chance that at least one of k sampled answers is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.special import comb

from text_sdft.core import Example, UserError
from text_sdft.core.sampling import draw_seed
from text_sdft.experiments.answers import completions, score_all, slices
from text_sdft.experiments.scores import with_reference
from text_sdft.training import SDFTTrainer


def pass_at_k(n: int, right: int, k: int) -> float:
    """The unbiased estimator of arXiv 2107.03374, eq. 1: 1 - C(n - right, k) / C(n, k).

    Of ``n`` answers to one question so many are right, and ``k`` may be tried. Raises `ValueError` where that cannot be.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k({n=}, {right=}, {k=}): needs 0 <= right <= n and 1 <= k <= n")
    return 1.0 - comb(n - right, k, exact=True) / comb(n, k, exact=True)


def mean_pass_at_k(scores: Sequence[Sequence[float]], k: int) -> float:
    """Mean of `pass_at_k` over questions, of each the scores of its sampled answers; 1 is right."""
    return sum(pass_at_k(len(s), sum(score == 1.0 for score in s), k) for s in scores) / len(scores)


def measure_pass_at_k(
    trainer: SDFTTrainer, examples: Sequence[Example], samples: int, batch_size: int, remedy: str = "add some"
) -> tuple[dict[int, float], list[dict[str, Any]]]:
    """Sample answers to each example with a reference, in the student's view, at the temperature of training.

    Returns {k: pass@k} for k = 1, 2, 4, … and ``samples``; and a record for each example: its answers and their scores.
    Raises `UserError` with the remedy where no example has a reference.
    """
    known = with_reference(examples)
    if not known:
        raise UserError(
            "Pass@k (--samples) is measured on rows of the set new with a reference, and the data has none: "
            f"{remedy}, or leave --samples out."
        )
    asked = [example for example in known for _ in range(samples)]
    seeds = [draw_seed(trainer.args.seed, "pass@k", example.id, i) for example in known for i in range(samples)]
    ids = completions(trainer, asked, None, batch_size, f"{samples} answers each", seeds)
    texts = list(map(trainer.adapter.decode, ids))
    scores = score_all(trainer.adapter, asked, texts)
    parts = slices(len(asked), samples)
    records = [{"id": e.id, "answers": texts[part], "scores": scores[part]} for e, part in zip(known, parts, strict=True)]
    counts = sorted({*(2**i for i in range(samples.bit_length())), samples})
    return {k: mean_pass_at_k([scores[part] for part in parts], k) for k in counts}, records
