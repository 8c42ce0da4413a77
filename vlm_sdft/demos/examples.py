"""Rows of a demo set as the engine's examples and demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from text_sdft.core import Demonstration, Example, Message, UserError
from text_sdft.core.adapter import with_unique_ids
from text_sdft.core.chat import answered, with_system
from vlm_sdft.demos.rows import ImageRow, Question, Split


def examples_of(rows: Iterable[Any], system_prompt: str | None) -> list[Example]:
    """See `ImageAdapter.examples`.

    Args:
        system_prompt: the first message of each; None: there is none.
    """
    made = [row if isinstance(row, Example) else _example(_as_row(row, i), system_prompt) for i, row in enumerate(rows)]
    return with_unique_ids(made)


def demonstration(row: ImageRow) -> Demonstration:
    """A labelled row as a user's turn and its answer."""
    return answered(user_turn(row.images, row.question), str(row.answer))


def _as_row(row: Any, index: int) -> ImageRow:
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
    return ImageRow(str(row.get("id", index)), tuple(images), row["prompt"], answer, row.get("type"), cast(Split, split))


def _example(row: ImageRow, system_prompt: str | None) -> Example:
    messages = with_system([user_turn(row.images, row.question)], system_prompt)
    return Example(row.id, messages, reference=row.answer, retain=row.split == "retain", meta={"row": row})


def user_turn(images: Sequence[Any], question: Question) -> Message:
    """A question with its images: before it, or where they stand in it."""
    texts = question if isinstance(question, tuple) else (*("" for _ in images), question)
    parts: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        parts += [{"type": "image", "image": images[i - 1]}] if i else []
        parts += [{"type": "text", "text": text}] if text or len(texts) == 1 else []
    return {"role": "user", "content": parts}


def as_text(question: Question) -> str:
    """The words of a question."""
    return question if isinstance(question, str) else " ".join(" ".join(question).split())


def images_of(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """The images of some messages, as they were given."""
    contents = [m["content"] for m in messages if not isinstance(m["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]
