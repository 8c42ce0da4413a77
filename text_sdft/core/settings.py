"""Fields of the dataclasses that a config file fills: their defaults, their bounds, and what `--help` says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Bounds(NamedTuple):
    """The least and the largest sensible value; `above` where the least itself is too small."""

    least: float = -1e9
    most: float = 1e9
    above: bool = False

    def remedy(self, value: float) -> str:
        """What to use in the place of a value; empty where it is within."""
        if value >= self.least and not (self.above and value == self.least):
            return "" if value <= self.most else f"at most {self.most:,.10g}"
        return f"more than {self.least:,.10g}" if self.above else f"{self.least:,.10g} or more"  # of NaN too


class _Help(str):
    """What `--help` says, and the bounds beside it (transformers' parser takes no more of a field than its help)."""

    bounds: Bounds


def setting(default: Any = MISSING, help: str = "", **bounds: Any) -> Any:
    """A dataclass field with its help.

    Args:
        default: a value, or a type such as `dict` whose empty value is the default; left out: the setting is needed.
        help: what `--help` says.
        bounds: of a number, see `Bounds`.
    """
    told = _Help(help)
    told.bounds = Bounds(**bounds)
    metadata = {"help": told}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def wrong_value(values: Any, prefix: str = "", inherited: Mapping[str, Bounds] | None = None) -> str:
    """``NAME VALUE: use …`` of the first field whose value is of another type or out of bounds; empty where all are good.

    Args:
        values: a dataclass with fields made by `setting`.
        prefix: stands before the name.
        inherited: bounds of other fields, by name.
    """
    hints = get_type_hints(type(values))
    for f in fields(values):
        value, bounds = getattr(values, f.name), getattr(f.metadata.get("help"), "bounds", (inherited or {}).get(f.name))
        if bounds is not None and (remedy := _remedy(value, hints[f.name], bounds)):
            return f"{prefix}{f.name} {shorten(repr(value), 60, placeholder='…')}: use {remedy}"
    return ""


def _remedy(value: Any, hint: Any, bounds: Bounds) -> str:
    """What to use in the place of a value; empty where it is good."""
    kinds = [hint] if get_origin(hint) is Literal else get_args(hint) or [hint]
    kind, unset = kinds[0], ", or leave it unset" * (type(None) in kinds)
    if unset and value is None:
        return ""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else " or ".join(get_args(kind)) + unset
    if kind not in (int, float):
        return ""
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        number = "a whole number" if kind is int else "a number (in YAML 1.0e-4, since 1e-4 is read as a string)"
        return number + unset
    remedy = bounds.remedy(value)  # type: ignore[arg-type]
    return remedy and remedy + unset
