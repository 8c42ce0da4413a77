"""Can this model teach itself from these demonstrations? Measured before any training.

What self-distillation gains at the end follows the gap between teacher and student before it (arXiv 2605.30070), so the
probe measures that gap, and what it rests on: the adapter's controls spoil the demonstrations, its rivals need no teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import track

from text_sdft.core import Example, SDFTTrainer, UserError, answer
from text_sdft.core.views import encode_student, encode_teacher
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.run import make_trainer
from text_sdft.experiments.scores import Accuracy, contexts_for, sample

#: Examples measured where ``eval.max_examples`` is unset.
EXAMPLES = 100
#: A rival within this of the teacher is worth a note.
MARGIN = 0.05
#: Where more than this share of the gap survives spoiled demonstrations, the gap does not come from them.
SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """Whether to train, and why.

    Attributes:
        train: the answer.
        reason: one sentence with the numbers behind it.
        notes: what else a user should know.
    """

    train: bool
    reason: str
    notes: tuple[str, ...] = ()


def probe(experiment: Experiment) -> dict[str, Any]:
    """Measure student, teacher, controls and rivals on the set ``new``.

    Returns:
        ``accuracy`` ({student, teacher, each control, each rival: {accuracy, n, low, high}}), ``gap`` (teacher minus
        student with its 95 % interval), ``divergence`` (mean token divergence on the student's own completions: the
        training signal), ``tokens`` and ``seconds`` a query of both views, ``verdict``.

    Raises:
        UserError: there is nothing with a reference to measure on.
    """
    trainer, adapter = make_trainer(experiment), experiment.adapter
    examples = [e for e in adapter.examples(experiment.splits.evals.get("new", ())) if e.reference is not None]
    examples = sample(examples, experiment.eval.max_examples or EXAMPLES)
    if not examples:
        raise UserError("The probe needs examples of the task with a reference: test/<type>/* or data.test.")
    size = experiment.eval.batch_size
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    scores: dict[str, list[float]] = {}
    seconds = {}
    views: dict[str, str | None] = {"student": None, "teacher": None}
    views |= {control: control for control in getattr(adapter, "controls", ())}
    for name, control in views.items():
        started = time.monotonic()
        scores[name] = _scores(trainer, batches, name, control)
        seconds[name] = (time.monotonic() - started) / len(examples)
    if hasattr(adapter, "rivals"):
        for name, texts in adapter.rivals(examples).items():
            scores[name] = [adapter.score(e, text) or 0.0 for e, text in zip(examples, texts, strict=True)]
    numbers = {name: Accuracy.of(values) for name, values in scores.items()}
    gap = gap_between(numbers["teacher"], numbers["student"])
    controls = {name: numbers[name].accuracy for name in views if name not in ("student", "teacher")}
    rivals = {name: value.accuracy for name, value in numbers.items() if name not in views}
    return {
        "accuracy": {name: asdict(value) for name, value in numbers.items()},
        "gap": gap,
        "divergence": _divergence(trainer, batches),
        "tokens": _tokens(trainer, examples),
        "seconds": {name: seconds[name] for name in ("student", "teacher")},
        "verdict": asdict(verdict(numbers["student"].accuracy, numbers["teacher"].accuracy, gap, controls, rivals)),
    }


def gap_between(teacher: Accuracy, student: Accuracy) -> dict[str, float]:
    """Difference of two accuracies and its 95 % interval from theirs (Newcombe 1998, method 10).

    It keeps its width where all answers agree, and is wider than need be because both answer the same examples.
    """
    mean = teacher.accuracy - student.accuracy
    low = mean - math.hypot(teacher.accuracy - teacher.low, student.high - student.accuracy)
    high = mean + math.hypot(teacher.high - teacher.accuracy, student.accuracy - student.low)
    return {"mean": mean, "low": low, "high": high}


def verdict(
    student: float, teacher: float, gap: dict[str, float], controls: dict[str, float], rivals: dict[str, float]
) -> Verdict:
    """The rule: train where the teacher is better beyond its interval, and only through its demonstrations.

    Args:
        student, teacher: accuracies.
        gap: see `gap_between`.
        controls: the teacher's accuracy under spoiled demonstrations.
        rivals: accuracies of cheap rivals on the same demonstrations.
    """
    notes = tuple(
        f"{name} on the same demonstrations is right in {100 * accuracy:.0f} %: if names are all you need, it is cheaper."
        for name, accuracy in rivals.items()
        if accuracy >= teacher - MARGIN
    )
    percent = f"teacher {100 * teacher:.0f} %, student {100 * student:.0f} %"
    if gap["low"] <= 0:
        reason = f"Do not train: with demonstrations the model is no better than without ({percent})."
        advice = "Show more images of fewer types, images nearer to the query, or take a stronger model."
        return Verdict(False, reason, (advice, *notes))
    spoilt = {name: accuracy for name, accuracy in controls.items() if accuracy - student > SHARE * (teacher - student)}
    if spoilt:
        name, accuracy = max(spoilt.items(), key=lambda item: item[1])
        reason = (
            f"Do not train: the teacher ({percent}) stays good with spoiled demonstrations ({name}: "
            f"{100 * accuracy:.0f} %), so most of what it knows more does not come from them."
        )
        return Verdict(False, reason, notes)
    return Verdict(True, f"Train: with demonstrations the model is better, and because of them ({percent}).", notes)


def _scores(trainer: SDFTTrainer, batches: Sequence[list[Example]], view: str, control: str | None) -> list[float]:
    scores = []
    for batch in track(batches, f"probe: {view}", transient=True):
        contexts = None if view == "student" else contexts_for(trainer, batch, control)
        texts = answer(trainer.module, trainer.adapter, trainer.sampler, batch, trainer.prompt_limit, contexts)
        scores += [trainer.adapter.score(e, text) or 0.0 for e, text in zip(batch, texts, strict=True)]
    return scores


@torch.no_grad()
def _divergence(trainer: SDFTTrainer, batches: Sequence[list[Example]]) -> float:
    """Mean loss of a training step on these queries, retention left out."""
    retained, trainer.retained = trainer.retained, []
    try:
        total = sum(float(trainer.compute_loss(trainer.module, {"examples": batch})) * len(batch) for batch in batches)
    finally:
        trainer.retained = retained
    return total / sum(len(batch) for batch in batches)


def _tokens(trainer: SDFTTrainer, examples: Sequence[Example]) -> dict[str, float]:
    student = encode_student(trainer.adapter, examples, trainer.prompt_limit)
    teacher, _ = encode_teacher(trainer.adapter, examples, contexts_for(trainer, examples), trainer.prompt_limit)
    return {name: sum(view.lengths) / len(examples) for name, view in (("student", student), ("teacher", teacher))}
