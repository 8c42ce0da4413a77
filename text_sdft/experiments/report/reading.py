"""What a report is made of: the files of a run's folder, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_sdft.core import UserError
from text_sdft.experiments.folder import Record, read_json, read_json_lines
from text_sdft.experiments.shapes import ANSWER, LOG, PROBE, RESULTS, checked


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
    results, metrics, samples = (folder / name for name in ("results.json", "metrics.jsonl", "samples.jsonl"))
    if (found := read_json(results)) is None:
        raise UserError(
            f"{folder} holds no run to report on (no results.json): give what --train.output_dir named, or a folder of "
            "`vlm-sdft compare` or `vlm-sdft sequence`."
        )
    return Run(
        name=name,
        results=checked(found, RESULTS, results),
        metrics=_lines(metrics, LOG),
        answers=_lines(samples, ANSWER, "phase"),
        probe=_probe(folder / "probe.json", found["settings"]),
    )


def _lines(file: Path, shape: Any, key: str = "") -> list[Record]:
    """The records of a file, those with the key."""
    lines = enumerate(read_json_lines(file), start=1)
    return [
        checked(record, shape, file, k) for k, record in lines if not isinstance(record, dict) or not key or key in record
    ]


def _probe(file: Path, trained: Record) -> Record | None:
    """A probe of the run's own model, data and demonstrations; None where it was of others, or there is none."""
    probe = read_json(file)
    if probe is not None:
        checked(probe, PROBE, file)
    probed = (probe or {}).get("settings", trained)  # those written before they held settings are taken for the run's
    return probe if all(probed.get(part) == trained.get(part) for part in ("model", "data", "demonstrations")) else None


def run_names(folders: Iterable[Path]) -> list[str]:
    """The folders' last names, or their whole paths where two are the same."""
    folders = [Path(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
