"""What a comparison shows: one table (Markdown and JSON) and the plot of the new task against prior skills."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from text_sdft.experiments.compare_cells import NEW, Comparison, seeds_matter
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.cost import FLOPS_FORMULA
from text_sdft.experiments.folder import write_json
from text_sdft.experiments.pages import filled
from text_sdft.experiments.report.plots import series_style
from text_sdft.experiments.scores import of_prior_skills
from text_sdft.experiments.stats import Accuracy, Interval, Paired, mean, pareto_front
from text_sdft.methods.table import METHODS, find_method


def write_tables(comparison: Comparison, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Write ``compare.json``, ``compare.md`` and ``compare.png``; returns the first.

    Returns:
        ``plan``; ``reference`` (what others are tested against: ``sdft``, or its variant with the shortest name);
        ``methods`` ({name: learning_rate, seeds, new and prior (each over_seeds, pooled, change, paired), sets, kl,
        perplexity, seconds, flops}); ``validation`` ({name: {rate: {set: accuracy}}}); ``skipped``, ``failed``.
    """
    variants = [name for name, cells in comparison.tests.items() if cells and name.partition("/")[0] == "sdft"]
    reference = min(variants, key=len, default=None)
    results = {
        "model": experiment.model,
        "data": experiment.settings["data"]["path"],
        "plan": comparison.plan,
        "reference": reference,
        "methods": {name: _row(comparison, name, reference) for name, cells in comparison.tests.items() if cells},
        "validation": {
            name: {f"{rate:g}": accuracy for rate, accuracy in by_rate.items()}
            for name, by_rate in comparison.validation.items()
        },
        "skipped": comparison.skipped,
        "failed": comparison.failed,
    }
    write_json(folder / "compare.json", results)
    plotted = plot_pareto(comparison.validation, comparison.chosen, folder / "compare.png")
    (folder / "compare.md").write_text(markdown(results, plotted), encoding="utf-8")
    return results


def markdown(results: dict[str, Any], plotted: bool) -> str:
    """The table with all that is needed to read it."""
    known = [name for name in results["methods"] if name.partition("/")[0] in METHODS]
    summaries = {name: find_method(name).summary for name in known}
    return filled("compare.md", **results, summaries=summaries, plotted=plotted, flops_formula=FLOPS_FORMULA)


def _row(comparison: Comparison, name: str, reference: str | None) -> dict[str, Any]:
    cells, base = comparison.tests[name], comparison.tests.get("base")
    sets, prior = list(cells[0]["test"]), list(of_prior_skills(cells[0]["test"]))
    row: dict[str, Any] = {
        "learning_rate": comparison.chosen[name],
        "seeds": [cell["seed"] for cell in cells],
        "sets": {part: asdict(Interval.over_seeds([_accuracy(cell, [part]) for cell in cells])) for part in sets},
        "seconds": mean(cell["seconds"] for cell in cells),
        "flops": mean(cell["flops"] for cell in cells),
    }
    for key in ("kl", "perplexity"):
        moved = [cell["drift"][key] for cell in cells if key in cell.get("drift", {})]
        row[key] = mean(moved) if moved else None
    for key, parts in (("new", [NEW]), ("prior", prior)) if prior else (("new", [NEW]),):
        over_seeds = Interval.over_seeds([_accuracy(cell, parts) for cell in cells])
        items = [score for cell in cells for part in parts for score in cell["test"][part].values()]
        row[key] = {
            "over_seeds": asdict(over_seeds),
            "pooled": asdict(Accuracy.of(items)),
            "change": over_seeds.mean - _accuracy(base[0], parts) if base else None,
            "paired": _paired(cells, comparison.tests[reference], parts) if reference not in (None, name) else None,
        }
    return row


def _accuracy(cell: dict[str, Any], parts: list[str]) -> float:
    """Mean over sets of a set's mean score."""
    return mean(mean(cell["test"][part].values()) for part in parts)


def _paired(cells: list[dict[str, Any]], reference: list[dict[str, Any]], parts: list[str]) -> dict[str, Any] | None:
    """On items, whose scores are means over the seeds that both have; a method without seeds has all of the reference's."""
    if seeds_matter(cells[0]):
        both = {cell["seed"] for cell in cells} & {cell["seed"] for cell in reference}
        cells, reference = ([cell for cell in side if cell["seed"] in both] for side in (cells, reference))
    if not cells:
        return None
    items = [(part, item) for part in parts for item in reference[0]["test"][part]]
    first, second = (
        [mean(cell["test"][part][item] for cell in side) for part, item in items] for side in (cells, reference)
    )
    return asdict(Paired.of(first, second))


def plot_pareto(validation: dict[str, dict[float, dict[str, float]]], chosen: dict[str, float], file: Path) -> bool:
    """New task against prior skills, one point a method and learning rate, and the Pareto front of what is trained.

    The rate that is chosen for a method is filled. False where nothing is known of prior skills: there is no plot then.
    """
    points = [
        (name, rate, mean(prior.values()), accuracy[NEW])
        for name, by_rate in validation.items()
        for rate, accuracy in by_rate.items()
        if (prior := of_prior_skills(accuracy))
    ]
    if not points:
        return False
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    trained = [point for point in points if point[1]]  # in-context learning changes no weights, and would hide the rest
    front = [trained[i] for i in pareto_front([(x, y) for _, _, x, y in trained])]
    axes.plot([100 * x for *_, x, _ in front], [100 * y for *_, y in front], color="0.7", zorder=1, label="Pareto front")
    for i, name in enumerate(validation):
        for _, rate, x, y in (point for point in points if point[0] == name):
            filled = rate == chosen.get(name)
            look: Any = {"fillstyle": "full", "label": name} if filled else {"fillstyle": "none"}
            axes.plot(100 * x, 100 * y, linestyle="", markersize=8, zorder=2, **series_style(i), **look)
            if rate:
                axes.annotate(f"{rate:g}", (100 * x, 100 * y), (5, 4), textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlabel="prior skills, accuracy in % (mean of their sets)", ylabel="new task, accuracy in %")
    axes.set_title("Validation rows; learning rates beside the points, the chosen ones filled", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)
    return True
