"""Image files read safely: one clear error for what cannot be read, and no decompression bombs.

An image source is whatever a row may carry: a path, encoded bytes, a PIL image, or the undecoded form of a `datasets`
image column, ``{"path": …, "bytes": …}``.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from text_sdft.core import UserError
from text_sdft.files import check_file, file_bytes, image_formats

ImageSource: TypeAlias = str | PathLike[str] | bytes | Image.Image | Mapping[str, Any]

FORMATS = image_formats()
#: Endings of the files that can be read.
SUFFIXES = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)
#: Larger images are refused before they are decoded; a 100-megapixel photograph takes 300 MB in memory.
MAX_PIXELS = 100_000_000
#: Nor is one read with a longer side: to resize it takes more memory than it has.
MAX_SIDE = 65_535
#: Bytes that an image's file may hold.
MAX_BYTES = 2**29
#: Bits that a grey value or colour in a 16-bit file may have in truth.
DEPTHS = (8, 10, 12, 14, 16)


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
    return read_image(source)[0]


def read_image(source: ImageSource) -> tuple[Image.Image, list[str]]:
    """The image as `load_image` gives it, and in what it is not the file's content: "first frame" of several, or "12 bits"
    (one of `DEPTHS`) in a 16-bit file, by which it was made 8-bit. Raises `UserError` as that.
    """
    name = image_name(source)
    data = b"" if isinstance(source, Image.Image) else encoded_bytes(source)
    size = f"at most {MAX_PIXELS:,} are read, and {MAX_SIDE:,} on a side. Resize it, or leave it out."
    try:
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS or max(image.size) > MAX_SIDE:
            raise UserError(f"{name} has {width} × {height} pixels; {size}")
        changes = ["first frame"] if image.format != "MPO" and getattr(image, "is_animated", False) else []
        deep, bits = _is_deep(image), None
        image = ImageOps.exif_transpose(image)
        if deep:
            image, bits = _eight_bit_colours(image, data)
        elif image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise UserError(
                    f"{name} has grey values beyond 16 bits. Save it as an ordinary 8-bit image, or leave it out."
                )
            image, bits = _eight_bit(values)
        elif image.mode == "F":
            raise UserError(f"{name} has floating-point grey values. Save it as an ordinary 8-bit image, or leave it out.")
        changes += [f"{bits} bits"] if bits else []
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), changes
        return image.convert("RGB"), changes
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large ({error}); {size}") from error
    except Exception as error:  # decoders raise what they like on damaged files
        why: object = error
        if isinstance(error, UnidentifiedImageError):  # whose message holds an address in memory
            why = f"it is of no format that is read: {', '.join(FORMATS)}" if data else "the file is empty"
        raise UserError(f"{name} cannot be read as an image ({why}). Replace it, or leave it out.") from error


def content_hash(source: ImageSource) -> str:
    """SHA-256 of the encoded bytes; of size and pixels, as `load_image` gives them, for a PIL image, which has none. Raises
    `UserError`: the file is missing; names it.
    """
    if isinstance(source, Image.Image):
        pixels = load_image(source)
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    if isinstance(source, str | PathLike):
        check_file(Path(source), MAX_BYTES)
        stat = Path(source).stat()
        return _file_hash(str(source), stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256(encoded_bytes(source)).hexdigest()


@functools.lru_cache(maxsize=100_000)
def _file_hash(path: str, size: int, modified: int) -> str:
    """Of a file's bytes; read again only where its size or time of change is another."""
    return hashlib.sha256(file_bytes(Path(path), MAX_BYTES)).hexdigest()


def perceptual_hash(source: ImageSource) -> imagehash.ImageHash:
    """A 64-bit hash (dHash) that survives recompression and resizing; subtract two for their distance in bits."""
    return imagehash.dhash(load_image(source))


def _eight_bit(values: np.ndarray) -> tuple[Image.Image, int]:
    """Values of 16-bit files as 8 bits, and the smallest of `DEPTHS` that holds the brightest of them, by which they are
    scaled. Pillow's own conversion would clip them to white, or leave them nearly black.
    """
    bits = next(bits for bits in DEPTHS if values.max() < 2**bits)
    table = (np.arange(2**bits) * 255 // (2**bits - 1)).astype(np.uint8)
    return Image.fromarray(np.stack([table[row] for row in values])), bits


def _is_deep(image: Image.Image) -> bool:
    """Whether an image that is opened and not decoded has 16-bit colours."""
    modes = [tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in getattr(image, "tile", ())]
    return any(str(mode).startswith(("LA;16", "RGB;16", "RGBA;16")) for mode in modes)


def _eight_bit_colours(high: Image.Image, data: bytes) -> tuple[Image.Image, int]:
    """An image of 16-bit colours as `_eight_bit` makes it. Pillow keeps the high bytes, which do where all bits are used.

    Else the low bytes are wanted too: read in the other byte order, they stand where Pillow looks for the high ones.
    """
    colours = np.asarray(high.convert("RGB"))
    if colours.max() >= 64:
        return high, 16
    low: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    for i, tile in enumerate(low.tile):
        mode, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if mode.startswith("LA"):  # which Pillow reads in one order only
            raise ValueError("its 16-bit grey values beside transparency are of at most 14 bits, which are not read")
        order = sys.byteorder[0].upper() if mode[-1] == "N" else mode[-1]
        turned = mode[:-1] + ("B" if order == "L" else "L")
        low.tile[i] = tile._replace(args=(turned, *more) if more else turned)
    values = colours.astype(np.uint16) * 256 + np.asarray(ImageOps.exif_transpose(low).convert("RGB"))
    image, bits = _eight_bit(values)
    if high.mode == "RGBA":
        image.putalpha(high.getchannel("A"))
    return image, bits


def encoded_bytes(source: ImageSource) -> bytes:
    """The bytes of a path, of bytes or of an undecoded cell. Raises `UserError`: it is empty, or see `check_file`."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise UserError("An image cell is empty (no bytes, no path): fill it, or leave its row out.")
        return data if data is not None else file_bytes(Path(str(path)), MAX_BYTES)
    if isinstance(source, str | PathLike):
        return file_bytes(Path(source), MAX_BYTES)
    raise UserError(f"A {type(source).__name__} is not an image: give a path, bytes or a PIL image.")
