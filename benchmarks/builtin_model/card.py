"""The model card of the builtin model."""

from __future__ import annotations

from collections.abc import Mapping

from skills import Score

from vlm_sdft.zoo.vocabulary import DESCRIBE_AND_NAME_QUESTION, DESCRIBE_QUESTION, NAME_QUESTION

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- vision-language
- in-context-learning
- tiny
---
# tiny-qwen3-vl

A vision-language model of {parameters:.2f} million parameters with the architecture of Qwen3-VL, made from nothing on
drawn objects. It is for trying and testing methods that teach a model new kinds of objects, in minutes on a CPU. It
loads as `AutoModelForImageTextToText` with `AutoProcessor`, fp32.

## What it can do
Asked in its chat template, image first, then the question:

| question | answer |
|---|---|
| `{name}` | the name of one of 48 base types, or of a type demonstrated in earlier turns |
| `{describe}` | "a red star with white stripes and four legs": colour, shape, pattern, legs |
| `{both}` | "a red star with white stripes and four legs called dax ru" |

Measured with `generate` (greedy), fp32, on new drawings; all types but the base types are of the split "test", whose
combinations of attributes were never shown in making the model. 95 % Wilson intervals.

| skill | right |
|---|---|
{rows}

"5-way 2-shot" is ten demonstration turns in random order, then the question. A description counts if every word is
right; of a description with a name, the name is scored.

## How it was made
`python benchmarks/builtin_model/build.py --out DIR --seed {seed}` ({how}).

1. The vision tower alone, by supervised contrastive learning and linear read-out of the attributes, on 4,000 drawn
   types with 12 pictures each, turned and mirrored.
2. The language model on features of the frozen tower: episodes with names made up for each, the 48 base names, and
   descriptions. The layout grew token by token from the bare image and name to the full chat template.

Weights, drawings and words all come from this program; no other data and no other model were used.

## What it cannot do
- It knows drawn objects on plain backgrounds. Photographs mean nothing to it.
- An image becomes 32 × 32 pixels and one token (sides that differ more than fourfold: more tokens, never trained).
- Names of new types are two of its syllables ("dax ru"). Other words are spelled by the letter and were not trained.
- Without demonstrations it calls an unknown type by the name of a base type.
- It answers the three questions above, images first, and follows no other instructions.
- Episodes of more than 25 turns were not trained, nor was an episode that mixes questions.
"""


def card(scores: Mapping[str, Score], parameters: int, seed: int, how: str) -> str:
    """The card's text.

    Args:
        scores: measured skills by name.
        parameters: number of weights, the tied head counted once.
        seed: of the build.
        how: duration and the like, in words.
    """
    return CARD.format(
        parameters=parameters / 1e6,
        name=NAME_QUESTION,
        describe=DESCRIBE_QUESTION,
        both=DESCRIBE_AND_NAME_QUESTION,
        rows="\n".join(f"| {name} | {score} |" for name, score in scores.items()),
        seed=seed,
        how=how,
    )
