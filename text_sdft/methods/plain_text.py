"""Plain text to train on, for continued pretraining: no prompt, no chat template, only tokens that follow one another.

Shapes: L tokens of a text · T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from text_sdft.core import Conversation, Example, ModalityAdapter, Model, ModelInputs, RowInputs
from text_sdft.core.adapter import bound_adapter
from text_sdft.core.chat import tokenizer_of

ROLE = "plain text"


class PlainTextAdapter:
    """An adapter that also encodes conversations of one message of the role "plain text", whose content is ids."""

    def __init__(self, adapter: ModalityAdapter) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def bind(self, model: Model, processing_class: Any | None = None) -> PlainTextAdapter:
        """See `ModalityAdapter.bind`."""
        return PlainTextAdapter(bound_adapter(self._adapter, model, processing_class))

    def student_messages(self, example: Example) -> Conversation:
        """The text's own ids, or the adapter's view of any other example."""
        plain = example.messages[0]["role"] == ROLE
        return list(example.messages) if plain else self._adapter.student_messages(example)

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """Ids as they are; everything else as the adapter does it."""
        plain = [conversation[0]["role"] == ROLE for conversation in conversations]
        chats = self._adapter.encode([c for c, is_plain in zip(conversations, plain, strict=True) if not is_plain])
        rest = iter(chats.rows)
        rows = [
            RowInputs({"input_ids": conversation[0]["content"]}) if is_plain else next(rest)
            for conversation, is_plain in zip(conversations, plain, strict=True)
        ]
        return replace(chats, rows=rows)


def windows(processing_class: Any, examples: Sequence[Example], length: int) -> list[tuple[Example, Tensor]]:
    """The examples' privileged contexts, each text once, cut into windows of at most ``length`` tokens.

    Returns:
        for each window a query that holds the token before it, and its ids [T]. Every token of a text but its first (the
        beginning-of-text token of models that have one) is learnt once.
    """
    tokenizer = tokenizer_of(processing_class)
    named = {_text(example): example.id for example in reversed(examples)}
    parts = []
    for text, name in named.items():
        ids_L = tokenizer(text, return_tensors="pt")["input_ids"][0]
        for start in range(1, len(ids_L), length):
            messages = [{"role": ROLE, "content": ids_L[start - 1 : start]}]
            parts.append((Example(f"{name}, tokens from {start}", messages), ids_L[start : start + length].to(torch.long)))
    return parts


def _text(example: Example) -> str:
    given = example.privileged_context
    assert given is not None  # `rows_for` took only such rows
    return given if isinstance(given, str) else "\n\n".join(str(message["content"]) for message in given)
