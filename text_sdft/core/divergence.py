"""Token divergence between teacher and student, from hidden states, in chunks, with its gradient in closed form.

The convention is that of the field: alpha 0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher), between lies
the generalised Jensen-Shannon divergence with m = (1-α)·p + α·q and α·KL(q‖m) + (1-α)·KL(p‖m), p student, q teacher
(arXiv 2601.19897 derives reverse KL and reports forward KL).

Logits of all tokens never exist at once: the forward pass keeps the loss of each token only, the backward pass computes a
chunk's logits again and applies dL/dz = p·(u - Σp·u), u = dL/dp, the softmax's Jacobian applied to one vector.

Shapes: N tokens · H hidden size · V vocabulary · C tokens of one chunk · K outcomes compared (V, or top-k, or top-k + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Bytes that one [C, V] fp32 tensor may take when no chunk size is given.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: z = softcap·tanh((h Wᵀ + b) / softcap) / temperature.

    Attributes:
        weight_VH: the output embedding.
        bias_V: its bias, if it has one.
        softcap: logit soft-capping (Gemma), None for most models.
        temperature: logits are divided by it (the sampling temperature).
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Logits [C, V] in fp32 (fp64 stays fp64)."""
        logits_CV = nn.functional.linear(hidden_CH.to(self.weight_VH.dtype), self.weight_VH)
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self.bias_V is not None:
            logits_CV = logits_CV + self.bias_V
        if self.softcap is not None:
            logits_CV = self.softcap * torch.tanh(logits_CV / self.softcap)
        return logits_CV / self.temperature

    def backward(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """Gradient with respect to h Wᵀ + b, given that with respect to the logits. Shapes [C, V]."""
        grad_CV = grad_CV / self.temperature
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (logits_CV * self.temperature / self.softcap) ** 2)
        return grad_CV


@dataclass(frozen=True)
class DivergenceSettings:
    """What is compared.

    Attributes:
        alpha: 0 forward KL, 1 reverse KL, between the generalised Jensen-Shannon divergence.
        topk: compare the student's k most probable tokens only; None compares the whole vocabulary.
        add_tail: with topk, one further outcome holds all remaining mass; without, both are renormalised.
        chunk_size: tokens of one chunk; None takes what keeps a [C, V] fp32 tensor within 64 MiB.
    """

    alpha: float = 0.0
    topk: int | None = None
    add_tail: bool = False
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} lies outside [0, 1] (0 forward KL, 1 reverse KL)")
        if self.topk is not None and self.topk < 1:
            raise ValueError(f"topk {self.topk} must be at least 1, or None for the whole vocabulary")

    def chunks(self, tokens: int, vocabulary: int) -> list[slice]:
        """Slices that cover ``tokens``."""
        size = self.chunk_size or max(1, CHUNK_BYTES // (4 * vocabulary))
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def divergence(
    student_NH: Tensor,
    teacher_NH: Tensor,
    head: Head,
    teacher_head: Head,
    settings: DivergenceSettings,
    ids_N: Tensor,
) -> tuple[Tensor, Tensor]:
    """Divergence of each token, exact over the full vocabulary unless ``settings.topk`` is set.

    Gradients reach ``student_NH`` and the student's head; the teacher is a constant. Computed in fp32 whatever the dtype.

    Args:
        student_NH: the student's hidden states at the scored positions.
        teacher_NH: the teacher's at the same tokens.
        head: the student's output layer.
        teacher_head: the teacher's (another tensor where the teacher's weights differ).
        settings: which divergence.
        ids_N: the sampled token at each position.

    Returns:
        loss_N, and logp_N: the student's log-probability of ``ids_N`` (no gradient; for importance weights).
    """
    return _Divergence.apply(
        student_NH, head.weight_VH, head.bias_V, teacher_NH.detach(), head, teacher_head, settings, ids_N
    )


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        teacher_NH: Tensor,
        head: Head,
        teacher_head: Head,
        settings: DivergenceSettings,
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(student_NH.dtype, torch.float32)
        loss_N = torch.empty(len(student_NH), dtype=dtype, device=student_NH.device)
        logp_N = torch.empty_like(loss_N)
        for chunk in settings.chunks(len(student_NH), len(weight_VH)):
            student_CV = head.logits(student_NH[chunk]).log_softmax(-1)
            teacher_CV = teacher_head.logits(teacher_NH[chunk]).log_softmax(-1)
            logp_N[chunk] = student_CV.gather(-1, ids_N[chunk, None]).squeeze(-1)
            student_CK, teacher_CK, _ = _outcomes(student_CV, teacher_CV, settings)
            loss_N[chunk], _ = _loss_and_slope(student_CK, teacher_CK, settings.alpha)
        ctx.save_for_backward(student_NH, weight_VH, teacher_NH)
        ctx.head, ctx.teacher_head, ctx.settings = head, teacher_head, settings
        ctx.mark_non_differentiable(logp_N)
        return loss_N, logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        student_NH, weight_VH, teacher_NH = ctx.saved_tensors
        head, teacher_head, settings = ctx.head, ctx.teacher_head, ctx.settings
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_NH = torch.empty_like(student_NH) if need_hidden else None
        # The head's gradient sums over all tokens: fp32, so that small contributions are not rounded away.
        grad_VH = torch.zeros_like(weight_VH, dtype=grad_N.dtype) if need_weight else None
        grad_V = torch.zeros(len(weight_VH), dtype=grad_N.dtype, device=grad_N.device) if need_bias else None
        for chunk in settings.chunks(len(student_NH), len(weight_VH)):
            logits_CV = head.logits(student_NH[chunk])
            student_CV = logits_CV.log_softmax(-1)
            teacher_CV = teacher_head.logits(teacher_NH[chunk]).log_softmax(-1)
            student_CK, teacher_CK, index_CK = _outcomes(student_CV, teacher_CV, settings)
            _, slope_CK = _loss_and_slope(student_CK, teacher_CK, settings.alpha)
            grad_CV = _spread(slope_CK, student_CK, student_CV, index_CK) * grad_N[chunk, None]
            grad_CV = head.backward(grad_CV, logits_CV)
            if grad_NH is not None:
                grad_NH[chunk] = (grad_CV.to(weight_VH.dtype) @ weight_VH).to(grad_NH.dtype)
            if grad_VH is not None:
                grad_VH.addmm_(grad_CV.T, student_NH[chunk].to(grad_CV.dtype))
            if grad_V is not None:
                grad_V += grad_CV.sum(0)
        grad_weight = grad_VH.to(weight_VH.dtype) if grad_VH is not None else None
        return grad_NH, grad_weight, grad_V, None, None, None, None, None


def _outcomes(student_CV: Tensor, teacher_CV: Tensor, settings: DivergenceSettings) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities of the outcomes compared [C, K], and their token ids [C, topk] (None: all tokens)."""
    if settings.topk is None or settings.topk >= student_CV.shape[-1]:
        return student_CV, teacher_CV, None
    student_CK, index_CK = student_CV.topk(settings.topk, dim=-1)
    teacher_CK = teacher_CV.gather(-1, index_CK)
    if not settings.add_tail:
        return student_CK.log_softmax(-1), teacher_CK.log_softmax(-1), index_CK
    return _with_tail(student_CV, index_CK), _with_tail(teacher_CV, index_CK), index_CK


def _with_tail(logp_CV: Tensor, index_CK: Tensor) -> Tensor:
    """The outcomes, and one more that holds all others' mass: summed up, for log(1 - Σp) is lost where Σp is near 1."""
    tail_C1 = logp_CV.scatter(-1, index_CK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp_CV.gather(-1, index_CK), tail_C1], dim=-1)


def _loss_and_slope(student_CK: Tensor, teacher_CK: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Loss [C], and p·dL/dp [C, K] for p = exp(student), up to a constant of the row times p.

    Adding c·p to the slope changes nothing after the softmax's Jacobian, so constants are left out.
    """
    if alpha == 0.0:
        teacher_p_CK = teacher_CK.exp()
        return (teacher_p_CK * (teacher_CK - student_CK)).sum(-1), -teacher_p_CK
    p_CK = student_CK.exp()
    if alpha == 1.0:
        terms_CK = p_CK * (student_CK - teacher_CK)
        return terms_CK.sum(-1), terms_CK
    log_a, log_b = torch.tensor([1 - alpha, alpha], dtype=student_CK.dtype).log().tolist()
    mixture_CK = torch.logaddexp(student_CK + log_a, teacher_CK + log_b)
    slope_CK = (1 - alpha) * p_CK * (student_CK - mixture_CK)
    teacher_terms_CK = alpha * teacher_CK.exp() * (teacher_CK - mixture_CK)
    return (slope_CK + teacher_terms_CK).sum(-1), slope_CK


def _spread(slope_CK: Tensor, student_CK: Tensor, student_CV: Tensor, index_CK: Tensor | None) -> Tensor:
    """dL/dz [C, V] from p·dL/dp of the outcomes: the softmax's Jacobian, and a tail's share to its tokens."""
    grad_CK = slope_CK - student_CK.exp() * slope_CK.sum(-1, keepdim=True)
    if index_CK is None:
        return grad_CK
    if grad_CK.shape[-1] == index_CK.shape[-1]:
        return torch.zeros_like(student_CV).scatter_(-1, index_CK, grad_CK)
    # The tail's logit is the logsumexp of its tokens' logits: each takes its part of the tail's mass.
    grad_CV = (student_CV - student_CK[:, -1:]).exp() * grad_CK[:, -1:]
    return grad_CV.scatter_(-1, index_CK, grad_CK[:, :-1])
