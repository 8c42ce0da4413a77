"""Measures what the builtin model can do, as a user would ask it: chat messages, the processor, ``generate``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.objects import DrawnType, base_types, sample_types
from vlm_sdft.zoo.vocabulary import (
    DESCRIBE_AND_NAME_QUESTION,
    DESCRIBE_QUESTION,
    NAME_QUESTION,
    base_names,
    invented_names,
)

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class Score:
    """Right answers among all."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """Right answers, 0 … 1."""
        return self.right / self.total

    def __str__(self) -> str:
        """Percentage with its 95 % Wilson interval."""
        n, p, z = self.total, self.share, 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return f"{100 * p:.1f} % ({100 * (middle - half):.1f} to {100 * (middle + half):.1f}, n = {n})"


def user(image: Image.Image, question: str) -> dict[str, Any]:
    """A user turn: an image, then a question."""
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}


@torch.no_grad()
def answers(model: Any, processor: Any, conversations: Sequence[Conversation], batch_size: int = 16) -> list[str]:
    """The model's greedy answers to conversations that end in a user turn."""
    texts: list[str] = []
    for start in range(0, len(conversations), batch_size):
        inputs = processor.apply_chat_template(
            conversations[start : start + batch_size],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        texts += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def in_context(
    model: Any,
    processor: Any,
    episodes: int,
    ways: int = 5,
    shots: int = 2,
    *,
    split: str = "test",
    describe: bool = False,
    one_fewer: bool = False,
    noise: float = 0.0,
    seed: int = 0,
) -> Score:
    """Names of types the model was never shown, from demonstrations in earlier turns.

    Args:
        model: to be measured.
        processor: of the model.
        episodes: number of questions, each with types, names and pictures of its own.
        ways: types in the demonstrations.
        shots: demonstrations of each.
        split: of the types.
        describe: ask for descriptions that end in the name; only the name is scored.
        one_fewer: the asked type has one demonstration less than the others.
        noise: additional pixel noise of all pictures.
        seed: of everything random.
    """
    question = DESCRIBE_AND_NAME_QUESTION if describe else NAME_QUESTION
    conversations, right = [], []
    for episode in range(episodes):
        rng = np.random.default_rng([seed, episode, ways, shots])
        kinds = sample_types(split, ways, seed=1000 * seed + episode)
        names = invented_names(ways, rng)
        asked = int(rng.integers(ways))
        shown = [w for w in range(ways) for _ in range(shots - (one_fewer and w == asked))]
        conversation: Conversation = []
        for which in rng.permutation(shown):
            conversation.append(user(draw(kinds[which], rng, noise=noise), question))
            conversation.append({"role": "assistant", "content": _answer(kinds[which], names[which], describe)})
        conversations.append([*conversation, user(draw(kinds[asked], rng, noise=noise), question)])
        right.append(names[asked])
    return _score_names(answers(model, processor, conversations), right, describe)


def base_naming(model: Any, processor: Any, per_type: int, *, describe: bool = False, seed: int = 0) -> Score:
    """Names of the base types on new pictures, without demonstrations."""
    question = DESCRIBE_AND_NAME_QUESTION if describe else NAME_QUESTION
    conversations, right = [], []
    for t, (kind, name) in enumerate(zip(base_types(), base_names(), strict=True)):
        for i in range(per_type):
            conversations.append([user(draw(kind, np.random.default_rng([2027, seed, t, i, 0])), question)])
            right.append(name)
    return _score_names(answers(model, processor, conversations, 64), right, describe)


def describing(model: Any, processor: Any, per_type: int, *, split: str = "test", seed: int = 0) -> Score:
    """Descriptions of types the model was never shown, every word right."""
    conversations, right = [], []
    for t, kind in enumerate(sample_types(split, 134, seed)):
        for i in range(per_type):
            conversations.append([user(draw(kind, np.random.default_rng([2028, seed, t, i, 0])), DESCRIBE_QUESTION)])
            right.append(kind.description)
    given = answers(model, processor, conversations, 64)
    return Score(sum(a == b for a, b in zip(given, right, strict=True)), len(right))


def measure(model: Any, processor: Any, split: str = "test", scale: int = 4) -> dict[str, Score]:
    """All skills; ``scale`` multiplies the numbers of questions."""
    model.eval()
    n = 75 * scale
    jobs: dict[str, Any] = {
        "names of base types": lambda: base_naming(model, processor, 5 * scale),
        "description": lambda: describing(model, processor, 2 * scale, split=split),
        "description and name of base types": lambda: base_naming(model, processor, 2 * scale, describe=True),
        "names of new types without demonstrations": lambda: in_context(model, processor, n, shots=0, split=split),
        "5-way 2-shot": lambda: in_context(model, processor, n, split=split),
        "5-way 2-shot, description and name": lambda: in_context(model, processor, n, split=split, describe=True),
        "2-way 1-shot": lambda: in_context(model, processor, n, 2, 1, split=split),
        "5-way 1-shot": lambda: in_context(model, processor, n, 5, 1, split=split),
        "6-way 4-shot": lambda: in_context(model, processor, n, 6, 4, split=split),
        "5-way 2-shot, one shot of the asked type": lambda: in_context(model, processor, n, one_fewer=True, split=split),
    }
    return {name: job() for name, job in tqdm(jobs.items(), desc="measuring", unit="skill")}


def _answer(kind: DrawnType, name: str, describe: bool) -> str:
    return f"{kind.description} called {name}" if describe else name


def _score_names(given: Sequence[str], right: Sequence[str], describe: bool) -> Score:
    if describe:
        given = [text.rpartition(" called ")[2] for text in given]
    return Score(sum(a == b for a, b in zip(given, right, strict=True)), len(right))
