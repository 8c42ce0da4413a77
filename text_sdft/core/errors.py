"""A user's mistakes, and what their messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten


class UserError(Exception):
    """A mistake of the user's: its message names the file, row or key, and the remedy. The CLI prints it and exits 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question, to stand behind a complaint; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def does_not_exist(path: Path) -> str:
    """That there is no such file or folder, with the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} does not exist.{did_you_mean(path.name, beside)}"


def first_line(error: Exception, length: int = 240) -> str:
    """The first line of a library's message, shortened: some go on with hundreds of class names."""
    return shorten(str(error).strip().partition("\n")[0], length, placeholder=" …")


def listed(names: Iterable[object], most: int = 5, length: int = 60) -> str:
    """Names in a sentence: the first of them, each shortened to so many characters, and how many more there are."""
    whole = [" ".join(str(name).split()) for name in names]
    shown = [name if len(name) <= length else f"{name[: length - 1]}…" for name in whole[:most]]
    return ", ".join(shown) + (f" and {len(whole) - most} more" if len(whole) > most else "")
