"""A given answer as the model would write it.

Shapes: T tokens of an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from text_sdft.core import Example, ModalityAdapter, Model
from text_sdft.core.sampling import eos_ids


def written(model: Model, adapter: ModalityAdapter, example: Example, text: str) -> Tensor:
    """The ids [T] of an answer to this example, with the token that ends it.

    Args:
        adapter: one that writes answers (`encode_answer`).
    """
    tokens = adapter.encode_answer(text)  # type: ignore[attr-defined]  # optional, see ModalityAdapter
    return torch.cat([tokens, torch.tensor(_end_of(model, adapter, example, text), dtype=torch.long)])


def _end_of(model: Model, adapter: ModalityAdapter, example: Example, text: str) -> list[int]:
    """The token with which the chat template ends this answer, if the model stops there, else the model's own (or none)."""
    ends = eos_ids(model)
    if len(ends) < 2:  # no choice, so no need to encode the query's images
        return list(ends)
    turn = adapter.encode([[*example.messages, {"role": "assistant", "content": text}]]).rows[0]
    return [i for i in turn.tokens["input_ids"].tolist() if i in ends][-1:] or sorted(ends)[:1]
