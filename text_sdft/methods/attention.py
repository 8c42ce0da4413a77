"""Training the attention weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from text_sdft.core import Model, UserError


def attention_only(model: Model, frozen: Sequence[str], peft_config: Any | None) -> Any | None:
    """Freeze all but the attention modules (those whose class is named so), or direct a LoRA adapter to them.

    Raises `UserError` where the model has none beside those that are ``frozen`` anyway.
    """
    parts = [name for name, module in model.named_modules() if type(module).__name__.endswith("Attention")]
    parts = [part for part in parts if not any(f".{name}." in f".{part}." for name in frozen)]
    if not parts:
        raise UserError("sft_attention finds no attention modules in this model (no class is named …Attention).")
    within = tuple(f"{part}." for part in parts)
    if peft_config is None:
        for name, parameter in model.named_parameters():
            if not name.startswith(within):
                parameter.requires_grad_(False)
        return None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return replace(peft_config, target_modules=[name for name in linear if name.startswith(within)])
