"""Token divergence between teacher and student, from hidden states, in chunks, with its gradient in closed form.

The convention is that of the field: alpha 0 is forward KL(teacher‖student), 1 is reverse KL(student‖teacher), between lies
the generalised Jensen-Shannon divergence with m = (1-α)·p + α·q and α·KL(q‖m) + (1-α)·KL(p‖m), p student, q teacher
(arXiv 2601.19897 derives reverse KL and reports forward KL).

Logits of all tokens never exist at once. The weight of each token is known beforehand, so a chunk's gradient is formed
while its logits are there, in their place: dL/dz = p·(u - Σp·u), u = dL/dp, the softmax's Jacobian applied to one vector.
The backward pass only scales. What exists at once takes less than two [C, V] fp32 tensors, beside the output layer's
gradient: the student's logits of a chunk, the teacher's of a part of it, and temporary tensors of a block of that part.

Shapes: N tokens · H hidden size · V vocabulary · C tokens of one chunk · P tokens of one part of a chunk · R tokens of one
block of a part · K outcomes compared (V, or top-k).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

#: Bytes that one [C, V] fp32 tensor may take when no chunk size is given; a GPU wants larger pieces of work.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
#: Parts of a chunk, and blocks of a part.
PARTS = BLOCKS = 4


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: z = softcap·tanh((h Wᵀ + b) / softcap) / temperature.

    Attributes:
        weight_VH, bias_V: the output embedding's.
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
            logits_CV += self.bias_V
        if self.softcap is not None:
            capped_CV = logits_CV.div_(self.softcap)
            # Autograd keeps tanh's result, which then must not be changed.
            grad = torch.is_grad_enabled()
            logits_CV = self.softcap * capped_CV.tanh() if grad else capped_CV.tanh_().mul_(self.softcap)
        return logits_CV.div_(self.temperature) if self.temperature != 1.0 else logits_CV

    def backward(self, grad_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Gradient with respect to h Wᵀ + b, given that with respect to the logits. Shapes [R, V]."""
        grad_RV = grad_RV / self.temperature
        if self.softcap is not None:
            grad_RV = grad_RV * (1 - (logits_RV * self.temperature / self.softcap) ** 2)
        return grad_RV


@dataclass(frozen=True)
class DivergenceSettings:
    """What is compared.

    Attributes:
        alpha: 0 forward KL, 1 reverse KL, between the generalised Jensen-Shannon divergence.
        topk: compare the student's k most probable tokens only, renormalised; None compares the whole vocabulary.
        chunk_size: tokens of one chunk; None takes what keeps a [C, V] fp32 tensor within 64 MiB (512 MiB on a GPU).
        importance_clip: tokens weigh p_student / p_sampler, at most this; None leaves every weight at 1.
    """

    alpha: float = 0.0
    topk: int | None = None
    chunk_size: int | None = None
    importance_clip: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} lies outside [0, 1] (0 forward KL, 1 reverse KL)")
        if self.topk is not None and self.topk < 1:
            raise ValueError(f"topk {self.topk} must be at least 1, or None for the whole vocabulary")

    def chunks(self, tokens: int, vocabulary: int, device: str) -> list[slice]:
        """Slices that cover ``tokens``."""
        size = self.chunk_size or max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def divergence(
    student_NH: Tensor,
    teacher_NH: Tensor,
    head: Head,
    teacher_head: Head,
    settings: DivergenceSettings,
    ids_N: Tensor,
    weight_N: Tensor,
    sampler_logp_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the tokens' divergences, exact over the full vocabulary unless ``settings.topk`` is set.

    Gradients reach ``student_NH`` and the student's head, once; the teacher is a constant. Computed in fp32 whatever the
    dtype; matrix products in the dtype of the head, or of autocast.

    Args:
        student_NH, teacher_NH: hidden states at the scored positions.
        head, teacher_head: output layers (other tensors where the teacher's weights differ).
        ids_N: the sampled token at each position.
        weight_N: what each token's divergence counts in the sum.
        sampler_logp_N: the log-probability with which each token was sampled, for ``settings.importance_clip``.

    Returns the sum (a scalar with gradient), and the divergence of each token [N], importance weight included (without).
    """
    device = student_NH.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight_VH.dtype
    with torch.autocast(device, enabled=False):
        return _Divergence.apply(
            student_NH, head.weight_VH, head.bias_V, teacher_NH.detach(), head, teacher_head, settings,
            (ids_N, weight_N, sampler_logp_N), compute, torch.is_grad_enabled(),
        )  # fmt: skip


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
        tokens: tuple[Tensor, Tensor, Tensor | None],
        compute: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        ids_N, weight_N, sampler_logp_N = tokens
        dtype = torch.promote_types(student_NH.dtype, torch.float32)
        need_hidden, need_weight, need_bias = (learns and need for need in ctx.needs_input_grad[:3])
        head = replace(head, weight_VH=head.weight_VH.to(compute))
        same = teacher_head.weight_VH.data_ptr() == weight_VH.data_ptr()
        cast_VH = head.weight_VH if same else teacher_head.weight_VH.to(compute)
        teacher_head = replace(teacher_head, weight_VH=cast_VH)
        loss_N = torch.empty(len(student_NH), dtype=dtype, device=student_NH.device)
        grad_NH = torch.empty_like(student_NH) if need_hidden else None
        # The head's gradient sums over all tokens: fp32, so that small contributions are not rounded away.
        grad_VH = torch.zeros_like(weight_VH, dtype=dtype) if need_weight else None
        grad_V = torch.zeros(len(weight_VH), dtype=dtype, device=student_NH.device) if need_bias else None
        for chunk in settings.chunks(len(student_NH), len(weight_VH), student_NH.device.type):
            student_CV = head.logits(student_NH[chunk])
            for part in _pieces(chunk, PARTS):
                teacher_PV = teacher_head.logits(teacher_NH[part])
                for block in _pieces(part, BLOCKS):
                    logits_RV = student_CV[block.start - chunk.start : block.stop - chunk.start]
                    teacher_RV = teacher_PV[block.start - part.start : block.stop - part.start].log_softmax(-1)
                    student_RV = logits_RV.log_softmax(-1)
                    student_RK, teacher_RK, index_RK = _outcomes(student_RV, teacher_RV, settings)
                    loss_R, slope_RK = _loss_and_slope(student_RK, teacher_RK, settings.alpha)
                    importance_R = torch.ones_like(loss_R)
                    if settings.importance_clip is not None and sampler_logp_N is not None:
                        logp_R = student_RV.gather(-1, ids_N[block, None]).squeeze(-1)
                        ratio_R = (logp_R - sampler_logp_N[block].to(logp_R)).exp()
                        importance_R = ratio_R.clamp(max=settings.importance_clip)
                    loss_N[block] = loss_R * importance_R
                    if learns:
                        scale_R1 = (importance_R * weight_N[block].to(loss_R))[:, None]
                        grad_RV = _spread(slope_RK, student_RK, student_RV, index_RK) * scale_R1
                        logits_RV.copy_(head.backward(grad_RV, logits_RV))
                del teacher_PV  # before the next part's take its place
            if grad_V is not None:
                grad_V += student_CV.sum(0)
            grad_CV = student_CV.to(compute)
            del student_CV, logits_RV  # before the next chunk's take their place
            if grad_NH is not None:
                grad_NH[chunk] = (grad_CV @ head.weight_VH).to(grad_NH.dtype)
            if grad_VH is not None:
                _add_product(grad_VH, grad_CV, student_NH[chunk].to(compute))
            del grad_CV
        ctx.grads = (grad_NH, grad_VH, grad_V)
        ctx.weight_dtype = weight_VH.dtype
        ctx.mark_non_differentiable(loss_N)
        return (loss_N * weight_N.to(loss_N)).sum(), loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the divergence's gradient was taken already: it is formed once, in place")
        (grad_NH, grad_VH, grad_V), ctx.grads = ctx.grads, None
        scaled = [grad if grad is None else grad.mul_(grads[0].to(grad.dtype)) for grad in (grad_NH, grad_VH, grad_V)]
        grad_weight = scaled[1] if scaled[1] is None else scaled[1].to(ctx.weight_dtype)
        return scaled[0], grad_weight, scaled[2], *[None] * 7


def _pieces(span: slice, count: int) -> list[slice]:
    """A span of tokens in so many pieces of about the same length; fewer where it is shorter."""
    size = -(-(span.stop - span.start) // count)
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]


def _add_product(total_VH: Tensor, grad_CV: Tensor, states_CH: Tensor) -> None:
    """total += gradᵀ · states. Half-precision products are many times faster; only their sum over chunks needs fp32."""
    if grad_CV.dtype == total_VH.dtype:
        total_VH.addmm_(grad_CV.T, states_CH)
        return
    count = PARTS * BLOCKS
    for part_VH, part_CV in zip(total_VH.chunk(count), grad_CV.chunk(count, dim=1), strict=True):
        part_VH += part_CV.T @ states_CH


def _outcomes(student_RV: Tensor, teacher_RV: Tensor, settings: DivergenceSettings) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities of the outcomes compared [R, K], and their token ids [R, topk] (None: all tokens)."""
    if settings.topk is None or settings.topk >= student_RV.shape[-1]:
        return student_RV, teacher_RV, None
    student_RK, index_RK = student_RV.topk(settings.topk, dim=-1)
    return student_RK.log_softmax(-1), teacher_RV.gather(-1, index_RK).log_softmax(-1), index_RK


def _loss_and_slope(student_RK: Tensor, teacher_RK: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Loss [R], and p·dL/dp [R, K] for p = exp(student), up to a constant of the row times p.

    Adding c·p to the slope changes nothing after the softmax's Jacobian, so constants are left out.
    """
    if alpha == 0.0:
        teacher_p_RK = teacher_RK.exp()
        return (teacher_p_RK * (teacher_RK - student_RK)).sum(-1), -teacher_p_RK
    p_RK = student_RK.exp()
    if alpha == 1.0:
        terms_RK = p_RK * (student_RK - teacher_RK)
        return terms_RK.sum(-1), terms_RK
    log_a, log_b = torch.tensor([1 - alpha, alpha], dtype=student_RK.dtype).log().tolist()
    mixture_RK = torch.logaddexp(student_RK + log_a, teacher_RK + log_b)
    slope_RK = (1 - alpha) * p_RK * (student_RK - mixture_RK)
    teacher_terms_RK = alpha * teacher_RK.exp() * (teacher_RK - mixture_RK)
    return (slope_RK + teacher_terms_RK).sum(-1), slope_RK


def _spread(slope_RK: Tensor, student_RK: Tensor, student_RV: Tensor, index_RK: Tensor | None) -> Tensor:
    """dL/dz [R, V] from p·dL/dp of the outcomes: the softmax's Jacobian."""
    grad_RK = slope_RK - student_RK.exp() * slope_RK.sum(-1, keepdim=True)
    return grad_RK if index_RK is None else torch.zeros_like(student_RV).scatter_(-1, index_RK, grad_RK)
