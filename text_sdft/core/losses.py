"""The loss of a group's answers: a divergence in closed form, or any function of log-probabilities, in chunks.

Shapes: N tokens · C tokens of a chunk · H hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from text_sdft.core.divergence import DivergenceSettings, Head, divergence
from text_sdft.core.sampling import Rollout

#: (student's log-probabilities [C, V], the reader's [C, V] or None, answered tokens [C]) -> loss of each token [C].
TokenLoss: TypeAlias = Callable[[Tensor, Tensor | None, Tensor], Tensor]
#: A reader's hidden states [N, H] at the tokens of completions, and its output layer.
Reading: TypeAlias = tuple[Tensor, Head]


def likelihood(student_CV: Tensor, reader_CV: Tensor | None, ids_C: Tensor) -> Tensor:
    """Negative log-likelihood of the answered tokens [C]."""
    return -student_CV.gather(-1, ids_C[:, None]).squeeze(-1)


def answers_loss(
    student_NH: Tensor,
    head: Head,
    reading: Reading | None,
    rollout: Rollout,
    masks: Sequence[Tensor],
    weight: float,
    settings: DivergenceSettings,
    loss: TokenLoss | None = None,
) -> tuple[Tensor, list[float]]:
    """``weight`` times the sum over answers of the mean loss of their scored tokens.

    Args:
        student_NH: the student's hidden states at all tokens of the answers, with gradient.
        reading: a teacher's states at the same tokens; None: nobody reads, and temperatures do not count.
        masks: the tokens [T] of each answer that are scored; an answer without any weighs nothing.
        loss: of a token; None: the divergence, or where nobody reads the negative log-likelihood.

    Returns the sum, and the mean loss of each answer (0 without scored tokens).
    """
    device, dtype = student_NH.device, torch.promote_types(student_NH.dtype, torch.float32)
    keep_N = torch.cat(list(masks)).to(device)
    counts = [int(mask.sum()) for mask in masks]
    weights = [torch.full((count,), weight / count, dtype=dtype) for count in counts if count]
    weight_N = torch.cat(weights or [torch.zeros(0, dtype=dtype)]).to(device)
    ids_N, sampler_logp_N = (torch.cat(values).to(device)[keep_N] for values in (rollout.ids, rollout.logps))
    states_NH, read = student_NH[keep_N], None if reading is None else (reading[0][keep_N], reading[1])
    if loss is None and read is not None:
        total, loss_N = divergence(states_NH, read[0], head, read[1], settings, ids_N, weight_N, sampler_logp_N)
    else:
        total, loss_N = token_loss(loss or likelihood, states_NH, head, read, settings, ids_N, weight_N)
    return total, [float(row.mean()) if len(row) else 0.0 for row in loss_N.split(counts)]


def token_loss(
    loss: TokenLoss,
    student_NH: Tensor,
    head: Head,
    reading: Reading | None,
    settings: DivergenceSettings,
    ids_N: Tensor,
    weight_N: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the tokens' losses, differentiated by autograd chunk by chunk: logits are computed twice.

    Returns the sum, and the loss of each token [N], without gradient.
    """
    if reading is None:
        head = replace(head, temperature=1.0)

    def chunk_loss(states_CH: Tensor, chunk: slice) -> Tensor:
        reader_CV = None
        if reading is not None:
            with torch.no_grad():
                reader_CV = reading[1].logits(reading[0][chunk]).log_softmax(-1)
        return loss(head.logits(states_CH).log_softmax(-1), reader_CV, ids_N[chunk])

    # Without any token too, the loss hangs on every weight: data parallelism waits for the gradient of each.
    chunks = settings.chunks(len(ids_N), len(head.weight_VH), student_NH.device.type) or [slice(0, 0)]
    loss_N = torch.cat([checkpoint(chunk_loss, student_NH[chunk], chunk, use_reentrant=False) for chunk in chunks])
    return (weight_N.to(loss_N) * loss_N).sum(), loss_N.detach()
