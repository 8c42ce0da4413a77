"""Training state on disk, so that a build that was cut off goes on where it stood."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write weights, optimiser moments and ``progress`` (JSON) to one safetensors file, replacing it at once."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"{key}.{names[id(parameter)]}": value for key, value in state.items()}
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"progress": json.dumps(progress)})
    os.replace(partial, path)


def load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
    """Read what `save_state` wrote back into the module and its optimiser; None if there is no such file."""
    if not path.exists():
        return None
    parameters = dict(module.named_parameters())
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, name = key.split(".", 1)
            if kind == "weights":
                parameters[name].copy_(file.get_tensor(key))
            elif optimizer is not None:
                optimizer.state[parameters[name]][kind] = file.get_tensor(key)
        return json.loads(file.metadata()["progress"])


def one_cycle(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 to 1 over ``warmup`` steps, then linear to 0 at ``steps``."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
