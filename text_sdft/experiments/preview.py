"""What a run will show its model, and what it will cost, without training."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

import torch

from text_sdft.core import Example, ExperimentAdapter, ModelInputs, UserError
from text_sdft.core.chat import tokenizer_of
from text_sdft.core.groups import contexts_of
from text_sdft.core.sampling import draw_seed
from text_sdft.core.views import encode_student, encode_teacher
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.cost import memory, step_cost
from text_sdft.experiments.run import check_trains, make_trainer
from text_sdft.methods.answers import answers_by_id
from text_sdft.training import SDFTTrainer
from text_sdft.training.modeling import training_summary

#: Queries that are shown, and whose tokens are counted; micro-batches that are run where a step is measured.
SHOWN, COUNTED, MEASURED = 3, 64, 3


def preview(experiment: Experiment, measure: bool = False) -> dict[str, Any]:
    """Prompts of the first examples, token counts over the first 64, and an estimate of the peak memory.

    Args:
        measure: also run a few micro-batches, and say what a step will take (``step``: see `cost.step_cost`).

    Returns:
        ``examples`` (id, set, student, teacher and a given answer {text, tokens}, images), ``tokens`` ({view: min, median,
        max, image_median}), ``dropped`` demonstrations, ``limit``, ``trained``, ``memory`` ({what: bytes}).

    Raises `UserError` as `run_training`.
    """
    if measure:
        check_trains(experiment)
    trainer = make_trainer(experiment)
    args, adapter, limit = trainer.args, trainer.adapter, trainer.prompt_limit
    queries = trainer.queries[:COUNTED]
    if not queries:
        raise UserError("There are no training queries (retention prompts alone teach nothing).")
    contexts = contexts_of([draw_seed(args.seed, 0, query.id, 0) for query in queries])
    student = encode_student(adapter, queries, limit)
    teacher, dropped = encode_teacher(adapter, queries, contexts, limit)
    shown = []
    for i, example in enumerate(queries[:SHOWN]):
        texts = {"student": _prompt(trainer, student, i), "teacher": _prompt(trainer, teacher, i)}
        if (answer := trainer.answers.get(example.id)) is not None:
            texts["answer"] = {"text": _decoded(trainer, answer.ids), "tokens": len(answer.ids)}
        shown.append({"id": example.id, "set": "train", **texts, "images": _media(adapter, example)})
    for example in trainer.retained[:1]:
        prompt = _prompt(trainer, encode_student(adapter, [example], limit), 0)
        shown.append({"id": example.id, "set": "retain", "student": prompt, "images": _media(adapter, example)})
    if measure:
        first = trainer.queries[: MEASURED * args.per_device_train_batch_size]
        trainer.answers |= answers_by_id(trainer.sampled_answers(first)) if trainer.method.stores_answers else {}
    step = step_cost(trainer, warm=MEASURED - 1) if measure else None
    return {
        "step": step,
        "examples": shown,
        "tokens": {"student": _counts(student), "teacher": _counts(teacher)},
        "dropped": dropped,
        "limit": limit,
        "trained": training_summary(trainer.module, adapter.frozen_modules(trainer.module)),
        "memory": memory(
            args,
            trainer.module,
            args.device,
            rows=args.per_device_train_batch_size * args.num_generations * (1 + bool(trainer.retained)),
            student_tokens=max(student.lengths),
            teacher_tokens=max(teacher.lengths),
            copies=[tensor for teacher in trainer.teachers().values() for tensor in teacher.state_dict().values()],
        ),
    }


def _prompt(trainer: SDFTTrainer, inputs: ModelInputs, row: int) -> dict[str, Any]:
    """The prompt as the model reads it, special tokens included, runs of one placeholder shortened; and its length."""
    text = _decoded(trainer, inputs.rows[row].tokens["input_ids"])
    short = re.sub(r"(<[^<>\s]+>)\1+", lambda m: f"{m[1]}×{len(m[0]) // len(m[1])}", text)
    return {"text": short, "tokens": inputs.lengths[row]}


def _decoded(trainer: SDFTTrainer, ids: torch.Tensor) -> str:
    processing = trainer.adapter.processing_class
    return tokenizer_of(processing).decode(ids, skip_special_tokens=False)


def _media(adapter: ExperimentAdapter, example: Example) -> list[str]:
    """The query's files by name; of what is no file, its kind."""
    media = adapter.example_images(example)
    return [str(one) if isinstance(one, str | Path) else type(one).__name__ for one in media]


def _counts(inputs: ModelInputs) -> dict[str, int]:
    images = [int((row.tokens.get("mm_token_type_ids", torch.zeros(1)) > 0).sum()) for row in inputs.rows]
    median_length, longest = round(median(inputs.lengths)), max(inputs.lengths)
    return {"min": min(inputs.lengths), "median": median_length, "max": longest, "image_median": round(median(images))}
