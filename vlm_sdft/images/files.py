"""Image files read safely: one clear error for what cannot be read, and no decompression bombs.

An image source is whatever a row may carry: a path, encoded bytes, a PIL image, or the undecoded form of a `datasets`
image column, ``{"path": …, "bytes": …}``.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from text_sdft.core import UserError

ImageSource: TypeAlias = str | PathLike[str] | bytes | Image.Image | Mapping[str, Any]

#: Endings of the files that can be read.
SUFFIXES = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)
#: Larger images are refused before they are decoded; a 100-megapixel photograph takes 300 MB in memory.
MAX_PIXELS = 100_000_000
MISSING = "does not exist. Check the path (relative paths start at the data file's folder)."


def image_name(source: ImageSource) -> str:
    """What to call the image in a message: its path where it has one."""
    if isinstance(source, Mapping):
        return str(source.get("path") or "image bytes")
    if isinstance(source, str | PathLike):
        return str(source)
    return f"{type(source).__name__} image"


def load_image(source: ImageSource) -> Image.Image:
    """The image in RGB, upright (EXIF orientation applied), transparency on white. Raises `UserError`: the file is missing,
    not an image, damaged or larger than `MAX_PIXELS` by its header; names it.
    """
    name = image_name(source)
    try:
        # Pillow's own bomb check warns or raises while opening, with advice for programmers; ours speaks to users.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(encoded_bytes(source)))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {width} × {height} pixels; at most {MAX_PIXELS:,} are read. Resize it, or leave it out."
                )
            image = _eight_bit(ImageOps.exif_transpose(image), name)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    except FileNotFoundError as error:
        raise UserError(f"{name} {MISSING}") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise what they like on damaged files
        why: object = error
        if isinstance(error, UnidentifiedImageError):  # whose message holds an address in memory
            why = "it is of no known image format" if encoded_bytes(source) else "the file is empty"
        raise UserError(f"{name} cannot be read as an image ({why}). Replace it, or leave it out.") from error


def content_hash(source: ImageSource) -> str:
    """SHA-256 of the encoded bytes; of size and pixels, as `load_image` gives them, for a PIL image, which has none. Raises
    `UserError`: the file is missing; names it.
    """
    if isinstance(source, Image.Image):
        pixels = load_image(source)
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    if isinstance(source, str | PathLike):
        try:
            stat = Path(source).stat()
            return _file_hash(str(source), stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise UserError(f"{image_name(source)} {MISSING}") from error
    return hashlib.sha256(encoded_bytes(source)).hexdigest()


@functools.lru_cache(maxsize=100_000)
def _file_hash(path: str, size: int, modified: int) -> str:
    """Of a file's bytes; read again only where its size or time of change is another."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def perceptual_hash(source: ImageSource) -> imagehash.ImageHash:
    """A 64-bit hash (dHash) that survives recompression and resizing; subtract two for their distance in bits."""
    return imagehash.dhash(load_image(source))


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey values scaled to 8 bits, which Pillow's own conversion would clip to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name} has grey values beyond 16 bits. Save it as an ordinary 8-bit image, or leave it out.")
        return Image.fromarray((values // 257 if values.max() > 255 else values).astype(np.uint8))
    if image.mode == "F":
        raise UserError(f"{name} has floating-point grey values. Save it as an ordinary 8-bit image, or leave it out.")
    return image


def encoded_bytes(source: ImageSource) -> bytes:
    """The bytes of a path, of bytes or of an undecoded cell, as they are. Raises `UserError` for an empty cell."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise UserError("An image cell is empty (no bytes, no path): fill it, or leave its row out.")
        return data if data is not None else Path(str(path)).read_bytes()
    if isinstance(source, str | PathLike):
        return Path(source).read_bytes()
    raise UserError(f"A {type(source).__name__} is not an image: give a path, bytes or a PIL image.")
