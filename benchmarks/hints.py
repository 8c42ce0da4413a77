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
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cells import Cells, accuracies, demo_set, make_trainer, shown

from vlm_sdft import ImageAdapter
from vlm_sdft.zoo.vocabulary import DESCRIBE_QUESTION

LADDER = "ladder 0-5"
SETTINGS: dict[str, int | None] = {"rung 1": 1, "rung 2": 2, "rung 3": 3, "rung 4": 4, "rung 5": 5, LADDER: None}
COLUMNS = {"new": "new types", "old": "old types", "skills": "describing", "teacher": "in context"}


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
            data, rate, setting = plan
            key = f"{data}/{rate:g}/{setting}/{seed}/{args.noise:g}/{args.steps}"
            cells.get(key, partial(run, *plan, seed, args))
    like_these = f"/{args.noise:g}/{args.steps}"
    print("\n\n".join(report({key: cell for key, cell in cells.done.items() if key.endswith(like_these)})))


def report(done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Tables of cells by "data/learning rate/setting/seed/…": means over seeds; the ladder minus each fixed rung on
    the same seeds; what the ladder showed."""
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for key, cell in done.items():
        data, rate, setting, seed, *_ = key.split("/")
        found.setdefault((data, rate, setting), {})[seed] = cell
    means = [f"| data | lr | teacher shown | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 4) + "|"]
    pairs = [f"| data | lr | ladder minus | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for data, rate, setting in sorted(found, key=lambda plan: (*plan[:2], list(SETTINGS).index(plan[2]))):
        cells = found[data, rate, setting]
        numbers = [shown([c[name] for c in cells.values()]) for name in COLUMNS]
        means.append(f"| {data} | {rate} | {setting} | {len(cells)} | {' | '.join(numbers)} |")
        grown = found[data, rate, LADDER]
        if setting != LADDER:
            both = [seed for seed in cells if seed in grown]
            numbers = [shown([grown[s][name] - cells[s][name] for s in both], signed=True) for name in COLUMNS]
            pairs.append(f"| {data} | {rate} | {setting} | {' | '.join(numbers)} |")
    return ["\n".join(means), "\n".join(pairs), ladder(done)]


def ladder(done: Mapping[str, Mapping[str, Any]]) -> str:
    """The mean share of labelled queries at each rung in the ladder's finished cells (0: weighed nothing)."""
    parts: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, cell in done.items():
        for part, shares in zip(("first fifth", "last fifth"), cell.get("rungs", ()), strict=False):
            parts.setdefault((", ".join(key.split("/")[:2]), part), []).append(shares)
    rungs = sorted({rung for found in parts.values() for shares in found for rung in shares})
    head = [f"rung {rung.removeprefix('rung_')}" for rung in rungs]
    lines = [f"| ladder: data, lr | part of the run | {' | '.join(head)} |", "|---" * (len(rungs) + 2) + "|"]
    for (plan, part), found in sorted(parts.items()):
        numbers = [f"{100 * sum(shares.get(rung, 0.0) for shares in found) / len(found):.0f}" for rung in rungs]
        lines.append(f"| {plan} | {part} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def run(data: str, rate: float, setting: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once; for the ladder, also the share of each rung in the first and in the last fifth of the run."""
    demos = demo_set(n_types=10, seed=seed, noise=args.noise)
    rung = SETTINGS[setting]
    shown = 2 if rung is None else rung
    policy = "ladder" if rung is None else "fixed"
    adapter = ImageAdapter(demos, n_types=5, shots=2, rung=shown, policy=policy, rationale_question=DESCRIBE_QUESTION)
    rows = demos.labelled if data == "labelled" else demos.train
    folder = Path("runs/hints") / f"{data}-{rate:g}-{setting.replace(' ', '')}-{seed}-{args.noise:g}"
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    trainer = make_trainer(adapter, rows, rate, args.steps, seed, folder=str(folder))
    trainer.args.logging_steps = max(args.steps // 5, 1)
    trainer.train()
    trained: Any = trainer.adapter
    trained.rung = 2  # in-context learning is measured alike for all
    result: dict[str, Any] = accuracies(trainer, demos)
    if rung is None:
        logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs = [log for log in logs if "ladder/mean_rung" in log]
        result["rungs"] = [{k[12:]: round(v, 3) for k, v in log.items() if "rung_" in k} for log in (logs[0], logs[-1])]
    return result


if __name__ == "__main__":
    main()
