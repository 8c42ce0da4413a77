"""Does the student know the types in a style that it never trained on? `… styles.py --seeds 3`, as `run.py`.

On validation types. The teacher sees a new style beside demonstrations, and need only find what is alike; the student must
know it. Both are measured on new pictures in the styles of the training images and in the one that is held out: the teacher
before training, the student after it. Prints a table and writes JSON; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from cells import Cells, make_trainer, shown
from settings import SETTINGS, Setting
from sources import SOURCES

from text_sdft.experiments.measure import answers, score_all
from text_sdft.experiments.scores import contexts_for
from vlm_sdft import ImageAdapter

#: Chosen on validation types by `run.py` for every setting here.
RATE = 3e-4
VIEWS = ("teacher", "student")
COLUMNS = {"seen": "styles of training", "held_out": "held-out style"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300])
    parser.add_argument(
        "--settings", nargs="+", default=["emoji, 1 type shown", "handwriting, 1 type shown"], choices=list(SETTINGS)
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/styles.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    heads = [f"{view}, {column}" for column in COLUMNS.values() for view in (*VIEWS, "student − teacher")]
    lines = [f"| setting | steps | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, steps in itertools.product(args.settings, args.steps):
        found = [
            cells.get(f"{name}/{steps}/{seed}", partial(run, SETTINGS[name], steps, seed)) for seed in range(args.seeds)
        ]
        means = []
        for column in COLUMNS:
            teacher, student = ([cell[f"{view}_{column}"] for cell in found] for view in VIEWS)
            gap = [after - before for before, after in zip(teacher, student, strict=True)]
            means += [shown(teacher), shown(student), shown(gap, signed=True)]
        lines.append(f"| {name} | {steps} | {' | '.join(means)} |")
    print("\n".join(lines))


def run(setting: Setting, steps: int, seed: int) -> dict[str, float]:
    """Accuracies on the validation types by view and style: the teacher before SDFT with retention, the student after."""
    demos = setting.demos("validation", seed, Path("runs/data"))
    source, rng = SOURCES[setting.source](), np.random.default_rng([2032, seed])
    kinds = json.loads((Path(str(demos.test[0].images[0])).parents[2] / "kinds.json").read_text("utf-8"))
    seen = [
        replace(row, id=f"{row.id} in a style of training", images=(source.picture(kinds[row.answer], rng, False),))
        for row in demos.test
    ]
    adapter = ImageAdapter(demos, n_types=setting.shown, shots=setting.shots)
    trainer = make_trainer(adapter, demos.train, RATE, steps, seed, model=setting.model)
    sets = {"seen": adapter.examples(seen), "held_out": adapter.examples(demos.test)}
    result: dict[str, float] = {}
    for view in VIEWS:
        if view == "student":
            trainer.train()
        for column, examples in sets.items():
            contexts = contexts_for(trainer, examples) if view == "teacher" else None
            right = score_all(adapter, examples, answers(trainer, examples, contexts, 50, "styles"))
            result[f"{view}_{column}"] = sum(right) / len(right)
    return result


if __name__ == "__main__":
    main()
