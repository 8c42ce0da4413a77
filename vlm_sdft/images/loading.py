"""A vision-language model and its processor, or an error that says what to give instead."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from text_sdft.core import UserError
from text_sdft.core.errors import first_line
from vlm_sdft.images.families import FAMILIES
from vlm_sdft.zoo import resolve_model


def load_vlm(name: str, **kwargs: Any) -> PreTrainedModel:
    """The model of that name or folder; ``kwargs`` go to ``from_pretrained``.

    Raises:
        UserError: there is no such model, or it takes no images.
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
    """The processor that was saved beside a model; ``kwargs`` go to ``from_pretrained``.

    Raises:
        UserError: there is none that can be loaded.
    """
    try:
        return AutoProcessor.from_pretrained(model.name_or_path, **kwargs)
    except Exception as error:
        raise UserError(
            f"No processor could be loaded from '{model.name_or_path}': {first_line(error)} Save the model's processor "
            "beside it, or pass one."
        ) from error
