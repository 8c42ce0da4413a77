"""The divergence equals fp64 autograd of the definition, the closed forms and TRL's functions, for every setting."""

from __future__ import annotations

import itertools

import pytest
import torch
from loss_memory import peak
from torch import Tensor

from tests.tiers import further
from text_sdft.core.divergence import DivergenceSettings, Head, divergence
from text_sdft.core.losses import token_loss

N, H, V = 13, 8, 50


def tensors(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    # Logits of a few units: an fp32 logit of 20 is itself rounded by 1e-6 before any loss sees it.
    student, teacher = 0.4 * torch.randn(N, H, generator=g), 0.4 * torch.randn(N, H, generator=g)
    w_s, w_t = torch.randn(V, H, generator=g), torch.randn(V, H, generator=g)
    bias = torch.randn(V, generator=g)
    ids = torch.randint(V, (N,), generator=g)
    return *(t.to(dtype) for t in (student, teacher, w_s, w_t, bias)), ids  # type: ignore[return-value]


def definition(student_z: Tensor, teacher_z: Tensor, alpha: float, topk: int | None) -> Tensor:
    """The divergence written from its definition on probabilities, for autograd."""
    p, q = student_z.softmax(-1), teacher_z.softmax(-1)
    if topk is not None:
        index = p.topk(topk).indices
        p_k, q_k = p.gather(-1, index), q.gather(-1, index)
        p, q = p_k / p_k.sum(-1, keepdim=True), q_k / q_k.sum(-1, keepdim=True)
    if alpha == 0:
        return (q * (q / p).log()).sum(-1)
    if alpha == 1:
        return (p * (p / q).log()).sum(-1)
    m = (1 - alpha) * p + alpha * q
    return alpha * (q * (q / m).log()).sum(-1) + (1 - alpha) * (p * (p / m).log()).sum(-1)


DIVERGENCES = [*itertools.product([0.0, 0.3, 0.5, 1.0], [None, 5], [1, 4, 100]), (0.0, V + 1, 4)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_equal_fp64_autograd(dtype):
    for divergence_case, (softcap, clip) in itertools.product(DIVERGENCES, [(None, None), (3.0, None), (None, 2.0)]):
        check_against_autograd(*divergence_case, softcap, clip, dtype)


def check_against_autograd(alpha, topk, chunk, softcap, clip, dtype):
    student, teacher, w_s, w_t, bias, ids = tensors(torch.float64)
    weights = torch.linspace(0, 2, N, dtype=torch.float64)  # a mask and unequal token weights at once

    reference = [t.clone().requires_grad_() for t in (student, w_s, bias)]
    z_s = reference[0] @ reference[1].T + reference[2]
    z_t = teacher @ w_t.T
    if softcap is not None:
        z_s, z_t = softcap * (z_s / softcap).tanh(), softcap * (z_t / softcap).tanh()
    expected = definition(z_s / 0.7, z_t / 0.7, alpha, topk if topk is None or topk < V else None)
    if clip is not None:  # of a sampler that gave every token probability exp(-3)
        logp_N = (z_s.detach() / 0.7).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
        expected = expected * (logp_N + 3.0).exp().clamp(max=clip)
    (expected * weights).sum().backward()

    ours = [t.to(dtype).clone().requires_grad_() for t in (student, w_s, bias)]
    sampler_N = torch.full((N,), -3.0, dtype=dtype)
    total, loss_N = divergence(
        ours[0],
        teacher.to(dtype),
        Head(ours[1], ours[2], softcap, temperature=0.7),
        Head(w_t.to(dtype), None, softcap, temperature=0.7),
        DivergenceSettings(alpha=alpha, topk=topk, chunk_size=chunk, importance_clip=clip),
        ids,
        weights.to(dtype),
        sampler_N,
    )
    (3.0 * total).backward()

    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    case = f"alpha {alpha}, top {topk}, chunks of {chunk}, cap {softcap}, clip {clip}"
    assert relative(loss_N, expected) < tolerance, case
    assert relative(total, (expected * weights).sum()) < tolerance, case
    for got, want in zip(ours, reference, strict=True):
        assert relative(got.grad, 3.0 * want.grad) < tolerance, case


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def test_closed_forms():
    """KL of a Bernoulli-like pair by hand, and the identities that define the family."""
    p, q = torch.tensor([[0.8, 0.2]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    ids = torch.tensor([0])

    def value(alpha: float, student: Tensor = p, teacher: Tensor = q) -> float:
        settings = DivergenceSettings(alpha=alpha)
        return float(divergence(student.log(), teacher.log(), Head(eye), Head(eye), settings, ids, torch.ones(1))[0])

    log = torch.tensor([0.5 / 0.8, 0.5 / 0.2], dtype=torch.float64).log()
    assert value(0.0) == pytest.approx(float((0.5 * log).sum()), rel=1e-12)
    assert value(1.0) == pytest.approx(float((-torch.tensor([0.8, 0.2]) * log).sum()), rel=1e-7)
    assert value(0.5) == pytest.approx(value(0.5, q, p), rel=1e-12), "Jensen-Shannon is symmetric"
    assert value(0.0) == pytest.approx(value(1.0, q, p), rel=1e-12), "reverse KL is forward KL with sides swapped"
    for alpha in (0.0, 0.3, 1.0):
        assert value(alpha, p, p) == pytest.approx(0.0, abs=1e-15)


def test_equals_trl():
    utils = pytest.importorskip("trl.experimental.sdft.loss_utils", reason="TRL is the oracle (pip install trl)")
    student, teacher, w_s, w_t, _, ids = tensors(torch.float32)
    z_s, z_t = student @ w_s.T, teacher @ w_t.T
    for alpha, topk in itertools.product([0.0, 0.4, 1.0], [None, 7]):
        settings = DivergenceSettings(alpha=alpha, topk=topk)
        ours = divergence(student, teacher, Head(w_s), Head(w_t), settings, ids, torch.ones(N))[1]
        if topk is None:
            theirs = utils.compute_full_logit_self_distillation_loss(z_s, z_t, distillation_alpha=alpha)
        else:
            theirs = utils.compute_topk_self_distillation_loss(
                z_s, z_t, distillation_topk=topk, distillation_alpha=alpha, distillation_add_tail=False
            )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_bf16_hidden_states_give_an_fp32_loss_near_the_exact_one():
    student, teacher, w_s, w_t, _, ids = tensors(torch.bfloat16)
    _, loss_N = divergence(student, teacher, Head(w_s), Head(w_t), DivergenceSettings(), ids, torch.ones(N))
    exact_N = definition((student @ w_s.T).double(), (teacher @ w_t.T).double(), 0.0, None)
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N.double(), exact_N, rtol=1e-5, atol=1e-5)


def test_under_bf16_the_heads_gradient_sums_over_chunks_in_fp32():
    """512 chunks: a sum kept in bf16 stops growing once a chunk's part is below half its last place."""
    g = torch.Generator().manual_seed(0)
    states_NH, teacher_NH, weight_VH = (0.4 * torch.randn(n, H, generator=g) for n in (512, 512, V))
    states_NH += 1.0  # parts that add up, not cancel
    grads = []
    for half in (True, False):
        head = Head(weight_VH.clone().requires_grad_())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            settings = DivergenceSettings(chunk_size=1)
            ids_N = torch.zeros(512, dtype=torch.long)
            divergence(states_NH, teacher_NH, head, Head(weight_VH), settings, ids_N, torch.ones(512))[0].backward()
        grads.append(head.weight_VH.grad)
    assert grads[0].dtype == torch.float32
    assert (grads[0] - grads[1]).norm() < 0.01 * grads[1].norm()


def test_a_confident_teacher_stays_finite():
    """Log-probabilities of -1e4: no inf - inf, no nan, in loss and gradient."""
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    eye, ids = torch.eye(3), torch.tensor([0])
    for alpha, topk in itertools.product((0.0, 0.5, 1.0), (None, 2)):
        settings = DivergenceSettings(alpha=alpha, topk=topk)
        total, loss_N = divergence(student, teacher, Head(eye), Head(eye), settings, ids, torch.ones(1))
        total.backward()
        assert loss_N.isfinite().all() and student.grad.isfinite().all()


def test_no_tokens_give_no_loss():
    student, teacher, w_s, w_t, _, ids = tensors(torch.float32)
    student = student[:0].requires_grad_()
    settings = DivergenceSettings()
    total, loss_N = divergence(student, teacher[:0], Head(w_s), Head(w_t), settings, ids[:0], torch.ones(0))
    total.backward()
    assert loss_N.shape == (0,)
    assert student.grad.shape == (0, H)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        DivergenceSettings(alpha=1.5)
    with pytest.raises(ValueError, match="topk"):
        DivergenceSettings(topk=0)


@pytest.mark.parametrize(
    "settings",
    [{}, *further({"alpha": 1.0}, {"alpha": 0.5}, {"topk": 20})],
)
def test_less_than_two_chunks_exist_at_once_however_many_tokens(settings):
    """Beside the output layer's gradient and those of the states."""
    H, V, C = 8, 4096, 64
    peaks = []
    for N in (1024, 4096):
        student_NH, teacher_NH, weight_VH = (torch.randn(n, H) for n in (N, N, V))
        student_NH.requires_grad_()
        weight_VH.requires_grad_()

        def loss(hidden=student_NH, teacher=teacher_NH, weight=weight_VH):
            ids_N, head, n = torch.zeros(len(hidden), dtype=torch.long), Head(weight), len(hidden)
            total, _ = divergence(
                hidden, teacher, head, head, DivergenceSettings(chunk_size=C, **settings), ids_N, torch.ones(n)
            )
            total.backward()
            return float(total.detach())

        of_tokens = 4 * N * (H + 8)  # the states' gradient, ids, losses and weights
        peaks.append((peak(loss, "cpu")[0] - of_tokens - 4 * V * H) / (4 * C * V))
    assert max(peaks) <= 2 and peaks[1] <= 1.05 * peaks[0]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_loss_of_ones_own_is_a_function_that_autograd_differentiates(chunk):
    """Squared Hellinger distance: the same value and gradients as with all logits at once, in fp64."""
    student, teacher, w_s, w_t, _, ids = tensors(torch.float64)

    def hellinger(student_CV: Tensor, reader_CV: Tensor | None, ids_C: Tensor) -> Tensor:
        return 1 - ((student_CV + reader_CV) / 2).exp().sum(-1)

    results = []
    for whole in (False, True):
        hidden, weight = (t.clone().requires_grad_() for t in (student, w_s))
        head, weights = Head(weight, temperature=0.7), torch.linspace(0, 2, N, dtype=torch.float64)
        if whole:
            logps = (hidden @ weight.T / 0.7).log_softmax(-1), (teacher @ w_t.T / 0.7).log_softmax(-1)
            total = (hellinger(*logps, ids) * weights).sum()
        else:
            reading, settings = (teacher, Head(w_t, temperature=0.7)), DivergenceSettings(chunk_size=chunk)
            total, _ = token_loss(hellinger, hidden, head, reading, settings, ids, weights)
        total.backward()
        results.append((total.detach(), hidden.grad, weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
