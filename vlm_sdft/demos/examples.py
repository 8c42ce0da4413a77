"""Rows of a demo set as the engine's examples and demonstrations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from text_sdft.core import Conversation, Demonstration, Example, UserError
from vlm_sdft.demos.sets import ImageRow, as_row


def examples_of(rows: Iterable[Any], system_prompt: str | None) -> list[Example]:
    """See `ImageAdapter.examples`.

    Args:
        rows: `ImageRow`s, mappings (see `as_row`), or examples, which stay as they are.
        system_prompt: the first message of each; None: there is none.

    Raises:
        UserError: a row lacks an image or a prompt, or two rows share an id.
    """
    examples = []
    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        example = row if isinstance(row, Example) else _example(as_row(row, i), system_prompt)
        if example.id in seen:
            raise UserError(f"Rows {seen[example.id]} and {i} have the same id '{example.id}'; ids must be unique.")
        seen[example.id] = i
        examples.append(example)
    return examples


def demonstration(row: ImageRow) -> Demonstration:
    """A labelled row as a user's turn and its answer."""
    return Demonstration([{"role": "user", "content": _question(row)}, {"role": "assistant", "content": row.answer}])


def _example(row: ImageRow, system_prompt: str | None) -> Example:
    messages: Conversation = [{"role": "user", "content": _question(row)}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return Example(row.id, messages, reference=row.answer, retain=row.split == "retain", meta={"row": row})


def _question(row: ImageRow) -> list[dict[str, Any]]:
    return [*({"type": "image", "image": image} for image in row.images), {"type": "text", "text": row.question}]
