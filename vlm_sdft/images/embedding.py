"""Image embeddings for retrieval: the model's own frozen vision features, or open_clip.

Shapes: R images · D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import normalize

from text_sdft.core import UserError
from vlm_sdft.images.features import ImageFeatures
from vlm_sdft.images.files import content_hash, load_image

#: Gives the embeddings [R, D] of R images, unit length.
Embed: TypeAlias = Callable[[Sequence[Any]], Tensor]
#: Above so many images to embed, a progress bar is shown.
PROGRESS_BAR_ABOVE = 300
#: Images a forward of open_clip.
BATCH_SIZE = 32


class ImageEmbedder:
    """Embeds images, each content once.

    Args:
        embedder: ``"model"`` for the model's own vision features (mean over an image's tokens), or
            ``"open_clip:ARCH/PRETRAINED"``; PRETRAINED is a tag, a checkpoint's path, or empty for random weights. A folder
            that holds an open_clip model: ``"open_clip:local-dir:FOLDER"``.
        features: the model's, for ``"model"``.
        device: where open_clip runs.

    Raises `UserError` for an unknown embedder, or weights that cannot be loaded.
    """

    def __init__(self, embedder: str, features: ImageFeatures | None = None, device: torch.device | str = "cpu") -> None:
        self._embed: Callable[[Sequence[Any]], Tensor]
        if embedder == "model":
            assert features is not None
            self._embed = lambda sources: torch.stack([features.pooled(source).float().mean(0) for source in sources])
        elif embedder.startswith("open_clip:"):
            model, transform, _ = load_open_clip(embedder, device)
            self._embed = lambda sources: model.encode_image(
                torch.stack([transform(load_image(s)) for s in sources]).to(device)
            )
        else:
            raise UserError(f"Unknown embedder '{embedder}'. Use 'model' or 'open_clip:ARCH/PRETRAINED'.")
        self._cache: dict[str, Tensor] = {}

    def __call__(self, sources: Sequence[Any]) -> Tensor:
        """L2-normalised embeddings [R, D] of R images, fp32 on the CPU, in the order given."""
        keys = [content_hash(source) for source in sources]
        missing = {key: source for key, source in zip(keys, sources, strict=True) if key not in self._cache}
        todo, starts = list(missing), range(0, len(missing), BATCH_SIZE)
        shown = len(todo) > PROGRESS_BAR_ABOVE
        for start in track(starts, f"Embedding {len(todo)} images") if shown else starts:
            batch = todo[start : start + BATCH_SIZE]
            with torch.no_grad():
                features_RD = self._embed([missing[key] for key in batch])
            self._cache.update(zip(batch, normalize(features_RD.float(), dim=-1).cpu(), strict=True))
        return torch.stack([self._cache[key] for key in keys])


def load_open_clip(embedder: str, device: torch.device | str = "cpu") -> tuple[Any, Callable[[Any], Tensor], Any]:
    """open_clip's model, its transform of an image [3, H, W], and its tokenizer. Raises `UserError`: it cannot load."""
    import open_clip

    name = embedder.removeprefix("open_clip:")
    whole = name.startswith(("local-dir:", "hf-hub:"))  # a folder or repository with its own config and weights
    arch, _, pretrained = (name, "", "") if whole else name.partition("/")
    if not whole and arch not in open_clip.list_models():
        raise UserError(
            f"open_clip knows no model '{arch}'; see open_clip.list_models(), or name a folder that holds a model: "
            "'open_clip:local-dir:FOLDER'."
        )
    try:
        model, _, transform = open_clip.create_model_and_transforms(arch, pretrained=pretrained or None, device=device)
    except Exception as error:
        raise UserError(
            f"open_clip could not load '{arch}' with weights '{pretrained}': {error} Name a tag from "
            f"open_clip.list_pretrained_tags_by_model('{arch}'), download it where there is a network, or give the path "
            f"of a checkpoint, such as 'open_clip:{arch}//home/me/weights.pt'."
        ) from error
    model.eval()
    return model, transform, open_clip.get_tokenizer(arch)


def mean_embedding(images: Sequence[Any], embed: Embed) -> Tensor:
    """Unit-length mean embedding [D] of one row's images."""
    return normalize(embed(images).mean(0), dim=-1)
