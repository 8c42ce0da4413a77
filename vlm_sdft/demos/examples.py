"""Rows of a demo set as the engine's examples and demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from text_sdft.core import Conversation, Demonstration, Example, UserError
from vlm_sdft.demos.rows import ImageRow, Split


def examples_of(rows: Iterable[Any], system_prompt: str | None) -> list[Example]:
    """See `ImageAdapter.examples`.

    Args:
        rows: `ImageRow`s, mappings with ``image`` or ``images`` and ``prompt``, or examples, which stay as they are.
        system_prompt: the first message of each; None: there is none.

    Raises:
        UserError: a row lacks an image or a prompt, or two rows share an id.
    """
    examples = []
    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        example = row if isinstance(row, Example) else _example(_as_row(row, i), system_prompt)
        if example.id in seen:
            raise UserError(f"Rows {seen[example.id]} and {i} have the same id '{example.id}'; ids must be unique.")
        seen[example.id] = i
        examples.append(example)
    return examples


def demonstration(row: ImageRow) -> Demonstration:
    """A labelled row as a user's turn and its answer."""
    return Demonstration([{"role": "user", "content": _question(row)}, {"role": "assistant", "content": row.answer}])


def _as_row(row: Any, index: int) -> ImageRow:
    """A row of a data set: an `ImageRow`, or a mapping as `ImageAdapter.examples` takes them.

    Raises:
        UserError: it lacks an image or a prompt; names the row by its index.
    """
    if isinstance(row, ImageRow):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"Row {index} is a {type(row).__name__}; it must be a mapping with 'image' and 'prompt'.")
    images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
    if not images or not isinstance(images, list | tuple):
        raise UserError(f"Row {index} has no 'image', and no list 'images' (it has {', '.join(map(str, row))}).")
    if not row.get("prompt"):
        raise UserError(f"Row {index} has no 'prompt': the question about its image.")
    answer = row.get("answer")
    split = row.get("split") or ("unlabelled" if answer is None else "train")
    if split not in get_args(Split):
        raise UserError(f"Row {index} has the split '{split}'; use {', '.join(get_args(Split))}.")
    return ImageRow(
        id=str(row.get("id", index)),
        images=tuple(images),
        question=row["prompt"],
        answer=answer,
        type=row.get("type"),
        split=cast(Split, split),
    )


def _example(row: ImageRow, system_prompt: str | None) -> Example:
    messages: Conversation = [{"role": "user", "content": _question(row)}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return Example(row.id, messages, reference=row.answer, retain=row.split == "retain", meta={"row": row})


def _question(row: ImageRow) -> list[dict[str, Any]]:
    return [*({"type": "image", "image": image} for image in row.images), {"type": "text", "text": row.question}]
