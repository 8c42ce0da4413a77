"""What prompts of a batch have in common, read once when completions are sampled.

Equal prompts (several completions of one query) are read for one row, and what all prompts begin with (a system message)
is read for one prompt.

Shapes: B rows · D distinct prompts · P longest prompt · K their common beginning.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from text_sdft.core.data import Model
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.scoring import base_model
from text_sdft.fast.continuation import read_prefix, split
from text_sdft.fast.prefix import FORWARD_COST, MIN_PREFIX


@contextmanager
def common_tokens_read_once(model: Model, inputs: ModelInputs) -> Iterator[None]:
    """Within this context ``model.generate`` over these inputs reads what its prompts have in common once.

    Its first forward is given the distinct rows, from where they differ; then keys and values are laid out as `generate`
    expects them and repeated for all rows. Rows that carry pixels are left as they are (`generate` may have encoded them
    before), and so are those of a model that makes a cache of its own. A common beginning is used by models of text whose
    layers all keep every token.
    """
    rows_of: dict[Hashable, int] = {}
    index_B = [rows_of.setdefault(_key(row), len(rows_of)) for row in inputs.rows]
    firsts_D = [index_B.index(d) for d in range(len(rows_of))]
    raw = inputs.media_encoder is None and any(row.media for row in inputs.rows)
    distinct = inputs.select(firsts_D)
    common = None if raw else _common_beginning(model, distinct)
    if raw or (common is None and len(firsts_D) == len(inputs)):
        yield
        return
    batch = distinct.batch(device=model.device)
    batch.pop("position_ids", None)  # `generate` counts them itself
    K = 0 if common is None else common[0].get_seq_length()
    pads_D = batch["input_ids"].shape[1] - torch.tensor(distinct.lengths, device=model.device)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if _cache(kwargs) is None:  # the model will make one of a kind of its own
            release()
            return args, kwargs
        positions = kwargs.get("position_ids")  # [B, P], or [axes, B, P]
        own = {**batch} if positions is None else {**batch, "position_ids": positions[..., firsts_D, :]}
        if common is not None:
            own = {name: value[..., K:] for name, value in own.items()}
            places_P = torch.arange(K + own["input_ids"].shape[1], device=pads_D.device)
            own["attention_mask"] = ((places_P < K) | (places_P >= K + pads_D[:, None])).long()  # [common | padding | rest]
            for layer, kept in zip(_cache(kwargs).layers, common, strict=True):
                layer.update(*(t.expand(len(firsts_D), -1, -1, -1) for t in (kept.keys, kept.values)))
        return args, {**kwargs, **own}

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        release()
        cache = _cache(kwargs)
        if common is not None:
            _pad_first(cache, pads_D, K)
        cache.reorder_cache(torch.tensor(index_B, device=output.logits.device))  # of every kind: recurrent states too
        output.logits = output.logits[index_B]
        return output

    def release() -> None:
        for handle in handles:
            handle.remove()

    called = base_model(model)
    handles = [
        called.register_forward_pre_hook(before, with_kwargs=True),
        called.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        release()


def _key(row: RowInputs) -> Hashable:
    """What a prompt consists of: its ids and, in their places, its images."""
    return row.tokens["input_ids"].numpy().tobytes(), tuple(image.key for image in row.images)


def _cache(kwargs: dict[str, Any]) -> Any:
    return kwargs.get("cache", kwargs.get("past_key_values"))  # its name before transformers 5.23


def _common_beginning(model: Model, distinct: ModelInputs) -> list[Any] | None:
    """Keys and values of what all prompts begin with; None where that is not worth a forward or the model cannot go on."""
    if any(set(row.tokens) != {"input_ids"} or row.images or row.media for row in distinct.rows):
        return None
    shortest = min(distinct.lengths) - 1
    ids_DK = torch.stack([row.tokens["input_ids"][:shortest] for row in distinct.rows])
    K = int((ids_DK == ids_DK[0]).all(0).cumprod(0).sum())
    if K < MIN_PREFIX or (len(distinct) - 1) * K <= FORWARD_COST:
        return None
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config.get_text_config()).layers):
        return None
    return read_prefix(model, replace(distinct, rows=[split(distinct, 0, K)[0]]))


def _pad_first(cache: Any, pads_D: Tensor, K: int) -> None:
    """Move keys and values from [common | padding | rest] to where `generate` expects them: [padding | common | rest]."""
    P = cache.get_seq_length()
    places_DP = torch.arange(P, device=pads_D.device).expand(len(pads_D), P)
    pads_D1 = pads_D[:, None]
    from_DP = torch.where(places_DP < pads_D1, places_DP + K, places_DP - pads_D1)
    index_D1P1 = torch.where(places_DP < pads_D1 + K, from_DP, places_DP)[:, None, :, None]
    for layer in cache.layers:
        layer.keys, layer.values = (t.gather(2, index_D1P1.expand(t.shape)) for t in (layer.keys, layer.values))
