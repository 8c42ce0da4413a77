"""The beginning that many teacher prompts share (system message, demonstrations), read once.

Under causal attention the keys and values of a prefix do not depend on what follows. They are computed for one row, and
every prompt that begins with the same tokens and images continues from them: other rows, other completions, later steps,
as long as the teacher's weights stay (`LiveTeacher.version`).

Shapes: B rows of a group · P tokens of the prefix · S longest rest (rest of the prompt, completion) · T tokens of a
completion · N = Σ T scored tokens · H hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

from text_sdft.core.data import Model
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.scoring import completion_hidden_states, without_head

logger = logging.get_logger(__name__)

#: A shorter common beginning is not worth a forward of its own.
MIN_TOKENS = 32
#: Prompts remembered to find what the next ones have in common with them.
RECENT = 64
#: Largest difference from the plain forward, relative to the largest hidden state, at which sharing is trusted.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
NOT_SHARED = "Prefixes of teacher prompts are read again for every prompt, which is slower"


@dataclass(frozen=True)
class _Group:
    """Rows of a batch, by number, whose first tokens are ``prefix``."""

    prefix: bytes
    rows: tuple[int, ...]


class PrefixStore:
    """Keys and values of shared prefixes, and the forward that continues from them.

    Args:
        max_bytes: memory for them on the model's device; the least recently used go first. 0 shares nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._stored: OrderedDict[tuple[Hashable, bytes], list[DynamicLayer]] = OrderedDict()
        self._recent: dict[Hashable, list[bytes]] = {}
        self._owner_versions: dict[Hashable, int] = {}
        self._bytes = 0
        self._checked: dict[tuple[bool, bool], bool] = {}
        self._counts = (0, 0)

    def take_counts(self) -> tuple[int, int]:
        """Prompt tokens that were not computed again, and all, since the last call."""
        counts, self._counts = self._counts, (0, 0)
        return counts

    def completion_hidden_states(
        self, module: Model, inputs: ModelInputs, completions: Sequence[Tensor], owner: Hashable, version: int
    ) -> Tensor:
        """As `scoring.completion_hidden_states`, without gradient.

        Args:
            owner: whose weights the module has now; prefixes of one owner are not used for another.
            version: changes with those weights; prefixes of an older version are dropped.
        """
        if self._owner_versions.get(owner) != version:
            self._forget(owner)
            self._owner_versions[owner] = version
        symbols = [_symbols(row, inputs) if self._max_bytes else None for row in inputs.rows]
        groups, alone = self._grouped(symbols, owner)
        states: dict[int, Tensor] = {}
        saved = 0
        for group in groups:
            rows, given = inputs.select(group.rows), [completions[i] for i in group.rows]
            reused = len(rows) - ((owner, group.prefix) not in self._stored)
            layers = self._layers(module, rows, group.prefix, owner)
            if layers is None or not self._agrees(module, rows, given, layers):
                alone = sorted([*alone, *group.rows])
                continue
            saved += reused * (len(group.prefix) // 8)
            states.update(zip(group.rows, _continue(module, rows, given, layers), strict=True))
        if alone:
            given = [completions[i] for i in alone]
            plain_NH = completion_hidden_states(module, module, inputs.select(alone), given)
            states.update(zip(alone, plain_NH.split([len(c) for c in given]), strict=True))
        self._counts = (self._counts[0] + saved, self._counts[1] + sum(inputs.lengths))
        return torch.cat([states[i] for i in range(len(inputs))])

    def _grouped(self, symbols: Sequence[bytes | None], owner: Hashable) -> tuple[list[_Group], list[int]]:
        """Rows by their prefix: a stored one, or one in common with other rows, of this batch or recent; and the rest."""
        stored = sorted((prefix for own, prefix in self._stored if own == owner), key=len, reverse=True)
        by_prefix: dict[bytes, list[int]] = {}
        fresh: list[int] = []
        alone: list[int] = []
        for i, row in enumerate(symbols):
            if row is None:
                alone.append(i)
                continue
            found = next((p for p in stored if len(p) < len(row) and row.startswith(p)), None)
            if found is None:
                fresh.append(i)
            else:
                by_prefix.setdefault(found, []).append(i)
        recent = self._recent.setdefault(owner, [])
        candidates = [(symbols[i] or b"", i) for i in fresh] + [(row, -1) for row in recent]
        for prefix, members in _runs(sorted(candidates)):
            rows = [i for i in members if i >= 0]
            if prefix and rows:
                by_prefix.setdefault(prefix, []).extend(rows)
            else:
                alone += rows
        self._recent[owner] = [*(symbols[i] or b"" for i in fresh), *recent][:RECENT]
        return [_Group(prefix, tuple(sorted(rows))) for prefix, rows in by_prefix.items()], sorted(alone)

    def _layers(self, module: Model, rows: ModelInputs, prefix: bytes, owner: Hashable) -> list[DynamicLayer] | None:
        """The prefix's keys and values, layer by layer; None where this model's cannot be shared."""
        key = (owner, prefix)
        if key in self._stored:
            self._stored.move_to_end(key)
            return self._stored[key]
        head, _ = _split(rows, 0, len(prefix) // 8)
        cache = DynamicCache(config=module.config.get_text_config())
        with without_head(module):
            batch = replace(rows, rows=[head]).batch(device=module.device)
            module(**batch, **_cache_argument(module, cache), use_cache=True, logits_to_keep=1)
        layers = [cast(DynamicLayer, layer) for layer in cache.layers]
        if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers})
            logger.warning_once(f"{NOT_SHARED}: this model's cache ({', '.join(kinds)}) cannot serve several prompts.")
            self._max_bytes = 0
            return None
        self._stored[key] = layers
        self._bytes += _bytes(layers)
        while self._bytes > self._max_bytes and len(self._stored) > 1:
            self._bytes -= _bytes(self._stored.popitem(last=False)[1])
        return layers

    def _agrees(self, module: Model, rows: ModelInputs, completions: list[Tensor], layers: list[DynamicLayer]) -> bool:
        """Whether continuing gives what the plain forward gives: tried once with and once without images on either side."""
        head, rest = _split(rows, 0, layers[0].get_seq_length())
        kind = (bool(head.images), bool(rest.images))
        if kind not in self._checked:
            shared_NH = torch.cat(_continue(module, rows.select([0]), completions[:1], layers))
            plain_NH = completion_hidden_states(module, module, rows.select([0]), completions[:1])
            gap = float((shared_NH - plain_NH).abs().max() / plain_NH.abs().max())
            self._checked[kind] = gap < TOLERANCE.get(shared_NH.dtype, 0.1)
            if not self._checked[kind]:
                logger.warning(f"{NOT_SHARED}: this model's results would differ by {gap:.2g} (relative).")
        return self._checked[kind]

    def _forget(self, owner: Hashable) -> None:
        for key in [key for key in self._stored if key[0] == owner]:
            self._bytes -= _bytes(self._stored.pop(key))
        self._recent.pop(owner, None)


def _symbols(row: RowInputs, inputs: ModelInputs) -> bytes | None:
    """What a prompt consists of, 8 bytes a token: ids, and for an image's tokens the image. None: it cannot be split."""
    symbols_L = row.tokens["input_ids"].numpy().astype(np.int64)
    if row.images and inputs.media_encoder is not None:
        places = np.flatnonzero(np.isin(symbols_L, inputs.placeholder_ids))
        lengths = inputs.media_encoder.lengths(row.images)
        if sum(lengths) != len(places) or any(len(media) != len(row.images) for media in row.media.values()):
            return None
        images = [-1 - abs(hash(image)) for image in row.images]
        symbols_L[places] = np.repeat(np.array(images, dtype=np.int64), lengths)
    elif row.media:
        logger.warning_once(f"{NOT_SHARED}: images of this model's family are not encoded one by one.")
        return None
    return symbols_L.tobytes()


def _runs(rows: list[tuple[bytes, int]]) -> list[tuple[bytes, list[int]]]:
    """Sorted rows as runs with a common beginning, b"" for a run of one; a run grows while that saves more tokens."""
    runs: list[tuple[bytes, list[int]]] = []
    for symbols, i in rows:
        if runs:
            prefix, members = runs[-1]  # of a run of one: its whole row
            n = len(members)
            common = _common(prefix, symbols, a_is_prompt=n == 1)
            if len(common) >= 8 * MIN_TOKENS and (n == 1 or n * len(common) > (n - 1) * len(prefix)):
                runs[-1] = (common, [*members, i])
                continue
        runs.append((symbols, [i]))
    return [(prefix if len(members) > 1 else b"", members) for prefix, members in runs]


def _common(a: bytes, b: bytes, a_is_prompt: bool) -> bytes:
    """The longest common beginning that is not all of prompt b (nor of a, if that is one too) and cuts no image in two."""
    x, y = (np.frombuffer(row, dtype=np.int64) for row in (a, b))
    n = min(len(x) - a_is_prompt, len(y) - 1)
    different = np.flatnonzero(x[:n] != y[:n])
    cut = int(different[0]) if len(different) else n
    while cut > 0 and x[cut - 1] < 0 and cut < len(x) and x[cut] == x[cut - 1]:
        cut -= 1
    return a[: 8 * cut]


def _split(inputs: ModelInputs, i: int, length: int) -> tuple[RowInputs, RowInputs]:
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


def _continue(module: Model, rows: ModelInputs, completions: Sequence[Tensor], layers: list[DynamicLayer]) -> list[Tensor]:
    """Hidden states [T, H] of each row's completion, from the shared keys and values on."""
    P = layers[0].get_seq_length()
    rests = replace(rows, rows=[_split(rows, i, P)[1] for i in range(len(rows))])
    # Padding stands on the right: within the rest it would push a sliding window's tokens apart.
    batch = rests.batch([c[:-1] for c in completions], device=module.device, padding_side="right")
    B = len(rows)
    batch["attention_mask"] = torch.cat([batch["attention_mask"].new_ones(B, P), batch["attention_mask"]], dim=1)
    whole = rows.batch([c[:-1] for c in completions], device=module.device, padding_side="right")
    batch["position_ids"] = _positions(module, whole)[..., P:]
    if "token_type_ids" in whole:  # of images that attend in both directions (Gemma 3): looked up by absolute place
        batch["token_type_ids"] = whole["token_type_ids"]
    cache = DynamicCache(config=module.config.get_text_config())
    cache.layers = [_shared(layer, B) for layer in layers]
    with without_head(module):
        hidden_BSH = module(**batch, **_cache_argument(module, cache), use_cache=True).logits
    states = []
    for b, (rest, completion) in enumerate(zip(rests.rows, completions, strict=True)):
        first = len(rest) - 1
        states.append(hidden_BSH[b, first : first + len(completion)])
    return states


def _positions(module: Model, whole: dict[str, Any]) -> Tensor:
    """Positions of whole prompts and completions [B, L], or [3, B, L] for models that lay images out in three axes."""
    rope: Any = next((m.get_rope_index for m in module.modules() if hasattr(m, "get_rope_index")), None)
    if rope is None or "image_grid_thw" not in whole:
        return (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    names = inspect.signature(rope).parameters
    return rope(**{name: value for name, value in whole.items() if name in names})[0]


def _shared(layer: DynamicLayer, batch: int) -> DynamicLayer:
    """The layer for a batch: it gives its keys and values with the new ones after them, and keeps nothing."""
    shared: Any = copy.copy(layer)
    shared.keys, shared.values = (t.expand(batch, -1, -1, -1) for t in (shared.keys, shared.values))
    shared.update = lambda *args, **kwargs: type(layer).update(copy.copy(shared), *args, **kwargs)
    return shared


def _cache_argument(module: Model, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache under the name that the model's forward gives it (another one since transformers 5.23)."""
    base: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    return {name: cache}


def _bytes(layers: Sequence[DynamicLayer]) -> int:
    return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values) if t is not None)
