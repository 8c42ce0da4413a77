"""Each image processed once, and encoded once where the vision tower is frozen.

Preparing an image (decoding, resizing, cutting into patches) and running the tower over it give the same result in the
student's view, the teacher's and every further step. So a conversation is encoded with what is known of its images, and
the model is handed their features (transformers' ``mm_encoder_outputs``) instead of their pixels.

Shapes: K leading size of a media tensor · T tokens of one image · H width of the language model.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from text_sdft.core import UserError
from text_sdft.core.rollout import evaluating
from vlm_sdft.families import Family
from vlm_sdft.feature_files import FeatureFiles
from vlm_sdft.images import content_hash, load_image

#: Memory of the host that features may take; the least recently used images' go first, and are computed again.
MAX_BYTES = 4 * 2**30
#: Images whose features may be open as files at once: a process may map some 65,000.
MAX_FILES = 2**14
#: Names under which processors give pixels, which a model does not need beside features.
PIXELS = ("pixel_values", "pixel_attention_mask")


@dataclass(frozen=True)
class ImageHandle:
    """An image by its content.

    Attributes:
        key: hash of the content; handles with equal keys are equal.
        source: where to read it.
    """

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


class ImageFeatures:
    """`text_sdft.core.inputs.MediaEncoder` for one model and processor.

    Args:
        model: its vision tower must not change.
        processor: the model's processor; its settings must not change.
        family: from `find_family`.
        max_bytes: bound of the features kept in memory.
        files: keeps them on disk too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        family: Family,
        max_bytes: int = MAX_BYTES,
        files: FeatureFiles | None = None,
    ) -> None:
        self._model, self._processor, self._family, self._max_bytes = model, processor, family, max_bytes
        self._files = files
        self._dtype = model.dtype  # as loaded: in shards (FSDP) it changes to and fro, and an untouched tower's does not
        self._prepared: dict[str, Mapping[str, Any]] = {}
        self._lengths: dict[str, int] = {}
        self._features: OrderedDict[tuple[str, torch.dtype], Features] = OrderedDict()
        self._bytes = 0
        #: Images that went through the tower so far (again, where their features had been dropped).
        self.computed = 0

    def encode(self, handles: Sequence[ImageHandle]) -> dict[str, Any]:
        """``mm_encoder_outputs`` for these images, in this order."""
        outputs = [self._features_of(handle) for handle in handles]
        device = self._model.device
        pooled: Any = [output.pooler_output.to(device) for output in outputs]
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        further = [[layer.to(device) for layer in given] for given in layers]
        joined = Features(pooled if self._family.features_listed else torch.cat(pooled), further)
        return {"mm_encoder_outputs": {"image": joined}}

    def lengths(self, handles: Sequence[ImageHandle]) -> list[int]:
        """Tokens T of each image."""
        for handle in handles:
            if handle.key not in self._lengths:
                self._lengths[handle.key] = len(self._features_of(handle).pooler_output)
        return [self._lengths[handle.key] for handle in handles]

    def load(self, handles: Sequence[ImageHandle]) -> list[Image.Image]:
        """The images themselves."""
        return [load_image(handle.source) for handle in handles]

    def pooled(self, source: Any) -> Tensor:
        """Features [T, H] of one image."""
        return self._features_of(ImageHandle(content_hash(source), source)).pooler_output

    @contextmanager
    def prepared(self, handles: Sequence[ImageHandle]) -> Iterator[list[Image.Image]]:
        """Within this context the processor answers for these images from memory; yields what to give it for them.

        Only where a family's media of several images are those of each, one after the other (`Family.packs_images`).
        Pixels are left out: the tensors that carry them have their shapes and no content (device "meta").
        """
        if not self._family.packs_images:
            yield [load_image(handle.source) for handle in handles]
            return
        for handle in handles:
            if handle.key not in self._prepared:
                self._prepared[handle.key] = _without_pixels(self._prepare(handle))
        own = self._processor.image_processor
        self._processor.image_processor = _FromMemory(own, [self._prepared[handle.key] for handle in handles])
        try:
            yield [Image.new("RGB", (1, 1)) for _ in handles]
        finally:
            self._processor.image_processor = own

    def _prepare(self, handle: ImageHandle) -> Mapping[str, Any]:
        """One image through the processor's own image processor."""
        kwargs = dict(self._family.processor_kwargs or {})
        return self._processor.image_processor([load_image(handle.source)], return_tensors="pt", **kwargs)

    def _features_of(self, handle: ImageHandle) -> Features:
        """The tower's output for one image, kept on the host."""
        device = self._model.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._dtype
        key = (handle.key, precision)
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        output = self._features[key] = self._from_files(handle, precision) or self._computed(handle, precision)
        self._bytes += _bytes(output)
        bound = MAX_FILES if self._files is not None else len(self._features)
        while (self._bytes > self._max_bytes or len(self._features) > bound) and len(self._features) > 1:
            self._bytes -= _bytes(self._features.popitem(last=False)[1])
        return output

    def _from_files(self, handle: ImageHandle, precision: torch.dtype) -> Features | None:
        tensors = None if self._files is None else self._files.read(_name(handle, precision))
        if tensors is None:
            return None
        layers = [tensors[f"layer.{i}"] for i in range(len(tensors) - 1)]
        return Features(tensors["pooled"], layers)

    def _computed(self, handle: ImageHandle, precision: torch.dtype) -> Features:
        self.computed += 1
        output = self._encode_one(handle)
        if self._files is not None:
            layers = {f"layer.{i}": layer for i, layer in enumerate(output.deepstack_features)}
            self._files.write(_name(handle, precision), {"pooled": output.pooler_output, **layers})
        return output

    @torch.no_grad()
    def _encode_one(self, handle: ImageHandle) -> Features:
        """One image at a time: a result then hangs on nothing but its image, in every batch and after a restart."""
        get_image_features: Any = self._model.get_image_features
        names = inspect.signature(get_image_features).parameters
        media = {n: v.to(self._model.device) for n, v in self._prepare(handle).items() if n in names}
        with evaluating(self._model):
            output = get_image_features(**media, return_dict=True)
        pooled = output.pooler_output
        if not isinstance(pooled, Tensor):
            if len(pooled) != 1:
                raise UserError(
                    f"Models of type '{self._family.name}' gave {len(pooled)} features for one image: their images cannot "
                    "be encoded one by one. Set train_vision, or add the family to vlm_sdft/families.py."
                )
            pooled = pooled[0]
        layers = getattr(output, "deepstack_features", None) or ()
        return Features(pooled.flatten(0, -2).cpu(), [torch.cat(list(layer)).cpu() for layer in layers])


class _FromMemory:
    """An image processor that gives what is known of the images, joined, and is the true one in all else."""

    def __init__(self, own: Any, prepared: Sequence[Mapping[str, Any]]) -> None:
        self._own, self._prepared = own, prepared

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
        names = self._prepared[0]
        parts = {name: [image[name] for image in self._prepared] for name in names}
        return {
            name: torch.cat(values) if isinstance(values[0], Tensor) else [item for value in values for item in value]
            for name, values in parts.items()
        }


def _without_pixels(prepared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to("meta") if name in PIXELS else value for name, value in prepared.items()}


def _name(handle: ImageHandle, precision: torch.dtype) -> str:
    return f"{handle.key}-{str(precision).removeprefix('torch.')}"


def _bytes(output: Features) -> int:
    return sum(tensor.nbytes for tensor in (output.pooler_output, *output.deepstack_features))
