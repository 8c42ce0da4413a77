"""Which labelled images demonstrate: the most similar ones, class-balanced, with the query's class among distractors.

Visual in-context classification is strong only where demonstrations resemble the query (published: 79 % against 13 % for
random ones), so retrieval is the default; random draws are for demonstrations that nothing retrieves well.

Shapes: R labelled rows · D embedding size.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from text_sdft.core import UserError
from vlm_sdft.demos.rows import ImageRow

Selection = Literal["retrieved", "grouped", "random", "fixed"]


class DemonstrationSelector:
    """Chooses demonstrations for a query.

    Args:
        rows: the labelled rows, each with a type.
        embeddings_RD: their embeddings, unit length; needed for "retrieved" and "grouped".
        selection: "retrieved" (the types nearest to the query, their nearest images), "grouped" (the same block for all
            queries that are nearest to the same type, so that the teacher reads a block once: the types nearest to that
            type, their images nearest to its mean), "random", or "fixed" (the same types and images for every query).
        n_types: types shown.
        shots: images of each.

    Raises `UserError` where a number is out of range.
    """

    def __init__(
        self, rows: Sequence[ImageRow], embeddings_RD: Tensor | None, *, selection: Selection, n_types: int, shots: int
    ) -> None:
        if selection not in get_args(Selection):
            raise UserError(f"demonstrations.selection '{selection}': use {', '.join(get_args(Selection))}.")
        if n_types < 1 or shots < 1:
            raise UserError(f"demonstrations.n_types {n_types} and shots {shots} must be at least 1.")
        self.rows, self.embeddings_RD = rows, embeddings_RD
        self.selection, self.n_types, self.shots = selection, n_types, shots
        self._by_type: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            self._by_type[str(row.type)].append(index)

    def select(
        self,
        query: ImageRow,
        query_D: Tensor | None,
        seed: int,
        max_demonstrations: int | None = None,
        include_type: str | None = None,
        exclude_type: str | None = None,
    ) -> list[ImageRow]:
        """Demonstrations in the order in which they stand; the order is drawn by the seed (models favour positions), or
        once for a group.

        Args:
            query: never among its own demonstrations, neither itself nor a copy of its image.
            query_D: its embedding, for "retrieved" and "grouped".
            max_demonstrations: keep at most so many, the best of each type first, ``include_type`` before the others.
            include_type: the query's own type where it is known (labelled training queries): shown among the others.
            exclude_type: a type that is not shown (a control: the query's own).
        """
        rng = random.Random(seed)
        candidates = self._ranked(query, query_D, rng)
        if self.selection == "grouped":
            rng = random.Random(next(iter(candidates), None))  # the type that the group is named after
        candidates.pop(str(exclude_type), None)
        types = list(candidates)[: self.n_types]
        if include_type in candidates:
            others = [name for name in types if name != include_type]
            types = [str(include_type), *others[: self.n_types - 1]]
        # Round by round, so that a cut leaves every type its best image before any has two.
        shown = [candidates[name][shot] for shot in range(self.shots) for name in types if shot < len(candidates[name])]
        shown = shown[:max_demonstrations]
        rng.shuffle(shown)
        return [self.rows[index] for index in shown]

    def variants(self) -> dict[str, DemonstrationSelector]:
        """Selectors of the same rows with fewer types, another number of images a type, or another selection, by the option
        for it. The fewer types are shown, the more of the decision is the selection's."""
        types = [n for n in (1, 2, 3) if n < min(self.n_types, len(self._by_type))]
        shots = [n for n in (1, 2, 4) if n != self.shots and n <= max(map(len, self._by_type.values()))][:2]
        others = [name for name in get_args(Selection) if name != self.selection]
        settings: dict[str, Any] = {"selection": self.selection, "n_types": self.n_types, "shots": self.shots}
        changes = [("n_types", n) for n in types] + [("shots", n) for n in shots] + [("selection", name) for name in others]
        return {
            f"--demonstrations.{key} {value}": DemonstrationSelector(
                self.rows, self.embeddings_RD, **{**settings, key: value}
            )
            for key, value in changes
        }

    def _ranked(self, query: ImageRow, query_D: Tensor | None, rng: random.Random) -> dict[str, list[int]]:
        """Rows of each type, best first; types, best first; the query and its copies left out."""
        allowed = {
            name: [i for i in indices if self.rows[i].id != query.id and not self.rows[i].copies(query)]
            for name, indices in self._by_type.items()
        }
        if self.selection in ("retrieved", "grouped"):
            if self.embeddings_RD is None or query_D is None:
                raise ValueError("retrieval needs embeddings of the rows and of the query")
            nearest = _by_similarity(allowed, self.embeddings_RD @ query_D)
            if self.selection == "retrieved" or not nearest:
                return nearest
            name = next(iter(nearest))
            mean_D = self.embeddings_RD[self._by_type[name]].mean(0)
            # The group's own type first, whatever its spread.
            return {name: [], **_by_similarity(allowed, self.embeddings_RD @ mean_D)}
        names = [name for name, indices in allowed.items() if indices]
        if self.selection == "random":
            for name in names:
                rng.shuffle(allowed[name])
            rng.shuffle(names)
        return {name: allowed[name] for name in names}


def _by_similarity(allowed: dict[str, list[int]], score_R: Tensor) -> dict[str, list[int]]:
    """Rows of each type, best first; types by their best row."""
    score = score_R.tolist()
    ranked = {name: sorted(indices, key=lambda i: -score[i]) for name, indices in allowed.items() if indices}
    return dict(sorted(ranked.items(), key=lambda item: -score[item[1][0]]))
