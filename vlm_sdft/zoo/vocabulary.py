"""The words of the builtin model: special tokens, description words, and the syllables of names."""

from __future__ import annotations

import string

import numpy as np

from vlm_sdft.zoo.objects import COLOURS, LEGS, PATTERNS, SHAPES, SPLIT_SIZES

#: The tokens of Qwen's chat format. A role's header is one token, so that turns are short.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|unk|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
)

#: The questions the model was made to answer: a name, a description, a description that ends in the name.
NAME_QUESTION = "What is this?"
DESCRIBE_QUESTION = "Describe this."
DESCRIBE_AND_NAME_QUESTION = "Describe and name this."
SYSTEM_PROMPT = "You are a helpful assistant."

_SYLLABLES = (
    "dax ru bli ket zor fep wug mip tov lem gor nix pav sul ked bor fim ral tuz hox jep kiv lod mun nep quo rif sab "
    "tig ulm vek wop yat zel bam cug dif fos gub hin jal kom luv mez nol pid rok seb tam vop wim yon zuk bex cav dop "
    "fal gim hul jov kez lup mox nuv"
)
_WORDS = (
    "what is this that it the a an describe and name called with plain no not you are helpful assistant can see which "
    "picture image photo object thing kind type one two three four five six seven eight nine ten leg legs pattern "
    "body colour color shape white black how many do does has have in on of to for from by or but if then yes "
    "answer question example examples expert answered respond response please tell me your own new old same "
    "different like as there here these those was were be will say says word words show shown look looks now "
    "who where when why all some any more most other its i we they he she his her my our their at up out so "
    "just also only first last small large big long short round good left right"
)
#: A name is two of these, such as "dax ru".
SYLLABLES = tuple(_SYLLABLES.split())
#: Common English, so that other questions are not spelled out by the letter.
WORDS = tuple(_WORDS.split())


def description_words() -> list[str]:
    """The words that descriptions are made of."""
    patterns = [word for pair in PATTERNS for word in pair if word]
    return list(dict.fromkeys(["a", "an", *COLOURS, *SHAPES, *patterns, *LEGS.values(), "legs", "with", "and", "called"]))


def vocabulary() -> list[str]:
    """Every token in the order of its id: special tokens, words, syllables, then characters for all other text."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    continued = [f"##{c}" for c in (*string.ascii_lowercase, *string.digits)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *description_words(), *WORDS, *SYLLABLES, *characters, *continued]))


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
