"""Conversations with images, and what the tiny models of the families make of them.

Shapes: T tokens of a completion · L tokens of a conversation · V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.families import build_family
from text_sdft.core import ModelInputs
from vlm_sdft.images import families
from vlm_sdft.images.encoding import encode_row
from vlm_sdft.images.families import find_family
from vlm_sdft.images.features import ImageFeatures


@functools.cache
def loaded(name: str) -> tuple[Any, Any, families.Family]:
    model, processor = build_family(name)
    return model, processor, find_family(model, processor)


def picture(seed: int, height: int = 16, width: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def turn(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": "user", "content": parts}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def conversations(first_demonstration: int = 0) -> list[list[dict[str, Any]]]:
    """0, 1 and 5 images, of different sizes, in one and in several turns, one without a system message."""
    five = [
        {"role": "system", "content": "Be brief."},
        turn(picture(first_demonstration, 20, 30), "What?"),
        answer("dax"),
        turn(picture(1, 33, 16), picture(2, 16, 16), "And these?"),
        answer("blicket"),
        turn(picture(3, 16, 40), picture(4, 24, 24), "What?"),
    ]
    return [[turn("Hello there.")], [turn(picture(5, 18, 27), "What is this?")], five]


ANSWERS = ("yes", "a wug", "zup it")


def encoded(name: str, rows: list[list[dict[str, Any]]], features: ImageFeatures | None = None) -> ModelInputs:
    _, processor, family = loaded(name)
    encoded_rows = [encode_row(processor, row, family, features) for row in rows]
    return ModelInputs(encoded_rows, processor.tokenizer.pad_token_id, family.media_by_row, media_encoder=features)


def plain(processor: Any, conversation: list[dict[str, Any]], **kwargs: Any) -> dict[str, Tensor]:
    """The processor's own encoding of one conversation (string contents as parts: some templates need them)."""
    parts = [
        {**m, "content": [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]}
        for m in conversation
    ]
    return dict(processor.apply_chat_template(parts, tokenize=True, return_dict=True, return_tensors="pt", **kwargs))


@functools.cache
def reference(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Completions [T] and their log-probabilities [T, V] by plain forwards of whole conversations, one at a time."""
    model, processor, _ = loaded(name)
    completions, scores = [], []
    for conversation, text in zip(conversations(), ANSWERS, strict=True):
        prompt_L = plain(processor, conversation, add_generation_prompt=True)["input_ids"][0]
        whole = plain(processor, [*conversation, answer(text)])
        assert whole["input_ids"][0, : len(prompt_L)].tolist() == prompt_L.tolist()
        with torch.no_grad():
            logits_LV = model(**whole).logits[0]
        completions.append(whole["input_ids"][0, len(prompt_L) :])
        scores.append(logits_LV.log_softmax(-1)[len(prompt_L) - 1 : -1])
    return completions, scores


def log_probs(model: Any, inputs: ModelInputs, completions: list[Tensor]) -> list[Tensor]:
    """Log-probabilities [T, V] of each row's completion, by one batched forward."""
    with torch.no_grad():
        logits_BLV = model(**inputs.batch(completions)).logits
    start = max(inputs.lengths) - 1
    return [logits_BLV[b, start : start + len(c)].log_softmax(-1) for b, c in enumerate(completions)]


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for a_TV, b_TV in zip(found, wanted, strict=True):
        torch.testing.assert_close(a_TV, b_TV, atol=tolerance, rtol=0)
