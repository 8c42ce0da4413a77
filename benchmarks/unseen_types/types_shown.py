"""How many types should the teacher see, and would averaging its draws help? `… types_shown.py --seeds 3`, as `run.py`.

On validation types; nothing is trained. Retrieval shows the types that are nearest to the query: the fewer, the more of
the decision is retrieval's, and the less the model's. *Own type shown* is how often the right one is among them. *Vote*: a
student learns from many draws of its teacher's context, and could so become better than any one of them. The model answers
each image under eight draws (the order of the same demonstrations; where types are drawn at random, which ones), and what
most of them say counts. Prints a table and writes JSON; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cells import Cells, make_trainer, shown
from settings import SETTINGS, Setting

from text_sdft.core import TeacherContext
from text_sdft.core.sampling import draw_seed
from text_sdft.experiments.answers import completions, score_all
from vlm_sdft import ImageAdapter
from vlm_sdft.demos.selection import Selection

DRAWS = 8
#: How many types are shown, and whether they are drawn at random.
TYPES = ("1", "2", "3", "5", "8 at random")
COLUMNS = {"own": "own type shown", "one": "one draw", "vote": f"vote of {DRAWS}", "agree": "two draws agree"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--settings", nargs="+", default=["objects, noise 150", "emoji", "handwriting"], choices=list(SETTINGS)
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/types_shown.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    lines = [f"| setting | types shown | {' | '.join(COLUMNS.values())} | vote − one |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, types in itertools.product(args.settings, TYPES):
        found = [
            cells.get(f"{name}/{types}/{seed}", partial(run, SETTINGS[name], types, seed)) for seed in range(args.seeds)
        ]
        means = [shown([cell[column] for cell in found]) for column in COLUMNS]
        gain = shown([cell["vote"] - cell["one"] for cell in found], signed=True)
        lines.append(f"| {name} | {types} | {' | '.join(means)} | {gain} |")
    print("\n".join(lines))


def run(setting: Setting, types: str, seed: int) -> dict[str, float]:
    """Shares of the validation types' test images, see `COLUMNS`."""
    demos = setting.demos("validation", seed, Path("runs/data"))
    count, _, random = types.partition(" ")
    selection: Selection = "random" if random else "retrieved"
    adapter = ImageAdapter(demos, n_types=int(count), shots=setting.shots, selection=selection)
    trainer = make_trainer(adapter, demos.train, 0.0, 1, seed, model=setting.model)
    examples = adapter.examples(demos.test)
    draws = [[TeacherContext(draw_seed(seed, "draw", d, e.id)) for e in examples] for d in range(DRAWS)]
    given = [list(map(adapter.decode, completions(trainer, examples, contexts, 50, "draws"))) for contexts in draws]
    voted = [Counter(column).most_common(1)[0][0] for column in zip(*given, strict=True)]
    same = [a == b for first, second in itertools.pairwise(given) for a, b in zip(first, second, strict=True)]
    said = [
        {d.messages[-1]["content"] for d in trainer.adapter.demonstrations(example, context)}
        for example, context in zip(examples, draws[0], strict=True)
    ]
    return {
        "own": sum(example.reference in names for example, names in zip(examples, said, strict=True)) / len(examples),
        "one": sum(sum(score_all(adapter, examples, row)) for row in given) / (DRAWS * len(examples)),
        "vote": sum(score_all(adapter, examples, voted)) / len(examples),
        "agree": sum(same) / len(same),
    }


if __name__ == "__main__":
    main()
