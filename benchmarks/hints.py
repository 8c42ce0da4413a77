"""Hints that grow against each fixed rung of the privilege ladder, at equal steps: `python benchmarks/hints.py --seeds 5`.

Ten drawn types, 2 labelled and 20 unlabelled images each. *labelled*: the labelled images alone; *unlabelled*: with
unlabelled images and retention prompts. A query whose answer nobody knows has the rungs 2, 3 and 4 only (under the ladder
it is shown rung 2), so rungs 1 and 5 are compared on labelled images alone. The rationale of rung 4 is the model's own
description of the image: the builtin model answers no other question about one. Prints tables and writes JSON; a finished
cell is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cells import Cells, accuracies, demo_set, make_trainer, shown

from text_sdft.core import SDFTTrainer
from text_sdft.experiments.ladder import LadderTrainer
from vlm_sdft import ImageAdapter
from vlm_sdft.zoo.vocabulary import DESCRIBE_QUESTION

LADDER = "ladder 0-5"
SETTINGS: dict[str, int | None] = {"rung 1": 1, "rung 2": 2, "rung 3": 3, "rung 4": 4, "rung 5": 5, LADDER: None}
COLUMNS = {"new": "new types", "old": "old types", "skills": "describing", "teacher": "in context"}
#: (data, learning rate, setting) -> one cell a seed
Found = dict[tuple[str, float, str], list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=90.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hints.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    plans = [
        (data, rate, setting)
        for data in ("labelled", "unlabelled")
        for rate in ((1e-4, 1e-3) if data == "labelled" else (1e-3,))
        for setting in (SETTINGS if data == "labelled" else ("rung 2", "rung 3", "rung 4", LADDER))
    ]
    for seed in range(args.seeds):
        for plan in plans:
            cell(cells, *plan, seed, args)
    found = {plan: [cell(cells, *plan, seed, args) for seed in range(args.seeds)] for plan in plans}
    print("\n".join([*means(found), "", *differences(found), "", *ladder(cells)]))


def means(found: Found) -> list[str]:
    """Accuracies by plan, over seeds."""
    lines = [f"| data | lr | teacher shown | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (data, rate, setting), of_seeds in found.items():
        numbers = [shown([c[name] for c in of_seeds]) for name in COLUMNS]
        lines.append(f"| {data} | {rate:g} | {setting} | {' | '.join(numbers)} |")
    return lines


def differences(found: Found) -> list[str]:
    """The ladder minus each fixed rung on the same seeds; an interval without 0 is in bold."""
    lines = [f"| data | lr | ladder minus | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (data, rate, setting), fixed in found.items():
        grown = found[data, rate, LADDER]
        if setting != LADDER:
            pairs = list(zip(grown, fixed, strict=True))
            numbers = [shown([a[name] - b[name] for a, b in pairs], signed=True) for name in COLUMNS]
            lines.append(f"| {data} | {rate:g} | {setting} | {' | '.join(numbers)} |")
    return lines


def ladder(cells: Cells) -> list[str]:
    """The share of labelled queries at each rung in the ladder's finished cells (0: weighed nothing)."""
    lines = ["| ladder: data, lr, seed | part of the run | share of labelled queries at each rung, in % |", "|---|---|---|"]
    for key, found in cells.done.items():
        for part, shares in zip(("first fifth", "last fifth"), found.get("rungs", ()), strict=False):
            data, rate, _, seed = key.split("/")[:4]
            shown_at = ", ".join(f"{rung.removeprefix('rung_')}: {100 * share:.0f}" for rung, share in shares.items())
            lines.append(f"| {data}, {rate}, {seed} | {part} | {shown_at} |")
    return lines


def cell(cells: Cells, data: str, rate: float, setting: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    key = f"{data}/{rate:g}/{setting}/{seed}/{args.noise:g}/{args.steps}"
    return cells.get(key, lambda: run(data, rate, setting, seed, args))


def run(data: str, rate: float, setting: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once; for the ladder, also the share of each rung in the first and in the last fifth of the run."""
    demos = demo_set(n_types=10, seed=seed, noise=args.noise)
    rung = SETTINGS[setting]
    kind = LadderTrainer if rung is None else SDFTTrainer
    shown = 2 if rung is None else rung
    adapter = ImageAdapter(demos, n_types=5, shots=2, rung=shown, rationale_question=DESCRIBE_QUESTION)
    rows = demos.labelled if data == "labelled" else demos.train
    folder = Path("runs/hints") / f"{data}-{rate:g}-{setting.replace(' ', '')}-{seed}-{args.noise:g}"
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    trainer = make_trainer(adapter, rows, rate, args.steps, seed, kind=kind, folder=str(folder))
    trainer.args.logging_steps = max(args.steps // 5, 1)
    trainer.train()
    adapter.rung = 2  # in-context learning is measured alike for all
    result: dict[str, Any] = accuracies(trainer, demos)
    if rung is None:
        logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs = [log for log in logs if "ladder/mean_rung" in log]
        result["rungs"] = [{k[12:]: round(v, 3) for k, v in log.items() if "rung_" in k} for log in (logs[0], logs[-1])]
    return result


if __name__ == "__main__":
    main()
