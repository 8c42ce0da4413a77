"""Images: files, model families, encoding, features."""

from vlm_sdft.images.files import load_image

__all__ = ["load_image"]
