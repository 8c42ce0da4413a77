"""What a report is made of: the files of a run's folder, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_sdft.core import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run's records.

    Attributes:
        name: what the page calls it.
        results: ``results.json``; without ``after`` while the run has not finished.
        metrics: lines of ``metrics.jsonl``: logs of steps.
        answers: lines of ``samples.jsonl`` that are answers before and after training.
        probe: ``probe.json``, where what was probed is what was trained.
    """

    name: str
    results: Record
    metrics: list[Record]
    answers: list[Record]
    probe: Record | None

    @property
    def method(self) -> str:
        """What it was trained with."""
        return str(self.results["settings"].get("method", "sdft"))

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return max((log["step"] for log in self.metrics), default=0)


@dataclass(frozen=True)
class Point:
    """A model between what is new and what is old (the mean of its sets of prior skills): accuracies in [0, 1]."""

    label: str
    new: float
    old: float


def read_run(folder: Path, name: str) -> Run:
    """The records of a run. Raises `UserError` where the folder holds none."""
    if not (folder / "results.json").is_file():
        raise UserError(
            f"{folder} holds no run to report on (no results.json): give what --train.output_dir named, or a folder of "
            "`vlm-sdft compare` or `vlm-sdft sequence`."
        )
    samples, results = _lines(folder / "samples.jsonl"), _json(folder / "results.json")
    return Run(
        name=name,
        results=results,
        metrics=_lines(folder / "metrics.jsonl"),
        answers=[sample for sample in samples if "phase" in sample],
        probe=_probe(folder / "probe.json", results["settings"]),
    )


def _probe(file: Path, trained: Record) -> Record | None:
    """A probe of the run's own model, data and demonstrations; None where it was of others, or there is none."""
    probe = read_if_there(file)
    probed = (probe or {}).get("settings", trained)  # those written before they held settings are taken for the run's
    return probe if all(probed.get(part) == trained.get(part) for part in ("model", "data", "demonstrations")) else None


def read_if_there(file: Path) -> Any:
    """A JSON file's content; None where there is none."""
    return _json(file) if file.is_file() else None


def run_names(folders: Iterable[Path]) -> list[str]:
    """The folders' last names, or their whole paths where two are the same."""
    folders = [Path(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{file} is not whole JSON ({error}): the run was stopped while it wrote, or the file was edited."
        ) from error


def _lines(file: Path) -> list[Record]:
    """Lines of JSON; half a line, of a run that was killed while it wrote, is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else ():
        try:
            records += [json.loads(line)] if line else []
        except ValueError:
            continue
    return records
