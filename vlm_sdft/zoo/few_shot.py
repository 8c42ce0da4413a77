"""What a folder of new types holds: the options that all who make one share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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
        shots: labelled demonstrations.
        n_unlabelled: images of new types without labels.
        n_test: labelled images of new types for evaluation.
        n_retain: images of old types without labels.
        n_old: labelled images of old types for evaluation.
        seed: of the choice of types, of invented names and of the images.
        split: "test", or "validation": types for choosing settings. No type is in both.

    Raises:
        ValueError: an option is out of range; names it.
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


def known_options(kind: type[FewShot], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, all of them fields of their kind. Raises `ValueError` for another, with the nearest name or all."""
    known = [f.name for f in fields(kind)]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or f" Known: {', '.join(known)}."
            raise ValueError(f"Unknown option {option!r}.{hint}")
    return options
