"""Accuracies with their uncertainty, in the student's view and in the teacher's."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from rich.progress import track
from scipy import stats
from transformers.utils import logging

from text_sdft.core import Example, ExperimentAdapter, Message, TeacherContext, answer
from text_sdft.core.sampling import draw_seed
from text_sdft.core.sharding import gathered
from text_sdft.training import SDFTTrainer

logger = logging.get_logger(__name__)
#: Sets that training or the choice of settings is about: everything else that is measured is a prior skill.
TASK = ("new", "validation", "ood")


@dataclass(frozen=True)
class Accuracy:
    """Mean score with a 95 % interval: Wilson's where every score is 0 or 1, else the normal approximation.

    Attributes:
        accuracy: mean, in [0, 1].
        n: examples scored.
        low, high: interval.
    """

    accuracy: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Accuracy:
        """From one score an example; at least one."""
        n, mean = len(scores), sum(scores) / len(scores)
        if set(scores) <= {0.0, 1.0}:
            interval = stats.binomtest(round(sum(scores)), n).proportion_ci(0.95, method="wilson")
            return cls(mean, n, float(interval.low), float(interval.high))
        half = 1.96 * math.sqrt(sum((score - mean) ** 2 for score in scores) / max(n - 1, 1) / n)
        return cls(mean, n, max(0.0, mean - half), min(1.0, mean + half))


def sample(examples: list[Example], limit: int | None) -> list[Example]:
    """At most so many of the examples: always the same ones, drawn from all (the first are often of one type)."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = set(random.Random(0).sample(range(len(examples)), limit))
    return [example for i, example in enumerate(examples) if i in chosen]


def contexts_for(trainer: SDFTTrainer, examples: Sequence[Example], seed: int | None = None) -> list[TeacherContext]:
    """The teacher's contexts for measuring: drawn by the run's seed and the example, the same at each measurement.

    Args:
        seed: of another run.
    """
    seed = trainer.args.seed if seed is None else seed
    return [TeacherContext(draw_seed(seed, "eval", example.id)) for example in examples]


def with_teacher(trainer: SDFTTrainer, examples: Sequence[Example]) -> list[Example]:
    """The examples whose two views differ: of all others there is no teacher to measure."""
    adapter = trainer.adapter
    with gathered(trainer.module):  # retrieval may embed images with the model
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
        sets: examples by name.
        teacher: also answer the set ``new`` in the teacher's view, with the model as it is now: those of its rows for which
            that is not the student's.
        phase: what this measurement is called in the records; ``"before"`` also keeps what the teacher saw.

    Returns:
        {set or "teacher": {accuracy, n, low, high}}, and a record for each answer; before training the teacher's also hold
        what it saw, which stays the same.
    """
    results: dict[str, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    known = {name: [e for e in examples if e.reference is not None] for name, examples in sets.items()}
    jobs = [(name, name, examples, False) for name, examples in known.items()]
    if teacher:
        jobs.append(("teacher", "new", _with_teacher_alone(trainer, known.get("new", [])), True))
    for result, name, examples, in_context in jobs:
        scored = list(_answers(trainer, examples, in_context, batch_size, f"{phase}: {result}"))
        if not scored:
            continue
        results[result] = asdict(Accuracy.of([score for _, _, score in scored]))
        records += [
            {
                "phase": phase,
                "set": name,
                "view": "teacher" if in_context else "student",
                "id": example.id,
                **_turn(example.messages),
                "answer": text,
                "reference": example.reference,
                "score": score,
                **(_shown(trainer, example) if in_context and phase == "before" else {}),
            }
            for example, text, score in scored
        ]
    tell_scoring_notes(trainer.adapter)
    return results, records


def tell_scoring_notes(adapter: ExperimentAdapter) -> None:
    """Log what the adapter has to say of the scores that it gave."""
    for note in adapter.scoring_notes():
        logger.warning(note)


def _with_teacher_alone(trainer: SDFTTrainer, examples: Sequence[Example]) -> list[Example]:
    """As `with_teacher`; says so where there are others."""
    kept = with_teacher(trainer, examples)
    if 0 < len(kept) < len(examples):
        logger.warning_once(
            f"The teacher is measured on {len(kept)} of the {len(examples)} rows of 'new' alone: in the others it sees "
            "what the student sees."
        )
    return kept


def _answers(
    trainer: SDFTTrainer, examples: Sequence[Example], in_context: bool, batch_size: int, label: str
) -> Iterator[tuple[Example, str, float]]:
    batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    for batch in track(batches, label, transient=True, disable=not trainer.is_world_process_zero()):
        contexts = contexts_for(trainer, batch) if in_context else None
        texts = answer(trainer.module, trainer.adapter, trainer.sampler, batch, trainer.prompt_limit, contexts)
        for example, text in zip(batch, texts, strict=True):
            score = trainer.adapter.score(example, text)
            if score is not None:
                yield example, text, score


def _shown(trainer: SDFTTrainer, example: Example) -> dict[str, Any]:
    """What the teacher saw beside the query, before demonstrations that do not fit are left out."""
    context = contexts_for(trainer, [example])[0]
    shown = trainer.adapter.demonstrations(example, context)
    pairs = [{**_turn(d.messages[:-1]), "answer": _turn(d.messages[-1:])["prompt"]} for d in shown]
    privileged = example.privileged_context
    return {"demonstrations": pairs, **({"context": privileged} if isinstance(privileged, str) else {})}


def _turn(messages: Sequence[Message]) -> dict[str, Any]:
    """The last turn's text, and its images by the name of their files ("" where they have none)."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return {"prompt": content}
    images = [part.get("image") for part in content if part["type"] == "image"]
    return {
        "prompt": " ".join(part["text"] for part in content if part["type"] == "text"),
        "images": [str(image) if isinstance(image, str | PathLike) else "" for image in images],
    }
