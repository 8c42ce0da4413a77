"""Does the probe's gap before training predict what training gains? `python benchmarks/probe_validation.py --seeds 5`.

Each cell is a model, a source of images, a noise level, a number of demonstrations a type and a rung of the privilege
ladder. Measured: the gap (teacher minus student, as `vlm-sdft probe` does) and the student's gain by 100 steps of SDFT with
unlabelled images and retention prompts. The models are the builtin one; weaker ones (seeded noise on its language model's
weights, in units of each tensor's standard deviation); one that was taught the new types beforehand, whose demonstrations
can only mislead it; and the broader one of `unseen_types/` (first its `fetch.py` and `build_model.py`). *Random*: the
demonstrations are drawn at random, five types at a time, and the vote of several draws stands for the teacher. Prints a
table, writes JSON and a plot; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import MODEL, Cells, demo_set, make_trainer, mixed_types, shown
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent / "unseen_types"))

from sources import BROADER_MODEL, SOURCES, write_folder

from text_sdft.experiments.probe import VOTE, Probe
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.demos.selection import Selection
from vlm_sdft.zoo.few_shot import FewShot
from vlm_sdft.zoo.novel_objects import NovelObjects

TYPES, UNLABELLED, RATE, STEPS = 10, 20, 1e-3, 100


@dataclass(frozen=True)
class Cell:
    """``weak``: noise on the weights; ``taught``: steps of training beforehand; ``broader``: `build_model.py`'s model;
    ``random``: demonstrations are not retrieved."""

    noise: int
    shots: int
    rung: int
    weak: float = 0.0
    taught: int = 0
    source: str = "objects"
    broader: bool = False
    random: bool = False

    @property
    def name(self) -> str:
        model = f"weakened {self.weak:g}" if self.weak else f"taught {self.taught}" if self.taught else "builtin"
        images = f"noise {self.noise}" if self.source == "objects" else self.source
        drawn = ", random" if self.random else ""
        return f"{'broader' if self.broader else model}, {images}, {self.shots} a type, rung {self.rung}{drawn}"

    def demos(self, seed: int) -> DemoSet:
        """The cell's images. Drawn ones without labels have their types all the same: rung 1 leaves them out."""
        if self.source == "objects":
            return typed(demo_set(noise=self.noise, n_types=TYPES, n_unlabelled=UNLABELLED, seed=seed), seed)
        types = 5 if self.source == "fashion" else TYPES
        spec = FewShot(n_types=types, shots=self.shots, n_unlabelled=UNLABELLED, seed=seed)
        folder = write_folder(self.source, Path("runs/data"), spec, self.noise)
        return DemoSet.from_folder(folder, retain_questions=["What is this?", "Describe this."])


CELLS = (
    Cell(0, 2, 2),
    Cell(60, 2, 2, weak=0.65),
    Cell(60, 1, 2, weak=0.8),
    Cell(90, 1, 2),
    Cell(90, 2, 1),
    Cell(90, 2, 2, weak=0.6),
    Cell(90, 2, 2, weak=0.7),
    Cell(90, 2, 1, taught=20),
    Cell(90, 1, 2, taught=20),
    Cell(120, 1, 2),
    Cell(120, 2, 2, weak=0.5),
    Cell(120, 1, 2, weak=0.6),
    Cell(120, 2, 1, taught=6),
    *(Cell(0, 2, 2, source=source, broader=broader) for source in SOURCES for broader in (False, True)),
    Cell(90, 2, 2, random=True),
    Cell(150, 2, 2, random=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probe_validation.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/probe_validation.svg"))
    args = parser.parse_args()
    cells = Cells(args.out)
    seeds = range(args.seeds)
    for seed, cell in itertools.product(seeds, CELLS):
        cells.get(f"{cell.name}/{seed}", partial(run, cell, seed))
    report({cell.name: [cells.done[f"{cell.name}/{seed}"] for seed in seeds] for cell in CELLS}, args.plot)


def run(cell: Cell, seed: int) -> dict[str, float]:
    """Gap, then training, then gain, on the same test images."""
    demos = cell.demos(seed)
    selection: Selection = "random" if cell.random else "retrieved"
    adapter = ImageAdapter(demos, n_types=5, shots=cell.shots, rung=cell.rung, selection=selection)
    trainer = make_trainer(adapter, demos.train, RATE, STEPS, seed, model=model_of(cell, demos, seed))
    before = Probe(trainer, adapter.examples(demos.test), 50)
    before.measure("student", None)
    before.measure("teacher", before.contexts)
    before.measure_vote()
    gap = before.gap("teacher", "student")
    trainer.train()
    before.measure("trained", None)
    return {
        "student": before.accuracy("student").accuracy,
        "gap": gap.mean,
        "low": gap.low,
        "high": gap.high,
        **({"vote": before.gap(VOTE, "student").mean} if VOTE in before.scores else {}),
        "gain": before.gap("trained", "student").mean,
    }


def typed(demos: DemoSet, seed: int) -> DemoSet:
    """With the types of unlabelled images, as they were drawn."""
    names = [name.replace(" ", "-") for name in NovelObjects(n_types=TYPES, seed=seed).new_types()]
    numbers = mixed_types(demos.unlabelled, 3, seed, TYPES)
    demos.unlabelled = [replace(row, type=names[n]) for row, n in zip(demos.unlabelled, numbers, strict=True)]
    return demos


def model_of(cell: Cell, demos: DemoSet, seed: int) -> Any:
    """The cell's model, before the measured training."""
    adapter = ImageAdapter(demos, n_types=5, shots=2)
    module: Any = adapter.load_model(str(BROADER_MODEL) if cell.broader else MODEL, dtype=torch.float32)
    if cell.weak:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.model.language_model.parameters():
                spread = parameter.std() if parameter.dim() > 1 else parameter.new_zeros(())
                parameter.add_(cell.weak * spread * torch.randn(parameter.shape, generator=generator))
    if cell.taught:
        trainer = make_trainer(adapter, demos.train, RATE, cell.taught, seed + 1, model=module)
        trainer.train()
    return module


def expected(cell: Mapping[str, float]) -> float:
    """The gap that stands for what is to be gained: that of the draws' vote, where draws show different demonstrations."""
    return cell.get("vote", cell["gap"])


def report(found: Mapping[str, Sequence[Mapping[str, float]]], plot: Path) -> None:
    """Table, correlation and plot over all cells and seeds; in percentage points."""
    points = [(name, 100 * expected(cell), 100 * cell["gain"]) for name, cells in found.items() for cell in cells]
    print("| cell | student before | gap of a draw | gap of the vote | gain |\n|---|---|---|---|---|")
    for name, cells in sorted(found.items(), key=lambda item: sum(map(expected, item[1]))):
        columns = (shown([cell[key] for cell in cells if key in cell]) for key in ("student", "gap", "vote", "gain"))
        print(f"| {name} | {' | '.join(columns)} |")
    for what, chosen in (
        ("all", points),
        ("demonstrations drawn at random", [point for point in points if point[0].endswith("random")]),
        ("not taught before", [point for point in points if not point[0].startswith("taught")]),
        ("gap of 5 to 90 points", [point for point in points if 5 < point[1] < 90]),
        ("gap of 20 to 90 points", [point for point in points if 20 < point[1] < 90]),
        ("pictures not drawn by us", [point for point in points if any(f" {name}," in point[0] for name in SOURCES)]),
    ):
        gaps, gains = ([point[i] for point in chosen] for i in (1, 2))
        fit = stats.linregress(gaps, gains)
        clear = [point for point in chosen if abs(point[1]) > 5]
        right = sum((gap > 0) == (gain > 0) for _, gap, gain in clear)
        furthest = max(chosen, key=lambda point: abs(point[2] - point[1]))
        print(
            f"\n{what}: {len(chosen)} trainings, R² = {fit.rvalue**2:.3f}, gain = {fit.slope:.2f} · gap "
            f"{fit.intercept:+.1f}; gain − gap {shown([(b - a) / 100 for _, a, b in chosen], signed=True)}; sign right in "
            f"{right} of {len(clear)} with a gap beyond ± 5 points; furthest from its gap: {furthest[0]}, "
            f"{furthest[1]:+.1f} and {furthest[2]:+.1f}."
        )
    draw(points, plot)


def draw(points: Sequence[tuple[str, float, float]], plot: Path) -> None:
    """Gain against gap, with the line through all."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "probe"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 4.2), layout="constrained")
    axes.axhline(0, color="#bbb", linewidth=0.8)
    axes.axvline(0, color="#bbb", linewidth=0.8)
    fit = stats.linregress([gap for _, gap, _ in points], [gain for _, _, gain in points])
    ends = np.array([min(gap for _, gap, _ in points), max(gap for _, gap, _ in points)])
    axes.plot(ends, fit.intercept + fit.slope * ends, color="#888", linewidth=1, label=f"R² = {fit.rvalue**2:.2f}")
    for kind, marker in (("builtin", "o"), ("weakened", "s"), ("taught", "^"), ("broader", "D")):
        chosen = [(gap, gain) for name, gap, gain in points if name.startswith(kind)]
        axes.scatter([gap for gap, _ in chosen], [gain for _, gain in chosen], s=24, marker=marker, label=kind)
    axes.set_xlabel("gap before training: teacher − student (points)")
    axes.set_ylabel("gain of the student (points)")
    axes.legend(frameon=False)
    figure.savefig(plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
