"""One conversation with images → token ids and media, and the checks that no image got lost on the way.

Shapes: L tokens of one conversation · K leading size of a media tensor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from text_sdft.core import Conversation, RowInputs, UserError
from vlm_sdft.families import Family
from vlm_sdft.images import load_image


def encode_row(processor: Any, conversation: Conversation, family: Family) -> RowInputs:
    """One conversation as the model takes it, with the generation prompt appended.

    Conversations are encoded one at a time: what the processor returns then belongs to this row alone, so a batch can
    be split and joined exactly.

    Args:
        processor: the model's processor.
        conversation: messages; image parts are ``{"type": "image", "image": source}``.
        family: from `find_family`.

    Returns:
        ``tokens``: ``input_ids`` [L] and the other per-token tensors that the model takes; ``media``: [K, …].

    Raises:
        UserError: an image cannot be read, the processor refuses the conversation, or an image produced no tokens.
    """
    loaded = [_loaded(message, family) for message in conversation]
    images = [part["image"] for message in loaded for part in message["content"] if part["type"] == "image"]
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
            f"{len(images)} images: {error} (Do the texts contain the model's own image tokens?)"
        ) from error
    length = encoded["input_ids"].shape[1]
    tokens: dict[str, Tensor] = {}
    media: dict[str, Tensor] = {}
    for name, value in encoded.items():
        if name == "attention_mask":
            continue
        if name != "input_ids" and name.endswith("_ids") and value.shape == (1, length):
            if name in family.accepts:
                tokens[name] = value[0]
        elif name == "input_ids":
            tokens[name] = value[0]
        elif name in family.accepts:
            media[name] = value
        else:
            raise UserError(
                f"Models of type '{family.name}' do not take '{name}', which their processor made. Is the processor that "
                "of another model?"
            )
    _check_images(len(images), RowInputs(tokens, media), processor, family)
    return RowInputs(tokens, media)


def _loaded(message: dict[str, Any], family: Family) -> dict[str, Any]:
    """The message with its content as parts and its images loaded.

    Some chat templates go over the parts even of a plain string and so drop it; parts work with all of them.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    kinds = [part["type"] for part in parts]
    if family.moves_images and "text" in kinds and "image" in kinds[kinds.index("text") :]:
        raise UserError(
            f"The chat template of this '{family.name}' model puts all images of a turn before its text, so images "
            "between texts would lose their places. Use `template: turns`, and put a question's images first."
        )
    loaded = []
    for part in parts:
        if part["type"] == "image":
            if part.get("image") is None:
                raise UserError(f"An image part of a '{message['role']}' message has no 'image'; give a path or an image.")
            part = {"type": "image", "image": load_image(part["image"])}
        loaded.append(part)
    return {**message, "content": loaded}


def _check_images(expected: int, row: RowInputs, processor: Any, family: Family) -> None:
    """Raise unless the row holds every image, and as many placeholder tokens as the images' features will fill."""
    ids_L = row.tokens["input_ids"]
    placeholder_ids = getattr(processor, "image_token_ids", None) or [None]
    placeholders = int((ids_L == placeholder_ids[0]).sum()) if placeholder_ids[0] is not None else None
    found: int | None = expected
    wanted: int | None = placeholders
    if not row.media:
        found = 0
    elif family.count is not None:
        found, wanted = family.count(ids_L, row.media, processor)
    too_few = placeholders is not None and placeholders < expected
    if found != expected or too_few or (wanted is not None and placeholders is not None and wanted != placeholders):
        raise UserError(
            f"A conversation has {expected} images, but after encoding for '{family.name}' there are {found}, with "
            f"{placeholders} image tokens" + (f" where the images need {wanted}" if wanted is not None else "") + ". Check "
            "the processor's chat template and that no text contains the model's own image tokens."
        )
