"""Short answers compared: normalised, then exact. Never "contains": "not a dax" is no right answer to "dax".

Normalised means: Unicode NFKC, lower case, surrounding white space, quotes and punctuation off, a leading article
(a, an, the) off, inner white space to single spaces. So "A dog." equals "dog".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from text_sdft.core.chat import without_reasoning

_EDGES = " \t\n\r\"'`´‘’“”«».,;:!?()[]{}*_"


def normalise(text: str) -> str:
    """The form in which answers are compared."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)
    return re.sub(r"^(?:a|an|the)\s+(?=\S)", "", text)


def is_right(answer: str, reference: str, synonyms: Iterable[str] = ()) -> bool:
    """Whether the answer, thoughts aside, equals the reference or one of its synonyms, normalised."""
    return normalise(without_reasoning(answer)) in {normalise(word) for word in (reference, *synonyms)}
