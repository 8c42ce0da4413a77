"""The teacher is the student's own module, read with other weights: frozen, averaged over time (EMA), or the live ones.

A teacher holds copies of the *trainable* tensors only (all of them under full fine-tuning, the adapter's under LoRA) and
swaps them into the module while its context manager is open. So there is no second model, and it starts as an exact copy
of the student in memory, whatever that is. A student in shards (FSDP) has a teacher in shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from text_sdft.core.sharding import fill, gathered, scatter

TeacherKind = Literal["base", "ema", "live"]


class LiveTeacher:
    """The student's current weights.

    Attributes:
        name: in checkpoints, and of what is kept for its weights.
        version: changes whenever the teacher's weights do; key every cache of what the teacher computed with it.
        fleeting: it changes after every optimiser step.
    """

    fleeting = True

    def __init__(self, model: nn.Module, name: str = "teacher") -> None:
        self.name, self.version = name, 0
        self._model = model
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the module computes as the teacher, whole on every process: see `sharding.gathered`."""
        with gathered(self._model):
            yield

    def update(self) -> None:
        """To be called after each optimiser step."""
        self.version += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep, by parameter name."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError if the names or shapes are of another teacher."""
        wanted = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wanted != given:
            differing = sorted(wanted.items() ^ given.items())[:3]
            raise ValueError(
                f"the saved teacher holds other tensors than this one ({differing} …): it was saved with another "
                "teacher_model_kind, LoRA setting or model"
            )
        for name, tensor in self.state_dict().items():
            fill(tensor, state[name])
        self.version += 1


class FrozenTeacher(LiveTeacher):
    """The student as it was when this object was made (``teacher_model_kind="base"``)."""

    dtype: torch.dtype | None = None  # None keeps each tensor's own
    fleeting = False

    def __init__(self, model: nn.Module, name: str = "teacher") -> None:
        super().__init__(model, name)
        self._weights = {name: p.detach().to(self.dtype, copy=True) for name, p in self._parameters.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        scatter(self._model)
        student = {name: _put(p, self._weights[name]) for name, p in self._parameters.items()}
        try:
            with gathered(self._model):
                yield
        finally:
            for name, p in self._parameters.items():
                _put(p, student[name])

    def update(self) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, Tensor]:
        return self._weights


class EMATeacher(FrozenTeacher):
    """The student's exponential moving average, φ ← (1-r)·φ + r·θ (arXiv 2601.19897, alg. 1).

    Kept in fp32 whatever the model's dtype: at r = 0.01 a bf16 average is rounded away.

    It moves at the ``rate`` r every ``sync_steps`` optimiser steps.
    """

    dtype = torch.float32

    def __init__(self, model: nn.Module, rate: float = 0.01, sync_steps: int = 1) -> None:
        super().__init__(model)
        self.rate, self.sync_steps, self.fleeting = rate, sync_steps, sync_steps == 1
        self._steps = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def update(self) -> None:
        self._steps += 1
        if self._steps % self.sync_steps == 0:
            for name, p in self._parameters.items():
                self._weights[name].lerp_(p.to(torch.float32), self.rate)
            self.version += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._weights, "steps": self._steps}


@torch.no_grad()
def _put(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """Give a parameter other values; returns those it had."""
    before = parameter.data
    if isinstance(parameter, DTensor):  # FSDP gathers from this memory, whatever the parameter points to
        before = before.clone()
        parameter.copy_(values)
    else:
        parameter.data = values.to(parameter.dtype)
    return before


def make_teacher(kind: TeacherKind, model: nn.Module, rate: float, sync_steps: int) -> LiveTeacher:
    """The teacher of a config."""
    if kind == "ema":
        return EMATeacher(model, rate, sync_steps)
    return {"base": FrozenTeacher, "live": LiveTeacher}[kind](model)
