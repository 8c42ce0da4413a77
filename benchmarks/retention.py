"""Which retention prompts serve a user who has no old data? `python benchmarks/retention.py --seeds 3`

Ten drawn types with noisy images, 2 labelled and 20 unlabelled each, SDFT with one source of retention prompts or another:

- *none*; *prompts*: texts without images; *crops*: random parts of the user's own images; *drawn*: pictures that this
  program draws, without noise, of other objects; *old*: images of what the model knows, which is what is to be kept;
- weights (`train.retain_weight`), and half of the prompts in context (`data.retain_in_context: 0.5`).

*In context* is measured on the new types and on ten types of which nothing was trained. Prints a table and writes JSON; a
finished cell is not run again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import Cells, accuracies, demo_set, make_trainer

from text_sdft.experiments.scores import evaluate
from vlm_sdft import DemoSet, ImageAdapter, retain_in_context, retain_made
from vlm_sdft.zoo.vocabulary import DESCRIBE_QUESTION, NAME_QUESTION

SOURCES = ("none", "prompts", "crops", "drawn", "old")
#: What is asked without an image, in words that the builtin model has.
PROMPTS = (
    "Who are you?", "Can you see this picture?", "What is a star?", "Say three words.", "Describe a red heart.",
    "Tell me the color of your body.", "How many legs has it?", "What does a plain disc look like?", "Is this new or old?",
    "Please answer the question.", "Which kind of thing is this?", "Describe two blue squares with white spots.",
    NAME_QUESTION, DESCRIBE_QUESTION,
)  # fmt: skip
#: source, weight, share in context
Plan = tuple[str, float, float]
PLANS: list[Plan] = [
    *((source, 1.0, 0.0) for source in SOURCES),
    *(("old", weight, 0.5) for weight in (1.0, 2.0)),
    *(("drawn", weight, 0.0) for weight in (0.5, 2.0)),
    ("drawn", 2.0, 0.5),
]
COLUMNS = {
    "new": "new types",
    "old": "old types",
    "skills": "describing",
    "teacher": "in context, new types",
    "others": "in context, other types",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=90.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retention.json"))
    args = parser.parse_args()
    cells = Cells(args.out)

    def cell(plan: Plan | None, seed: int) -> dict[str, Any]:
        name = "untrained" if plan is None else "/".join(f"{part}" for part in plan)
        key = f"{name}/{seed}/{args.noise:g}/{args.steps}/{args.rate:g}"
        return cells.get(key, lambda: run(plan, seed, args))

    plans: list[Plan | None] = [None, *PLANS]
    for plan in plans:
        for seed in range(args.seeds):
            cell(plan, seed)
    print(f"| retention prompts | weight | in context | {' | '.join(COLUMNS.values())} |\n|{'---|' * (3 + len(COLUMNS))}")
    for plan in plans:
        found = [cell(plan, seed) for seed in range(args.seeds)]
        source, weight, share = ("untrained", "–", "–") if plan is None else (plan[0], f"{plan[1]:g}", f"{plan[2]:g}")
        print(f"| {source} | {weight} | {share} | {' | '.join(column([c[name] for c in found]) for name in COLUMNS)} |")


def column(values: list[float]) -> str:
    """Mean over seeds, and the range over seeds."""
    mean, low, high = (100 * number for number in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.1f} ({low:.0f}–{high:.0f})"


def run(plan: Plan | None, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once (not at all without a plan), and measure what was learnt and what was kept."""
    source, weight, share = plan if plan is not None else ("none", 1.0, 0.0)
    demos = retain_in_context(retained(demo_set(n_types=10, seed=seed, noise=args.noise), source), share)
    adapter = ImageAdapter(demos, n_types=5, shots=2)
    trainer = make_trainer(adapter, demos.train, args.rate, args.steps, seed, retain_weight=weight)
    if plan is not None:
        trainer.train()
    result: dict[str, Any] = accuracies(trainer, demos)
    others = ImageAdapter(demo_set(n_types=10, seed=seed, noise=args.noise, split="validation"), n_types=5, shots=2)
    trainer.adapter = others = others.bind(trainer.module)
    scores, _ = evaluate(trainer, {"new": others.examples(others.demos.test)}, teacher=True, batch_size=32, phase="eval")
    return {**result, "others": scores["teacher"]["accuracy"]}


def retained(demos: DemoSet, source: str) -> DemoSet:
    """The demo set with retention prompts of this source alone."""
    if source == "old":
        return demos
    bare = replace(demos, retain=[])
    if source == "none":
        return bare
    if source == "prompts":
        file = Path("runs/data/prompts.txt")
        file.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
        return retain_made(bare, str(file), [])
    return retain_made(bare, source, [NAME_QUESTION, DESCRIBE_QUESTION])


if __name__ == "__main__":
    main()
