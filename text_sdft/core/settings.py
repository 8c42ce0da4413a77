"""Fields of the dataclasses that a config file fills: their defaults and what `--help` says of them."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def setting(default: Any = MISSING, help: str = "") -> Any:
    """A dataclass field with its help.

    Args:
        default: a value, or a type such as `dict` whose empty value is the default; left out: the setting is needed.
        help: what `--help` says.
    """
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": help})
    return field(metadata={"help": help}) if default is MISSING else field(default=default, metadata={"help": help})
