"""Each image processed once, and encoded once for as long as the vision tower's weights stay.

Preparing an image (decoding, resizing, cutting into patches) gives the same result in the student's view, the teacher's and
every further step; so does running the tower over it with the same weights. So a conversation is encoded with what is known
of its images, and the model is handed their features (transformers' ``mm_encoder_outputs``) instead of their pixels.

An untouched tower encodes an image once for all. A trained one does so once for each teacher, until that teacher's version
moves (`ImageFeatures.for_weights`), and once for the student in each micro-batch, with gradient
(`ImageFeatures.encoded_once`).

Shapes: K leading size of a media tensor · T tokens of one image · H width of the language model.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from text_sdft.core import UserError
from text_sdft.core.sampling import evaluating
from vlm_sdft.images.families import Family
from vlm_sdft.images.files import content_hash, image_name, load_image

#: Memory of the host that features may take; the least recently used images' go first, and are computed again.
MAX_BYTES = 4 * 2**30
#: Names under which processors give pixels, which a model does not need beside features.
PIXEL_TENSORS = ("pixel_values", "pixel_attention_mask")
#: Whose weights a tower has, and their version; None: unknown.
Weights: TypeAlias = tuple[str, int] | None
UNTOUCHED_WEIGHTS = ("", 0)
#: What features hang on: weights, image and precision.
Key: TypeAlias = tuple[Weights, str, torch.dtype]


@dataclass(frozen=True)
class ImageHandle:
    """Where to read an image, and the hash of its content: handles with equal keys are equal."""

    key: str
    source: Any = field(compare=False)


@dataclass
class Features(ModelOutput):
    """What a model takes in place of pixels.

    Attributes:
        pooler_output: [T, H] of one image; of several as `Family.features_listed` says.
        deepstack_features: a list of what further layers of the language model are given; empty for most families.
    """

    pooler_output: Any = None
    deepstack_features: Any = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same of one image, each tensor changed."""
        return Features(change(self.pooler_output), [change(layer) for layer in self.deepstack_features])


class ImageFeatures:
    """`text_sdft.core.inputs.MediaEncoder` for one model and processor.

    Args:
        model: the model.
        processor: the model's processor; its settings must not change.
        family: from `find_family`.
        max_bytes: bound of the features kept in memory.
        trained: the tower is trained: features are kept only where it is known whose weights it has (`for_weights`).
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, family: Family, max_bytes: int = MAX_BYTES, trained: bool = False
    ) -> None:
        self._model, self._processor, self._family = model, processor, family
        self._trained = trained
        self._weights: Weights = None if trained else UNTOUCHED_WEIGHTS
        self._together = trained
        self._dtype = model.dtype  # as loaded: in shards (FSDP) it changes to and fro, and an untouched tower's does not
        self._given: dict[str, Features] | None = None  # of one micro-batch, with gradient
        self._drew = False
        self._prepared: dict[str, Mapping[str, Any]] = {}
        self._lengths: dict[str, int] = {}
        # What alone exceeds the bound is kept by itself, so that a student and its teacher share it.
        self._kept: LRUCache[Key, Features] = LRUCache(max_bytes, lambda output: min(_bytes(output), max_bytes))
        self._through_tower: Counter[str] = Counter()

    @property
    def computed(self) -> int:
        """Images that went through the tower so far (again, where their features had been dropped)."""
        return self._through_tower.total()

    def for_weights(self, owner: str, version: int, fleeting: bool) -> ImageFeatures:
        """See `MediaEncoder.for_weights`."""
        if not self._trained:
            return self
        for key in [key for key in self._kept if key[0] is not None and key[0][0] == owner and key[0][1] != version]:
            del self._kept[key]
        known = copy.copy(self)  # what is kept is the same object
        known._weights, known._together, known._given = (owner, version), fleeting, None
        return known

    def encoded_once(self, handles: Sequence[ImageHandle]) -> ImageFeatures:
        """See `MediaEncoder.encoded_once`: a trained tower runs now, for sampling and for the student's forward."""
        if not self._trained:
            return self
        known, before = copy.copy(self), _random_state(self._model.device)
        distinct = {handle.key: handle for handle in handles}
        known._given = dict(zip(distinct, self._run_tower(list(distinct.values())), strict=True))
        known._drew = not torch.equal(_random_state(self._model.device), before)
        return known

    def encode(self, handles: Sequence[ImageHandle]) -> dict[str, Any]:
        """``mm_encoder_outputs`` for these images, in this order; after `encoded_once` with their graph."""
        # Dropout in the tower belongs to the forward with gradient alone.
        if self._given is None or (self._drew and not torch.is_grad_enabled()):
            outputs = self._features_of(handles)
        else:
            outputs = [self._given[handle.key] for handle in handles]
            if not torch.is_grad_enabled():
                outputs = [output.changed(Tensor.detach) for output in outputs]
        device = self._model.device
        pooled: Any = [output.pooler_output.to(device) for output in outputs]
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        further = [[layer.to(device) for layer in given] for given in layers]
        joined = Features(pooled if self._family.features_listed else torch.cat(pooled), further)
        return {"mm_encoder_outputs": {"image": joined}}

    def lengths(self, handles: Sequence[ImageHandle]) -> list[int]:
        """Tokens T of each image."""
        if self._given is not None:
            return [len(self._given[handle.key].pooler_output) for handle in handles]
        # Where images go through together, what is kept must not hang on whether an image's length was known before.
        look = self._tower_outputs if self._together else self._features_of
        for handle in handles:
            if handle.key not in self._lengths:
                self._lengths[handle.key] = len(look([handle])[0].pooler_output)
        return [self._lengths[handle.key] for handle in handles]

    def load(self, handles: Sequence[ImageHandle]) -> list[Image.Image]:
        """The images themselves. Raises `UserError` where the tower is trained."""
        if self._trained:
            raise UserError(
                "An engine that encodes images itself has been tried with an untouched vision tower only. Set "
                "data.train_vision to false, or train.sampler to transformers."
            )
        return [load_image(handle.source) for handle in handles]

    def pooled(self, source: Any) -> Tensor:
        """Features [T, H] of one image."""
        return self._features_of([ImageHandle(content_hash(source), source)])[0].pooler_output

    def processor_and_images(self, handles: Sequence[ImageHandle]) -> tuple[Any, list[Image.Image]]:
        """A processor that answers for these images from memory, and what to give it for them.

        Only where a family's media of several images are those of each, one after the other (`Family.packs_images`); else
        the model's processor and the images. Pixels are left out: the tensors that carry them have their shapes and no
        content (device "meta").
        """
        if not self._family.packs_images:
            return self._processor, [load_image(handle.source) for handle in handles]
        for handle in handles:
            if handle.key not in self._prepared:
                prepared = self._prepare(handle).items()
                self._prepared[handle.key] = {n: v.to("meta") if n in PIXEL_TENSORS else v for n, v in prepared}
        processor, known = copy.copy(self._processor), [self._prepared[handle.key] for handle in handles]
        processor.image_processor = _FromMemory(self._processor.image_processor, known)
        return processor, [Image.new("RGB", (1, 1)) for _ in handles]

    def _prepare(self, handle: ImageHandle) -> Mapping[str, Any]:
        """One image through the processor's own image processor. Raises `UserError` where that refuses it."""
        image = load_image(handle.source)
        try:
            return self._processor.image_processor([image], return_tensors="pt", **(self._family.processor_kwargs or {}))
        except ValueError as error:  # a side of 200 times the other, say
            raise UserError(
                f"{image_name(handle.source)} ({image.width} × {image.height}) is refused by the model's image processor: "
                f"{error}. Replace it, or leave it out."
            ) from error

    def _features_of(self, handles: Sequence[ImageHandle]) -> list[Features]:
        """The tower's output for each image, kept on the host if it is known whose weights the tower has."""
        device = self._model.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._dtype
        known = {h.key: self._kept.get((self._weights, h.key, precision)) for h in handles}
        found = {key: output for key, output in known.items() if output is not None}
        missing = list({handle.key: handle for handle in handles if handle.key not in found}.values())
        for handle, output in zip(missing, self._tower_outputs(missing), strict=True):
            found[handle.key] = output
            if self._weights is not None:
                self._kept[self._weights, handle.key, precision] = output
        return [found[handle.key] for handle in handles]

    @torch.no_grad()
    def _tower_outputs(self, handles: Sequence[ImageHandle]) -> list[Features]:
        """One image at a time where results stay: each then hangs on nothing but its image, after a restart too."""
        if not handles:
            return []
        with evaluating(self._model):
            outputs = self._run_tower(handles) if self._together else [self._run_tower([handle])[0] for handle in handles]
        return [output.changed(Tensor.cpu) for output in outputs]

    def _run_tower(self, handles: Sequence[ImageHandle]) -> list[Features]:
        """Each image's features, by one forward where the family joins images and takes their features apart again."""
        if len(handles) > 1 and not (self._family.packs_images and self._family.features_listed):
            return [output for handle in handles for output in self._run_tower([handle])]
        if not handles:
            return []
        self._through_tower.update(handle.key for handle in handles)
        get_image_features: Any = self._model.get_image_features
        names = inspect.signature(get_image_features).parameters
        parts = [self._prepare(handle) for handle in handles]
        media = {n: torch.cat([part[n] for part in parts]).to(self._model.device) for n in parts[0] if n in names}
        output = get_image_features(**media, return_dict=True)
        pooled = [output.pooler_output] if isinstance(output.pooler_output, Tensor) else output.pooler_output
        if len(pooled) != len(handles):
            raise UserError(
                f"Models of type '{self._family.name}' gave {len(pooled)} features for {len(handles)} images: their images "
                "cannot be encoded apart. Set image_features_gib to 0, or add the family to vlm_sdft/images/families.py."
            )
        layers = [list(layer) for layer in getattr(output, "deepstack_features", None) or ()]
        return [Features(image.flatten(0, -2), [layer[i] for layer in layers]) for i, image in enumerate(pooled)]


class _FromMemory:
    """An image processor that gives what is known of the images, joined, and is the true one in all else."""

    def __init__(self, own: Any, prepared: Sequence[Mapping[str, Any]]) -> None:
        self._own, self._prepared = own, prepared

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
        parts = {name: [image[name] for image in self._prepared] for name in self._prepared[0]}
        return {
            name: torch.cat(values) if isinstance(values[0], Tensor) else [item for value in values for item in value]
            for name, values in parts.items()
        }


def _random_state(device: torch.device) -> Tensor:
    """Of the generator that dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _bytes(output: Features) -> int:
    return sum(tensor.nbytes for tensor in (output.pooler_output, *output.deepstack_features))
