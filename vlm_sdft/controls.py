"""Demonstrations spoiled on purpose: without these, a teacher's accuracy means little.

- *blank images*: every demonstration's image is an even grey. A teacher that stays as good does not look at them.
- *shuffled labels*: the types' answers change places among each other. A teacher that reads its demonstrations now gives
  the wrong answer; one that stays as good as before answers from what it knew.
- *own type missing*: the query's type is left out. What remains right was not learnt from demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from text_sdft.core import Demonstration, Message
from vlm_sdft.images import load_image

BLANK, SHUFFLED, MISSING = CONTROLS = ("blank images", "shuffled labels", "own type missing")
_GREY = (128, 128, 128)


def spoiled(demonstrations: Sequence[Demonstration], control: str | None, seed: int) -> list[Demonstration]:
    """The demonstrations under a control ("own type missing" is a matter of selection and changes nothing here)."""
    if control == BLANK:
        return [replace(d, messages=[_blank(message) for message in d.messages]) for d in demonstrations]
    if control == SHUFFLED:
        answers = list(dict.fromkeys(str(d.messages[-1]["content"]) for d in demonstrations))
        step = 1 + seed % max(len(answers) - 1, 1)
        moved = {answer: answers[(i + step) % len(answers)] for i, answer in enumerate(answers)}
        return [
            replace(d, messages=[*d.messages[:-1], {**d.messages[-1], "content": moved[str(d.messages[-1]["content"])]}])
            for d in demonstrations
        ]
    return list(demonstrations)


def _blank(message: Message) -> Message:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_blank_part(part) for part in message["content"]]}


def _blank_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {**part, "image": Image.new("RGB", load_image(part["image"]).size, _GREY)}
