"""One conversation with images → token ids and media, and the checks that no image got lost on the way.

Shapes: L tokens of one conversation · K leading size of a media tensor · B rows · V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.core import Conversation, ModelInputs, RowInputs, UserError
from text_sdft.core.sampling import evaluating
from vlm_sdft.images.families import Family
from vlm_sdft.images.features import PIXEL_TENSORS, ImageFeatures, ImageHandle
from vlm_sdft.images.files import content_hash, load_image

#: Rows kept by a `RowEncoder`; one holds ids only, some 20 kB for a prompt of a thousand tokens.
ROWS_KEPT = 4096


def encode_row(
    processor: Any, conversation: Conversation, family: Family, features: ImageFeatures | None = None
) -> RowInputs:
    """One conversation as the model takes it, with the generation prompt appended.

    Conversations are encoded one at a time: what the processor returns then belongs to this row alone, so a batch can
    be split and joined exactly.

    Args:
        processor: the model's processor.
        conversation: messages; image parts are ``{"type": "image", "image": source}``.
        family: from `find_family`.
        features: holds the images' features, so that the row names its images and carries no pixels.

    Returns:
        ``tokens``: ``input_ids`` [L] and the other per-token tensors that the model takes; ``media``: [K, …].

    Raises:
        UserError: an image cannot be read, the processor refuses the conversation, or an image produced no tokens.
    """
    messages = [_with_parts(message, family) for message in conversation]
    sources = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    handles = () if features is None else tuple(ImageHandle(content_hash(source), source) for source in sources)
    if features is not None and handles:
        processor, images = features.processor_and_images(handles)
    else:
        images = [load_image(source) for source in sources]
    given = iter(images)
    loaded = [
        {**m, "content": [{**p, "image": next(given)} if p["type"] == "image" else p for p in m["content"]]}
        for m in messages
    ]
    try:
        encoded = processor.apply_chat_template(
            loaded,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs=dict(family.processor_kwargs or {}),
        )
    except Exception as error:
        raise UserError(
            f"The processor of this '{family.name}' model refused a conversation of {len(loaded)} messages with "
            f"{len(sources)} images: {error} (Do the texts contain the model's own image tokens?)"
        ) from error
    length = encoded["input_ids"].shape[1]
    tokens: dict[str, Tensor] = {}
    media: dict[str, Tensor] = {}
    for name, value in encoded.items():
        of_tokens = name.endswith("_ids") and value.shape == (1, length)
        if name == "input_ids" or (of_tokens and name in family.accepts):
            tokens[name] = value[0]
        elif not of_tokens and name in family.accepts and name != "attention_mask":
            media[name] = value
        elif not of_tokens and name != "attention_mask":
            raise UserError(
                f"Models of type '{family.name}' do not take '{name}', which their processor made. Is the processor that "
                "of another model?"
            )
    _check_images(loaded, len(sources), RowInputs(tokens, media), processor, family)
    if handles:
        media = {name: value for name, value in media.items() if name not in PIXEL_TENSORS}
    return RowInputs(tokens, media, handles)


class RowEncoder:
    """`encode_row` for one model; a conversation that comes again (a query in its next epoch, say) is not encoded anew."""

    def __init__(self, processor: Any, family: Family) -> None:
        self._processor, self._family = processor, family
        self._rows: LRUCache[str, RowInputs] = LRUCache(ROWS_KEPT)

    def __call__(self, conversation: Conversation, features: ImageFeatures | None) -> RowInputs:
        """The conversation's row. Raises `UserError`.

        Args:
            features: see `encode_row`; without them the row carries pixels, and is not kept.
        """
        if features is None:
            return encode_row(self._processor, conversation, self._family)
        messages = [_with_parts(message, self._family) for message in conversation]
        parts = [(m["role"], [content_hash(p["image"]) if "image" in p else p for p in m["content"]]) for m in messages]
        if (key := repr(parts)) not in self._rows:
            self._rows[key] = encode_row(self._processor, conversation, self._family, features)
        return self._rows[key]


def _with_parts(message: dict[str, Any], family: Family) -> dict[str, Any]:
    """The message with its content as parts, its images named and in a place that the template keeps.

    Some chat templates go over the parts even of a plain string and so drop it; parts work with all of them.
    """
    content = message["content"]
    parts = [_text(content)] if isinstance(content, str) else content
    kinds = [part["type"] for part in parts]
    if family.moves_images and "text" in kinds and "image" in kinds[kinds.index("text") :]:
        raise UserError(
            f"The chat template of this '{family.name}' model puts all images of a turn before its text, so images "
            "between texts would lose their places. Use `template: turns`, and put a question's images first."
        )
    for part in parts:
        if part["type"] == "image" and part.get("image") is None:
            raise UserError(f"An image part of a '{message['role']}' message has no 'image'; give a path or an image.")
    # Nothing but the image: a template may write what else stands in the part.
    return {**message, "content": [{"type": "image", "image": p["image"]} if p["type"] == "image" else p for p in parts]}


def _check_images(loaded: Conversation, expected: int, row: RowInputs, processor: Any, family: Family) -> None:
    """Raise unless the row holds every image, and as many placeholder tokens as the images' features will fill."""
    ids_L = row.tokens["input_ids"]
    token_id = (getattr(processor, "image_token_ids", None) or [None])[0]
    placeholders = int((ids_L == token_id).sum()) if token_id is not None else expected
    found, wanted = 0, None
    if row.media and family.count is not None:
        found, wanted = family.count(ids_L, row.media, processor)
    elif row.media:
        prompt = processor.apply_chat_template(loaded, tokenize=False, add_generation_prompt=True)
        found = prompt.count(processor.image_token) if getattr(processor, "image_token", None) else expected
    if found != expected or placeholders < expected or wanted not in (None, placeholders):
        needed = f" where the images need {wanted}" if wanted is not None else ""
        raise UserError(
            f"A conversation has {expected} images, but after encoding for '{family.name}' there are {found}, with "
            f"{placeholders} image tokens{needed}. Check the processor's chat template, and that no text contains the "
            "model's own image tokens."
        )


@torch.no_grad()
def check_by_forward(model: PreTrainedModel, processor: Any, family: Family) -> None:
    """Make sure, for a family that is not in the table, that a batch gives what its rows give one by one.

    Three short conversations with 1, 2 and 0 images of different sizes are run alone and as one batch. Raises `UserError`
    where the results differ or the batch fails, so that scores could not be trusted.
    """
    sizes = {"red": (64, 64), "blue": (96, 48), "white": (48, 64)}
    red, blue, white = ({"type": "image", "image": Image.new("RGB", sizes[colour], colour)} for colour in sizes)
    contents = [[red, _text("What is this?")], [blue, white, _text("And these two here?")], [_text("Yes?")]]
    rows = [encode_row(processor, [{"role": "user", "content": content}], family) for content in contents]
    problem = ""
    try:
        with evaluating(model):
            alone_BV = torch.cat([_next_token(model, _unpadded(row, model.device)) for row in rows])
            batch_BV = _next_token(model, ModelInputs(rows, 0, family.media_by_row).batch(device=model.device))
        gap = float((alone_BV - batch_BV).abs().max())
        if gap > (1e-4 if model.dtype == torch.float32 else 5e-2):
            problem = f"a batch's probabilities differ by {gap:.2g} from those of its rows alone"
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        problem = f"a batch of rows failed: {error}"
    if problem:
        raise UserError(
            f"Models of type '{family.name}' are not known here, and a first try showed that they take images in a way of "
            f"their own ({problem}). Use a model of another family, or add this one to the table in "
            "vlm_sdft/images/families.py."
        )


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _unpadded(row: RowInputs, device: torch.device) -> dict[str, Tensor]:
    """One row as its processor made it: nothing added but a mask."""
    tokens = {name: values_L[None] for name, values_L in row.tokens.items()}
    inputs = {**tokens, **row.media, "attention_mask": torch.ones_like(tokens["input_ids"])}
    return {name: value.to(device) for name, value in inputs.items()}


def _next_token(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Probabilities [B, V] of the token after each prompt."""
    return model(**inputs).logits[:, -1].float().softmax(-1)
