"""Answers that are given to queries: the expert's, and those of a teacher, sampled once and kept in the run's folder.

Shapes: T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from text_sdft.core import Example, ExperimentAdapter, ModalityAdapter, Model, UserError
from text_sdft.core.groups import Answer
from text_sdft.core.sampling import eos_ids

ANSWERS_FILE = "answers.jsonl"
ANSWERS = {"id": str, "answer": str, "ids": [int], "finished": bool, "seed": int}


def expert_answers(model: Model, adapter: ExperimentAdapter, examples: Sequence[Example], limit: int) -> dict[str, Answer]:
    """The experts' answers by their query's id. Raises `UserError` where one has more than ``limit`` tokens, or no ids."""
    answers = {}
    for example in examples:
        text = adapter.expert_answer(example)
        assert text is not None  # only such rows are taken
        ids = answer_ids(model, adapter, example, text)
        if ids is None:
            raise UserError(f"{type(adapter).__name__} has experts' answers, and no `encode_answer` that gives their ids.")
        if len(ids) > limit:
            raise UserError(
                f"The expert's answer of '{example.id}' has {len(ids)} tokens, but max_completion_length is {limit}. Raise "
                "it, or leave the row out."
            )
        answers[example.id] = Answer(ids)
    return answers


def answer_ids(model: Model, adapter: ExperimentAdapter, example: Example, text: str) -> Tensor | None:
    """The ids [T] of an answer to this example as the model would write it; None where the adapter writes no answers.

    The last is the token with which the chat template ends this answer, if the model stops there, else the model's own.
    """
    ids_T, end = adapter.encode_answer(text), list(ends := eos_ids(model))
    if ids_T is None:
        return None
    if len(ends) > 1:  # else there is no choice, and no need to encode the query's images
        turn = adapter.encode([[*example.messages, {"role": "assistant", "content": text}]]).rows[0]
        end = [i for i in turn.tokens["input_ids"].tolist() if i in ends][-1:] or sorted(ends)[:1]
    return torch.cat([ids_T, torch.tensor(end, dtype=torch.long)])


def answer_records(adapter: ModalityAdapter, queries: Sequence[Example], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as lines of `ANSWERS_FILE`, to be read by people too."""
    return [
        {
            "id": query.id,
            "answer": adapter.decode(answer.ids),
            "ids": answer.ids.tolist(),
            "finished": answer.finished,
            "seed": answer.seed,
        }
        for query, answer in zip(queries, answers, strict=True)
    ]


def answers_by_id(records: Sequence[dict[str, Any]]) -> dict[str, Answer]:
    """The answers of `answer_records`, by their query's id."""
    return {r["id"]: Answer(torch.tensor(r["ids"]), r["finished"], r["seed"]) for r in records}
