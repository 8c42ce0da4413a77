"""What a training step says of itself: means for the log, and its completions to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.groups import Group
from text_sdft.core.sampling import Rollout


class StepMetrics:
    """Sums since the last log, by the name under which their mean is logged: (sum, count)."""

    def __init__(self) -> None:
        self._newest: tuple[Any, ...] = (None, 0, (), (), ())
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, values: Sequence[float]) -> None:
        """Add values to those whose mean is logged under a name."""
        self.add_sum(name, sum(values), len(values))

    def add_sum(self, name: str, total: float, count: float) -> None:
        """As `add`, the sum of so many values."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + count)

    def record(
        self,
        adapter: ModalityAdapter,
        step: int,
        groups: Sequence[Group],
        rollouts: Sequence[Rollout],
        losses: Sequence[Sequence[float]],
        dropped: int,
    ) -> None:
        """Add a micro-batch: each group's completions with their mean losses, and the demonstrations that did not fit."""
        for group, rollout, losses_B in zip(groups, rollouts, losses, strict=True):
            self.add(f"{group.name}/loss", losses_B)
            self.add("completions/mean_length", [len(ids) for ids in rollout.ids])
            self.add("completions/clipped_ratio", [float(not finished) for finished in rollout.finished])
        self.add("teacher/dropped_demonstrations", [dropped / max(1, len(groups[0].examples))])
        self._newest = (adapter, step, groups, rollouts, losses)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The newest micro-batch's completions, with their losses and scores; scored when asked for: a judge costs."""
        adapter, step, groups, rollouts, losses = self._newest
        records = []
        for group, rollout, losses_B in zip(groups, rollouts, losses, strict=True):
            for example, ids, loss in zip(group.examples, rollout.ids, losses_B, strict=True):
                text = adapter.decode(ids)
                record = {"step": step, "id": example.id, "retain": example.retain, "completion": text}
                records.append({**record, "loss": round(loss, 6), "score": adapter.score(example, text)})
        return records

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call; to be called by all of them."""
        parts = gather_object([self.sums]) if accelerator.num_processes > 1 else [self.sums]
        self.sums = {}
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in parts:
            for name, (total, count) in part.items():
                totals[name][0] += total
                totals[name][1] += count
        return {name: total / count for name, (total, count) in totals.items() if count > 0}
