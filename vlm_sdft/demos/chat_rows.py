"""One row of messages with images: its question, with the images where they stand, and its answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from text_sdft.answers import normalised
from text_sdft.core import UserError
from text_sdft.core.errors import listed
from vlm_sdft.demos.rows import QUESTION, Question

#: Stands in a text for one of the row's images.
PLACE = "<image>"
KEYS = ("messages", "images", "split")
#: What a message may hold, and what of it could be in no view.
CALLS = ("tool_calls", "function_call", "tool_call_id")


def question_and_answer(row: Mapping[str, Any], where: str) -> tuple[Question, str | None, int]:
    """A row's question, its answer (None: nobody knows it), and the number of system messages, which are left out.

    Args:
        row: ``messages``, as an optional system message, a user turn and an optional assistant turn; ``images``.
        where: names the file and the row.

    Raises:
        UserError: the row has another form, other turns, tools, or another number of images than places for them.
    """
    messages, images = row.get("messages"), row.get("images", [])
    named = isinstance(images, list) and images and all(isinstance(i, str) and i and "\0" not in i for i in images)
    if not isinstance(messages, list) or not messages or not named:
        raise UserError(f'{where}: needs "messages" (user, then assistant) and "images" (paths).{_instead(row)}')
    if row.get("tools"):
        raise UserError(f"{where}: 'tools' would be shown to neither student nor teacher. Leave them out of the row.")
    for key in row:
        if key not in KEYS and (near := difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)):
            raise UserError(f"{where}: '{key}' is unknown. Did you mean '{near[0]}'?")
    for number, message in enumerate(messages, 1):
        _check_message(message, where, number)
    turns = [message for message in messages if message["role"] != "system"]
    roles = [message["role"] for message in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise UserError(
            f"{where}: needs one user turn, then at most one assistant turn; it has turns of {listed(roles) or 'system'}. "
            "Earlier turns, tool calls and tool results would be shown to neither student nor teacher: write what matters "
            "of them into the question."
        )
    answer = _answer(turns[1]["content"], where) if len(turns) > 1 else None
    return _question(turns[0]["content"], len(images), where), answer, len(messages) - len(turns)


def _instead(row: Mapping[str, Any]) -> str:
    other = next((key for key in ("conversations", "conversation", "image") if key in row), None)
    return f" It has '{other}': rename that." if other else ""


def _check_message(message: Any, where: str, number: int) -> None:
    """Raise `UserError` unless it has a role and, as its content, text, or parts that are texts and places of images."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if isinstance(message, Mapping) and (call := next((key for key in CALLS if message.get(key)), None)):
        raise UserError(
            f"{where}: '{call}' of message {number} ({listed([role])}) is shown in neither view. Leave the row out."
        )
    content = message.get("content") if role else None
    parts = content if isinstance(content, list) else []
    kinds = [(part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None) for part in parts]
    if not isinstance(content, str | list) or not all(
        kind == "image" or (kind == "text" and isinstance(text, str)) for kind, text in kinds
    ):
        raise UserError(
            f'{where}: each message needs role and content: text, or a list of {{"type": "text", "text": …}} and '
            f'{{"type": "image"}}. Message {number} ({listed([role or "without role"])}) has something else.'
        )
    if any(part[key] for part in parts for key in ("image", "url", "path", "image_url") if part.get(key)):
        raise UserError(
            f'{where}: an image part stands for the next path in "images", and names none itself. Put its path there.'
        )


def _question(content: Any, n_images: int, where: str) -> Question:
    """A text where all images stand before it, else the texts before, between and after them."""
    parts: list[str | None] = []  # None: an image
    if isinstance(content, list) and any(part["type"] == "image" for part in content):
        parts = [part["text"] if part["type"] == "text" else None for part in content]
    else:  # no part is an image's place: words in the text are
        text = content if isinstance(content, str) else " ".join(part["text"] for part in content)
        for i, piece in enumerate(text.split(PLACE)):
            parts += [None, piece] if i else [piece]
    places = parts.count(None)
    if places not in (0, n_images):
        raise UserError(
            f'{where}: {places} places of images ({PLACE}, or {{"type": "image"}}) for {n_images} "images". Give one place '
            f"for each, or none, which puts them in front. A text that speaks of {PLACE} is a part of its own beside parts "
            '{"type": "image"}.'
        )
    texts = [""]
    for part in parts:
        if part is None:
            texts.append("")
        else:
            texts[-1] = f"{texts[-1]} {part}" if texts[-1] else part
    texts[0], texts[-1] = texts[0].lstrip(), texts[-1].rstrip()
    return tuple(texts) if any(text.strip() for text in texts[:-1]) else texts[-1].strip() or QUESTION


def _answer(content: Any, where: str) -> str:
    if isinstance(content, list) and any(part["type"] == "image" for part in content):
        raise UserError(f"{where}: the assistant's turn holds an image; answers are texts. Take it out.")
    answer = content if isinstance(content, str) else " ".join(part["text"] for part in content)
    if not normalised(answer, name=True):
        raise UserError(f"{where}: the answer is empty. Leave the assistant turn out of an unlabelled row.")
    return answer.strip()
