"""Pictures as tensors: drawn, made small as the processor makes them, and cut into patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from architecture import IMAGE_SIDE, PATCH
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf
from tqdm import tqdm

from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.objects import DrawnType

#: Ways in which a picture may be turned and mirrored; the words of a description stay right under each.
TRANSFORMS = 8


def draw_small(kinds: Sequence[DrawnType], per_type: int, seed: int, cache: Path | None = None) -> Tensor:
    """Pictures of every type at the size the tower sees.

    Args:
        kinds: the types.
        per_type: pictures of each.
        seed: picture ``i`` of type ``t`` depends on (seed, t, i) alone.
        cache: a safetensors file to read the pictures from if it exists, or to keep them in.

    Returns:
        uint8 [types, per_type, 3, 32, 32].
    """
    if cache is not None and cache.exists():
        return load_file(cache)["pictures"]
    rows = []
    for t, kind in enumerate(tqdm(kinds, desc="drawing", unit="type", disable=cache is None)):
        images = [np.asarray(draw(kind, np.random.default_rng([seed, t, i]))) for i in range(per_type)]
        rows.append(shrink(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))
    pictures = torch.stack(rows).contiguous()
    if cache is not None:
        save_file({"pictures": pictures}, cache)
    return pictures


def shrink(pixels: Tensor) -> Tensor:
    """uint8 [..., 3, height, width] to uint8 [..., 3, 32, 32], as the image processor does it."""
    return tvf.resize(pixels, [IMAGE_SIDE, IMAGE_SIDE], InterpolationMode.BICUBIC, antialias=True)


def transform(pictures: Tensor, which: int) -> Tensor:
    """Pictures [..., side, side] turned by ``which % 4`` quarter turns, and mirrored if ``which >= 4``."""
    turned = torch.rot90(pictures, which % 4, (-2, -1))
    return turned.flip(-1) if which >= 4 else turned


def to_patches(pictures: Tensor) -> Tensor:
    """uint8 [images, 3, 32, 32] to the tower's patches, fp32 [images, 16, 384], as the image processor makes them."""
    side = IMAGE_SIDE // PATCH
    scaled = pictures.float() / 127.5 - 1
    cut = scaled.reshape(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    frames = cut.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return frames.reshape(len(pictures), side * side, -1)
