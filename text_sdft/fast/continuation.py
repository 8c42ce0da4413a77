"""A forward that goes on from keys and values of prefixes which were read before.

Rows may go on from different prefixes: they are laid out [padding | prefix | rest | padding], so that within a row nothing
stands between the prefix and what follows (a sliding window counts places, not positions).

Shapes: B rows · P longest prefix · S longest rest (of the prompt, and the completion) · T tokens of a completion · H hidden
size · L longest row.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from text_sdft.core.data import Model
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.scoring import base_model, without_head

#: One entry a decoder layer.
Layers = list[DynamicLayer]


def read_prefix(module: Model, inputs: ModelInputs) -> Layers | None:
    """Keys and values of one row; None where this model keeps something else, which cannot serve several rows."""
    cache = DynamicCache(config=module.config.get_text_config())
    with without_head(module):
        batch = inputs.batch(device=module.device)
        module(**batch, **_cache_argument(module, cache), use_cache=True, logits_to_keep=1)
    layers: list[Any] = list(cache.layers)
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in layers)
    return layers if known else None


def continued_hidden_states(
    module: Model, rows: ModelInputs, completions: Sequence[Tensor], prefixes: Sequence[Layers]
) -> list[Tensor]:
    """Hidden states [T, H] that predict each row's completion [T] after its whole prompt.

    ``prefixes`` are what each row begins with (the same object for equal ones, rows with equal ones side by side).
    """
    lengths_B = torch.tensor([layers[0].get_seq_length() for layers in prefixes])
    rests = replace(rows, rows=[split(rows, i, int(n))[1] for i, n in enumerate(lengths_B)])
    fed = [completion[:-1] for completion in completions]  # the last token predicts nothing that is scored
    batch = rests.batch(fed, device=module.device, padding_side="right")
    whole = replace(rows, media_encoder=None).batch(fed, device=module.device, padding_side="right")  # for positions
    P, S, L = int(lengths_B.max()), batch["input_ids"].shape[1], whole["input_ids"].shape[1]
    places_BS = (lengths_B[:, None] + torch.arange(S)).clamp(max=L - 1).to(module.device)
    positions = _positions(module, whole)
    batch["position_ids"] = positions.gather(-1, places_BS.expand(*positions.shape[:-1], -1))
    before_BP = (torch.arange(P) >= P - lengths_B[:, None]).to(batch["attention_mask"])
    batch["attention_mask"] = torch.cat([before_BP, batch["attention_mask"]], dim=1)
    if "token_type_ids" in whole:  # of images that attend in both directions (Gemma 3): looked up by absolute place
        places = (torch.arange(P + S) - (P - lengths_B[:, None])).to(module.device)
        batch["token_type_ids"] = whole["token_type_ids"].gather(1, places.clamp(0, L - 1)) * batch["attention_mask"]
    cache = DynamicCache(config=module.config.get_text_config())
    runs = [list(run) for _, run in groupby(prefixes, key=id)]
    cache.layers = [_shared([(run[0][i], len(run)) for run in runs]) for i in range(len(prefixes[0]))]
    with without_head(module):
        hidden_BSH = module(**batch, **_cache_argument(module, cache), use_cache=True).logits
    firsts = [len(rest) - 1 for rest in rests.rows]
    return [hidden_BSH[b, n : n + len(c)] for b, (n, c) in enumerate(zip(firsts, completions, strict=True))]


def split(inputs: ModelInputs, i: int, length: int) -> tuple[RowInputs, RowInputs]:
    """A row's first tokens with their images, and the rest with theirs."""
    row = inputs.rows[i]
    n = 0
    if row.images and inputs.media_encoder is not None:
        ids_L = row.tokens["input_ids"][:length]
        filled = int(torch.isin(ids_L, torch.tensor(inputs.placeholder_ids)).sum())
        ends = np.cumsum([0, *inputs.media_encoder.lengths(row.images)])
        n = int(np.searchsorted(ends, filled))
    sides = []
    for tokens, images in ((slice(None, length), slice(None, n)), (slice(length, None), slice(n, None))):
        media = {name: value[images] for name, value in row.media.items()} if row.images[images] else {}
        sides.append(RowInputs({k: v[tokens] for k, v in row.tokens.items()}, media, row.images[images]))
    return sides[0], sides[1]


def _positions(module: Model, whole: dict[str, Any]) -> Tensor:
    """Positions of whole prompts and completions [B, L], or [3, B, L] for models that lay images out in three axes."""
    rope: Any = next((m.get_rope_index for m in module.modules() if hasattr(m, "get_rope_index")), None)
    if rope is None or "image_grid_thw" not in whole:
        return (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    names = inspect.signature(rope).parameters
    return rope(**{name: value for name, value in whole.items() if name in names})[0]


def _shared(runs: list[tuple[DynamicLayer, int]]) -> DynamicLayer:
    """One layer for a batch: so many rows for each given layer. It adds new keys and values behind, and keeps nothing.

    What it gives is joined when it is asked for, so that only one layer's keys and values exist for the whole batch.
    """
    longest = max((layer for layer, _ in runs), key=lambda layer: layer.get_seq_length())
    shared: Any = copy.copy(longest)
    rows = sum(count for _, count in runs)
    shared.keys, shared.values = (t.expand(rows, -1, -1, -1) for t in (shared.keys, shared.values))

    def joined(name: str) -> Tensor:
        kept = getattr(longest, name).shape[-2]
        parts = [(getattr(layer, name), count) for layer, count in runs]
        padded = [(pad(part, (0, 0, kept - part.shape[-2], 0)), count) for part, count in parts]
        return torch.cat([part.expand(count, -1, -1, -1) for part, count in padded])

    def update(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        own = copy.copy(shared)
        if len(runs) > 1:
            own.keys, own.values = joined("keys"), joined("values")
        return type(longest).update(own, *args, **kwargs)

    shared.update = update
    return shared


def _cache_argument(module: Model, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache under the name that the model's forward gives it (another one since transformers 5.23)."""
    names = inspect.signature(base_model(module).forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}
