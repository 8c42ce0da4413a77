"""What the files of a run's folder hold, as `text_sdft.core.shapes` says it: they may have been edited by hand."""

from __future__ import annotations

from types import NoneType

from text_sdft.core.shapes import ANY, NUMBER

SCORE = {"accuracy": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
VERDICT = {"decision": str, "reason": str, "notes": [str]}
RESULTS = {
    "settings": {"model": str, "data": {ANY: object}, "train?": {ANY: object}},
    "before": {ANY: SCORE},
    "after?": {ANY: SCORE},
    "probe?": VERDICT,
    "drift?": {"before": dict, "after?": dict},
    "trained": str,
    "rows?": {ANY: int},
    "digests?": {ANY: str},
    "processes?": int,
    "seconds": NUMBER,
    "tokens?": {ANY: NUMBER},
    "versions": dict,
    "resumed_at?": NUMBER,
}
LOG = {"step": int, ANY: object}
SHOWN = {"prompt": str, "answer": str, "images?": [str]}
ANSWER = {
    **SHOWN, "phase": str, "set": str, "view": str, "id": (str, int), "reference": object, "score": NUMBER,
    "demonstrations?": [SHOWN], "context?": str,
}  # fmt: skip
#: Of ``samples.jsonl``, whose lines are answers, and completions of training.
SAMPLE = {"id": (str, int), "step?": int, "phase?": str, ANY: object}
PROBE = {
    "accuracy": {ANY: SCORE},
    "answer?": {ANY: (NoneType, {"logp_token": NUMBER, "entropy": NUMBER})},
    "tokens": {"student": NUMBER, "teacher": NUMBER},
    "seconds": {"student": NUMBER, "teacher": NUMBER},
    "verdict": VERDICT,
    "settings?": dict,
}
OVER_SEEDS = {"over_seeds": {"mean": NUMBER}}
COMPARISON = {"methods": {ANY: {"learning_rate": (*NUMBER, NoneType), "new": OVER_SEEDS, "prior?": OVER_SEEDS}}}
CELL = {"method": str, "learning_rate": NUMBER, "seed": int, "seconds": NUMBER, "flops": NUMBER}
ROW = {"new": [NUMBER], "old": {ANY: NUMBER}}
SEQUENCE = {
    "tasks": [str], "method": str, "settings?": list, "before": ROW, "n?": dict, "after": [ROW],
    "joint?": (NoneType, ROW), "summary?": {ANY: NUMBER}, "retain_earlier?": int,
}  # fmt: skip
