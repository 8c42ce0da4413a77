"""Builds the builtin model from nothing: ``python -m vlm_sdft.zoo.build --out DIR``.

Draws the pictures, trains the tower, then the language model. What is done is kept in ``DIR/.work``: a build that was
cut off goes on where it stood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vlm_sdft.zoo.build_tower import train_tower
from vlm_sdft.zoo.objects import sample_types
from vlm_sdft.zoo.pictures import draw_small

MAKING_TYPES, MAKING_IMAGES = 4000, 12
VALIDATION_TYPES = 134


def build(out: Path, seed: int) -> None:
    """Build everything into ``out``."""
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    making = sample_types("making", MAKING_TYPES, seed)
    pictures = draw_small(making, MAKING_IMAGES, 10 * seed + 1, work / "making.safetensors")
    validation = draw_small(
        sample_types("validation", VALIDATION_TYPES, seed), 8, 10 * seed + 2, work / "validation.safetensors"
    )
    train_tower(pictures, making, validation, work, seed)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="of drawings, initial weights and batches")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; unset: as many as torch finds")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    build(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
