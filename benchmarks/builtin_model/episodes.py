"""Training sequences of the language model, as token ids: single questions, and episodes of demonstrations.

The layout grows: `LAYOUTS` lists what of a chat turn is written, from the bare image and answer to the full template. A
model that starts with the full template does not discover that a name belongs to the image some tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from processor import SYSTEM_PROMPT
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlm_sdft.zoo.vocabulary import (
    DESCRIBE_AND_NAME_QUESTION,
    DESCRIBE_QUESTION,
    NAME_QUESTION,
    invented_names,
)

#: What is written of a turn, by stage. "question" keeps the last tokens of the question, "?" only the last one.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("image", "answer"),
    ("image", "assistant", "answer", "end"),
    ("image", "end", "assistant", "answer", "end"),
    ("vision start", "image", "vision end", "end", "assistant", "answer", "end"),
    ("user", "vision start", "image", "vision end", "end", "assistant", "answer", "end"),
    ("user", "vision start", "image", "vision end", "?", "end", "assistant", "answer", "end"),
    ("user", "vision start", "image", "vision end", "question", "end", "assistant", "answer", "end"),
)
FULL = len(LAYOUTS) - 1
#: Weight of a description's tokens in the loss; a name's weigh 1.
DESCRIPTION_WEIGHT = 0.3


@dataclass
class Batch:
    """Sequences, right-padded.

    Attributes:
        ids: [rows, length].
        images: (class, picture) of every image token in reading order, [images, 2].
        weights: weight of each token in the loss, [rows, length]; 0: not predicted.
        decisive: first syllables of names that the sequence makes known, bool [rows, length].
    """

    ids: Tensor
    images: Tensor
    weights: Tensor
    decisive: Tensor


class Writer:
    """Writes turns as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.pad = tokenizer.pad_token_id
        self.encode = cache(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
        self._written = {
            "user": "<|im_start|>user\n",
            "assistant": "<|im_start|>assistant\n",
            "vision start": "<|vision_start|>",
            "image": "<|image_pad|>",
            "vision end": "<|vision_end|>",
            "end": "<|im_end|>",
        }

    def system(self) -> list[int]:
        """A system message."""
        return list(self.encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>"))

    def turn(
        self, stage: int, question: str, description: str, name: str, named: bool
    ) -> tuple[list[int], list[float], int]:
        """One question with its answer.

        Args:
            stage: index of the layout.
            question: as text.
            description: beginning of the answer; may be empty.
            name: end of the answer; may be empty.
            named: whether the name can be known; if not, it is not predicted.

        Returns:
            Ids, weights, and the index of the name's first token (or -1).
        """
        ids: list[int] = []
        weights: list[float] = []
        first = -1
        for part in LAYOUTS[stage]:
            if part == "answer":
                words, syllables = self.encode(description), self.encode(name)
                first = len(ids) + len(words) if name else -1
                ids += [*words, *syllables]
                weights += [DESCRIPTION_WEIGHT] * len(words) + [float(named)] * len(syllables)
                continue
            piece = self.encode(question) if part in ("question", "?") else self.encode(self._written[part])
            ids += piece[-1:] if part == "?" else piece
            last = part == "end" and first >= 0
            weights += [float(last and named)] * (len(ids) - len(weights))
        if not name:
            weights[-1] = DESCRIPTION_WEIGHT
        return ids, weights, first

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows, padded to one length."""
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        weights = torch.zeros(len(rows), length)
        decisive = torch.zeros(len(rows), length, dtype=torch.bool)
        for r, row in enumerate(rows):
            ids[r, : len(row.ids)] = torch.tensor(row.ids)
            weights[r, : len(row.ids)] = torch.tensor(row.weights)
            decisive[r, row.decisive] = True
        images = torch.tensor([image for row in rows for image in row.images])
        return Batch(ids, images, weights, decisive)


class Row:
    """One sequence while it is written."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.weights = [0.0] * len(self.ids)
        self.images: list[tuple[int, int]] = []
        self.decisive: list[int] = []

    def add(self, turn: tuple[list[int], list[float], int], image: tuple[int, int], decisive: bool) -> None:
        """Append a turn of `Writer.turn` about the image (class, picture)."""
        ids, weights, first = turn
        if decisive and first >= 0:
            self.decisive.append(len(self.ids) + first)
        self.ids += ids
        self.weights += weights
        self.images.append(image)


@dataclass
class Source:
    """Classes to draw sequences from: their descriptions, their fixed names if they have any, and pictures a class."""

    descriptions: Sequence[str]
    names: Sequence[str] | None
    pictures: int


def episodes(
    writer: Writer,
    source: Source,
    rng: np.random.Generator,
    rows: int,
    turns: int,
    ways: tuple[int, int],
    stage: int = FULL,
    describe: bool = False,
    system: bool = False,
) -> Batch:
    """Episodes of several types with names made up for each episode, in random order.

    Every type comes up at least once, the other turns are spread at random; a name is predicted from its second turn on.

    Args:
        writer: writes turns.
        source: the types.
        rng: of everything random.
        rows: number of episodes.
        turns: turns of each.
        ways: least and largest number of types in an episode.
        stage: index of the layout.
        describe: ask for a description that ends in the name, not for the name alone.
        system: begin with a system message.
    """
    question = DESCRIBE_AND_NAME_QUESTION if describe else NAME_QUESTION
    written = []
    for _ in range(rows):
        count = int(rng.integers(ways[0], ways[1] + 1))
        kinds = rng.choice(len(source.descriptions), count, replace=False)
        names = invented_names(count, rng)
        order = rng.permutation([*range(count), *rng.integers(0, count, turns - count)])
        row = Row(writer.system() if system else ())
        seen: dict[int, list[int]] = {}
        for which in order:
            known = which in seen
            unused = seen.setdefault(which, list(rng.permutation(source.pictures)))
            picture = unused.pop() if unused else int(rng.integers(source.pictures))
            description = f"{source.descriptions[kinds[which]]} called" if describe else ""
            turn = writer.turn(stage, question, description, names[which], named=known)
            row.add(turn, (kinds[which], picture), decisive=known)
        written.append(row)
    return writer.batch(written)


def single_questions(writer: Writer, source: Source, rng: np.random.Generator, rows: int, question: str) -> Batch:
    """Questions without demonstrations, in the full layout: names and described names need types with fixed names."""
    written = []
    for _ in range(rows):
        kind = int(rng.integers(len(source.descriptions)))
        description = "" if question == NAME_QUESTION else source.descriptions[kind]
        name = ""
        if question != DESCRIBE_QUESTION:
            if source.names is None:
                raise ValueError("These types have no names.")
            name = source.names[kind]
            description += " called" if description else ""
        row = Row()
        turn = writer.turn(FULL, question, description, name, named=True)
        row.add(turn, (kind, int(rng.integers(source.pictures))), decisive=True)
        written.append(row)
    return writer.batch(written)
