"""What averaging over draws of demonstrations could bring: `python benchmarks/unseen_types/teacher_draws.py --seeds 5`.

A student learns from many draws of its teacher's context, and could so become better than any one of them. How much
better, a vote says: the untrained model answers each test image under eight draws (the order of the same retrieved
demonstrations), and what most of them say counts. *Own type shown*: how often the right type is among the demonstrated
ones at all. Nothing is trained. Prints a table and writes JSON; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cells import Cells, make_trainer, shown
from run import SETTINGS, Setting

from text_sdft.core import TeacherContext
from text_sdft.core.rollout import draw_seed
from text_sdft.experiments.measure import answers, score_all
from vlm_sdft import ImageAdapter

DRAWS = 8
MEDIOCRE = ("objects, noise 150", "emoji", "handwriting", "emoji, 5 labelled", "handwriting, 5 labelled")
COLUMNS = {"one": "one draw", "vote": f"vote of {DRAWS}", "agree": "two draws agree", "own": "own type shown"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=list(MEDIOCRE), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/teacher_draws.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    lines = [f"| setting | seeds | {' | '.join(COLUMNS.values())} | vote − one draw |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in args.settings:
        found = [cells.get(f"{name}/{seed}", partial(run, SETTINGS[name], seed)) for seed in range(args.seeds)]
        means = [shown([cell[column] for cell in found]) for column in COLUMNS]
        gain = shown([cell["vote"] - cell["one"] for cell in found], signed=True)
        lines.append(f"| {name} | {len(found)} | {' | '.join(means)} | {gain} |")
    print("\n".join(lines))


def run(setting: Setting, seed: int) -> dict[str, float]:
    """Shares of the setting's test images, see `COLUMNS`."""
    demos = setting.demos("test", seed, Path("runs/data"))
    adapter = ImageAdapter(demos, n_types=5, shots=setting.shots)
    trainer = make_trainer(adapter, demos.train, 0.0, 1, seed, model=setting.model)
    examples = adapter.examples(demos.test)
    draws = [[TeacherContext(draw_seed(seed, "draw", d, e.id)) for e in examples] for d in range(DRAWS)]
    given = [answers(trainer, examples, contexts, 50, "draws") for contexts in draws]
    voted = [Counter(column).most_common(1)[0][0] for column in zip(*given, strict=True)]
    scores = [score_all(adapter, examples, row) for row in given]
    same = [a == b for first, second in pairwise(given) for a, b in zip(first, second, strict=True)]
    said = [
        {turn["content"] for shown in adapter.demonstrations(example, context) for turn in shown.messages[1:]}
        for example, context in zip(examples, draws[0], strict=True)
    ]
    return {
        "one": sum(map(sum, scores)) / (DRAWS * len(examples)),
        "vote": sum(score_all(adapter, examples, voted)) / len(examples),
        "agree": sum(same) / len(same),
        "own": sum(example.reference in names for example, names in zip(examples, said, strict=True)) / len(examples),
    }


if __name__ == "__main__":
    main()
