"""Five tasks of five drawn types, one after the other: `python benchmarks/sequence.py --seeds 3`.

`configs/sequences/novel-objects.yaml` with SDFT, SFT on the teacher's answers, naive SFT and SFT with replay, and SDFT on
all tasks at once as the upper bound. What is finished is not run again. Prints a table and writes JSON.

*N earlier*: so many queries of each earlier task (of 110, labelled or not) are retention prompts, without answers. *other
images*: in their place pictures of drawn types that are neither old nor taught (validation types, without labels), as a
user would take from anywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cells import Cells, shown

from vlm_sdft.cli import main as vlm_sdft
from vlm_sdft.zoo import resolve_data

CONFIG = Path(__file__).parent.parent / "configs" / "sequences" / "novel-objects.yaml"
#: row -> (method, how many queries of each earlier task are kept)
ROWS = {
    "sdft": ("sdft", 0),
    "sdft, other images": ("sdft", 0),
    "sdft, 5 earlier": ("sdft", 5),
    "sdft, 20 earlier": ("sdft", 20),
    "sdft, 100 earlier": ("sdft", 100),
    "sft_teacher, 20 earlier": ("sft_teacher", 20),
    "sft, no retention": ("sft/no_retain", 0),
    "replay": ("replay", 0),
}
DATA = Path("runs/data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sequence.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    for seed in range(args.seeds):
        for row in args.rows:
            cells.get(f"{row}/{seed}", partial(run, row, seed))
    print(table(cells.done))


def run(row: str, seed: int) -> dict[str, Any]:
    """One sequence; with plain SDFT also the run on all tasks at once."""
    method, earlier = ROWS[row]
    folder = Path("runs/sequences") / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
    options = {"n_types": 25, "seed": seed}
    argv = ["sequence", str(CONFIG), "--method", method, "--train.output_dir", str(folder), "--train.disable_tqdm", "true"]
    argv += ["--train.seed", str(seed), "--resume", "--data.options", json.dumps(options), "--retain_earlier", str(earlier)]
    if row == "sdft, other images":
        drawn = resolve_data("builtin:novel-objects", DATA, split="validation", **options)
        argv += ["--data.retain", str(drawn / "unlabelled")]
    if vlm_sdft([*argv, "--joint"] if row == "sdft" else argv):
        raise SystemExit(f"{row}, seed {seed} failed")
    found = json.loads((folder / "sequence.json").read_text())
    return {key: found[key] for key in ("before", "after", "joint", "n", "summary")}


def table(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: means over seeds ± half of the 95 % interval, in points; the share of joint training in per cent."""
    joint = {key.rpartition("/")[2]: cell["joint"] for key, cell in cells.items() if cell["joint"]}
    means = {seed: sum(found["new"]) / len(found["new"]) for seed, found in joint.items()}
    old = list(next(iter(cells.values()))["before"]["old"])
    names = ("mean_final", "share_of_joint", "backward_transfer", "forgetting", "forward_transfer", *old)
    lines = [
        f"| method | seeds | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in ROWS:
        found = []
        for key, cell in cells.items():
            name, _, seed = key.rpartition("/")
            if name == row:
                share = {"share_of_joint": cell["summary"]["mean_final"] / means[seed]} if seed in means else {}
                found.append({**cell["summary"], **cell["after"][-1]["old"], **share})
        lines += [_line(row, found, names)] if found else []
    together = [{"mean_final": means[seed], **cell["old"]} for seed, cell in joint.items()]
    return "\n".join([*lines, *([_line("sdft, all at once", together, names)] if together else [])])


def _line(name: str, found: Sequence[Mapping[str, float]], columns: Sequence[str]) -> str:
    cells = [shown([row[column] for row in found if column in row]) for column in columns]
    return f"| {name} | {len(found)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
