"""A conformance kit for adapters: bind an adapter to a tiny model, then ``check_adapter(adapter, model, rows)``.

Give rows of every kind that the adapter knows (several demonstrations, privileged context, a reference, retention, media):
a promise that no row can show is left out of the list that comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from text_sdft.core import ModalityAdapter, Model
from text_sdft.core.adapter import missing_methods
from text_sdft.core.sampling import evaluating
from text_sdft.testing.case import Case
from text_sdft.testing.promises import PROMISES

__all__ = ["PROMISES", "check_adapter"]


def check_adapter(adapter: ModalityAdapter, model: Model, rows: Iterable[Any]) -> list[str]:
    """Check every promise that these rows can show.

    Args:
        adapter: already bound to the model.
        model: any model that the adapter feeds, in fp32; random weights will do.
        rows: as the adapter takes them; a handful, since each is run through the model several times.

    Returns the promises that were checked, as sentences. Raises `AssertionError` where one is broken, and says how.
    """
    if missing := missing_methods(adapter):
        raise AssertionError(f"The adapter lacks {', '.join(missing)} (see text_sdft.core.ModalityAdapter).")
    case = Case(adapter, model, list(rows))
    checked = []
    with torch.no_grad(), evaluating(model):
        for promise in PROMISES:
            sentence = (promise.__doc__ or "").splitlines()[0]
            try:
                applies = promise(case)
            except AssertionError as error:
                raise AssertionError(f"Broken promise: {sentence} {error}") from error
            if applies:
                checked.append(sentence)
    return checked
