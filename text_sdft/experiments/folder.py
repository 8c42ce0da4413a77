"""What is there when a run goes on: its results, its newest whole checkpoint, and its lines up to that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from text_sdft.core.files import Record, read_json, read_json_lines, write_json, write_json_lines
from text_sdft.experiments.shapes import LOG, RESULTS, SAMPLE
from text_sdft.training.checkpoints import checkpoint_step, checkpoints

__all__ = ["Record", "read_json", "write_json"]


def read_results(folder: Path) -> Any:
    """A run's ``results.json``; None where there is none. Raises `UserError` where it is damaged."""
    return read_json(folder / "results.json", RESULTS)


def read_metrics(folder: Path) -> list[Record]:
    """A run's logs. Raises `UserError` naming a damaged line."""
    return read_json_lines(folder / "metrics.jsonl", LOG)


def read_samples(folder: Path) -> list[Record]:
    """A run's completions and answers. Raises `UserError` naming a damaged line."""
    return read_json_lines(folder / "samples.jsonl", SAMPLE)


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
