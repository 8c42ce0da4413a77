"""What is there when a run goes on: its results, its newest whole checkpoint, and its lines up to that."""

from __future__ import annotations

import shutil
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from text_sdft.core.files import Record, Shape, read_json, read_json_lines, write_json, write_json_lines
from text_sdft.training.checkpoints import checkpoint_step, checkpoints

__all__ = ["Record", "read_json", "write_json"]
_RUN = {"before": dict, "trained": str, "seconds": Real, "settings": dict, "versions": dict}
_FURTHER = dict.fromkeys(("after", "probe", "drift", "rows", "digests", "tokens"), dict)
RESULTS = Shape({**_FURTHER, "processes": int, "resumed_at": int}, lambda _: _RUN)
SCORE = Shape(dict.fromkeys(("accuracy", "n", "low", "high"), Real))
METRICS = Shape({"step": int, "*": (Real, NoneType)})
_TEXTS = dict.fromkeys(
    ("phase", "set", "view", "id", "prompt", "answer", "reference", "completion", "context"), (str, NoneType)
)
_ANSWER = {"phase": str, "id": str, "set": str, "view": str, "answer": str, "score": Real}
SAMPLES = Shape(
    {**_TEXTS, "score": (Real, NoneType), "images": list, "demonstrations": list},
    lambda record: _ANSWER if "phase" in record else {"id": str, "step": int},
)


def read_results(folder: Path) -> Any:
    """A run's ``results.json``; None where there is none. Raises `UserError` where it is damaged."""
    file = folder / "results.json"
    results = read_json(file, RESULTS)
    for phase in ("before", "after") if results else ():
        for name, score in results.get(phase, {}).items():
            SCORE.check(score, f"{file}: {phase}.{name}")
    return results


def read_metrics(folder: Path) -> list[Record]:
    """A run's logs. Raises `UserError` naming a damaged line."""
    return read_json_lines(folder / "metrics.jsonl", METRICS)


def read_samples(folder: Path) -> list[Record]:
    """A run's completions and answers. Raises `UserError` naming a damaged line."""
    return read_json_lines(folder / "samples.jsonl", SAMPLES)


def rewind(folder: Path, checkpoint: Path | None) -> None:
    """Leave out what a run that goes on writes again: steps after the checkpoint, what was said of all, answers after."""
    step = checkpoint_step(checkpoint)
    logs = [log for log in read_metrics(folder) if log["step"] <= step and "train_runtime" not in log]
    # samples.jsonl counts steps from 0, metrics.jsonl from 1.
    samples = [r for r in read_samples(folder) if (r["phase"] != "after" if "phase" in r else r["step"] < step)]
    for name, records in (("metrics.jsonl", logs), ("samples.jsonl", samples)):
        if (folder / name).exists():
            write_json_lines(folder / name, records)
    for later in checkpoints(folder):
        if checkpoint_step(later) > step:  # not whole; the Trainer would take it for the newest when it deletes old ones
            shutil.rmtree(folder / f"damaged-{later.name}", ignore_errors=True)
            if (later / TRAINER_STATE_NAME).exists():
                later.replace(folder / f"damaged-{later.name}")
            else:  # which is written last: the run was killed before
                shutil.rmtree(later)
