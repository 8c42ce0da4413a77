"""Answers of a model to many examples: the one loop through which everything is measured.

Shapes: T tokens of one answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.progress import track
from torch import Tensor

from text_sdft.answers import normalised
from text_sdft.core import Example, TeacherContext
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_view
from text_sdft.training import SDFTTrainer

Contexts = Sequence[TeacherContext] | None


def completions(
    trainer: SDFTTrainer,
    examples: Sequence[Example],
    contexts: Contexts,
    batch_size: int,
    label: str,
    seeds: Sequence[int] | None = None,
    adapter: Any = None,
) -> Iterator[Tensor]:
    """One completion an example, as ids [T], as soon as its batch is done.

    Args:
        contexts: one an example: answers in the teacher's view; None: in the student's.
        batch_size: examples answered at once.
        label: what the progress bar says.
        seeds: one an example: answers sampled at the temperature of training; None: the most probable tokens.
        adapter: makes the prompts in the place of the trainer's.
    """
    silent = not trainer.is_world_process_zero()
    for rows in track(slices(len(examples), batch_size), label, transient=True, disable=silent):
        with gathered(trainer.module):  # retrieval may embed queries with the model
            inputs = encode_view(
                adapter or trainer.adapter, examples[rows], contexts and contexts[rows], trainer.prompt_limit
            )
            ids = trainer.sampler.sample(trainer.module, inputs, seeds and seeds[rows]).ids
        yield from ids


def score_all(adapter: Any, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """One score an example, in [0, 1]; 0 where the adapter has none to give."""
    return [adapter.score(example, text) or 0.0 for example, text in zip(examples, texts, strict=True)]


def slices(count: int, size: int) -> list[slice]:
    """So many rows in batches of one size; the last may be smaller."""
    return [slice(start, start + size) for start in range(0, count, size)]


def bare_answer(text: Any) -> str:
    """An answer without what does not distinguish answers: case, spaces, marks around it."""
    return normalised(str(text), " .!\"'")
