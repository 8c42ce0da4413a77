"""`ModelInputs`: a batch of prompts as a model takes it, kept row by row until the moment it is needed.

Rows stay unpadded, so splitting a batch, ordering it and appending completions are list operations. Media tensors travel
with their row: Qwen-VL packs the patches of all images of a batch into one tensor, and here that happens last.

Shapes: B rows · L tokens of one row · P longest prompt · T longest completion · K leading size of a row's media tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from text_sdft.core.errors import UserError


class MediaEncoder(Protocol):
    """Stands for media whose features are computed once, and kept for as long as the encoder's weights stay."""

    def encode(self, handles: Sequence[Any]) -> dict[str, Any]:
        """What the model's forward takes instead of raw media, for these images in this order."""

    def lengths(self, handles: Sequence[Any]) -> list[int]:
        """Placeholder tokens that each image fills."""

    def load(self, handles: Sequence[Any]) -> list[Any]:
        """The images themselves, for an engine that encodes them on its own."""

    def for_weights(self, owner: str, version: int, fleeting: bool) -> MediaEncoder:
        """This encoder while the model has that owner's weights: features are kept until its version moves.

        ``fleeting`` is one that moves before the next step: no resumed run has to compute again what was kept.
        """

    def encoded_once(self, handles: Sequence[Any]) -> MediaEncoder:
        """This encoder after one run over all these images, with gradient if it is trained; gives what that run gave."""


@dataclass(frozen=True)
class RowInputs:
    """One conversation, encoded.

    Attributes:
        tokens: per-token tensors [L]: always ``input_ids``, further ones (``mm_token_type_ids``, …) as the model wants.
        media: media tensors [K, …] (``pixel_values``, ``image_grid_thw``, …); empty for a row without images.
        images: a handle for each image in order, where a `MediaEncoder` holds their features; its ``key`` is a
            hexadecimal hash of the image's content.
    """

    tokens: dict[str, Tensor]
    media: dict[str, Tensor] = field(default_factory=dict)
    images: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        ids_L = self.tokens.get("input_ids")
        if ids_L is None or not all(
            isinstance(values, Tensor) and not values.is_floating_point() and values.shape == ids_L.shape[:1]
            for values in self.tokens.values()
        ):
            seen = ", ".join(f"{name} {_form(value)}" for name, value in self.tokens.items())
            raise UserError(
                "RowInputs: the tokens of one conversation are tensors of whole numbers [L], input_ids and others of "
                f"the same length; given: {seen or 'none'}."
            )

    def __len__(self) -> int:
        return int(self.tokens["input_ids"].shape[0])


@dataclass(frozen=True)
class ModelInputs:
    """Encoded conversations.

    Attributes:
        rows: one entry a conversation.
        pad_token_id: the id that fills padding (masked, so any valid id does).
        media_by_row: names of media tensors whose first dimension is the *row* (Idefics3: [1, images, …]) rather than
            the packed images or patches of all rows; a row without them gets zeros, as these models expect.
        placeholder_ids: tokens that stand for media. They are never sampled: in a completion the model would look for
            the image that goes with them.
        media_encoder: gives the features of the rows' `RowInputs.images`.
    """

    rows: Sequence[RowInputs]
    pad_token_id: int
    media_by_row: frozenset[str] = frozenset()
    placeholder_ids: tuple[int, ...] = ()
    media_encoder: MediaEncoder | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.rows]

    def select(self, indices: Sequence[int]) -> ModelInputs:
        """The given rows, in the given order, each with its own media."""
        return replace(self, rows=[self.rows[i] for i in indices])

    def for_weights(self, owner: str, version: int, fleeting: bool) -> ModelInputs:
        """See `MediaEncoder.for_weights`."""
        encoder = self.media_encoder
        return self if encoder is None else replace(self, media_encoder=encoder.for_weights(owner, version, fleeting))

    def encoded_once(self) -> ModelInputs:
        """See `MediaEncoder.encoded_once`."""
        encoder, images = self.media_encoder, [image for row in self.rows for image in row.images]
        return self if encoder is None else replace(self, media_encoder=encoder.encoded_once(images))

    def batch(
        self,
        completions: Sequence[Tensor] | None = None,
        device: torch.device | str | None = None,
        padding_side: Literal["left", "right"] = "left",
    ) -> dict[str, Any]:
        """Keyword arguments for the model's forward or ``generate``.

        Prompts are padded on the left to P, completions on the right to T, so that every completion begins in the same
        column: [padding | prompt | completion | padding].

        Args:
            completions: B id tensors (length ≤ T) to append as ids, never as decoded text.
            padding_side: "right" moves a prompt's padding behind its completion: [prompt | completion | padding].

        Returns:
            ``input_ids`` and ``attention_mask`` [B, P + T], the other per-token tensors alike, packed media tensors or the
            images' features, and ``position_ids`` [B, P + T] counted over unmasked tokens, except for models that derive
            3-D positions themselves from ``mm_token_type_ids`` (M-RoPE).
        """
        if completions is not None and len(completions) != len(self.rows):
            raise ValueError(f"{len(completions)} completions for {len(self.rows)} rows")
        B, P, T = len(self.rows), max(self.lengths), max(map(len, completions or []), default=0)
        names = dict.fromkeys(name for row in self.rows for name in row.tokens)
        out: dict[str, Any] = {name: torch.zeros(B, P + T, dtype=torch.long) for name in names}
        out["input_ids"].fill_(self.pad_token_id)
        mask_BL = torch.zeros(B, P + T, dtype=torch.long)
        for b, row in enumerate(self.rows):
            start = P - len(row) if padding_side == "left" else 0
            end = start + len(row)
            for name, values_L in row.tokens.items():
                out[name][b, start:end] = values_L
            if completions is not None:
                out["input_ids"][b, end : end + len(completions[b])] = completions[b]
                end += len(completions[b])
            mask_BL[b, start:end] = 1
        out["attention_mask"] = mask_BL
        if "mm_token_type_ids" not in names:
            out["position_ids"] = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        for name in dict.fromkeys(name for row in self.rows for name in row.media):
            out[name] = self._pack(name)
        out = {name: value.to(device) for name, value in out.items()}
        images = [image for row in self.rows for image in row.images]
        if images and self.media_encoder is not None:
            out |= self.media_encoder.encode(images)
        return out

    def _pack(self, name: str) -> Tensor:
        """One media tensor of the whole batch: rows' tensors joined along dim 0, other dims zero-padded to the largest."""
        parts = [row.media[name] for row in self.rows if name in row.media]
        shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        if name in self.media_by_row:
            parts = [row.media.get(name, parts[0].new_zeros(1, *shape)) for row in self.rows]
        out = parts[0].new_zeros(sum(part.shape[0] for part in parts), *shape)
        start = 0
        for part in parts:
            region = (slice(start, start + part.shape[0]), *(slice(size) for size in part.shape[1:]))
            out[region] = part
            start += part.shape[0]
        return out


def _form(value: Any) -> str:
    """A tensor's shape, with its dtype where that is of floats; else the type's name."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    dtype = f"{str(value.dtype).removeprefix('torch.')} " if value.is_floating_point() else ""
    return f"{dtype}{list(value.shape)}"
