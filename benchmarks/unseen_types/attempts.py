"""What was tried to keep old types better: callbacks that `run.py` gives to a trainer of SDFT with retention prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState

from text_sdft.core import SDFTConfig

#: Of the average, a step: the last 20 steps or so count.
DECAY = 0.95


class GrowingRetention(TrainerCallback):
    """Retention prompts weigh nothing at the first step and twice their weight at the last: learn first, then restore."""

    def __init__(self) -> None:
        self._weight: float | None = None

    def on_step_begin(self, args: SDFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # type: ignore[override]
        self._weight = args.retain_weight if self._weight is None else self._weight
        args.retain_weight = 2 * self._weight * state.global_step / max(1, state.max_steps - 1)


class AveragedStudent(TrainerCallback):
    """The student that is measured is the exponential moving average of the one that was trained."""

    def __init__(self) -> None:
        self._average: AveragedModel | None = None

    def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:  # type: ignore[override]
        if self._average is None:
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self._average.update_parameters(model)

    @torch.no_grad()
    def on_train_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:  # type: ignore[override]
        assert self._average is not None
        for own, average in zip(model.parameters(), self._average.module.parameters(), strict=True):
            own.copy_(average)
