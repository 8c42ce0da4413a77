"""The beginning that many teacher prompts share (system message, demonstrations), read once.

Under causal attention the keys and values of a prefix do not depend on what follows. They are computed for one row, and
every prompt that begins with the same tokens and images continues from them: other rows, other completions, later steps,
as long as the teacher's weights stay (`LiveTeacher.version`).

Shapes: N scored tokens · H hidden size · L tokens of a prompt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from text_sdft.core.data import Model
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.scoring import completion_hidden_states
from text_sdft.fast.continuation import Layers, continued_hidden_states, read_prefix, split

logger = logging.get_logger(__name__)

#: A shorter common beginning is not worth joining to what follows.
MIN_PREFIX = 16
#: What a forward of its own for a prefix costs beside its tokens, in tokens.
FORWARD_COST = 64
#: Prompts remembered to find what the next ones have in common with them.
RECENT_PROMPTS = 64
#: Largest difference from the plain forward, relative to the largest hidden state, at which sharing is trusted.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 0.1
#: By row: whether there are images in its prefix, and behind it.
Kinds = dict[int, tuple[bool, bool]]
NOT_SHARED = "Prefixes of teacher prompts are read again for every prompt, which is slower"


class PrefixStore:
    """Keys and values of shared prefixes, and the forward that continues from them.

    They take ``max_bytes`` on the model's device, and the least recently used go first. 0 shares nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._stored: OrderedDict[tuple[str, bytes], Layers | None] = OrderedDict()  # None: known, not read yet
        self._recent: dict[str, list[bytes]] = {}
        self._owner_versions: dict[str, int] = {}
        self._bytes = 0
        self._trusted: dict[tuple[bool, bool], bool] = {}
        self._counts = (0, 0)

    def state_dict(self, versions: dict[str, int]) -> dict[str, Tensor]:
        """What the next rows are compared with, as symbols [L]: a resumed run then cuts its prompts where this one did.

        ``versions`` are those of the owners' weights now.
        """
        current = {owner for owner, version in self._owner_versions.items() if versions.get(owner) == version}
        stored = [(owner, prefix) for owner, prefix in self._stored if owner in current]
        state = {f"{owner}.stored.{i}": _tensor(prefix) for i, (owner, prefix) in enumerate(stored)}
        kept = [(owner, i, p) for owner in current for i, p in enumerate(self._recent.get(owner, ()))]
        return state | {f"{owner}.recent.{i}": _tensor(prompt) for owner, i, prompt in kept}

    def load_state_dict(self, state: dict[str, Tensor], versions: dict[str, int]) -> None:
        """Restore what `state_dict` returned; prefixes are read when they are first needed."""
        self._owner_versions.update(versions)
        for name, symbols_L in sorted(state.items(), key=lambda item: int(item[0].rpartition(".")[2])):
            owner, kind, _ = name.split(".")
            if kind == "stored":
                self._stored[owner, symbols_L.numpy().tobytes()] = None
            else:
                self._recent.setdefault(owner, []).append(symbols_L.numpy().tobytes())

    def take_counts(self) -> tuple[int, int]:
        """Prompt tokens that were not computed again, and all, since the last call."""
        counts, self._counts = self._counts, (0, 0)
        return counts

    def completion_hidden_states(
        self, module: Model, inputs: ModelInputs, completions: Sequence[Tensor], owner: str, version: int
    ) -> Tensor:
        """As the function `completion_hidden_states`, without gradient.

        ``owner`` is whose weights the module has now: what is kept of one owner's is not used for another, and what is kept
        of an older ``version`` of them is dropped.
        """
        if self._owner_versions.get(owner) != version:
            for key in [key for key in self._stored if key[0] == owner]:
                self._bytes -= _bytes(self._stored.pop(key))
            self._recent.pop(owner, None)
            self._owner_versions[owner] = version
        symbols = [_symbols(row, inputs) if self._max_bytes else None for row in inputs.rows]
        groups, alone = self._grouped(symbols, owner)
        prefixes: dict[int, Layers] = {}  # by row, as what follows; equal ones side by side
        reused: dict[int, int] = {}
        kinds: Kinds = {}
        for prefix, numbers in groups:
            stored = self._stored.get((owner, prefix)) is not None
            layers = self._layers(module, inputs.select(numbers), prefix, owner)
            if layers is None:
                alone += numbers
                continue
            for i in numbers:
                head, rest = split(inputs, i, len(prefix) // 8)
                kinds[i] = bool(head.images), bool(rest.images)
                prefixes[i], reused[i] = layers, len(prefix) // 8
            if not stored:
                reused[numbers[0]] = 0  # it was read for this one
        states: dict[int, Tensor] = {}
        numbers = [i for i in prefixes if self._trusted.get(kinds[i], True)]
        if numbers:
            given = [completions[i] for i in numbers]
            shared = continued_hidden_states(module, inputs.select(numbers), given, [prefixes[i] for i in numbers])
            states.update(zip(numbers, shared, strict=True))
            self._check(module, inputs, completions, states, {i: kinds[i] for i in numbers})
        alone += [i for i, kind in kinds.items() if not self._trusted[kind]]
        if alone:
            given = [completions[i] for i in alone]
            plain_NH = completion_hidden_states(module, module, inputs.select(alone), given)
            states.update(zip(alone, plain_NH.split([len(c) for c in given]), strict=True))
        saved = sum(reused[i] for i, kind in kinds.items() if self._trusted[kind])
        self._counts = (self._counts[0] + saved, self._counts[1] + sum(inputs.lengths))
        return torch.cat([states[i] for i in range(len(inputs))])

    def _grouped(self, symbols: Sequence[bytes | None], owner: str) -> tuple[list[tuple[bytes, list[int]]], list[int]]:
        """Rows by the prefix that they go on from; and those that are read whole."""
        known = [i for i, row in enumerate(symbols) if row is not None]
        rows = [symbols[i] or b"" for i in known]
        recent = self._recent.setdefault(owner, [])
        kept = {prefix for own, prefix in self._stored if own == owner}
        groups: list[tuple[bytes, list[int]]] = []
        alone = [i for i, row in enumerate(symbols) if row is None]
        for prefix, members in shared_prefixes([*rows, *recent], kept):
            numbers = [known[m] for m in members if m < len(known)]
            if prefix and numbers:
                groups.append((prefix, numbers))
            else:
                alone += numbers
        self._recent[owner] = [*rows, *recent][:RECENT_PROMPTS]
        return groups, alone

    def _layers(self, module: Model, rows: ModelInputs, prefix: bytes, owner: str) -> Layers | None:
        """The prefix's keys and values; None where this model's cannot be shared."""
        key = (owner, prefix)
        layers = self._stored.get(key)
        if layers is None:
            layers = read_prefix(module, replace(rows, rows=[split(rows, 0, len(prefix) // 8)[0]]))
            if layers is None:
                logger.warning_once(f"{NOT_SHARED}: this model's cache cannot serve several prompts.")
                self._max_bytes = 0
                return None
            self._stored[key] = layers
            self._bytes += _bytes(layers)
        self._stored.move_to_end(key)
        while self._bytes > self._max_bytes and len(self._stored) > 1:
            self._bytes -= _bytes(self._stored.popitem(last=False)[1])
        return layers

    def _check(
        self, module: Model, inputs: ModelInputs, completions: Sequence[Tensor], states: dict[int, Tensor], kinds: Kinds
    ) -> None:
        """Compare with the plain forward, once with and once without images on either side, before it is trusted."""
        fresh = [i for i, kind in kinds.items() if kind not in self._trusted]
        if not fresh:
            return
        plain_NH = completion_hidden_states(module, module, inputs.select(fresh), [completions[i] for i in fresh])
        gap = float((torch.cat([states[i] for i in fresh]) - plain_NH).abs().max() / plain_NH.abs().max())
        # Under autocast states may be fp32, but they were computed in less.
        half = torch.is_autocast_enabled(plain_NH.device.type)
        agrees = gap < (HALF_TOLERANCE if half else TOLERANCE.get(plain_NH.dtype, HALF_TOLERANCE))
        self._trusted.update((kinds[i], agrees) for i in fresh)
        if not agrees:
            logger.warning(f"{NOT_SHARED}: this model's results would differ by {gap:.2g} (relative).")


def _symbols(row: RowInputs, inputs: ModelInputs) -> bytes | None:
    """What a prompt consists of, 8 bytes a token: ids, and for an image's tokens the image. None: it cannot be split."""
    symbols_L = row.tokens["input_ids"].numpy().astype(np.int64)
    if row.images and inputs.media_encoder is not None:
        places = np.flatnonzero(np.isin(symbols_L, inputs.placeholder_ids))
        lengths = inputs.media_encoder.lengths(row.images)
        if sum(lengths) != len(places) or any(len(media) != len(row.images) for media in row.media.values()):
            return None
        images = [-1 - int(image.key[:15], 16) for image in row.images]
        symbols_L[places] = np.repeat(np.array(images, dtype=np.int64), lengths)
    elif row.media:
        logger.warning_once(f"{NOT_SHARED}: images of this model's family are not encoded one by one.")
        return None
    return symbols_L.tobytes()


def shared_prefixes(rows: Sequence[bytes], kept: Collection[bytes]) -> list[tuple[bytes, list[int]]]:
    """Rows (8 bytes a token) by the prefix that they go on from (b"": none), so that as few tokens as can be are read.

    Prefixes nest; the longest are looked at first, and a shorter one takes over what it serves better. Those that are
    ``kept`` need not be read.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    by_text = [rows[i] for i in order]
    candidates = {*kept, *(_common(a, b) for a, b in pairwise(by_text))}
    group_of = list(range(len(order)))  # by place in the order
    groups = {place: (b"", [i]) for place, i in enumerate(order)}

    def saved(prefix: bytes, members: Collection[int]) -> int:
        """Tokens that need not be read."""
        tokens = len(prefix) // 8
        return len(members) * tokens - (tokens + FORWARD_COST if prefix and prefix not in kept else 0)

    for prefix in sorted(candidates, key=len, reverse=True):
        if len(prefix) < 8 * MIN_PREFIX:
            break
        first, end = bisect_left(by_text, prefix), bisect_left(by_text, prefix + b"\xff" * 9)
        inside = dict.fromkeys(g for g, row in zip(group_of[first:end], by_text[first:end], strict=True) if row != prefix)
        joins = [g for g in inside if len(groups[g][1]) * (len(prefix) // 8) > saved(*groups[g])]
        members = [i for g in joins for i in groups[g][1]]
        if saved(prefix, members) <= sum(saved(*groups[g]) for g in joins):
            continue
        joined = {g: groups.pop(g) for g in joins}
        groups[joins[0]] = (prefix, members)
        group_of[first:end] = [joins[0] if g in joined else g for g in group_of[first:end]]
    return list(groups.values())


def _common(a: bytes, b: bytes) -> bytes:
    """The longest common beginning of two prompts that is neither's whole, and cuts no image in two."""
    x, y = (np.frombuffer(row, dtype=np.int64) for row in (a, b))
    n = min(len(x), len(y)) - 1
    different = np.flatnonzero(x[:n] != y[:n])
    cut = int(different[0]) if len(different) else n
    while cut > 0 and x[cut - 1] < 0 and x[cut] == x[cut - 1]:
        cut -= 1
    return a[: 8 * cut]


def _tensor(symbols: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(symbols, dtype=np.int64).copy())


def _bytes(layers: Layers | None) -> int:
    return sum(t.nbytes for layer in layers or () for t in (layer.keys, layer.values) if t is not None)
