"""What a folder of new types holds: the options that all who make one share."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from text_sdft.core.errors import did_you_mean

#: "validation": types for choosing settings.
SPLITS = ("test", "validation")
#: Option -> the least that it may be.
LEAST_VALUES = {"n_types": 1, "first": 0, "shots": 1, "n_unlabelled": 0, "n_test": 1, "n_retain": 0, "n_old": 0}


@dataclass(frozen=True)
class FewShot:
    """What a folder holds; counts are images a type.

    Attributes:
        n_types: new types.
        first: skip so many types of the seed: folders with other ``first`` share no type.
        shots, n_unlabelled, n_test: images of new types: labelled demonstrations, without labels, for evaluation.
        n_retain, n_old: images of old types: without labels, for evaluation.
        seed: of the choice of types, of invented names and of the images.
        split: "test", or "validation": types for choosing settings. No type is in both.

    Raises `ValueError` naming an option that is out of range.
    """

    n_types: int = 5
    first: int = 0
    shots: int = 2
    n_unlabelled: int = 20
    n_test: int = 20
    n_retain: int = 5
    n_old: int = 3
    seed: int = 0
    split: str = "test"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f'split is {self.split!r}; use "test" or "validation".')
        for option, least in LEAST_VALUES.items():
            if getattr(self, option) < least:
                raise ValueError(f"{option} is {getattr(self, option)}; it must be at least {least}.")


def made_folder(folder: Path, marker: str, made_by: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder, which ``write`` fills where it does not hold all that ``made_by`` describes.

    It is written beside its place and renamed, so that two processes may make the same one. The marker, a JSON file in it,
    holds ``made_by``, the number of images, and what ``write`` returns.
    """
    if _is_whole(folder, marker, made_by):
        return folder
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    beside.mkdir(parents=True)
    try:
        state = {"made_by": made_by, **write(beside), "pictures": _count_images(beside)}
        (beside / marker).write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not _is_whole(folder, marker, made_by):  # left incomplete
            shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError:
        if not _is_whole(folder, marker, made_by):  # else another process was faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _is_whole(folder: Path, marker: str, made_by: Mapping[str, Any]) -> bool:
    state = read_marker(folder / marker)
    return state.get("made_by") == made_by and state.get("pictures") == _count_images(folder)


def read_marker(file: Path) -> dict[str, Any]:
    """What a marker says; nothing where it is missing or was cut while it was written."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _count_images(folder: Path) -> int:
    return sum(file.suffix in Image.registered_extensions() for file in folder.rglob("*"))


def known_options(kind: type[FewShot], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, all of them fields of their kind. Raises `ValueError` for another, with the nearest name or all."""
    known = [f.name for f in fields(kind)]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or f" Known: {', '.join(known)}."
            raise ValueError(f"Unknown option {option!r}.{hint}")
    return options
