"""Builtin data: drawn objects that the builtin model was never shown, in the folders of docs/your-own-images.md.

``retain/`` and ``old/`` show, in different pictures, the types that the model was made with; ``old/metadata.jsonl`` asks it
to describe them. ``novel-objects.json`` says how the folder was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.few_shot import FewShot, known_options, made_folder, read_marker
from vlm_sdft.zoo.objects import SPLIT_SIZES, SPLITS, DrawnType, base_types, sample_types
from vlm_sdft.zoo.vocabulary import DESCRIBE_QUESTION, base_names, invented_names

MARKER = "novel-objects.json"
#: What `write_novel_objects` makes; the order is among the pictures' seeds.
FOLDERS = ("train", "test", "unlabelled", "old", "retain")
FORMAT = 1


@dataclass(frozen=True)
class NovelObjects(FewShot):
    """Drawn objects; old types are those that the builtin model was made with.

    Attributes:
        size: width and height in pixels.
        noise: additional pixel noise, of 255, on all pictures: 0 is easy for the builtin model.
        described: answers are descriptions that end in the name, for the question "Describe and name this."
    """

    size: int = 64
    noise: float = 0.0
    described: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_types > SPLIT_SIZES[self.split]:
            raise ValueError(f"n_types is {self.n_types}; the split {self.split!r} has 1 to {SPLIT_SIZES[self.split]}.")
        if self.first > SPLIT_SIZES[self.split] - self.n_types:
            raise ValueError(f"first is {self.first}; {self.n_types} of {SPLIT_SIZES[self.split]} types must follow it.")
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}; it cannot be negative.")

    def new_types(self) -> dict[str, DrawnType]:
        """The new types by their names."""
        rng = np.random.default_rng([2026, SPLITS.index(self.split), self.seed, 0, 0])
        count = self.first + self.n_types
        names, types = invented_names(count, rng), sample_types(self.split, count, self.seed)
        return dict(zip(names[self.first :], types[self.first :], strict=True))


def write_novel_objects(folder: Path, **options: Any) -> Path:
    """The folder, filled with new objects; a complete one of the same options (fields of `NovelObjects`) is left as it is.

    Raises `ValueError` where it holds other data.
    """
    spec = NovelObjects(**known_options(NovelObjects, options))
    later = ("first", "described")  # folders made before there were such options do not name them
    made_by = {"format": FORMAT, **{k: v for k, v in asdict(spec).items() if v or k not in later}}
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise ValueError(f"{folder} is not empty and was not made by this program. Choose another folder.")
    if (other := read_marker(marker).get("made_by", made_by)) != made_by:
        raise ValueError(f"{folder} holds other data ({other}). Choose another folder, or delete it.")
    return made_folder(folder, MARKER, made_by, lambda beside: _write(beside, spec))


def _write(folder: Path, spec: NovelObjects) -> dict[str, Any]:
    new, old = spec.new_types(), dict(zip(base_names(), base_types(), strict=True))
    tested = old if spec.n_old else {}
    kinds = {"train": new, "test": new, "unlabelled": new, "old": tested, "retain": old}
    counts = {"train": spec.shots, **{part: getattr(spec, f"n_{part}") for part in FOLDERS[1:]}}
    for part in FOLDERS:
        _draw_part(folder, part, kinds[part], counts[part], spec)
    rows = [
        {"file_name": f"{_folder(name)}/{i:03}.png", "prompt": DESCRIBE_QUESTION, "answer": kind.description}
        for name, kind in tested.items()
        for i in range(spec.n_old)
    ]
    (folder / "old" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    types = {}
    for name, kind in {**new, **tested}.items():
        answer = f"{kind.description} called {name}" if spec.described else name
        types[_folder(name)] = {"answer": answer, "synonyms": [], "cues": kind.cues}
    (folder / "types.yaml").write_text(yaml.safe_dump(types, sort_keys=False), encoding="utf-8")
    return {}


def _folder(name: str) -> str:
    return name.replace(" ", "-")


def _draw_part(folder: Path, part: str, kinds: Mapping[str, DrawnType], count: int, spec: NovelObjects) -> None:
    """``count`` pictures of each type in a folder of its name; without labels under running numbers in random order."""
    purpose = 1 + FOLDERS.index(part)  # among the seeds of its pictures
    pictures = [(name, i) for name in kinds for i in range(count)]
    if part in ("unlabelled", "retain"):
        order = np.random.default_rng([2026, purpose, spec.seed, 1, 1]).permutation(len(pictures))
        files = {f"{number:05}.png": pictures[which] for number, which in enumerate(order)}
    else:
        files = {f"{_folder(name)}/{i:03}.png": (name, i) for name, i in pictures}
    places = {name: t for t, name in enumerate(kinds, start=0 if part in ("old", "retain") else spec.first)}
    (folder / part).mkdir()
    for file, (name, i) in files.items():
        path = folder / part / file
        path.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([2026, SPLITS.index(spec.split), spec.seed, purpose, places[name], i])
        draw(kinds[name], rng, spec.size, spec.noise).save(path)
