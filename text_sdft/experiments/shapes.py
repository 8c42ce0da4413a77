"""What must stand in the files of a run's folder for a page to be made of them: they may have been edited by hand.

A shape is a type or several, ``[shape]`` (a list of such), or a mapping: of keys (``"key?"`` may be missing) or, under
`ANY`, of whatever keys there are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from text_sdft.core import UserError

ANY = "*"
NUMBER, TEXT = (int, float), (str,)
SCORE = {"accuracy": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
VERDICT = {"decision": TEXT, "reason": TEXT, "notes": [TEXT]}
RESULTS = {
    "settings": {"model": TEXT, "data": {ANY: object}, "train?": {ANY: object}},
    "before": {ANY: SCORE},
    "after?": {ANY: SCORE},
    "probe?": VERDICT,
    "trained": TEXT,
    "seconds": NUMBER,
    "tokens?": {ANY: NUMBER},
    "versions": {ANY: object},
    "resumed_at?": NUMBER,
}
LOG = {"step": NUMBER, ANY: (int, float, str, type(None))}
SHOWN = {"prompt": TEXT, "answer": TEXT, "images?": [TEXT]}
ANSWER = {
    **SHOWN, "phase": TEXT, "set": TEXT, "view": TEXT, "id": (str, int), "reference": object, "score": NUMBER,
    "demonstrations?": [SHOWN], "context?": TEXT,
}  # fmt: skip
PROBE = {
    "accuracy": {ANY: SCORE},
    "answer?": {ANY: ({"logp_token": NUMBER, "entropy": NUMBER}, type(None))},
    "tokens": {"student": NUMBER, "teacher": NUMBER},
    "seconds": {"student": NUMBER, "teacher": NUMBER},
    "verdict": VERDICT,
    "settings?": {ANY: object},
}
OVER_SEEDS = {"over_seeds": {"mean": NUMBER}}
COMPARISON = {"methods": {ANY: {"learning_rate": (int, float, type(None)), "new": OVER_SEEDS, "prior?": OVER_SEEDS}}}
ROW = {"new": [NUMBER], "old": {ANY: NUMBER}}
SEQUENCE = {
    "tasks": [TEXT], "before": ROW, "after": [ROW], "joint?": (ROW, type(None)), "summary?": {ANY: NUMBER}, "method": TEXT,
}  # fmt: skip


def checked(content: Any, shape: Any, file: Path, line: int | None = None) -> Any:
    """The content. Raises `UserError` naming file, line and key where it has not that shape."""
    if fault := _fault(content, shape, ""):
        where = f"{file}, line {line}" if line is not None else str(file)
        raise UserError(
            f"{where}: {fault}. The file was edited, or is of another program: restore it, or leave the run out."
        )
    return content


def _fault(value: Any, shape: Any, key: str) -> str:
    """What is wrong with the first value that does not fit; empty where all do."""
    if isinstance(shape, tuple):
        kinds = tuple(one for one in shape if isinstance(one, type))
        if isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value)):
            return "" if not isinstance(value, bool) else f"'{key}' is {value}"
        others = [one for one in shape if not isinstance(one, type)]
        return _fault(value, others[0], key) if others else f"'{key}' is {_short(value)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"'{key}' is no list"
        return next((fault for k, one in enumerate(value) if (fault := _fault(one, shape[0], f"{key}[{k}]"))), "")
    if not isinstance(shape, dict):
        return ""
    if not isinstance(value, dict):
        return f"'{key}' is no mapping" if key else "the content is no mapping"
    for name in shape:
        if name.removesuffix("?") not in value and name != ANY and not name.endswith("?"):
            return f"'{f'{key}.{name}'.lstrip('.')}' is missing"
    faults = (
        _fault(one, shape.get(name, shape.get(f"{name}?", shape.get(ANY, object))), f"{key}.{name}".lstrip("."))
        for name, one in value.items()
    )
    return next(filter(None, faults), "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
