"""A report: one self-contained HTML page about one or several runs, read from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text_sdft.experiments.folder import Record, read_json
from text_sdft.experiments.report import plots
from text_sdft.experiments.report.answers import confusion, gallery
from text_sdft.experiments.report.reading import Point, Run, read_run, run_names
from text_sdft.experiments.scores import TASK

LABELS = {
    "new": "new: what was taught",
    "old": "old: what it knew",
    "teacher": "teacher: new, demonstrations in context",
}


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

    runs, points, comparisons, sequences = [], [], [], []
    for folder, name in zip(folders, run_names(folders), strict=True):
        compared, sequence = read_json(folder / "compare.json"), read_json(folder / "sequence.json")
        points += _compared(compared) if compared is not None else []
        comparisons += [{"name": name, **compared}] if compared is not None else []
        sequences += [{"name": name, **sequence}] if sequence is not None else []
        if compared is None and sequence is None:
            runs.append(read_run(folder, name))
    starts = [point for run in runs if (point := _point(run, "before"))]
    trained = [point for run in runs if (point := _point(run, "after"))]
    overview = [_overview(run) for run in runs] if len(runs) > 1 else []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        title=", ".join(run_names(folders)),
        pareto=plots.pareto([*points, *trained], starts[:1]),
        overview=overview,
        columns=list(dict.fromkeys(name for row in overview for name in row["cells"])),
        comparisons=comparisons,
        runs=[_run(run) for run in runs],
        sequences=sequences,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _run(run: Run) -> dict[str, Any]:
    """What the page says of one run; what the folder lacks is None or empty, and its section is left out."""
    settings = run.results["settings"]
    return {
        "name": run.name,
        "method": run.method,
        "model": settings["model"],
        "data": settings["data"].get("path", ""),
        "trained": run.results["trained"],
        "finished": "after" in run.results,
        "verdict": run.probe["verdict"] if run.probe else run.results.get("probe"),
        "probe_plots": _probe_plots(run.probe) if run.probe else [],
        "table": _table(run),
        "plots": [
            {"title": title, "svg": svg}
            for title, svg in (
                ("Learning and forgetting", plots.accuracy_curve(run)),
                ("Loss", plots.learning_curve(run)),
                ("Growing hints", plots.ladder_history(run)),
            )
            if svg is not None
        ],
        "confusion": confusion(run.answers),
        "gallery": gallery(run.answers),
        "costs": _costs(run),
        "settings": _flat(settings),
        "versions": run.results["versions"],
    }


def _probe_plots(probe: Record) -> list[dict[str, Any]]:
    found = [
        {
            "svg": plots.probe_bars(probe["accuracy"]),
            "caption": "Accuracy on new before training, with 95 % intervals: without and with demonstrations (blue); with "
            "other demonstrations, with spoiled ones, and of rivals that need no training (grey).",
        }
    ]
    if answer := {name: view for name, view in (probe.get("answer") or {}).items() if view}:
        entropies = ", ".join(f"{name} {view['entropy']:.2f}" for name, view in answer.items())
        caption = (
            "How probable the right answer is, read token by token (geometric mean). Entropy of the next token in nats: "
            f"{entropies}."
        )
        found.append({"svg": plots.probability_bars(answer), "caption": caption})
    return found


def _table(run: Run) -> list[dict[str, Any]]:
    before, after = run.results["before"], run.results.get("after", {})
    return [
        {
            "label": LABELS.get(name, name),
            "n": before[name]["n"],
            "before": _interval(before[name]),
            "after": _interval(after.get(name)),
            "change": _change(before[name], after.get(name)),
        }
        for name in before
    ]


def _overview(run: Run) -> dict[str, Any]:
    settings, after = run.results["settings"].get("train", {}), run.results.get("after", {})
    return {
        "name": run.name,
        "cells": {
            "method": run.method,
            **{name: _interval(after.get(name)) for name in ("new", "old") if name in run.results["before"]},
            "learning rate": settings.get("learning_rate", "–"),
            "steps": run.steps,
            "seed": settings.get("seed", "–"),
        },
    }


def _costs(run: Run) -> list[tuple[str, str]]:
    begun = run.results.get("resumed_at", 0)
    timed = run.steps - begun
    since = f" since step {begun}, where it was resumed" if begun else ""
    lengths = [log["completions/mean_length"] for log in run.metrics if "completions/mean_length" in log]
    seconds = run.results["seconds"]
    costs = [("optimiser steps", f"{run.steps}")]
    if "after" in run.results:  # a run's time and tokens are written at its end
        costs.append((f"training{since}", f"{seconds:.0f} s"))
        costs += [("seconds a step", f"{seconds / timed:.2f}")] if timed else []
    for use, label in (("student", "tokens that the student read"), ("sampled", "tokens read and written in sampling")):
        if count := run.results.get("tokens", {}).get(use):
            costs.append((f"{label}{since}", f"{count:,}"))
    costs += [("tokens a completion, mean", f"{sum(lengths) / len(lengths):.1f}")] if lengths else []
    if run.probe:
        for view in ("student", "teacher"):
            numbers = f"{run.probe['tokens'][view]:.0f} tokens, {run.probe['seconds'][view]:.3f} s"
            costs.append((f"a query to the {view}, as probed", numbers))
    return costs


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


def _point(run: Run, phase: str) -> Point | None:
    scores = run.results.get(phase, {})
    old = [score["accuracy"] for name, score in scores.items() if name not in (*TASK, "teacher")]
    if "new" not in scores or not old:
        return None
    return Point("before training" if phase == "before" else run.name, scores["new"]["accuracy"], sum(old) / len(old))


def _interval(score: Record | None) -> str:
    if score is None:
        return "–"
    percent, low, high = (100 * score[name] for name in ("accuracy", "low", "high"))
    return f"{percent:.1f}\u00a0% ({low:.0f}\u2060–\u2060{high:.0f})"  # a line breaks before the interval only


def _change(before: Record, after: Record | None) -> str:
    return "–" if after is None else f"{100 * (after['accuracy'] - before['accuracy']):+.1f}".replace("-", "−")


def _flat(settings: Record) -> dict[str, Any]:
    """Nested settings as ``section.key``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": entry for key, entry in inner.items()}
    return flat
