"""Plain text to train on, for continued pretraining: no prompt, no chat template, only tokens that follow one another.

Shapes: L tokens of a text · T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from text_sdft.core import Example
from text_sdft.core.chat import tokenizer_of
from text_sdft.core.groups import Answer


def windows(processing_class: Any, examples: Sequence[Example], length: int) -> list[tuple[Example, Answer]]:
    """The examples' privileged contexts, each text once, cut into windows of at most ``length`` tokens.

    A window is a query that holds the token before it, and its ids [T] as the answer. Every token of a text but its first
    (the beginning-of-text token of models that have one) is learnt once.
    """
    tokenizer = tokenizer_of(processing_class)
    named = {_text(example): example.id for example in reversed(examples)}
    parts = []
    for text, name in named.items():
        ids_L = tokenizer(text, return_tensors="pt")["input_ids"][0]
        for start in range(1, len(ids_L), length):
            query = Example(f"{name}, tokens from {start}", [], prompt_ids=(int(ids_L[start - 1]),))
            parts.append((query, Answer(ids_L[start : start + length].to(torch.long))))
    return parts


def _text(example: Example) -> str:
    given = example.privileged_context
    assert given is not None  # only such rows are taken
    return given if isinstance(given, str) else "\n\n".join(str(message["content"]) for message in given)
