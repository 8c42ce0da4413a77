"""Peak memory of the loss and its gradient: `python benchmarks/loss_memory.py` (on a GPU: `--device cuda`).

From hidden states to their gradient and the output layer's, beside TRL's function, Liger's fused loss (where
`pip install liger-kernel` is there) and a naive one; forward KL, equal losses checked first. On a CPU the bytes of all
live tensors are counted as they come and go; on a GPU the allocator's peak. The table's unit is one [N, V] fp32 tensor.

Shapes: N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from text_sdft.core.divergence import DivergenceSettings, Head, divergence

H = 64
SIZES = ["256x8192", "1024x8192", "4096x8192", "16384x8192", "4096x32768", "4096x151936"]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="Tokens x vocabulary; the last one takes 17 GiB.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss_memory.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    print("| N | V | one [N, V] | " + " | ".join(LOSSES) + " |\n|" + "---|" * (3 + len(LOSSES)))
    for size in args.sizes:
        N, V = map(int, size.split("x"))
        cell = {"tokens": N, "vocabulary": V, "unit": 4 * N * V, **measure(N, V, args.device)}
        cells.append(cell)
        peaks = [cell["peak"].get(name) for name in LOSSES]
        shown = [f"{peak / cell['unit']:.2f} ({peak / 2**20:.0f} MiB)" if peak else "–" for peak in peaks]
        print(f"| {N} | {V} | {cell['unit'] / 2**20:.0f} MiB | " + " | ".join(shown) + " |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(cells, indent=1) + "\n")


def measure(N: int, V: int, device: str) -> dict[str, Any]:
    """Peak bytes beyond the inputs, less the output layer's gradient, which every side must have."""
    peaks, losses = {}, {}
    for name, loss in LOSSES.items():
        g = torch.Generator().manual_seed(0)
        student_NH, teacher_NH, weight_VH = (0.3 * torch.randn(n, H, generator=g) for n in (N, N, V))
        student_NH, teacher_NH, weight_VH = (t.to(device) for t in (student_NH, teacher_NH, weight_VH))
        student_NH.requires_grad_()
        weight_VH.requires_grad_()
        teacher_head_VH = weight_VH.detach().clone()
        try:
            inputs = student_NH, teacher_NH, weight_VH, teacher_head_VH
            peaks[name], losses[name] = peak(functools.partial(run, loss, *inputs), device)
        except ImportError:
            continue
        peaks[name] -= weight_VH.numel() * 4
    spread = max(losses.values()) - min(losses.values())
    if spread > 1e-4 * abs(losses["naive"]):
        raise SystemExit(f"The losses differ, so there is nothing to compare: {losses}")
    return {"peak": peaks, "loss": losses}


def run(loss: Loss, student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, teacher_head_VH: Tensor) -> float:
    value = loss(student_NH, teacher_NH, weight_VH, teacher_head_VH)
    value.backward()
    return float(value.detach())


def peak(function: Callable[[], float], device: str) -> tuple[int, float]:
    """Largest sum of bytes that existed at once while the function ran, beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = function()
        return torch.cuda.max_memory_allocated() - before, value
    with LiveBytes() as live:
        value = function()
    return live.peak, value


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known or key in inputs:
                continue
            self._known.add(key)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)
        return out

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def ours(student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, teacher_head_VH: Tensor) -> Tensor:
    N = len(student_NH)
    ids_N = torch.zeros(N, dtype=torch.long, device=student_NH.device)
    weight_N = torch.full((N,), 1 / N, device=student_NH.device)
    heads = Head(weight_VH), Head(teacher_head_VH)
    return divergence(student_NH, teacher_NH, *heads, DivergenceSettings(), ids_N, weight_N)[0]


def trl(student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, teacher_head_VH: Tensor) -> Tensor:
    from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss as loss

    with torch.no_grad():
        teacher_NV = teacher_NH @ teacher_head_VH.T
    return loss(student_NH @ weight_VH.T, teacher_NV, distillation_alpha=0.0).mean()


def liger(student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, teacher_head_VH: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=64)
    true_labels_N = torch.zeros(len(student_NH), dtype=torch.long, device=student_NH.device)
    return loss(student_NH, weight_VH, teacher_NH, teacher_head_VH, true_labels_N)


def naive(student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, teacher_head_VH: Tensor) -> Tensor:
    with torch.no_grad():
        teacher_NV = (teacher_NH @ teacher_head_VH.T).log_softmax(-1)
    student_NV = (student_NH @ weight_VH.T).log_softmax(-1)
    return kl_div(student_NV, teacher_NV, log_target=True, reduction="none").sum(-1).mean()


LOSSES: dict[str, Loss] = {"ours": ours, "TRL": trl, "Liger": liger, "naive": naive}

if __name__ == "__main__":
    main()
