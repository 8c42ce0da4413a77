"""Files of a run's folder: JSON that is written whole or not at all, and what is there when a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from text_sdft.core import UserError

Record = dict[str, Any]


def write_json(file: Path, content: Any) -> None:
    """JSON, whole or not at all; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    part.replace(file)


def read_json(file: Path) -> Any:
    """A file's content; None where there is none. Raises `UserError` where it is damaged."""
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{file} is not whole JSON ({error}): the run was stopped while it wrote, or the file was edited."
        ) from error


def read_json_lines(file: Path) -> list[Record]:
    """One record a line; half a line, of a run that was killed while it wrote, is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else ():
        try:
            records += [json.loads(line)] if line else []
        except ValueError:
            continue
    return records


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: of a killed run's, the last file may be half or missing."""
    complete = []
    for file in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            complete += [file.parent] if read_json(file) and file.parent.name[11:].isdigit() else []
        except UserError:
            continue
    return max(complete, key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """Optimiser steps done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def drop_later_lines(file: Path, checkpoint: Path | None) -> None:
    """Leave out what a run that goes on writes again: of training steps after the checkpoint, of answers after training."""
    if not file.exists():
        return
    step = 0 if checkpoint is None else checkpoint_step(checkpoint)
    # samples.jsonl counts steps from 0, metrics.jsonl from 1.
    first = step if file.name == "samples.jsonl" else step + 1
    records = read_json_lines(file)
    kept = [r for r in records if r.get("step", first if r.get("phase") == "after" else -1) < first]
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), encoding="utf-8")
