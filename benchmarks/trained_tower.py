"""What a step costs when the vision tower is trained, with each saving on and off: `python benchmarks/trained_tower.py`.

Model, images and measurement of `benchmarks/image_demos.py`; a frozen teacher, and an EMA that moves at every step.
*Features*: an image goes through the tower once a step for the student, and once for the teacher until its weights move.
*Both*: demonstrations that queries have in common are read once, too. *Neither*: sampling, teacher and student each run it.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from image_demos import cell, read_arguments


def main() -> None:
    args, model, demos = read_arguments(__doc__ or "", "benchmarks/results/trained_tower.json")
    cells: list[dict[str, Any]] = []
    for teacher in ("base", "ema"):
        for count in (0, 4):
            rows = cell(args, model, demos, count, train_vision=True, teacher=teacher)
            cells += [{"teacher": teacher, **row} for row in rows]
            print(table(cells), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(cells, indent=1) + "\n")


def table(cells: list[dict[str, Any]]) -> str:
    lines = [
        "| teacher | images | reused | step, s | ÷ the step without demonstrations | neither ÷ this |",
        "|---" * 6 + "|",
    ]
    for c in cells:
        (neither,) = (
            o["ratio"] for o in cells if (o["teacher"], o["images"], o["savings"]) == (c["teacher"], c["images"], "neither")
        )
        gain = [a / b for a, b in zip(neither, c["ratio"], strict=True)]
        ratios = f"{spread(c['ratio'])} | {spread(gain)}"
        lines.append(f"| {c['teacher']} | {c['images']} | {c['savings']} | {c['seconds']:.2f} | {ratios} |")
    return "\n".join(lines)


def spread(ratio: list[float]) -> str:
    return f"{statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f})"


if __name__ == "__main__":
    main()
