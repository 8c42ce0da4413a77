"""What is learnt from what: the settings of `run.py`, by names that say how they differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import MODEL
from PIL import Image
from sources import BROADER_MODEL, SOURCES, new_kinds, write_folder

from vlm_sdft import DemoSet
from vlm_sdft.demos.selection import Selection
from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.few_shot import FewShot
from vlm_sdft.zoo.novel_objects import NovelObjects
from vlm_sdft.zoo.vocabulary import DESCRIBE_AND_NAME_QUESTION, DESCRIBE_QUESTION, NAME_QUESTION

#: In-context learning is asked about so many types, which are neither new nor old.
OTHERS = 25


@dataclass(frozen=True)
class Setting:
    """What is learnt from what.

    ``broader``: by the model of `build_model.py`, not the builtin one; ``shown``: types that the teacher is shown,
    ``selection``: which ones (see `vlm_sdft.demos.selection`);
    ``as_tested``: unlabelled images are in the style of the test images (see `write_folder`);
    ``described``: answers are descriptions that end in the name; ``rates_from``: the setting on whose validation types
    learning rates are chosen, this one where it is None.
    """

    source: str = "objects"
    broader: bool = False
    noise: int = 0
    steps: int = 100
    shots: int = 2
    types: int = 10
    shown: int = 5
    selection: Selection = "retrieved"
    unlabelled: int = 20
    as_tested: bool = False
    described: bool = False
    rates_from: str | None = None

    @property
    def model(self) -> str:
        return str(BROADER_MODEL) if self.broader else MODEL

    def demos(self, split: str, seed: int, cache: Path) -> DemoSet:
        """The setting's folder, drawn if need be."""
        spec = FewShot(n_types=self.types, shots=self.shots, n_unlabelled=self.unlabelled, seed=seed, split=split)
        if self.source == "objects":
            drawn = {**asdict(spec), "noise": self.noise, "described": self.described}
            folder = resolve_data("builtin:novel-objects", cache, **drawn)
        else:
            folder = write_folder(self.source, cache, spec, self.noise, self.as_tested)
        question = DESCRIBE_AND_NAME_QUESTION if self.described else NAME_QUESTION
        asked = list(dict.fromkeys([question, NAME_QUESTION, DESCRIBE_QUESTION]))
        return DemoSet.from_folder(folder, question=question, retain_questions=asked)

    def other_types(self, split: str, seed: int) -> list[tuple[list[Image.Image], list[Image.Image]]]:
        """Pictures of types that are neither new nor old: shown ones, and those that are asked about."""
        rng = np.random.default_rng([2031, seed])
        if self.source in SOURCES and self.source != "fashion":
            source = SOURCES[self.source]()
            kinds = new_kinds(source, split, seed)[self.types : self.types + OTHERS]
            picture = [partial(source.picture, kind, rng, noise=self.noise) for kind in kinds]
            return [([show(held_out=False) for _ in range(4)], [show(held_out=True) for _ in range(3)]) for show in picture]
        others = NovelObjects(n_types=OTHERS, first=self.types, seed=seed, split=split).new_types().values()
        return [tuple([draw(kind, rng, noise=self.noise) for _ in range(n)] for n in (4, 3)) for kind in others]  # type: ignore[misc]


PICTURES = {
    "objects, noise 90": Setting(noise=90),
    "objects, noise 150": Setting(noise=150),
    "objects, long answers, noise 60": Setting(noise=60, described=True),
    "emoji": Setting("emoji", broader=True),
    "handwriting": Setting("handwriting", broader=True),
    "fashion": Setting("fashion", broader=True, types=5),
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "300 steps": {"steps": 300},
    "5 labelled": {"shots": 5},
    "5 unlabelled": {"unlabelled": 5},
    "60 unlabelled": {"unlabelled": 60},
    "unlabelled as tested": {"as_tested": True},
    "1 type shown": {"shown": 1},
    "8 random types shown": {"shown": 8, "selection": "random"},
    "builtin model": {"broader": False},
}
#: What was tried where the teacher is not reached.
MORE = ("60 unlabelled", "300 steps")
#: Pictures, and how a setting differs from them.
NAMES = (
    "objects, noise 90",
    "objects, noise 150",
    "objects, noise 150, 300 steps",
    "objects, noise 150, 5 unlabelled",
    "objects, long answers, noise 60",
    "emoji",
    "handwriting",
    "fashion",
    "objects, noise 150, 1 type shown",
    "emoji, 1 type shown",
    "handwriting, 1 type shown",
    "fashion, 1 type shown",
    *(f"{pictures}, 1 type shown, {more}" for pictures in ("objects, noise 150", "fashion") for more in MORE),
    "objects, noise 90, 8 random types shown",
    "objects, noise 90, 8 random types shown, 5 unlabelled",
    "objects, noise 150, 8 random types shown, 5 unlabelled",
    "emoji, 8 random types shown",
    "handwriting, 8 random types shown, 5 unlabelled",
    "emoji, 1 type shown, unlabelled as tested",
    "handwriting, 1 type shown, unlabelled as tested",
    "emoji, builtin model",
    "handwriting, builtin model",
    "fashion, builtin model",
    "objects, noise 90, 5 labelled",
    "emoji, 5 labelled",
    "handwriting, 5 labelled",
    "emoji, 5 labelled, 1 type shown",
    "handwriting, 5 labelled, 1 type shown",
    "objects, noise 90, 5 unlabelled",
    "objects, long answers, noise 60, 1 type shown",
)
#: Settings that take the learning rates of others.
RATES_FROM = {
    "objects, noise 150, 300 steps": "objects, noise 150",
    "objects, noise 90, 5 unlabelled": "objects, noise 90",
    **{f"{source}, 1 type shown, unlabelled as tested": f"{source}, 1 type shown" for source in ("emoji", "handwriting")},
    **{
        f"{pictures}, {more}": pictures
        for pictures in ("objects, noise 150, 1 type shown", "fashion, 1 type shown")
        for more in MORE
    },
}


def setting(name: str) -> Setting:
    """The setting that a name stands for."""
    pictures = max((start for start in PICTURES if name.startswith(start)), key=len)
    found = replace(PICTURES[pictures], rates_from=RATES_FROM.get(name))
    for variation in filter(None, name.removeprefix(pictures).split(", ")):
        found = replace(found, **VARIATIONS[variation])
    return found


def of_labels(name: str) -> str:
    """The setting that has the same labelled images, retention prompts and tests: the name without what a teacher is shown
    and without the unlabelled images."""
    others = {"shown", "unlabelled", "as_tested"}
    return ", ".join(part for part in name.split(", ") if not VARIATIONS.get(part, {}).keys() & others)


SETTINGS = {name: setting(name) for name in NAMES}
