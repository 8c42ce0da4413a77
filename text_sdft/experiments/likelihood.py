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
    student_NH: Tensor, head: Head, ids_N: Tensor, settings: DivergenceSettings, dynamic: bool = False
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each token, at temperature 1.

    Args:
        student_NH: hidden states at the positions that predict the tokens.
        head: the output layer; its sampling temperature is not used.
        settings: says how many tokens make a chunk.
        dynamic: weight each token by its own probability, a constant for the gradient (DFT, arXiv 2508.05629).

    Returns:
        loss_N, and logp_N: the tokens' log-probabilities, without gradient.
    """
    head = replace(head, temperature=1.0)

    def chunk_loss(states_CH: Tensor, ids_C: Tensor) -> Tensor:
        return cross_entropy(head.logits(states_CH), ids_C, reduction="none")

    chunks = settings.chunks(len(ids_N), len(head.weight_VH))
    parts = [checkpoint(chunk_loss, student_NH[chunk], ids_N[chunk], use_reentrant=False) for chunk in chunks]
    nll_N = torch.cat(parts) if parts else student_NH.sum(-1)
    logp_N = -nll_N.detach()
    return (logp_N.exp() * nll_N if dynamic else nll_N), logp_N
