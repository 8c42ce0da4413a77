"""The two views of a query, encoded within the length limit: the student's as it is, the teacher's with what fits.

A question or an image block is never cut. A teacher's prompt that is too long loses whole demonstrations, and the number
is returned; a prompt that is too long without any is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.data import Conversation, Example, TeacherContext
from text_sdft.core.errors import UserError
from text_sdft.core.inputs import ModelInputs, RowInputs


def encode_view(
    adapter: ModalityAdapter, examples: Sequence[Example], contexts: Sequence[TeacherContext] | None, limit: int
) -> ModelInputs:
    """The student's prompts (``contexts`` None), or the teacher's. Raises `UserError` as those two."""
    if contexts is None:
        return encode_student(adapter, examples, limit)
    return encode_teacher(adapter, examples, contexts, limit)[0]


def encode_student(adapter: ModalityAdapter, examples: Sequence[Example], limit: int) -> ModelInputs:
    """The student's prompts. Raises `UserError` naming the example where one has more than ``limit`` tokens."""
    inputs = _encoded(adapter, [adapter.student_messages(e) for e in examples if e.prompt_ids is None])
    rest = iter(inputs.rows)
    rows = [next(rest) if e.prompt_ids is None else RowInputs({"input_ids": torch.tensor(e.prompt_ids)}) for e in examples]
    inputs = replace(inputs, rows=rows)
    for example, length in zip(examples, inputs.lengths, strict=True):
        if length > limit:
            raise UserError(
                f"The prompt of '{example.id}' has {length} tokens; the limit is {limit}. Shorten it, take smaller images, "
                "or raise max_prompt_length (unset: the model's context less max_completion_length)."
            )
    return inputs


def encode_teacher(
    adapter: ModalityAdapter, examples: Sequence[Example], contexts: Sequence[TeacherContext], limit: int
) -> tuple[ModelInputs, int]:
    """The teacher's prompts, and how many demonstrations had to be left out of them in all.

    Raises `UserError` where a prompt is too long although it shows at most one demonstration.
    """
    pairs = list(zip(examples, contexts, strict=True))
    inputs = _encoded(adapter, [adapter.teacher_messages(example, context) for example, context in pairs])
    rows, dropped = list(inputs.rows), 0
    for i, (example, context) in enumerate(pairs):
        shown = count = len(adapter.demonstrations(example, context)) if len(rows[i]) > limit else 0
        while len(rows[i]) > limit:
            shown -= 1
            if shown < 1:
                raise UserError(
                    f"The teacher's prompt of '{example.id}' has {len(rows[i])} tokens and cannot be shortened to the "
                    f"limit of {limit} by leaving out demonstrations. Shorten its context, take smaller images, or raise "
                    "max_prompt_length (unset: the model's context less max_completion_length)."
                )
            shorter = replace(context, max_demonstrations=shown)
            rows[i] = adapter.encode([adapter.teacher_messages(example, shorter)]).rows[0]
        dropped += count - shown
    return replace(inputs, rows=rows), dropped


def checked_views(
    adapter: ModalityAdapter, examples: Sequence[Example], contexts: Sequence[TeacherContext] | None, limit: int
) -> tuple[int, bool]:
    """How many demonstrations the teacher's views lack, and whether it reads the student's tokens in all examples.

    Each example is encoded in the student's view and, unless ``contexts`` is None, in the teacher's.
    """
    dropped, alike = 0, contexts is not None
    for i, example in enumerate(examples):
        student = encode_student(adapter, [example], limit)
        if contexts is not None:
            teacher, left_out = encode_teacher(adapter, [example], [contexts[i]], limit)
            ids, theirs = (view.rows[0].tokens["input_ids"].tolist() for view in (student, teacher))
            dropped, alike = dropped + left_out, alike and ids == theirs
    return dropped, alike


def _encoded(adapter: ModalityAdapter, conversations: Sequence[Conversation]) -> ModelInputs:
    """What the adapter makes of conversations. Raises `UserError` where that is not one row of each."""
    inputs = adapter.encode(conversations)
    ours = isinstance(inputs, ModelInputs)
    if not ours or len(inputs) != len(conversations):
        given = f"{len(inputs)} rows" if ours else f"a {type(inputs).__name__}"
        raise UserError(
            f"{type(adapter).__name__}.encode gives {given} for {len(conversations)} conversations: give ModelInputs with "
            "one RowInputs for each."
        )
    return inputs
