"""Accuracies with their uncertainty, in the student's view and in the teacher's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, TypeVar

from transformers.utils import logging

from text_sdft.core import Example, ExperimentAdapter, Message, TeacherContext
from text_sdft.core.sampling import draw_seed
from text_sdft.core.sharding import gathered
from text_sdft.experiments.answers import Contexts, completions
from text_sdft.experiments.stats import Accuracy
from text_sdft.training import SDFTTrainer

T = TypeVar("T")
logger = logging.get_logger(__name__)
#: What is measured of the task that training, or the choice of settings, is about.
TASK_SETS = ("new", "validation", "ood", "teacher")


def of_prior_skills(by_set: Mapping[str, T]) -> dict[str, T]:
    """What is said of the sets that the task is not about."""
    return {name: value for name, value in by_set.items() if name not in TASK_SETS}


def with_reference(examples: Iterable[Example]) -> list[Example]:
    """The examples that can be scored."""
    return [example for example in examples if example.reference is not None]


def sample(examples: list[Example], limit: int | None) -> list[Example]:
    """At most so many of the examples: always the same ones, drawn from all (the first are often of one type)."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = set(random.Random(0).sample(range(len(examples)), limit))
    return [example for i, example in enumerate(examples) if i in chosen]


def contexts_for(trainer: SDFTTrainer, examples: Sequence[Example], seed: int | None = None) -> list[TeacherContext]:
    """The teacher's contexts for measuring, drawn by the run's seed (or this one) and the example."""
    seed = trainer.args.seed if seed is None else seed
    return [TeacherContext(draw_seed(seed, "eval", example.id)) for example in examples]


def with_teacher(trainer: SDFTTrainer, examples: Sequence[Example]) -> list[Example]:
    """The examples whose two views differ: of all others there is no teacher to measure."""
    adapter = trainer.adapter
    with gathered(trainer.module):  # retrieval may embed queries with the model
        return [
            example
            for example, context in zip(examples, contexts_for(trainer, examples), strict=True)
            if adapter.teacher_messages(example, context) != adapter.student_messages(example)
        ]


def evaluate(
    trainer: SDFTTrainer, sets: dict[str, list[Example]], teacher: bool, batch_size: int, phase: str
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Greedy answers to every set, scored by the adapter; rows without a reference are left out.

    Args:
        teacher: also answer the set ``new`` in the teacher's view, with the model as it is now: those of its rows for which
            that is not the student's.
        phase: what this measurement is called in the records; ``"before"`` also keeps what the teacher saw.

    Returns:
        {set or "teacher": {accuracy, n, low, high}}, and a record for each answer; before training the teacher's also hold
        what it saw, which stays the same.
    """
    results: dict[str, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    known = {name: with_reference(examples) for name, examples in sets.items()}
    jobs: list[tuple[str, str, list[Example], Contexts]] = [(name, name, rows, None) for name, rows in known.items()]
    if teacher:
        rows = known.get("new", [])
        shown = with_teacher(trainer, rows)
        if 0 < len(shown) < len(rows):
            logger.warning_once(
                f"The teacher is measured on {len(shown)} of the {len(rows)} rows of 'new' alone: in the others it sees "
                "what the student sees."
            )
        jobs.append(("teacher", "new", shown, contexts_for(trainer, shown)))
    for result, name, examples, contexts in jobs:
        texts = map(trainer.adapter.decode, completions(trainer, examples, contexts, batch_size, f"{phase}: {result}"))
        given = [(e, text, trainer.adapter.score(e, text)) for e, text in zip(examples, texts, strict=True)]
        scored = [(example, text, score) for example, text, score in given if score is not None]
        if not scored:
            continue
        results[result] = asdict(Accuracy.of([score for _, _, score in scored]))
        records += [
            {
                "phase": phase,
                "set": name,
                "view": "student" if contexts is None else "teacher",
                "id": example.id,
                **_last_turn(example.messages),
                "answer": text,
                "reference": example.reference,
                "score": score,
                **(_shown(trainer, example) if contexts is not None and phase == "before" else {}),
            }
            for example, text, score in scored
        ]
    tell_scoring_notes(trainer.adapter)
    return results, records


def tell_scoring_notes(adapter: ExperimentAdapter) -> None:
    """Log what the adapter has to say of the scores that it gave."""
    for note in adapter.scoring_notes():
        logger.warning(note)


def _shown(trainer: SDFTTrainer, example: Example) -> dict[str, Any]:
    """What the teacher saw beside the query, before demonstrations that do not fit are left out."""
    context = contexts_for(trainer, [example])[0]
    shown = trainer.adapter.demonstrations(example, context)
    pairs = [{**_last_turn(d.messages[:-1]), "answer": _last_turn(d.messages[-1:])["prompt"]} for d in shown]
    privileged = example.privileged_context
    return {"demonstrations": pairs, **({"context": privileged} if isinstance(privileged, str) else {})}


def _last_turn(messages: Sequence[Message]) -> dict[str, Any]:
    """The last turn's text, and its images by the name of their files ("" where they have none)."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return {"prompt": content}
    images = [part.get("image") for part in content if part["type"] == "image"]
    return {
        "prompt": " ".join(part["text"] for part in content if part["type"] == "text"),
        "images": [str(image) if isinstance(image, str | PathLike) else "" for image in images],
    }
