"""Retention prompts for a user who has no old data, and those that keep in-context learning.

A retention prompt is a query that the model should go on answering as it did at the start; nobody has to know its answer.
Where images of what the model knows are missing, other pictures can take their place, or prompts without any (measured in
docs/retention.md).

Prompts *in context* have demonstrations before the query (`vlm_sdft.demos.episodes`), and keep the skill of reading them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from text_sdft.core import UserError
from text_sdft.files import file_text
from vlm_sdft.demos.examples import as_text
from vlm_sdft.demos.rows import ImageRow
from vlm_sdft.demos.sets import DemoSet
from vlm_sdft.images.files import load_image

#: What ``data.retain`` may name beside folders and files.
CROPS, DRAWN = SOURCES = ("crops", "drawn")
#: Pictures made at most.
MOST_PICTURES = 1000
#: Share of an image's area that a crop shows: too little of a new type to be asked for its name.
CROP_AREA = (0.05, 0.3)
#: Longest side of a crop in pixels.
CROP_SIDE = 448
#: In-context prompts for each image, where there are no retention prompts of another kind to count them by.
PROMPTS_PER_IMAGE = 4


def is_made(source: str) -> bool:
    """Whether ``data.retain`` names what `retain_made` makes, and not a folder of images."""
    return source in SOURCES or (Path(source).exists() and not Path(source).is_dir())


def retain_made(demos: DemoSet, source: str, questions: Sequence[str]) -> DemoSet:
    """The demo set with retention prompts that need no further images.

    Args:
        source: "crops" (random parts of the labelled and unlabelled images), "drawn" (objects drawn by this program), or a
            text file with a prompt in each line, which is asked without an image.
        questions: asked about each picture.

    Raises `UserError` where the file has no prompt or is no text.
    """
    asked: dict[str, tuple[tuple[bytes, ...], str]] = {}  # images and question, by id
    if source not in SOURCES:
        asked = {f"prompt/{i}": ((), line) for i, line in enumerate(_prompts_of(Path(source)))}
    else:
        for i, image in enumerate(_crops([*demos.labelled, *demos.unlabelled]) if source == CROPS else _drawn_pictures()):
            asked |= {f"{source}/{i}#{n}": ((image,), question) for n, question in enumerate(questions)}
    rows = [ImageRow(f"data.retain/{key}", *given, None, None, "retain") for key, given in asked.items()]
    return _with_more(demos, rows, f"{len(rows)} retention prompts: {source}.")


def retain_in_context(demos: DemoSet, share: float) -> DemoSet:
    """The demo set with so large a share of its retention prompts in context.

    Their queries are all images that are trained on, asked what the labelled ones are asked. Without retention prompts of
    another kind all are in context.

    Raises `UserError` where the share is not at least 0 (which adds none) and below 1, or there is only one name to give.
    """
    if not 0 <= share < 1:
        raise UserError(f"data.retain_in_context is {share}: use 0 (none) or more, and less than 1.")
    if share == 0:
        return demos
    if len({row.answer for row in demos.labelled}) < 2:
        raise UserError("data.retain_in_context draws names among those of the types: it needs at least 2 types.")
    queries = pictured(demos)
    count = round(len(demos.retain) * share / (1 - share)) if demos.retain else PROMPTS_PER_IMAGE * len(queries)
    order: list[ImageRow] = []
    while len(order) < count:
        order += random.Random(len(order)).sample(queries, len(queries))
    question = as_text(demos.labelled[0].question)
    rows = [
        ImageRow(f"in context {i}/{row.id}", row.images, question, None, None, "retain", in_context=True)
        for i, row in enumerate(order[:count])
    ]
    note = f"{count} retention prompts in context: images after demonstrations under names drawn at random."
    return _with_more(demos, rows, note)


def _with_more(demos: DemoSet, rows: Sequence[ImageRow], note: str) -> DemoSet:
    return replace(demos, retain=[*demos.retain, *rows], report=[*demos.report, note])


def pictured(demos: DemoSet) -> list[ImageRow]:
    """The rows that are trained on and have images, each image once."""
    rows = [row for row in demos.train if row.images and not row.in_context]
    return list({row.hashes: row for row in rows}.values())


def _prompts_of(file: Path) -> list[str]:
    lines = [line.strip() for line in file_text(file).splitlines()]
    if not any(lines):
        raise UserError(f"data.retain: {file} holds no prompt; write one in each line.")
    return [line for line in lines if line]


def _crops(rows: Sequence[ImageRow]) -> list[bytes]:
    """A random part of each image, as large as the image up to `CROP_SIDE`; two each where there are few."""
    sources = [image for row in rows for image in row.images]
    chosen = random.Random(0).sample(sources, min(len(sources), MOST_PICTURES // 2))
    return [_crop(load_image(source), random.Random(f"{i}/{n}")) for i, source in enumerate(chosen) for n in range(2)]


def _crop(image: Image.Image, rng: random.Random) -> bytes:
    scale = rng.uniform(*CROP_AREA) ** 0.5
    width, height = (max(1, round(scale * side)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    shrink = min(1.0, CROP_SIDE / max(image.size))
    size = (max(1, round(shrink * image.width)), max(1, round(shrink * image.height)))
    return _png(image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC))


def _drawn_pictures() -> list[bytes]:
    """Objects of all kinds but those that the builtin data uses."""
    from vlm_sdft.zoo.drawing import draw
    from vlm_sdft.zoo.objects import sample_types

    kinds = sample_types("making", MOST_PICTURES // 4)
    return [_png(draw(kind, np.random.default_rng([2026, 6, i]), size=256)) for i, kind in enumerate(kinds)]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
