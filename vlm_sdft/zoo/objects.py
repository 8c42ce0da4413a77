"""Types of drawn objects: attributes that words can tell, and finer numbers that they cannot.

Every combination of the word attributes belongs to exactly one split, so a type of one split never looks like a type of
another: the model's making, its base types (those it can name), and held-out types (validation, test) are disjoint.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

#: Body colours, RGB 0-255.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 220, 45),
    "green": (45, 160, 65),
    "cyan": (70, 205, 215),
    "blue": (45, 75, 205),
    "purple": (135, 55, 185),
    "pink": (245, 135, 195),
}
SHAPES = ("disc", "square", "triangle", "star", "cross", "heart")
#: (pattern, colour of the pattern).
PATTERNS = (("plain", ""), *itertools.product(("stripes", "spots", "rings"), ("white", "black")))
#: Number of legs and its word.
LEGS = {0: "no", 2: "two", 3: "three", 4: "four"}

#: Split -> how many of the combinations of word attributes it holds; "making" holds the rest.
SPLIT_SIZES = {"validation": 134, "test": 134, "base": 48}
SPLITS = (*SPLIT_SIZES, "making")


@dataclass(frozen=True)
class DrawnType:
    """A kind of object. Lengths are in units of the body's radius, angles in radians."""

    colour: str
    shape: str
    pattern: str
    pattern_colour: str
    legs: int
    #: Added to the body colour, RGB, -14 … 14.
    tint: tuple[int, int, int]
    #: Waves on the outline: (periods a turn, amplitude, phase).
    waves: tuple[tuple[int, float, float], ...]
    #: Width over height is ``aspect²``.
    aspect: float
    pattern_period: float
    pattern_angle: float
    pattern_phase: float
    leg_length: float
    leg_width: float
    leg_angle: float
    leg_tip: float

    @property
    def description(self) -> str:
        """The word attributes as a phrase, such as "a red star with white stripes and four legs"."""
        details = []
        if self.pattern != "plain":
            details.append(f"{self.pattern_colour} {self.pattern}")
        if self.legs:
            details.append(f"{LEGS[self.legs]} legs")
        adjective = self.colour if details else f"plain {self.colour}"
        article = "an" if adjective[0] in "aeiou" else "a"
        return f"{article} {adjective} {self.shape}" + (" with " + " and ".join(details) if details else "")

    @property
    def cues(self) -> list[str]:
        """The word attributes one by one."""
        pattern = "no pattern" if self.pattern == "plain" else f"{self.pattern_colour} {self.pattern}"
        return [self.colour, self.shape, pattern, f"{LEGS[self.legs]} legs"]


#: What of a type is drawn evenly between two limits, in this order.
LIMITS = {
    "aspect": (0.9, 1.11),
    "pattern_period": (0.62, 0.86),
    "pattern_angle": (0, math.pi),
    "pattern_phase": (0, 1),
    "leg_length": (0.55, 0.8),
    "leg_width": (0.17, 0.28),
    "leg_angle": (0, 2 * math.pi),
}
Attributes = tuple[str, str, tuple[str, str], int]


def split_attributes(split: str) -> list[Attributes]:
    """The combinations of word attributes that belong to a split, in a fixed mixed order."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}.")
    combinations = list(itertools.product(COLOURS, SHAPES, PATTERNS, LEGS))
    order = np.random.default_rng(20_260_101).permutation(len(combinations))
    parts = np.split(order, np.cumsum(list(SPLIT_SIZES.values())))
    return [combinations[i] for i in parts[SPLITS.index(split)]]


def sample_types(split: str, count: int, seed: int = 0) -> list[DrawnType]:
    """Types of a split. Word attributes repeat only once every combination of the split was used.

    The same arguments give the same types; a longer list begins with a shorter one's types.
    """
    attributes = split_attributes(split)
    order = np.random.default_rng([SPLITS.index(split), seed]).permutation(len(attributes))
    return [
        _with_numbers(attributes[order[i % len(attributes)]], np.random.default_rng([SPLITS.index(split), seed, i]))
        for i in range(count)
    ]


def base_types() -> list[DrawnType]:
    """The types whose names the builtin model knows, in the order of their names."""
    return sample_types("base", SPLIT_SIZES["base"])


def _with_numbers(attributes: Attributes, rng: np.random.Generator) -> DrawnType:
    colour, shape, (pattern, pattern_colour), legs = attributes
    waves = tuple((periods, rng.uniform(0.0, 0.07), rng.uniform(0, 2 * math.pi)) for periods in (2, 3, 5))
    red, green, blue = rng.integers(-14, 15, 3).tolist()
    numbers = {name: rng.uniform(*limits) for name, limits in LIMITS.items()}
    tip = float(rng.choice([0.0, 0.2]))
    return DrawnType(colour, shape, pattern, pattern_colour, legs, (red, green, blue), waves, leg_tip=tip, **numbers)
