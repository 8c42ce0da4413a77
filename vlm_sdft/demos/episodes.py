"""Demonstrations for retention prompts in context: images that are alike, under names that mean nothing.

They keep the skill of reading demonstrations, and nothing else. Right names would not: what the student learns of its new
types answers such a prompt as well as the demonstrations do. Whether images that are alike are of one type matters little:
the model as it was at the start says what follows from them.

Shapes: R images · D embedding width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from torch import Tensor

from vlm_sdft.demos.rows import ImageRow

#: How many of the images nearest to a query show other things beside it: the nearer, the harder to tell apart.
NEIGHBOURS = 100
#: Groups of images in a prompt, each under a name of its own, however many types the teacher is shown with a query.
MOST_GROUPS = 5


class Episodes:
    """Groups of `shots` images for a query: the nearest to it, and others that are near each other.

    Args:
        rows: one image row each, labels unused.
        embeddings_RD: theirs, unit length.
        answers: the types' answers, of which names are made.
        shots: images of each group, of which there are `MOST_GROUPS`, the query's own among them; fewer where images or
            names do not suffice.
    """

    def __init__(self, rows: Sequence[ImageRow], embeddings_RD: Tensor, answers: Sequence[str], shots: int) -> None:
        self._rows, self._embeddings_RD, self._shots = rows, embeddings_RD, shots
        self._words = _word_columns(answers)

    def draw(self, query: ImageRow, query_D: Tensor, seed: int) -> list[tuple[ImageRow, str]]:
        """Rows with their names, in the order in which they stand; the same for the same seed. No copy of the query."""
        rng = random.Random(seed)
        allowed = [i for i, row in enumerate(self._rows) if not row.copies(query)]
        nearest = self._by_similarity(allowed, query_D)
        groups = [nearest[: self._shots]]
        others = nearest[2 * self._shots : NEIGHBOURS]
        while others and len(groups) < MOST_GROUPS:
            first = rng.choice(others)
            others.remove(first)
            others = self._by_similarity(others, self._embeddings_RD[first])
            groups.append([first, *others[: self._shots - 1]])
            others = others[self._shots - 1 :]
        names = _drawn_names(self._words, len(groups), rng)
        shown = [(self._rows[i], name) for group, name in zip(groups, names, strict=False) for i in group]
        rng.shuffle(shown)
        return shown

    def _by_similarity(self, indices: list[int], query_D: Tensor) -> list[int]:
        """The rows' indices, the most similar first."""
        order = (self._embeddings_RD[indices] @ query_D).argsort(descending=True).tolist() if indices else []
        return [indices[i] for i in order]


def _word_columns(answers: Sequence[str]) -> list[list[str]]:
    """The words at each place of the answers; whole answers where they differ in length."""
    split = [answer.split() for answer in answers]
    if len({len(words) for words in split}) > 1:
        split = [[answer] for answer in answers]
    return [list(dict.fromkeys(column)) for column in zip(*split, strict=True)]


def _drawn_names(columns: Sequence[Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """At most ``count`` different names, a word of each column in each."""
    names: dict[str, None] = {}
    while len(names) < min(count, math.prod(map(len, columns))):
        names[" ".join(rng.choice(column) for column in columns)] = None
    return list(names)
