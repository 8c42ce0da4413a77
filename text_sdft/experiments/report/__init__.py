"""A report: one self-contained HTML page about one or several runs, read from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text_sdft.core import UserError
from text_sdft.experiments.folder import Record, read_json
from text_sdft.experiments.pages import filled
from text_sdft.experiments.report import plots
from text_sdft.experiments.report.answers import confusion, cut, gallery, pictures
from text_sdft.experiments.report.reading import Point, Run, read_run, run_names
from text_sdft.experiments.scores import of_prior_skills
from text_sdft.experiments.settings import flattened
from text_sdft.experiments.shapes import COMPARISON, SEQUENCE, checked
from text_sdft.experiments.stats import mean


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        folders: runs' folders; a folder of `compare` adds its table, and its points to the Pareto plot, one of `sequence`
            its matrix.
        out: the HTML file.

    Raises:
        UserError: a folder holds none of these, or a file of theirs is damaged.
    """
    runs, comparisons, sequences = [], [], []
    for folder, name in zip(folders, run_names(folders), strict=True):
        compared, sequenced = folder / "compare.json", folder / "sequence.json"
        comparison, sequence = read_json(compared), read_json(sequenced)
        comparisons += [] if comparison is None else [(name, checked(comparison, COMPARISON, compared))]
        sequences += [] if sequence is None else [(name, checked(sequence, SEQUENCE, sequenced))]
        runs += [read_run(folder, name)] if comparison is None and sequence is None else []
    points = [point for _, comparison in comparisons for point in _compared(comparison)]
    points += [point for run in runs if (point := _point(run, "after", run.name))]
    starts = [point for run in runs if (point := _point(run, "before", "before training"))]
    page = filled(
        "report.html",
        title=", ".join(run_names(folders)),
        pareto=plots.pareto(points, starts[:1]),
        measured=[name for name in ("new", "old") if any(name in run.results["before"] for run in runs)],
        comparisons=comparisons,
        runs=[{"run": run, **_sections(run)} for run in runs],
        sequences=sequences,
        cut=cut,
        pictures=pictures,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8", errors="replace")  # names of files need not be UTF-8
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): name another file with --out.") from error


def _sections(run: Run) -> dict[str, Any]:
    """What the page shows beside a run's results; what the folder lacks is None or empty, and its section is left out."""
    drawn = {
        "Learning and forgetting": plots.accuracy_curve(run),
        "Loss": plots.learning_curve(run),
        "Growing hints": plots.ladder_history(run),
    }
    probe = run.probe or {}
    answer = {view: found for view, found in (probe.get("answer") or {}).items() if found}
    lengths = [log["completions/mean_length"] for log in run.metrics if "completions/mean_length" in log]
    return {
        "verdict": probe["verdict"] if probe else run.results.get("probe"),
        "probe_bars": plots.probe_bars(probe["accuracy"]) if probe else None,
        "answer": answer,
        "probability_bars": plots.probability_bars(answer) if answer else None,
        "plots": {title: svg for title, svg in drawn.items() if svg is not None},
        "confusion": confusion(run.answers),
        "gallery": gallery(run.answers),
        "mean_length": mean(lengths) if lengths else None,
        "settings": flattened(run.results["settings"]),
    }


def _compared(comparison: Record) -> list[Point]:
    """A point for each method of a comparison at its chosen learning rate: means over its seeds."""
    return [
        Point(
            f"{name}, lr {row['learning_rate']:g}" if row["learning_rate"] else name,
            row["new"]["over_seeds"]["mean"],
            row["prior"]["over_seeds"]["mean"],
        )
        for name, row in comparison["methods"].items()
        if "prior" in row
    ]


def _point(run: Run, phase: str, label: str) -> Point | None:
    scores = run.results.get(phase, {})
    old = [score["accuracy"] for score in of_prior_skills(scores).values()]
    return Point(label, scores["new"]["accuracy"], mean(old)) if "new" in scores and old else None
