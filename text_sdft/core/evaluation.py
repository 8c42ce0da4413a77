"""Greedy answers, in the student's view or in the teacher's (in-context) view."""

from __future__ import annotations

from collections.abc import Sequence

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.data import Example, Model, TeacherContext
from text_sdft.core.sampling import Sampler
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_view


def answer(
    model: Model,
    adapter: ModalityAdapter,
    sampler: Sampler,
    examples: Sequence[Example],
    limit: int,
    contexts: Sequence[TeacherContext] | None = None,
) -> list[str]:
    """The most probable answer to each example, as text.

    Args:
        limit: tokens that a prompt may have.
        contexts: one an example: answer in the teacher's view; None: in the student's.
    """
    with gathered(model):
        inputs = encode_view(adapter, examples, contexts, limit)
        return [adapter.decode(ids) for ids in sampler.sample(model, inputs, seeds=None).ids]
