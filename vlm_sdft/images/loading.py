"""A vision-language model and its processor, or an error that says what to give instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from text_sdft.core import UserError
from text_sdft.core.errors import first_line
from vlm_sdft.images.families import FAMILIES
from vlm_sdft.zoo import resolve_model

#: Says why a model does not take an image; None: it does.
Refusal: TypeAlias = Callable[[Image.Image], str | None]


def load_vlm(name: str, **kwargs: Any) -> PreTrainedModel:
    """The model of that name or folder; ``kwargs`` go to ``from_pretrained``. Raises `UserError`: there is no such model,
    or it takes no images.
    """
    try:
        return AutoModelForImageTextToText.from_pretrained(resolve_model(name), **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{name}' could not be loaded as a vision-language model. A model for text alone goes with `adapter: text`; "
            f"else give a folder or a hub name of a model of one of these types: {', '.join(FAMILIES)}. "
            f"({first_line(error)})"
        ) from error


def load_processor(model: PreTrainedModel, **kwargs: Any) -> Any:
    """The processor saved beside a model; ``kwargs`` go to ``from_pretrained``. Raises `UserError` where none loads."""
    try:
        return AutoProcessor.from_pretrained(model.name_or_path, **kwargs)
    except Exception as error:
        raise UserError(
            f"No processor could be loaded from '{model.name_or_path}': {first_line(error)} Save the model's processor "
            "beside it, or pass one."
        ) from error


def refusal_by(model: str) -> Refusal:
    """What the image processor of the model of that name or folder refuses. It is asked about long or tiny images alone,
    with a blank one of their size; where it cannot be loaded, loading the model will say so.
    """

    @functools.cache
    def processor() -> Any:
        return AutoImageProcessor.from_pretrained(resolve_model(model), trust_remote_code=False)

    @functools.cache
    def refused(size: tuple[int, int]) -> str | None:
        try:
            loaded = processor()
        except Exception:
            return None
        try:
            loaded([Image.new("RGB", size)], return_tensors="pt")
        except Exception as error:  # each processor has its own
            return f"({size[0]} × {size[1]}) is refused by the model's image processor: {first_line(error)}"
        return None

    return lambda image: refused(image.size) if max(image.size) >= 10 * min(image.size) or min(image.size) < 32 else None
