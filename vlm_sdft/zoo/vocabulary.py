"""The questions that the builtin model answers, and the names that it can say."""

from __future__ import annotations

import numpy as np

from vlm_sdft.zoo.objects import SPLIT_SIZES

#: The questions the model was made to answer: a name, a description, a description that ends in the name.
NAME_QUESTION = "What is this?"
DESCRIBE_QUESTION = "Describe this."
DESCRIBE_AND_NAME_QUESTION = "Describe and name this."

_SYLLABLES = (
    "dax ru bli ket zor fep wug mip tov lem gor nix pav sul ked bor fim ral tuz hox jep kiv lod mun nep quo rif sab "
    "tig ulm vek wop yat zel bam cug dif fos gub hin jal kom luv mez nol pid rok seb tam vop wim yon zuk bex cav dop "
    "fal gim hul jov kez lup mox nuv"
)
#: A name is two of these, such as "dax ru".
SYLLABLES = tuple(_SYLLABLES.split())


def base_names() -> list[str]:
    """The names of the base types, in their order."""
    return _pairs(np.random.default_rng(48), SPLIT_SIZES["base"])


def invented_names(count: int, rng: np.random.Generator) -> list[str]:
    """Names that no base type has; first syllables repeat only beyond 64 names."""
    taken = set(base_names())
    names: list[str] = []
    while len(names) < count:
        fresh = [n for n in _pairs(rng, len(SYLLABLES)) if n not in taken]
        taken |= set(fresh)
        names += fresh
    return names[:count]


def _pairs(rng: np.random.Generator, count: int) -> list[str]:
    """Two-syllable names whose first syllables, and whose second syllables, all differ."""
    first, second = rng.permutation(len(SYLLABLES)), rng.permutation(len(SYLLABLES))
    return [f"{SYLLABLES[a]} {SYLLABLES[b]}" for a, b in zip(first, second, strict=True) if a != b][:count]
