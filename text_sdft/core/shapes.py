"""What must stand in a JSON file: it may have been edited by hand.

A shape is a type, a tuple of them (which may end in another shape), ``[shape]`` (a list of such), or a mapping: of keys
(``"key?"`` may be missing) or, under `ANY`, of whatever keys there are. ``object`` is anything.
"""

from __future__ import annotations

import math
from typing import Any

ANY = "*"
NUMBER, TEXT = (int, float), (str,)


def shape_fault(value: Any, shape: Any, key: str = "") -> str:
    """What is wrong with the first value that does not fit, by its key; empty where all do. Numbers are finite."""
    if shape is object:
        return ""
    if isinstance(shape, type):
        shape = (shape,)
    if isinstance(shape, tuple):
        kinds = tuple(one for one in shape if isinstance(one, type))
        stray = (isinstance(value, bool) and bool not in kinds) or (isinstance(value, float) and not math.isfinite(value))
        if isinstance(value, kinds) and not stray:
            return ""
        others = [one for one in shape if not isinstance(one, type)]
        return shape_fault(value, others[0], key) if others else f"'{key}' is {_short(value)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"'{key}' is no list"
        return next((fault for k, one in enumerate(value) if (fault := shape_fault(one, shape[0], f"{key}[{k}]"))), "")
    if not isinstance(value, dict):
        return f"'{key}' is no mapping" if key else "the content is no mapping"
    for name in shape:
        if name.removesuffix("?") not in value and name != ANY and not name.endswith("?"):
            return f"'{f'{key}.{name}'.lstrip('.')}' is missing"
    faults = (
        shape_fault(one, shape.get(name, shape.get(f"{name}?", shape.get(ANY, object))), f"{key}.{name}".lstrip("."))
        for name, one in value.items()
    )
    return next(filter(None, faults), "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
