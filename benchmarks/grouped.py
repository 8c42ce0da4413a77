"""What selection by group costs the teacher: `python benchmarks/grouped.py`.

In-context accuracy of the builtin model on validation types, for each way of choosing demonstrations; ten types of drawn
objects with noisy images, five of them shown with two images each.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import get_args

import torch
import transformers

from text_sdft.experiments.scores import evaluate
from text_sdft.experiments.stats import Accuracy
from vlm_sdft import DemoSet, ImageAdapter, SDFTConfig, SDFTTrainer, vlm
from vlm_sdft.demos.selection import Selection
from vlm_sdft.zoo import resolve_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 90, 120])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grouped.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cells = []
    print("| noise | selection | teacher (95 % interval) |\n|---|---|---|")
    for noise in args.noise:
        for selection in get_args(Selection):
            scores = [score for seed in range(args.seeds) for score in in_context(selection, noise, seed)]
            a = Accuracy.of(scores)
            cells.append({"noise": noise, "selection": selection, "accuracy": a.accuracy, "n": a.n})
            print(
                f"| {noise:g} | {selection} | {100 * a.accuracy:.1f} ({100 * a.low:.0f}–{100 * a.high:.0f}) |", flush=True
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(cells, indent=1) + "\n")


def in_context(selection: Selection, noise: float, seed: int) -> list[float]:
    """The teacher's score on every test image of one draw of types."""
    folder = resolve_data(
        "builtin:novel-objects", Path("runs/data"), n_types=10, seed=seed, split="validation", noise=noise
    )
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, n_types=5, shots=2, selection=selection)
    config = SDFTConfig("runs/grouped", **{**vlm(), "max_completion_length": 16}, use_cpu=True, report_to=[])
    trainer = SDFTTrainer("builtin:tiny-qwen3-vl", config, adapter=adapter, train_dataset=demos.train)
    _, records = evaluate(trainer, {"new": adapter.examples(demos.test)}, teacher=True, batch_size=50, phase="grouped")
    return [record["score"] for record in records if record["view"] == "teacher"]


if __name__ == "__main__":
    main()
