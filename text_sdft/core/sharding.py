"""FSDP: weights lie in shards, one a process, and a forward joins each layer's while it runs.

Every process then has to run the same forwards in the same order. Completions end at different tokens, and prefixes are
shared by different rows: so the weights are `gathered` for sampling and the teacher's reading, once, and only the student's
forward with gradient goes layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of the model, as it is now, waits for the other processes."""
    return isinstance(model, FSDPModule) and has_shards(model)


def has_shards(model: nn.Module) -> bool:
    """Whether some of the model's weights, as they are now, lie on other processes."""
    return any(isinstance(p, DTensor) for p in model.parameters())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within this context every process has all weights, and may run the model as often as it likes, or not at all.

    To be entered and left by all processes together; nothing happens where there are no shards, or within another.
    """
    if not is_sharded(model):
        yield
        return
    parts = _parts(model)
    parts[0].set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        scatter(model)
        parts[0].set_reshard_after_forward(bool(AcceleratorState().fsdp_plugin.reshard_after_forward))
        parts[0].set_reshard_after_forward(False, recurse=False)  # the root's weights are needed again at once


def scatter(model: nn.Module) -> None:
    """Leave each process its shards alone, wherever a forward without a backward has left whole weights behind."""
    for part in _parts(model):
        part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All shards of a tensor, on the CPU; to be called by all processes together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Write values into a tensor; into shards each its own part."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
