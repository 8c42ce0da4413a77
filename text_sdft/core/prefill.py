"""Equal prompts of a batch (several completions of one query) read once when completions are sampled.

Shapes: B rows · D distinct prompts · P longest prompt · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from text_sdft.core.data import Model
from text_sdft.core.inputs import ModelInputs, RowInputs


@contextmanager
def equal_prompts_read_once(model: Model, inputs: ModelInputs) -> Iterator[None]:
    """Within this context ``model.generate`` over these inputs reads each distinct prompt for one row only.

    Its first forward is given the distinct rows; their keys and values and logits are then repeated for all rows. Rows that
    carry pixels are left as they are: `generate` may have encoded them before.
    """
    rows_of: dict[Hashable, int] = {}
    index_B = [rows_of.setdefault(_key(row), len(rows_of)) for row in inputs.rows]
    firsts_D = [index_B.index(d) for d in range(len(rows_of))]
    raw = inputs.media_encoder is None and any(row.media for row in inputs.rows)
    if raw or len(firsts_D) == len(inputs):
        yield
        return
    distinct = inputs.select(firsts_D).batch(device=model.device)
    distinct.pop("position_ids", None)  # `generate` counts them itself

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = kwargs.get("position_ids")  # [B, P], or [axes, B, P]
        own = {} if positions is None else {"position_ids": positions[..., firsts_D, :]}
        return args, {**kwargs, **distinct, **own}

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        for handle in handles:
            handle.remove()
        cache = kwargs["cache"] if "cache" in kwargs else kwargs["past_key_values"]  # its name before transformers 5.23
        cache.batch_select_indices(torch.tensor(index_B, device=output.logits.device))
        output.logits = output.logits[index_B]
        return output

    called: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    handles = [
        called.register_forward_pre_hook(before, with_kwargs=True),
        called.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _key(row: RowInputs) -> Hashable:
    """What a prompt consists of: its ids and, in their places, its images."""
    return row.tokens["input_ids"].numpy().tobytes(), tuple(image.key for image in row.images)
