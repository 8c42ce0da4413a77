"""Demonstrations spoiled on purpose (without these, a teacher's accuracy means little), and with more in them.

- *shuffled labels*: the types' answers change places among each other. A teacher that reads its demonstrations now gives
  the other type's answer (`moved_answers`); one that stays as good as before answers from what it knew.
- *blank images*: every demonstration's image is an even grey. A teacher that stays as good does not look at them.

That the query's own type is left out is no spoiling but rung 1 of the privilege ladder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from text_sdft.core import Demonstration, Message
from vlm_sdft.images.files import load_image

SHUFFLED, BLANK = CONTROLS = ("shuffled labels", "blank images")
_GREY = (128, 128, 128)


def spoiled(demonstrations: Sequence[Demonstration], control: str | None, seed: int) -> list[Demonstration]:
    """The demonstrations under a control; under None as they are."""
    if control == BLANK:
        return [replace(d, messages=[_with_blank_images(message) for message in d.messages]) for d in demonstrations]
    if control == SHUFFLED:
        moved = moved_answers(demonstrations, seed)
        return [
            replace(d, messages=[*d.messages[:-1], {**d.messages[-1], "content": moved[answer_of(d)]}])
            for d in demonstrations
        ]
    return list(demonstrations)


def moved_answers(demonstrations: Sequence[Demonstration], seed: int) -> dict[str, str]:
    """The answer that stands in each answer's place under *shuffled labels*: another one, each once."""
    answers = list(dict.fromkeys(map(answer_of, demonstrations)))
    step = 1 + seed % max(len(answers) - 1, 1)
    return {answer: answers[(i + step) % len(answers)] for i, answer in enumerate(answers)}


def with_cues(demonstrations: Sequence[Demonstration], cues: Mapping[str, Sequence[str]]) -> list[Demonstration]:
    """Rung 3: after each demonstration's question, in brackets, the words that describe its type (by its answer)."""
    return [with_words(d, cues.get(answer_of(d), ())) for d in demonstrations]


def answer_of(demonstration: Demonstration) -> str:
    """What the expert answered."""
    return str(demonstration.messages[-1]["content"])


def with_words(demonstration: Demonstration, words: Sequence[str]) -> Demonstration:
    """The demonstration with words after its question, in brackets; without any as it is."""
    if not words:
        return demonstration
    question, *others = demonstration.messages
    text, content = f" ({', '.join(words)})", question["content"]
    content = content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return replace(demonstration, messages=[{**question, "content": content}, *others])


def _with_blank_images(message: Message) -> Message:
    parts = [] if isinstance(message["content"], str) else message["content"]
    blank = [{**p, "image": Image.new("RGB", load_image(p["image"]).size, _GREY)} if "image" in p else p for p in parts]
    return {**message, "content": blank or message["content"]}
