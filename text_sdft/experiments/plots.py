"""Plots of a comparison."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from text_sdft.experiments.scores import TASK
from text_sdft.experiments.stats import pareto_front

#: Okabe and Ito's colours, told apart by colour-blind readers too; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vPX*<>"


def plot_pareto(validation: dict[str, dict[float, dict[str, float]]], chosen: dict[str, float], file: Path) -> bool:
    """New task against prior skills, one point a method and learning rate, and the Pareto front of what is trained.

    Returns False where nothing is known of prior skills: there is no plot then.

    Args:
        validation: method -> rate -> {set: accuracy}.
        chosen: method -> its rate, drawn filled.
    """
    points = [
        (name, rate, sum(prior) / len(prior), accuracy["new"])
        for name, by_rate in validation.items()
        for rate, accuracy in by_rate.items()
        if (prior := [value for part, value in accuracy.items() if part not in TASK])
    ]
    if not points:
        return False
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    trained = [point for point in points if point[1]]  # in-context learning changes no weights, and would hide the rest
    front = [trained[i] for i in pareto_front([(x, y) for _, _, x, y in trained])]
    axes.plot([100 * x for *_, x, _ in front], [100 * y for *_, y in front], color="0.7", zorder=1, label="Pareto front")
    for i, name in enumerate(validation):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        for _, rate, x, y in (point for point in points if point[0] == name):
            filled = rate == chosen.get(name)
            face = colour if filled else "none"
            axes.scatter(
                100 * x, 100 * y, s=60, marker=marker, zorder=2, edgecolors=colour, facecolors=face,
                label=name if filled else None,
            )  # fmt: skip
            if rate:
                axes.annotate(f"{rate:g}", (100 * x, 100 * y), (5, 4), textcoords="offset points", fontsize=7, color="0.35")
    axes.set_xlabel("prior skills, accuracy in % (mean of their sets)")
    axes.set_ylabel("new task, accuracy in %")
    axes.set_title("Validation rows; learning rates beside the points, the chosen ones filled", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)
    return True
