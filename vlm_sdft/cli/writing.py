"""Whether a folder can be written, asked before anything that takes time."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from text_sdft.core.errors import UserError


def check_writable(folder: Path, setting: str) -> None:
    """Make the folder and a file in it, and leave nothing of them behind.

    Args:
        setting: which names the folder.

    Raises:
        UserError: that fails, on a file system that is read-only, say.
    """
    made: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name another folder with --{setting}.")
        for part in reversed([folder, *folder.parents]):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} cannot be written ({why}): name another folder with --{setting}.") from error
    finally:
        for part in reversed(made):
            with suppress(OSError):  # another run has begun in it
                part.rmdir()


def check_apart(folder: Path, data: Path, setting: str) -> None:
    """Raise `UserError` where a folder that is written lies within the data, whose next reading would find it."""
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise UserError(f"{folder} lies in the data's folder {data}: name another folder with --{setting}.")
