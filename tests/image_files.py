"""Small image files and folders for the tests of demo sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from text_sdft.core import UserError
from vlm_sdft.demos.sets import DemoSet


def picture(seed: int, size: int = 16) -> Image.Image:
    """An image like no other: blocks of random colours, which survive recompression."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC)


def save(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(file)
    return file


def fill(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """``counts`` images in each folder below ``root``, none like another."""
    for folder, count in counts.items():
        for i in range(count):
            start += 1
            save(root / folder / f"{i}.png", start)
    return root


def lines(file: Path, *records: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def names(rows: Any) -> list[str]:
    return [row.id for row in rows]


def error(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        DemoSet.load(path, **options)
    return str(caught.value)


def said(demos: DemoSet, words: str) -> str:
    found = [sentence for sentence in demos.report if words in sentence]
    assert len(found) == 1, demos.report
    return found[0]


WHOLE = {"train/dax": 3, "train/wug": 2, "test/dax": 1, "test/wug": 1, "unlabelled": 2, "retain/any": 2, "old/cat": 2}
