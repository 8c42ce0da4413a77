"""Image features on disk: for the other processes of a run, for runs that go on, and for the next run.

FOLDER/<tower>/<image>.safetensors, where <tower> stands for its weights and the processor's settings, so that one folder
serves many models. A file appears whole or not at all (it is renamed into its place), and any process may take one away:
who has it open keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from vlm_sdft.images.families import Family, vision_modules

logger = logging.get_logger(__name__)

#: After writing this share of the bound, a process counts what all have written.
STRIDE = 1 / 32
#: A file that has been waiting for so many seconds to be renamed was left by a process that was killed.
STALE = 3600.0


class FeatureFiles:
    """The files of one tower.

    Args:
        folder: for all towers; it is made.
        tower: see `tower_key`.
        max_bytes: bound of the whole folder; the least recently used files go first. Processes that write at the same time
            may exceed it by 1/32 each.
    """

    def __init__(self, folder: str | Path, tower: str, max_bytes: int) -> None:
        self._root, self._folder, self._max_bytes = Path(folder), Path(folder) / tower, max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._uncounted = 0
        self._writes = True
        self._shrink()

    def read(self, image: str) -> dict[str, Tensor] | None:
        """What was written of an image, memory-mapped; None where there is nothing, or no whole file."""
        file = self._file(image)
        try:
            tensors = load_file(file)
        except (OSError, RuntimeError, SafetensorError):  # nothing, taken away while it was opened, or damaged
            return None
        with suppress(OSError):
            os.utime(file)  # used just now
        return tensors

    def write(self, image: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors of an image. A full disk ends the writing, with one line in the log, and not the run."""
        if not self._writes:
            return
        part = self._folder / f"{uuid.uuid4().hex}.part"
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            part.replace(self._file(image))
        except (OSError, SafetensorError) as error:
            self._writes = False
            with suppress(OSError):
                part.unlink()
            logger.warning(f"Image features cannot be written to {self._folder} ({error}): they are computed instead.")
            return
        self._uncounted += sum(tensor.nbytes for tensor in tensors.values())
        if self._uncounted > self._max_bytes * STRIDE:
            self._shrink()

    def _file(self, image: str) -> Path:
        return self._folder / f"{image}.safetensors"

    def _shrink(self) -> None:
        """Take away what was used least recently, until the folder is within its bound."""
        self._uncounted = 0
        kept: list[tuple[float, int, Path]] = []
        for file in self._root.glob("tower-*/*"):
            with suppress(OSError):  # another process has taken it
                stat = file.stat()
                if file.suffix == ".safetensors":
                    kept.append((stat.st_mtime, stat.st_size, file))
                elif file.suffix == ".part" and time.time() - stat.st_mtime > STALE:
                    file.unlink()
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total <= self._max_bytes:
                break
            with suppress(OSError):
                file.unlink()
            total -= size


@torch.no_grad()
def tower_key(model: PreTrainedModel, processor: Any, family: Family) -> str:
    """A name for all that an image's features hang on: the tower's weights, the settings, and transformers' version."""
    settings = {
        "config": {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"},
        "processor": processor.image_processor.to_dict(),
        "arguments": dict(family.processor_kwargs or {}),
        "transformers": version("transformers"),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    names = vision_modules(model)
    for name, tensor in model.state_dict().items():
        if any(name == outer or name.startswith(f"{outer}.") for outer in names):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"tower-{digest.hexdigest()[:32]}"
