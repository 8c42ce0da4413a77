"""Cheap rivals that see what the teacher sees: the nearest image's answer, and open_clip's zero-shot by the types' names.

Shapes: R images · D embedding width · C names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from text_sdft.core import Demonstration
from vlm_sdft.controls import answer_of

PROMPT = "a photo of a {}."


def images_of(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """The images of some messages, as they were given."""
    contents = [m["content"] for m in messages if not isinstance(m["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def nearest_answers(
    queries_RD: Tensor, shown: Sequence[Sequence[Demonstration]], embed: Callable[[Sequence[Any]], Tensor]
) -> list[str]:
    """For each of R queries the answer of the demonstration whose image is nearest; empty where there is none."""
    answers = []
    for query_D, demonstrations in zip(queries_RD, shown, strict=True):
        pictured = [(d, images_of(d.messages)) for d in demonstrations]
        pictured = [(d, images) for d, images in pictured if images]
        if not pictured:
            answers.append("")
            continue
        scores_R = torch.stack([mean_embedding(images, embed) for _, images in pictured]) @ query_D
        answers.append(answer_of(pictured[int(scores_R.argmax())][0]))
    return answers


def mean_embedding(images: Sequence[Any], embed: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    """Unit-length mean embedding [D] of one row's images."""
    return normalize(embed(images).mean(0), dim=-1)


def zero_shot_answers(queries_RD: Tensor, candidates: Sequence[Sequence[str]], embedder: str) -> list[str]:
    """For each of R queries the candidate whose name open_clip finds nearest.

    Args:
        queries_RD: open_clip embeddings of the queries' images, unit length.
        candidates: answers to choose from, one list a query; an empty list gives an empty answer.
        embedder: the model, as in `ImageEmbedder`.
    """
    import open_clip

    name = embedder.removeprefix("open_clip:")
    whole = name.startswith(("local-dir:", "hf-hub:"))
    arch, _, pretrained = (name, "", "") if whole else name.partition("/")
    model, _, _ = open_clip.create_model_and_transforms(arch, pretrained=pretrained or None)
    model.eval()
    names = sorted({answer for answers in candidates for answer in answers})
    with torch.no_grad():
        texts_CD = normalize(
            model.encode_text(open_clip.get_tokenizer(arch)([PROMPT.format(n) for n in names])).float(), dim=-1
        )
    index = {name: i for i, name in enumerate(names)}
    chosen = []
    for query_D, answers in zip(queries_RD, candidates, strict=True):
        scores = (texts_CD[[index[a] for a in answers]] @ query_D).tolist() if answers else []
        chosen.append(answers[scores.index(max(scores))] if answers else "")
    return chosen
