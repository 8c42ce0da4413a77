"""Does the probe's gap before training predict what training gains? `python benchmarks/probe_validation.py`.

Each cell is a model, a noise level, a number of demonstrations a type and a rung of the privilege ladder. Measured: the gap
(teacher minus student, as `vlm-sdft probe` does) and the student's gain by 100 steps of SDFT with unlabelled images and
retention prompts. The models are the builtin one, weaker ones (seeded noise on its language model's weights, in units of
each tensor's standard deviation), and one that was taught the new types beforehand, whose demonstrations can only mislead
it. Prints a table, writes JSON and a plot; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import MODEL, Cells, demo_set, make_trainer
from scipy import stats

from text_sdft.core import SDFTTrainer
from text_sdft.experiments.measure import answers, score_all
from text_sdft.experiments.scores import contexts_for
from text_sdft.experiments.verdict import paired_gap
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.zoo.novel_objects import NovelObjects

TYPES, UNLABELLED, SEED, RATE, STEPS = 10, 20, 0, 1e-3, 100


@dataclass(frozen=True)
class Cell:
    """``weak``: noise on the weights; ``taught``: steps of training beforehand."""

    noise: int
    shots: int
    rung: int
    weak: float = 0.0
    taught: int = 0

    @property
    def name(self) -> str:
        model = f"weakened {self.weak:g}" if self.weak else f"taught {self.taught}" if self.taught else "builtin"
        return f"{model}, noise {self.noise}, {self.shots} a type, rung {self.rung}"


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
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probe_validation.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/probe_validation.svg"))
    args = parser.parse_args()
    cells = Cells(args.out)
    found = {cell.name: cells.get(cell.name, lambda cell=cell: run(cell)) for cell in CELLS}
    report(found, args.plot)


def run(cell: Cell) -> dict[str, float]:
    """Gap, then training, then gain, on the same test images."""
    demos = typed(demo_set(n_types=TYPES, n_unlabelled=UNLABELLED, seed=SEED, noise=cell.noise))
    adapter = ImageAdapter(demos, n_types=5, shots=cell.shots, rung=cell.rung)
    trainer = make_trainer(adapter, demos.train, RATE, STEPS, SEED, model=model_of(cell, demos))
    student = scores(trainer, demos, teacher=False)
    gap = paired_gap(scores(trainer, demos, teacher=True), student)
    trainer.train()
    after = scores(trainer, demos, teacher=False)
    return {
        "student": sum(student) / len(student),
        "gap": gap.mean,
        "low": gap.low,
        "high": gap.high,
        "gain": paired_gap(after, student).mean,
    }


def typed(demos: DemoSet) -> DemoSet:
    """With the types of unlabelled images, as they were drawn: rung 1 leaves them out."""
    order = np.random.default_rng([2026, 3, SEED, 1, 1]).permutation(TYPES * UNLABELLED)
    by_number = [name.replace(" ", "-") for name in NovelObjects(n_types=TYPES, seed=SEED).new_types()]
    demos.unlabelled = [
        replace(row, type=by_number[int(order[int(Path(str(row.images[0])).stem)]) // UNLABELLED])
        for row in demos.unlabelled
    ]
    return demos


def model_of(cell: Cell, demos: DemoSet) -> Any:
    """The cell's model, before the measured training."""
    adapter = ImageAdapter(demos, n_types=5, shots=2)
    module: Any = adapter.load_model(MODEL, dtype=torch.float32)
    if cell.weak:
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in module.model.language_model.parameters():
                spread = parameter.std() if parameter.dim() > 1 else parameter.new_zeros(())
                parameter.add_(cell.weak * spread * torch.randn(parameter.shape, generator=generator))
    if cell.taught:
        trainer = make_trainer(adapter, demos.train, RATE, cell.taught, SEED + 1, model=module)
        trainer.train()
    return module


def scores(trainer: SDFTTrainer, demos: DemoSet, teacher: bool) -> list[float]:
    examples = trainer.adapter.examples(demos.test)
    contexts = contexts_for(trainer, examples) if teacher else None
    return score_all(trainer.adapter, examples, answers(trainer, examples, contexts, 50, "validation"))


def report(found: dict[str, dict[str, float]], plot: Path) -> None:
    """Table, correlation and plot; all in percentage points."""
    gaps, gains = ([100 * cell[name] for cell in found.values()] for name in ("gap", "gain"))
    fit = stats.linregress(gaps, gains)
    clear = [(gap, gain) for gap, gain in zip(gaps, gains, strict=True) if abs(gap) > 5]
    right = sum((gap > 0) == (gain > 0) for gap, gain in clear)
    print("| cell | student before | gap (95 % interval) | gain |\n|---|---|---|---|")
    for name, cell in sorted(found.items(), key=lambda item: item[1]["gap"]):
        interval = f"{100 * cell['gap']:+.1f} ({100 * cell['low']:+.0f} to {100 * cell['high']:+.0f})"
        print(f"| {name} | {100 * cell['student']:.1f} | {interval} | {100 * cell['gain']:+.1f} |")
    print(
        f"\n{len(found)} cells: r = {fit.rvalue:.3f}, R² = {fit.rvalue**2:.3f}, gain = {fit.slope:.2f} · gap "
        f"{fit.intercept:+.1f}; sign right in {right} of {len(clear)} cells with a gap beyond ± 5 points."
    )
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "probe"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 4.2), layout="constrained")
    axes.axhline(0, color="#bbb", linewidth=0.8)
    axes.axvline(0, color="#bbb", linewidth=0.8)
    ends = np.array([min(gaps), max(gaps)])
    axes.plot(ends, fit.intercept + fit.slope * ends, color="#888", linewidth=1, label=f"R² = {fit.rvalue**2:.2f}")
    for kind, marker in (("builtin", "o"), ("weakened", "s"), ("taught", "^")):
        chosen = [i for i, name in enumerate(found) if name.startswith(kind)]
        axes.scatter([gaps[i] for i in chosen], [gains[i] for i in chosen], s=28, marker=marker, label=kind)
    axes.set_xlabel("gap before training: teacher − student (points)")
    axes.set_ylabel("gain of the student (points)")
    axes.legend(frameon=False)
    figure.savefig(plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
