"""What a training step says of itself: means for the log, and its completions to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.data import Example
from text_sdft.core.sampling import Rollout

#: Names in the log, in the order in which processes exchange them.
NAMES = (
    "distillation/loss",
    "retain/loss",
    "completions/mean_length",
    "completions/clipped_ratio",
    "teacher/dropped_demonstrations",
    "teacher/confidence",
    "teacher/reused_tokens",
)


class StepMetrics:
    """Sums since the last log."""

    def __init__(self) -> None:
        self._newest: Callable[[], list[dict[str, Any]]] = list
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # [sum, count]

    def record(
        self,
        adapter: ModalityAdapter,
        step: int,
        examples: Sequence[Example],
        rollout: Rollout,
        losses_B: Sequence[float],
        dropped: int,
    ) -> None:
        """Add a micro-batch.

        Args:
            losses_B: mean divergence of each completion, queries first, then retention prompts.
            dropped: demonstrations that were left out of its teacher prompts.
        """
        queries = sum(not example.retain for example in examples)
        for name, values in (
            ("distillation/loss", losses_B[:queries]),
            ("retain/loss", losses_B[queries:]),
            ("completions/mean_length", [len(ids) for ids in rollout.ids]),
            ("completions/clipped_ratio", [float(not finished) for finished in rollout.finished]),
            ("teacher/dropped_demonstrations", [dropped / max(queries, 1)]),
        ):
            self._sums[name][0] += sum(values)
            self._sums[name][1] += len(values)
        self._newest = partial(_samples, adapter, step, examples, rollout.ids, losses_B)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The newest micro-batch's completions, with their losses and scores; scored when asked for: a judge costs."""
        return self._newest()

    def add_confidence(self, weights: Sequence[float]) -> None:
        """Add the weights of queries' completions by the teacher's confidence."""
        self._sums["teacher/confidence"][0] += sum(weights)
        self._sums["teacher/confidence"][1] += len(weights)

    def add_reused(self, reused: int, tokens: int) -> None:
        """Add tokens of teacher prompts that were not read again, and all."""
        self._sums["teacher/reused_tokens"][0] += reused
        self._sums["teacher/reused_tokens"][1] += tokens

    def take(self, accelerator: Accelerator, device: torch.device) -> dict[str, float]:
        """Means over all processes since the last call; to be called by all of them."""
        sums = torch.tensor([self._sums[name] for name in NAMES], dtype=torch.float32, device=device)
        self._sums.clear()
        sums = accelerator.reduce(sums, reduction="sum")
        return {name: (total / count).item() for name, (total, count) in zip(NAMES, sums, strict=True) if count > 0}


def _samples(
    adapter: ModalityAdapter, step: int, examples: Sequence[Example], ids: Sequence[Tensor], losses_B: Sequence[float]
) -> list[dict[str, Any]]:
    completions = [adapter.decode(row) for row in ids]
    return [
        {
            "step": step,
            "id": example.id,
            "retain": example.retain,
            "completion": completion,
            "loss": round(loss, 6),
            "score": adapter.score(example, completion),
        }
        for example, completion, loss in zip(examples, completions, losses_B, strict=True)
    ]
