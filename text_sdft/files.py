"""Files of a user's data are read here alone: regular ones, no larger than is said."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from text_sdft.core.errors import UserError, listed

#: Bytes that a file may hold at most.
MOST_BYTES = 2**30
_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
#: Image formats that are read. Others that Pillow knows are left alone: EPS, for one, would start a program.
_IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def check_file(file: Path, most: int = MOST_BYTES) -> None:
    """Raise `UserError` unless there is a regular file (or a link to one) of at most ``most`` bytes that may be read.

    A pipe's or a device's content would not end, or not begin. Nor is a name taken that is not UTF-8 (see `check_name`).
    """
    check_name(file)
    try:
        state = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{file} does not exist. Check the path (relative paths start at the data file's folder)."
        ) from error
    except (OSError, ValueError) as error:  # a loop of links, a name with a zero byte
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{listed([file], length=200)} cannot be read: {why}. Rename it, or leave it out.") from error
    if not stat.S_ISREG(state.st_mode):
        kind = next((words for test, words in _KINDS.items() if test(state.st_mode)), "a device")
        raise UserError(f"{file} is {kind}, where a file is needed. Put a regular file there, or leave it out.")
    if state.st_size > most:
        raise UserError(
            f"{file} holds {state.st_size / 2**20:,.0f} MiB; at most {most // 2**20:,} MiB are read. Split it, or leave it "
            "out."
        )
    if not os.access(file, os.R_OK):
        raise UserError(f"{file} may not be read: give yourself the right to (chmod u+r), or leave it out.")


def file_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """The file's content. Raises `UserError` as `check_file`."""
    check_file(file, most)
    with file.open("rb") as stream:
        return stream.read(most)


def file_text(file: Path, most: int = 10 * 2**20) -> str:
    """The file's content as UTF-8. Raises `UserError` where it is no such text, and as `check_file`."""
    try:
        return file_bytes(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def check_name(path: Path) -> None:
    """Raise `UserError` where a name is not UTF-8: samples, reports and model cards could not be written with it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UserError(f"The name {shown} is not UTF-8. Rename the file or folder, or move it elsewhere.") from error


def image_formats() -> list[str]:
    """What `PIL.Image.open` may be given as its ``formats``."""
    from PIL import Image

    Image.init()
    return [kind for kind in _IMAGES if kind in Image.OPEN]
