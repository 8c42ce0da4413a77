"""Images are read safely: every failure names its file and the remedy, and no bomb is decoded."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from text_sdft.core import UserError
from vlm_sdft.images.files import SUFFIXES, content_hash, load_image, perceptual_hash, read_image


def picture(size=(20, 10), colour="red"):
    return Image.new("RGB", size, colour)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def header_only_png(width, height):
    """A PNG that claims a size and holds no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    file = tmp_path / "a.png"
    picture().save(file)
    sources = [
        file,
        str(file),
        file.read_bytes(),
        picture(),
        {"path": str(file), "bytes": None},
        {"bytes": file.read_bytes()},
    ]
    assert all(load_image(source).tobytes() == picture().tobytes() for source in sources)
    assert len({content_hash(source) for source in (file, str(file), file.read_bytes(), {"path": str(file)})}) == 1
    assert content_hash(picture()) == content_hash(picture()) != content_hash(picture(colour="blue"))


def test_transparency_is_white_and_rotation_is_applied(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    assert load_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert load_image(encoded(picture((20, 10)), "JPEG", exif=exif)).size == (10, 20)


def test_images_in_memory_that_look_different_have_different_hashes():
    """Else one stands for the other wherever something is computed once an image: icons drawn in alpha alone, scans."""
    icons = [Image.new("RGBA", (4, 4)) for _ in range(2)]  # black everywhere, and transparent
    icons[1].putpixel((1, 1), (0, 0, 0, 255))
    ramp = np.linspace(300, 60_000, 16).astype(np.uint16).reshape(4, 4)
    for one, other in (icons, [Image.fromarray(values) for values in (ramp, ramp[::-1].copy())]):
        assert load_image(one).tobytes() != load_image(other).tobytes() and content_hash(one) != content_hash(other)


def test_a_bomb_is_refused_from_its_header(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(header_only_png(50_000, 50_000))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"bomb\.png is too large .*2500000000 pixels.*; at most 100,000,000"):
        load_image(file)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded(picture())[:40], encoded(picture((300, 300)), "JPEG")[:200]]
)
def test_damaged_files_are_named(tmp_path, content):
    file = tmp_path / "damaged.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.png cannot be read as an image.*leave it out"):
        load_image(file)


def test_missing_files_and_wrong_things_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="a path, bytes or a PIL image"):
        load_image(3)  # type: ignore[arg-type]


def test_perceptual_hash_survives_resizing():
    gradient = Image.linear_gradient("L").convert("RGB")
    assert perceptual_hash(gradient) - perceptual_hash(gradient.resize((100, 100))) <= 2
    assert perceptual_hash(gradient) - perceptual_hash(gradient.rotate(90)) > 10


def test_sixteen_bit_grey_is_scaled_and_what_cannot_be_is_refused():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(load_image(encoded(Image.fromarray(ramp))))[..., 0]
    assert np.abs(grey.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    with pytest.raises(UserError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))
    with pytest.raises(UserError, match="beyond 16 bits"):
        load_image(Image.new("I", (2, 2), 70_000))
    with pytest.raises(UserError, match="cell is empty"):
        load_image({"path": None, "bytes": None})


def test_a_broken_file_has_one_message_however_often_it_is_read(tmp_path):
    """Reports are compared between runs: no address in memory may stand in them."""
    (tmp_path / "x.jpg").write_bytes(b"")
    (tmp_path / "y.jpg").write_bytes(b"no image")
    for name, words in (
        ("x.jpg", "the file is empty"),
        ("y.jpg", "it is of no format that is read: JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, JPEG2000"),
    ):
        messages = set()
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                load_image(tmp_path / name)
            messages.add(str(caught.value))
        assert messages == {f"{tmp_path / name} cannot be read as an image ({words}). Replace it, or leave it out."}


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    """Pillow's AVIF decoder raises a RuntimeError."""

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to decode image")

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image \(Failed to decode"):
        load_image(tmp_path / "x.png")


def ramp(top):
    """64 × 64 grey values from 0 to the top."""
    return np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)


def colours_png(values, alpha=False):
    """A PNG of 16-bit colours, which Pillow cannot write: grey ones, with or without alpha."""
    height, width = values.shape
    channels = [values] * 3 + [np.full_like(values, 65535)] * alpha
    rows = np.stack(channels, -1).astype(">u2").reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 16, 6 if alpha else 2, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [b"IHDR" + head, b"IDAT" + content, b"IEND"]
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_pictures_of_ten_to_fourteen_bits_are_not_dark(top, bits):
    """Cameras write 10 to 14 bits into 16-bit files."""
    grey = ramp(top)
    sources = [encoded(Image.fromarray(grey)), encoded(Image.fromarray(grey), "TIFF")]
    for source in [*sources, colours_png(grey), colours_png(grey, alpha=True)]:
        image, changes = read_image(source)
        assert changes == [f"{bits} bits"]
        shown = np.asarray(image)[..., 1].astype(int)
        assert np.abs(shown - grey.astype(int) * 255 // top).max() <= 1


def test_of_an_animation_the_first_frame_is_taken_and_named():
    frames = [picture(colour=colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        image, changes = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        red, _, blue = image.getpixel((5, 5))
        assert changes == ["first frame"] and red > 200 > blue
    assert read_image(encoded(frames[0], "GIF"))[1] == []


@pytest.mark.parametrize("ending", ["png", "jpg", "eps", "tif"])
def test_content_of_a_format_that_is_not_read_starts_no_program(tmp_path, monkeypatch, ending):
    encapsulated = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n"
    file = tmp_path / f"x.{ending}"
    file.write_bytes(encapsulated)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    with pytest.raises(
        UserError, match=rf"x\.{ending} cannot be read as an image \(it is of no format that is read: JPEG, PNG"
    ):
        load_image(file)
    assert not {".eps", ".ico", ".icns", ".psd", ".wmf"} & SUFFIXES


def test_a_small_file_that_unpacks_to_a_large_icon_is_not_unpacked():
    inner = header_only_png(20_000, 20_000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(UserError, match="of no format that is read"):
        load_image(icon)


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_long_thin_images_are_measured_before_they_are_resized(size):
    with pytest.raises(UserError, match=f"has {size[0]} × {size[1]} pixels.*65,535 on a side"):
        perceptual_hash(encoded(Image.new("L", size)))
    perceptual_hash(encoded(Image.new("L", (9_000, 1))))


def test_pillows_own_check_for_bombs_stays_on(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Image, "open", lambda *a, open=Image.open, **k: seen.append(Image.MAX_IMAGE_PIXELS) or open(*a, **k)
    )
    load_image(encoded(picture()))
    assert seen and all(seen)


def test_deep_grey_with_transparency_is_refused_rather_than_dark():
    def grey_alpha(top):
        rows = np.stack([ramp(top), np.full((64, 64), 65535)], -1).astype(">u2").reshape(64, -1)
        head = struct.pack(">IIBBBBB", 64, 64, 16, 4, 0, 0, 0)
        parts = [b"IHDR" + head, b"IDAT" + zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), b"IEND"]
        chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    assert read_image(grey_alpha(65535))[1] == ["16 bits"]
    with pytest.raises(UserError, match="at most 14 bits"):
        load_image(grey_alpha(4095))
