"""Plots as SVG to stand in the page: text stays text, and each carries its numbers in words for those who cannot see it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from text_sdft.experiments.folder import Record
from text_sdft.experiments.report.reading import Point, Run
from text_sdft.experiments.stats import pareto_front

#: Told apart without colour vision (Okabe and Ito), and by their markers; one more of these, so that pairs repeat late.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#56B4E9")
MARKERS = "osD^vPX"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#667",
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
}
Series = Mapping[str, Sequence[tuple[float, float]]]


def learning_curve(run: Run) -> Markup | None:
    """Losses by step."""
    names = {"distillation/loss": "queries", "retain/loss": "retention prompts"}
    series = {label: _series(run.metrics, name) for name, label in names.items()}
    series = {label: points for label, points in series.items() if points} or {"loss": _series(run.metrics, "loss")}
    return _lines("Learning curve", "loss", series)


def accuracy_curve(run: Run) -> Markup | None:
    """Accuracy of each set by step: what is learnt, and what is forgotten. Before and after training are its ends."""
    before, after = run.results["before"], run.results.get("after", {})
    last = max((log["step"] for log in run.metrics), default=0)
    series: dict[str, list[tuple[float, float]]] = {}
    for name in before:
        if name == "teacher":
            continue
        between = [p for p in _series(run.metrics, f"eval_{name}_accuracy") if 0 < p[0] < last]
        end = [(last, after[name]["accuracy"])] if name in after and last else []
        series[name] = [(step, 100 * value) for step, value in [(0, before[name]["accuracy"]), *between, *end]]
    teacher = before.get("teacher", {}).get("accuracy")
    level = None if teacher is None else ("teacher at the start", 100 * teacher)
    return _lines("Learning and forgetting", "accuracy in %", series, percent=True, level=level)


def ladder_history(run: Run) -> Markup | None:
    """Mean rung of the privilege ladder that labelled queries were shown, by step; None where hints did not grow."""
    return _lines("Growing hints", "mean rung", {"mean rung": _series(run.metrics, "ladder/mean_rung")})


@rc_context(STYLE)
def pareto(points: Sequence[Point], starts: Sequence[Point]) -> Markup | None:
    """New against old accuracy of trained models; what nothing beats in both is joined by a line. Starts are hollow."""
    if len(points) < 2:
        return None
    places = [(point.old, point.new) for point in points]
    best = {places[i] for i in pareto_front(places)}
    front = sorted((point for point in points if (point.old, point.new) in best), key=lambda point: point.old)
    figure, axes = _figure()
    for i, point in enumerate(points):
        axes.plot(100 * point.old, 100 * point.new, label=point.label, linestyle="", markersize=8, **series_style(i))
    for start in starts:
        style = {"linestyle": "", "marker": "o", "color": "#556", "fillstyle": "none"}
        axes.plot(100 * start.old, 100 * start.new, label=start.label, **style)
    axes.step([100 * p.old for p in front], [100 * p.new for p in front], where="pre", color="#889", linewidth=1, zorder=1)
    axes.set(xlabel="old, accuracy in %", ylabel="new, accuracy in %")
    axes.margins(0.1)
    _legend(axes)
    words = "; ".join(f"{p.label}: new {100 * p.new:.1f} %, old {100 * p.old:.1f} %" for p in [*points, *starts])
    return _svg(figure, "New against old accuracy", words + ". Unbeaten: " + ", ".join(p.label for p in front) + ".")


def probe_bars(accuracy: Mapping[str, Record]) -> Markup:
    """Accuracies of a probe with their intervals."""
    percent = {name: [100 * score[key] for key in ("accuracy", "low", "high")] for name, score in accuracy.items()}
    return _bars("Accuracy before training", "accuracy in %", percent)


def probability_bars(answer: Mapping[str, Record]) -> Markup:
    """How probable the right answer is to student and teacher: the geometric mean of its tokens' probabilities."""
    percent = {name: [100 * math.exp(view["logp_token"])] for name, view in answer.items()}
    return _bars("Probability of the right answer", "probability of a token of it in %", percent)


def _series(metrics: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(log["step"], log[name]) for log in metrics if log.get(name) is not None]


@rc_context(STYLE)
def _lines(
    title: str, unit: str, series: Series, percent: bool = False, level: tuple[str, float] | None = None
) -> Markup | None:
    """Lines by step; None where there is nothing to join."""
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure, axes = _figure()
    for i, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), label=name, markersize=4, **series_style(i))
    if level is not None:
        axes.axhline(level[1], color="#667", linestyle="--", linewidth=1, label=level[0])
    lowest, highest = (-3, 103) if percent else (min(0, axes.get_ylim()[0]), None)
    axes.set(xlabel="optimiser step", ylabel=unit, ylim=(lowest, highest))
    _legend(axes)
    words = [
        f"{name}: {points[0][1]:.3g} at step {points[0][0]:.0f}, {points[-1][1]:.3g} at step {points[-1][0]:.0f}"
        for name, points in series.items()
    ]
    words += [f"{level[0]}: {level[1]:.3g}"] if level is not None else []
    return _svg(figure, title, "; ".join(words) + ".")


@rc_context(STYLE)
def _bars(title: str, unit: str, percent: Mapping[str, Sequence[float]]) -> Markup:
    """A bar for each name: its value, and its interval where there is one."""
    names, values = list(percent), [value for value, *_ in percent.values()]
    figure, axes = _figure(height=0.8 + 0.32 * len(names))
    colours = [COLOURS[0] if name in ("student", "teacher") else "#9aa5b1" for name in names]
    axes.barh(names, values, color=colours, height=0.6)
    for place, (value, *interval) in enumerate(percent.values()):
        if interval:
            low, high = interval
            axes.errorbar(value, place, xerr=[[value - low], [high - value]], color="#334", capsize=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, 102), xlabel=unit)
    axes.grid(visible=False, axis="y")
    return _svg(figure, title, ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, values, strict=True)) + ".")


def _figure(height: float = 3.0) -> Any:
    """A figure and its axes, made without pyplot: nothing is kept, and no window system is asked for."""
    figure = Figure(figsize=(4.4, height), layout="constrained")
    return figure, figure.add_subplot()


def series_style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _legend(axes: Any) -> None:
    axes.figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)


def _svg(figure: Any, title: str, words: str) -> Markup:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": title + words}):  # ids that no other plot of the page has
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", text, count=4)
    label = escape(f"{title}. {words}")
    return Markup(text.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1))
