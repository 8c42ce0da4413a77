"""SDFT and its rivals on drawn types that the builtin model has never seen: `python benchmarks/new_types.py --seeds 3`.

Every method gets the same labelled images, the same unlabelled ones where it can use them, the same optimiser steps and the
same grid of learning rates, chosen on validation types; test types are touched once. Prints a table and writes JSON; a
finished cell is not run again.

- *untrained*: the model at the start, whose column "in context" is the teacher; *1-NN*: the nearest labelled image by the
  model's own vision features;
- *SFT*: cross-entropy on the labelled answers; *SFT from teacher*: on one answer that the teacher gave to each labelled and
  unlabelled image; *+ retention*: with the same retention prompts as SDFT (distillation to the starting model);
- *SDFT*: without and with unlabelled images and retention prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from text_sdft.core import SDFTConfig
from text_sdft.experiments.method_trainer import MethodTrainer
from text_sdft.experiments.scores import contexts_for, evaluate
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.zoo import resolve_data

MODEL = "builtin:tiny-qwen3-vl"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
#: what the table calls it -> the method's name in this package
METHODS = {
    "untrained": "base",
    "SFT": "sft/no_retain",
    "SFT + retention": "sft",
    "SFT from teacher": "sft_teacher/no_retain",
    "SFT from teacher + retention": "sft_teacher",
    "SDFT, labelled images only": "sdft/labelled/no_retain",
    "SDFT, unlabelled too": "sdft/no_retain",
    "SDFT, unlabelled + retention": "sdft",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--types", type=int, default=10)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/new_types.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cells: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}

    def cell(split: str, seed: int, method: str, rate: float) -> dict[str, float]:
        key = f"{split}/{seed}/{method}/{rate:g}/{args.types}/{args.noise:g}/{args.steps}"
        if key not in cells:
            cells[key] = run(split, seed, method, rate, args)
            print(key, {k: round(v, 3) for k, v in cells[key].items()}, flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(cells, indent=1) + "\n")
        return cells[key]

    rows = []
    for method in METHODS:
        rates = RATES if method != "untrained" else (0.0,)
        best = max(rates, key=lambda rate: harmonic(cell("validation", 0, method, rate))) if len(rates) > 1 else rates[0]
        rows.append((method, best, [cell("test", seed, method, best) for seed in range(args.seeds)]))
    print(table(rows))


def run(split: str, seed: int, method: str, rate: float, args: argparse.Namespace) -> dict[str, float]:
    """Train once and measure new types, old types, old skills, and in-context learning on the new types' images."""
    folder = resolve_data(
        "builtin:novel-objects", Path("runs/data"), n_types=args.types, seed=seed, split=split, noise=args.noise
    )
    demos = DemoSet.from_folder(folder, retain_questions=["What is this?", "Describe this."])
    adapter = ImageAdapter(demos, n_types=5, shots=2)
    settings = {**vlm(), "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_completion_length": 16}
    config = SDFTConfig(
        "runs/benchmark", **{**settings, "learning_rate": rate, "max_steps": args.steps, "seed": seed},
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    trainer = MethodTrainer(
        MODEL, config, adapter=adapter, method=METHODS[method], train_dataset=demos.train, full_batches=True
    )
    if trainer.method.trains:
        trainer.train()
    sets = {
        "new": adapter.examples(demos.test),
        "old": adapter.examples([row for row in demos.old if row.type]),
        "skills": adapter.examples([row for row in demos.old if not row.type]),
    }
    scores, _ = evaluate(trainer, sets, teacher=True, batch_size=32, phase="eval")
    result = {name: score["accuracy"] for name, score in scores.items()}
    if not trainer.method.trains:
        answers_by_name = adapter.rivals(sets["new"], contexts_for(trainer, sets["new"]))
        nearest = answers_by_name["nearest labelled image (own features)"]
        result["1-NN"] = sum(given == e.reference for given, e in zip(nearest, sets["new"], strict=True)) / len(nearest)
    return result


def harmonic(scores: dict[str, float]) -> float:
    """Harmonic mean of new types, old types and old skills: what the learning rate is chosen by."""
    return 3 / sum(1 / max(scores[name], 1e-3) for name in ("new", "old", "skills"))


def table(rows: list[tuple[str, float, list[dict[str, float]]]]) -> str:
    """Markdown: mean over seeds, and the range over seeds."""

    def column(cells: list[dict[str, float]], name: str) -> str:
        values = [100 * cell[name] for cell in cells if name in cell]
        return f"{sum(values) / len(values):.1f} ({min(values):.0f}–{max(values):.0f})" if values else "–"

    names = ("new", "old", "skills", "teacher")
    lines = ["| method | lr | new types | old types | describing | in context |", "|---|---|---|---|---|---|"]
    for method, rate, cells in rows:
        lines.append(f"| {method} | {rate:g} | " + " | ".join(column(cells, name) for name in names) + " |")
        if "1-NN" in cells[0]:
            lines.append(f"| 1-NN on the same labelled images | – | {column(cells, '1-NN')} | – | – | – |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
