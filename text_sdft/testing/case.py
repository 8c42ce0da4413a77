"""An adapter with a model and rows to try it on, and how views are compared.

Shapes: B rows · L tokens of a row · P longest prompt · T tokens of a completion · V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from text_sdft.core import (
    Example,
    Message,
    ModalityAdapter,
    Model,
    ModelInputs,
    RowInputs,
    TeacherContext,
    TransformersSampler,
)
from text_sdft.core.inputs import MediaEncoder


@dataclass(frozen=True)
class Case:
    adapter: ModalityAdapter
    model: Model
    rows: Sequence[Any]

    @cached_property
    def examples(self) -> list[Example]:
        return self.adapter.examples(self.rows)

    def student(self, examples: Sequence[Example]) -> ModelInputs:
        return self.adapter.encode([self.adapter.student_messages(example) for example in examples])

    def teacher(self, examples: Sequence[Example], context: TeacherContext | None = None) -> ModelInputs:
        context = context or TeacherContext()
        return self.adapter.encode([self.adapter.teacher_messages(example, context) for example in examples])

    @cached_property
    def completions(self) -> list[Tensor]:
        """One sampled completion [T] an example, of different lengths."""
        sampler = TransformersSampler(max_completion_length=5)
        sampled = sampler.sample(self.model, self.student(self.examples), list(range(len(self.examples)))).ids
        return [ids[: 2 + i % 4] for i, ids in enumerate(sampled)]

    def logps(self, inputs: ModelInputs, completions: Sequence[Tensor]) -> list[Tensor]:
        """B tensors [T, V]: log-probabilities at every token of the completions."""
        P = max(inputs.lengths)
        logits_BLV = self.model(**inputs.batch(completions, device=self.model.device)).logits.float()
        return [logits_BLV[b, P - 1 : P - 1 + len(ids)].log_softmax(-1) for b, ids in enumerate(completions)]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _parts(conversation: Sequence[Message]) -> list[Any]:
    contents = [message["content"] for message in conversation]
    lists = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
    return [part for parts in lists for part in parts if isinstance(part, dict)]


def text_of(conversation: Sequence[Message]) -> str:
    return "\n".join(part["text"] for part in _parts(conversation) if part["type"] == "text")


def media_of(conversation: Sequence[Message]) -> list[Any]:
    return [part for part in _parts(conversation) if part["type"] != "text"]


def noise_like(value: Any) -> Any:
    """The same structure with noise in its tensors."""
    if isinstance(value, Tensor):
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(value) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return type(value)(**{name: noise_like(part) for name, part in value.items()})
    return [noise_like(part) for part in value] if isinstance(value, list | tuple) else value


class NoisyEncoder:
    """A `MediaEncoder` that gives noise for the features of another."""

    def __init__(self, own: MediaEncoder) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def encode(self, handles: Sequence[Any]) -> dict[str, Any]:
        return noise_like(self._own.encode(handles))


def has_words(text: str, words: str) -> bool:
    """Whether ``words`` stand in ``text`` as whole words (an answer "1" is not in "12")."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def same_rows(left: Sequence[RowInputs], right: Sequence[RowInputs]) -> bool:
    """Whether rows hold equal tensors under equal names."""
    pairs = [(getattr(a, kind), getattr(b, kind)) for a, b in zip(left, right, strict=True) for kind in ("tokens", "media")]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
