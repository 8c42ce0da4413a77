"""How far a query's completion is trusted: a teacher that is wrong on an unlabelled query teaches the error.

A completion's loss is multiplied by a weight in [0, 1], that of its least sure scored token: a name is as doubtful as its
most doubtful syllable, however sure its other tokens are.

Shapes: N scored tokens · H hidden size · V vocabulary · C tokens of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from text_sdft.core.divergence import DivergenceSettings, Head, divergence

Confidence: TypeAlias = Literal["none", "entropy", "agreement"]
#: Jensen-Shannon divergence of distributions that have nothing in common, nats.
APART = math.log(2)
#: A teacher's hidden states [N, H] at the tokens of completions, and its output layer.
Reading: TypeAlias = tuple[Tensor, Head]


def completion_weights(
    reading: Reading,
    again: Callable[[], Reading | None],
    scored: Sequence[Tensor],
    confidence: Confidence,
    settings: DivergenceSettings,
) -> list[float]:
    """The weight of each completion; 1 where none of its tokens is scored.

    Args:
        reading: the teacher's hidden states [N, H] at all tokens of the completions, and its output layer.
        again: reads them under another draw of the demonstrations, for "agreement".
        scored: a mask [T] for each completion.
        confidence: "entropy" or "agreement".
        settings: say how many tokens make a chunk.
    """
    states_NH, head = reading
    keep_N = torch.cat(list(scored)).to(states_NH.device)
    if confidence == "entropy":
        sure_N = certainty(states_NH[keep_N], head, settings)
    else:
        other = again()
        assert other is not None  # who read them once reads them again
        sure_N = agreement(states_NH[keep_N], other[0][keep_N], head, settings)
    rows = sure_N.split([int(mask.sum()) for mask in scored])
    return [float(row.min()) if len(row) else 1.0 for row in rows]


@torch.no_grad()
def certainty(states_NH: Tensor, head: Head, settings: DivergenceSettings) -> Tensor:
    """exp(-entropy) of the next token's distribution [N]: 1 where it is certain, 1/k where k tokens are alike.

    Args:
        states_NH: the teacher's hidden states at the scored positions.
        head: its output layer, sampling temperature included.
        settings: say how many tokens make a chunk.
    """
    chunks = settings.chunks(len(states_NH), len(head.weight_VH), states_NH.device.type)
    logps = (head.logits(states_NH[chunk]).log_softmax(-1) for chunk in chunks)
    entropies = [-(logp_CV.exp() * logp_CV).sum(-1) for logp_CV in logps]
    return (-torch.cat(entropies)).exp() if entropies else states_NH.new_zeros(0)


@torch.no_grad()
def agreement(first_NH: Tensor, second_NH: Tensor, head: Head, settings: DivergenceSettings) -> Tensor:
    """1 - JSD / log 2 of two readings of the same tokens [N]: 1 where they are alike, 0 where they have nothing in common.

    Args:
        first_NH, second_NH: the teacher's hidden states under two draws of its demonstrations.
        head, settings: as in `certainty`.
    """
    whole = DivergenceSettings(alpha=0.5, chunk_size=settings.chunk_size)
    unused_N = first_NH.new_zeros(len(first_NH))
    _, jsd_N = divergence(first_NH, second_NH, head, head, whole, unused_N.long(), unused_N)
    return (1 - jsd_N / APART).clamp(0, 1)
