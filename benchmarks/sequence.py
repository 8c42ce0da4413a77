"""Five tasks of five drawn types, one after the other: `python benchmarks/sequence.py --seeds 2`.

`configs/sequences/novel-objects.yaml` with SDFT, naive SFT and SFT with replay, and SDFT on all tasks at once as the upper
bound. What is finished is not run again. Prints a table of means over seeds and writes JSON.

*other images*: beside pictures of the old types, retention prompts show pictures of drawn types that are neither old nor
taught (validation types, without labels), as a user would take from anywhere. *earlier images*: they show the unlabelled
pictures of earlier tasks, which a user kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from vlm_sdft.cli import main as vlm_sdft
from vlm_sdft.config import ImageData
from vlm_sdft.zoo import resolve_data

CONFIG = Path(__file__).parent.parent / "configs" / "sequences" / "novel-objects.yaml"
#: row -> (method, what retention prompts show beside pictures of old types)
ROWS = {
    "sdft": ("sdft", None),
    "sdft, other images": ("sdft", "other"),
    "sdft, earlier images": ("sdft", "earlier"),
    "sft, no retention": ("sft/no_retain", None),
    "replay": ("replay", None),
}
DATA = Path("runs/data")
COLUMNS = ("mean_final", "share_of_joint", "backward_transfer", "forgetting", "forward_transfer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sequence.json"))
    args = parser.parse_args()
    cells: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for seed in range(args.seeds):
        for method in args.rows:
            key = f"{method}/{seed}"
            if key not in cells:
                cells[key] = run(method, seed)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(cells, indent=1) + "\n")
    print(table(cells))


def run(row: str, seed: int) -> dict[str, Any]:
    """One sequence; with plain SDFT also the run on all tasks at once."""
    method, shown = ROWS[row]
    folder = Path("runs/sequences") / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
    options = {"n_types": 25, "seed": seed}
    config = earlier_images(options) if shown == "earlier" else CONFIG
    argv = ["sequence", str(config), "--method", method, "--train.output_dir", str(folder), "--train.disable_tqdm", "true"]
    argv += ["--train.seed", str(seed), "--resume"]
    argv += ["--data.options", json.dumps(options)] if shown != "earlier" else []
    if shown == "other":
        drawn = resolve_data("builtin:novel-objects", DATA, split="validation", **options)
        argv += ["--data.retain", str(drawn / "unlabelled")]
    if vlm_sdft([*argv, "--joint"] if row == "sdft" else argv):
        raise SystemExit(f"{row}, seed {seed} failed")
    found = json.loads((folder / "sequence.json").read_text())
    return {key: found[key] for key in ("before", "after", "joint", "n", "summary")}


def earlier_images(options: dict[str, Any]) -> Path:
    """The sequence as a list of tasks, each with a folder of links to the unlabelled pictures of those before it."""
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    parts = ImageData("builtin:novel-objects", options=options).split(settings.pop("tasks"))
    drawn = [resolve_data("builtin:novel-objects", DATA, **part["options"]) / "unlabelled" for part in parts]
    tasks = []
    for k, part in enumerate(parts):
        kept = DATA / f"earlier-{options['seed']}-{k}"
        kept.mkdir(exist_ok=True)
        for j, folder in enumerate(drawn[:k]):
            if not (kept / str(j)).exists():
                (kept / str(j)).symlink_to(folder.resolve())
        tasks.append({"data": part | ({"retain": str(kept)} if k else {})})
    file = DATA / f"earlier-{options['seed']}.yaml"
    file.write_text(yaml.safe_dump({**settings, "tasks": tasks}), encoding="utf-8")
    return file


def table(cells: dict[str, Any]) -> str:
    """Markdown: means over seeds, in brackets each seed; in points, the share of joint training in per cent."""
    old = list(next(iter(cells.values()))["before"]["old"])
    lines = [f"| method | {' | '.join(name.replace('_', ' ') for name in (*COLUMNS, *old))} |"]
    lines.append("|---|" + "---|" * (len(COLUMNS) + len(old)))
    joint = {key.partition("/")[2]: cell["joint"] for key, cell in cells.items() if cell["joint"]}
    means = {seed: sum(row["new"]) / len(row["new"]) for seed, row in joint.items()}
    for row in ROWS:
        mine = {key.partition("/")[2]: cell for key, cell in sorted(cells.items()) if key.rpartition("/")[0] == row}
        columns = {name: [cell["summary"].get(name) for cell in mine.values()] for name in COLUMNS}
        finals = zip(mine, columns["mean_final"], strict=True)
        columns["share_of_joint"] = [final / means[seed] if seed in means else None for seed, final in finals]
        columns |= {name: [cell["after"][-1]["old"][name] for cell in mine.values()] for name in old}
        lines += [_line(row, list(columns.values()))] if mine else []
    if joint:
        unknown: list[list[float | None]] = [[None]] * (len(COLUMNS) - 1)
        lines.append(
            _line(
                "sdft, all at once", [list(means.values()), *unknown, *([r["old"][n] for r in joint.values()] for n in old)]
            )
        )
    return "\n".join(lines)


def _line(name: str, columns: list[list[float | None]]) -> str:
    cells = []
    for column in columns:
        known = [100 * value for value in column if value is not None]
        each = f" ({', '.join(f'{value:.1f}' for value in known)})" if len(known) > 1 else ""
        cells.append(f"{sum(known) / len(known):.1f}{each}" if known else "–")
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
