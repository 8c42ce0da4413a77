"""What differs between families of vision-language models, as one table keyed by ``config.model_type``.

Everything else (templates, placeholders, pixel packing) is the processor's work. A family that is not in the table is
taken through a generic path, which is checked before it is trusted: see `encoding.check_by_forward`.

Shapes: L tokens of one conversation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.core import Model, UserError

#: (images, placeholder tokens) that the encoded media stand for; None where they do not tell.
Count = tuple[int, int | None]


@dataclass(frozen=True)
class Family:
    """How one family of models takes images.

    Attributes:
        count: images and placeholder tokens, from ``input_ids`` [L], a row's media and the processor; None: unknown.
        bound: sets the processor (and the model's config, where it must agree) so that one image costs at most about
            ``max_pixels`` pixels; None: cannot be bounded.
        media_by_row: see `ModelInputs.media_by_row`.
        processor_kwargs: passed to the processor with every conversation.
        packs_images: the media tensors of several images are those of each image, one after the other.
        reuses_features: an image's features are the same alone as beside others, so that they can be computed once.
        features_listed: the model takes features as a list of images, rather than joined in one tensor.
        accepts: the names that the model's forward takes; filled in by `find_family`.
        placeholder_ids: the tokens that stand for images or video; filled in by `find_family`.
        moves_images: the chat template puts the images of a turn before its text; filled in by `find_family`.
    """

    name: str
    count: Callable[[Tensor, Mapping[str, Tensor], Any], Count] | None = None
    bound: Callable[[Any, PreTrainedModel, int], None] | None = None
    media_by_row: frozenset[str] = frozenset()
    processor_kwargs: Mapping[str, Any] | None = None
    packs_images: bool = False
    reuses_features: bool = True
    features_listed: bool = True
    accepts: frozenset[str] = frozenset()
    placeholder_ids: tuple[int, ...] = ()
    moves_images: bool = False


def _count_qwen(ids_L: Tensor, media: Mapping[str, Tensor], processor: Any) -> Count:
    grid = media["image_grid_thw"]
    return len(grid), int(grid.prod(-1).sum()) // processor.image_processor.merge_size**2


def _count_idefics(ids_L: Tensor, media: Mapping[str, Tensor], processor: Any) -> Count:
    # Every image has one global view, whether or not it was split into tiles as well.
    images = int((ids_L == processor.tokenizer.convert_tokens_to_ids("<global-img>")).sum())
    return images, media["pixel_values"].shape[1] * processor.image_seq_len


def _count_llava_onevision(ids_L: Tensor, media: Mapping[str, Tensor], processor: Any) -> Count:
    return len(media["image_sizes"]), None  # depends on the model's packing, which checks it itself


def _count_gemma3(ids_L: Tensor, media: Mapping[str, Tensor], processor: Any) -> Count:
    images = len(media["pixel_values"])
    return images, images * processor.image_seq_length


def _count_internvl(ids_L: Tensor, media: Mapping[str, Tensor], processor: Any) -> Count:
    images = int((ids_L == processor.start_image_token_id).sum())
    return images, len(media["pixel_values"]) * processor.image_seq_length


def _bound_qwen(processor: Any, model: PreTrainedModel, max_pixels: int) -> None:
    size = processor.image_processor.size
    longest = min(size["longest_edge"], max_pixels)
    processor.image_processor.size = {"shortest_edge": min(size["shortest_edge"], longest), "longest_edge": longest}


def _bound_idefics(processor: Any, model: PreTrainedModel, max_pixels: int) -> None:
    tile = processor.image_processor.max_image_size["longest_edge"]
    tiles = max(1, min(math.isqrt(max_pixels), processor.image_processor.size["longest_edge"]) // tile)
    processor.image_processor.size = {"longest_edge": tiles * tile}
    processor.image_processor.do_image_splitting = tiles > 1


def _bound_llava_onevision(processor: Any, model: PreTrainedModel, max_pixels: int) -> None:
    pinpoints = [list(pair) for pair in processor.image_processor.image_grid_pinpoints]
    smallest = min(math.prod(pair) for pair in pinpoints)
    kept = [pair for pair in pinpoints if math.prod(pair) <= max(max_pixels, smallest)]
    # The model counts features from its own list: the two must agree.
    processor.image_processor.image_grid_pinpoints = kept
    model.config.image_grid_pinpoints = kept


def _bound_internvl(processor: Any, model: PreTrainedModel, max_pixels: int) -> None:
    size = processor.image_processor.size
    patches = max(1, max_pixels // (size["height"] * size["width"]))
    processor.image_processor.max_patches = min(processor.image_processor.max_patches, patches)


_VISION_MODULES = ("visual", "vision_tower", "vision_model", "vision_encoder", "connector", "multi_modal_projector")
_BY_ROW = frozenset({"pixel_values", "pixel_attention_mask"})

FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2_vl", _count_qwen, _bound_qwen, packs_images=True),
        Family("qwen2_5_vl", _count_qwen, _bound_qwen, packs_images=True),
        Family("qwen3_vl", _count_qwen, _bound_qwen, packs_images=True),
        Family("idefics3", _count_idefics, _bound_idefics, _BY_ROW),
        Family("smolvlm", _count_idefics, _bound_idefics, _BY_ROW),
        # Its tiles (anyres) are for prompts with one image only: beside demonstrations a query has its base view alone,
        # so student and teacher do not see it with the same tokens. Nothing in the processor or model changes that.
        Family("llava_onevision", _count_llava_onevision, _bound_llava_onevision, reuses_features=False),
        # Pan-and-scan adds crops, and words that announce them, to some images only: off for student and teacher alike.
        # Without it there is nothing to bound: every image has the same fixed size.
        Family(
            "gemma3", _count_gemma3, lambda *_: None, frozenset(), {"do_pan_and_scan": False}, True, features_listed=False
        ),
        Family("internvl", _count_internvl, _bound_internvl, packs_images=True, features_listed=False),
    )
}


def find_family(model: PreTrainedModel, processor: Any) -> Family:
    """The family of a model, checked against its processor and chat template. Raises `UserError`: the model takes no
    images, the processor is not one for images, or its chat template loses some.
    """
    model_name, model_type = model.name_or_path or type(model).__name__, model.config.model_type
    if getattr(model.config, "vision_config", None) is None and not hasattr(model, "get_image_features"):
        raise UserError(
            f"Model '{model_name}' ({model_type}) takes no images. Use `adapter: text` with it, or a vision-language "
            f"model: {', '.join(FAMILIES)}."
        )
    if model.get_output_embeddings() is None:
        raise UserError(f"Model '{model_name}' has no language model head; load it with AutoModelForImageTextToText.")
    if getattr(processor, "image_processor", None) is None:
        raise UserError(
            f"The processor of '{model_name}' ({type(processor).__name__}) has no image processor. Save the model's full "
            "processor beside it (AutoProcessor.from_pretrained(…).save_pretrained(folder)), not its tokenizer alone."
        )
    family = FAMILIES.get(model_type, Family(model_type, reuses_features=False))
    accepts, moves = frozenset(inspect.signature(model.forward).parameters), template_moves_images(processor, model_name)
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    placeholders = {int(getattr(model.config, name)) for name in names if getattr(model.config, name, None) is not None}
    return replace(family, accepts=accepts, placeholder_ids=tuple(sorted(placeholders)), moves_images=moves)


def vision_modules(model: Model) -> list[str]:
    """Names, as in ``named_modules()``, of the vision tower and the projection of its features. Raises `UserError`: the
    model has none that is known.
    """
    found: list[str] = []
    for name, _ in model.named_modules():
        if name.rpartition(".")[2] in _VISION_MODULES and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    if not found:
        raise UserError(
            f"No vision tower was found in '{model.name_or_path}' ({model.config.model_type}); looked for modules named "
            f"{', '.join(_VISION_MODULES)}. Add its name to vlm_sdft/images/families.py."
        )
    # LLaVA's `image_newline` is a bare parameter among the image's features.
    return [*found, *(name for name, _ in model.named_parameters() if name.endswith(".image_newline"))]


def bound_images(family: Family, processor: Any, model: PreTrainedModel, max_pixels: int) -> None:
    """See `Family.bound`; the processor's own limit is never raised. Raises `UserError` where there is no bound."""
    if max_pixels < 1:
        raise UserError(f"max_pixels is {max_pixels}; it must be a positive number of pixels an image, such as 200704.")
    if family.bound is None:
        raise UserError(
            f"max_pixels is not known for models of type '{family.name}'. Leave it out, and set the size in the model's "
            "preprocessor_config.json instead."
        )
    family.bound(processor, model, max_pixels)


def template_moves_images(processor: Any, name: str) -> bool:
    """Whether the chat template puts a turn's images before its text; found out by rendering a small conversation. Raises
    `UserError`: there is no chat template, or it loses texts or images.
    """
    image = {"type": "image"}
    words = ("alpha", "bravo", "charlie", "delta")
    texts = [{"type": "text", "text": word} for word in words]
    conversation = [
        {"role": "user", "content": [image, texts[0]]},
        {"role": "assistant", "content": [texts[1]]},
        {"role": "user", "content": [texts[2], image, texts[3]]},
    ]
    try:
        prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise UserError(f"Model '{name}': its processor's chat template failed on images: {error}") from error
    missing = [word for word in words if word not in prompt]
    token = getattr(processor, "image_token", None)
    if missing or (token is not None and prompt.count(token) != 2):
        what = "texts" if missing else f"images (it wrote {prompt.count(token)} of 2 '{token}')"
        raise UserError(
            f"Model '{name}': its processor's chat template loses {what}. Set `processor.chat_template` to one for "
            "several turns and several images, and save the processor beside the model."
        )
    return token is not None and prompt.rindex(token) < prompt.index("charlie")
