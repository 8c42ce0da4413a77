"""Six kinds of images in a demo set, an adapter of it with a tiny model, and the parts of a conversation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image

from tests.families import build_family
from vlm_sdft.adapter import ImageAdapter
from vlm_sdft.demos.sets import DemoSet, ImageRow, ObjectType

QUESTION = "What is this called?"
NAMES = ("dax", "wug", "zup", "fep", "blicket", "toma")


def picture(kind: int, seed: int) -> Image.Image:
    """An image of a kind: a colour of its own, with some noise."""
    noise = np.random.default_rng(1000 * kind + seed).integers(0, 40, (16, 16, 3))
    colour = np.random.default_rng(kind).integers(0, 215, 3)
    return Image.fromarray((colour + noise).astype(np.uint8))


def row(split: str, kind: int, seed: int, labelled: bool = True) -> ImageRow:
    answer = NAMES[kind] if labelled else None
    kind_name = NAMES[kind] if labelled else None
    return ImageRow(f"{split}-{kind}-{seed}", (picture(kind, seed),), QUESTION, answer, kind_name, split)


@functools.cache
def demo_set() -> DemoSet:
    rows = [row("train", kind, seed) for kind in range(len(NAMES)) for seed in range(3)]
    rows += [row("test", kind, 50) for kind in range(len(NAMES))]
    rows += [row("unlabelled", 0, 60, labelled=False), row("retain", 1, 70, labelled=False)]
    rows += [ImageRow("old-0", (picture(9, 0),), "What was it?", "cat", None, "old")]
    return DemoSet.from_rows(rows, {name: ObjectType(name, name, (f"{name} thing",)) for name in NAMES})


@functools.cache
def qwen() -> tuple[Any, Any]:
    return build_family("qwen3_vl")


def adapter(**settings: Any) -> ImageAdapter:
    return ImageAdapter(demo_set(), **{"n_types": 3, "shots": 2, **settings}).bind(*qwen())


def example(made: ImageAdapter, split: str, index: int = 0) -> Any:
    demos = demo_set()
    rows = [r for r in (*demos.train, *demos.test, *demos.old) if r.split == split]
    return made.examples(rows)[index]


def texts(conversation: list[dict[str, Any]]) -> list[str]:
    return [
        part["text"]
        for message in conversation
        for part in (
            [{"type": "text", "text": message["content"]}] if isinstance(message["content"], str) else message["content"]
        )
        if part["type"] == "text"
    ]


def images(conversation: list[dict[str, Any]]) -> list[Any]:
    contents = [message["content"] for message in conversation if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def answers(conversation: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in conversation if message["role"] == "assistant"]
