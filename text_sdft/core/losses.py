"""The likelihood of given tokens as a loss, in chunks, so that logits of all tokens never exist at once.

Shapes: N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from text_sdft.core import DivergenceSettings, Head


def likelihood_loss(
    student_NH: Tensor,
    head: Head,
    ids_N: Tensor,
    weight_N: Tensor,
    settings: DivergenceSettings,
    dynamic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of given tokens, at temperature 1.

    Args:
        student_NH: hidden states at the positions that predict the tokens.
        head: the output layer; its sampling temperature is not used.
        weight_N: what each token counts in the sum.
        settings: says how many tokens make a chunk.
        dynamic: multiply each token's loss by its own probability, a constant for the gradient (DFT, arXiv 2508.05629).

    Returns:
        the weighted sum, and loss_N: each token's loss, without gradient.
    """
    head = replace(head, temperature=1.0)

    def chunk_loss(states_CH: Tensor, ids_C: Tensor) -> Tensor:
        return cross_entropy(head.logits(states_CH), ids_C, reduction="none")

    chunks = settings.chunks(len(ids_N), len(head.weight_VH), student_NH.device.type)
    # Without any token too, the loss hangs on every weight: data parallelism waits for the gradient of each.
    parts = [
        checkpoint(chunk_loss, student_NH[chunk], ids_N[chunk], use_reentrant=False) for chunk in chunks or [slice(0, 0)]
    ]
    loss_N = torch.cat(parts)
    if dynamic:
        loss_N = (-loss_N.detach()).exp() * loss_N
    return (weight_N.to(loss_N) * loss_N).sum(), loss_N.detach()
