"""A report: one self-contained HTML page about one or several runs, read from their folders alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from text_sdft.experiments.folder import Record, read_json
from text_sdft.experiments.report import plots
from text_sdft.experiments.report.answers import confusion, cut, gallery, pictures
from text_sdft.experiments.report.reading import Point, Run, read_run, run_names
from text_sdft.experiments.scores import TASK


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        folders: runs' folders; a folder of `compare` adds its table, and its points to the Pareto plot, one of `sequence`
            its matrix.
        out: the HTML file.

    Raises:
        UserError: a folder holds none of these, or a file of theirs is damaged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    runs, comparisons, sequences = [], [], []
    for folder, name in zip(folders, run_names(folders), strict=True):
        comparison, sequence = read_json(folder / "compare.json"), read_json(folder / "sequence.json")
        comparisons += [(name, comparison)] if comparison else []
        sequences += [(name, sequence)] if sequence else []
        runs += [] if comparison or sequence else [read_run(folder, name)]
    points = [point for _, comparison in comparisons for point in _compared(comparison)]
    points += [point for run in runs if (point := _point(run, "after", run.name))]
    starts = [point for run in runs if (point := _point(run, "before", "before training"))]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": cut, "pictures": pictures}
    page = environment.get_template("page.html").render(
        title=", ".join(run_names(folders)),
        pareto=plots.pareto(points, starts[:1]),
        measured=[name for name in ("new", "old") if any(name in run.results["before"] for run in runs)],
        comparisons=comparisons,
        runs=[{"run": run, **_sections(run)} for run in runs],
        sequences=sequences,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _sections(run: Run) -> dict[str, Any]:
    """What the page shows beside a run's results; what the folder lacks is None or empty, and its section is left out."""
    drawn = {
        "Learning and forgetting": plots.accuracy_curve(run),
        "Loss": plots.learning_curve(run),
        "Growing hints": plots.ladder_history(run),
    }
    return {
        "verdict": run.probe["verdict"] if run.probe else run.results.get("probe"),
        "probe_plots": list(_probe_plots(run.probe)) if run.probe else [],
        "plots": {title: svg for title, svg in drawn.items() if svg is not None},
        "confusion": confusion(run.answers),
        "gallery": gallery(run.answers),
        "costs": dict(_costs(run)),
        "settings": _flat(run.results["settings"]),
    }


def _probe_plots(probe: Record) -> Iterator[tuple[Any, str]]:
    """Plots with their captions."""
    yield (
        plots.probe_bars(probe["accuracy"]),
        "Accuracy on new before training, with 95 % intervals: without and with demonstrations (blue); with other "
        "demonstrations, with spoiled ones, and of rivals that need no training (grey).",
    )
    if answer := {name: view for name, view in (probe.get("answer") or {}).items() if view}:
        entropies = ", ".join(f"{name} {view['entropy']:.2f}" for name, view in answer.items())
        yield (
            plots.probability_bars(answer),
            "How probable the right answer is, read token by token (geometric mean). Entropy of the next token in nats: "
            f"{entropies}.",
        )


def _costs(run: Run) -> Iterator[tuple[str, str]]:
    """What the run took, in words."""
    begun = run.results.get("resumed_at", 0)
    since = f" since step {begun}, where it was resumed" if begun else ""
    yield "optimiser steps", f"{run.steps}"
    if "after" in run.results:  # a run's time and tokens are written at its end
        yield f"training{since}", f"{run.results['seconds']:.0f} s"
        if timed := run.steps - begun:
            yield "seconds a step", f"{run.results['seconds'] / timed:.2f}"
    for use, label in (("student", "tokens that the student read"), ("sampled", "tokens read and written in sampling")):
        if count := run.results.get("tokens", {}).get(use):
            yield f"{label}{since}", f"{count:,}"
    if lengths := [log["completions/mean_length"] for log in run.metrics if "completions/mean_length" in log]:
        yield "tokens a completion, mean", f"{sum(lengths) / len(lengths):.1f}"
    if probe := run.probe:
        for view in ("student", "teacher"):
            numbers = f"{probe['tokens'][view]:.0f} tokens, {probe['seconds'][view]:.3f} s"
            yield f"a query to the {view}, as probed", numbers


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
    old = [score["accuracy"] for name, score in scores.items() if name not in (*TASK, "teacher")]
    return Point(label, scores["new"]["accuracy"], sum(old) / len(old)) if "new" in scores and old else None


def _flat(settings: Record) -> dict[str, Any]:
    """Nested settings as ``section.key``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": entry for key, entry in inner.items()}
    return flat
