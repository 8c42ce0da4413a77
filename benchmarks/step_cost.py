"""What one training step costs, beside TRL's SDFT trainer and others: `python benchmarks/step_cost.py`.

Same model, same prompts, same completions (TRL samples its own, at its own cost, and is then given ours), all weights
trained; demonstrations stand first and are common to the batch. *Plain* is the step as one would write it first, *bare* its
arithmetic without any trainer, *SFT* supervised fine-tuning on rows of the same lengths. Before anything is timed, all but
SFT must give the same loss. Sides alternate; the table shows medians and the range of ratios.

On a GPU: `python benchmarks/step_cost.py --device cuda --model Qwen/Qwen2.5-0.5B-Instruct` (bf16).
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from step_sides import WORDS, Cell, Clock, Ours, Plain, load, our_step, our_trainer, trl_step, trl_trainer

PARTS = ("sampling", "teacher", "student", "divergence", "backward", "optimiser", "rest")
CELLS = (
    Cell(32, 1, 32),
    Cell(32, 4, 32),
    Cell(512, 1, 32),
    Cell(512, 4, 32),
    Cell(512, 4, 32, "ema"),
    Cell(32, 1, 8),
    Cell(32, 1, 128),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: a Qwen2 of 10 M parameters with random weights.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="Completions a step.")
    parser.add_argument("--repeats", type=int, default=7, help="Alternations.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = load(args)
    results = []
    for cell in CELLS:
        results.append(measure(args, model, tokenizer, cell))
        print(table(results), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"device": device_name(args.device), "cells": results}, indent=1) + "\n")


def measure(args: argparse.Namespace, start: Any, tokenizer: Any, cell: Cell) -> dict[str, Any]:
    """Seconds, ratios to ours, and the parts of ours."""
    demonstration = " ".join(itertools.islice(itertools.cycle(WORDS), cell.words))
    rows = [
        {"id": str(i), "prompt": f"Question {i}: {WORDS[i % 8]}?", "privileged_context": demonstration}
        for i in range(args.rows // cell.generations)
    ]
    ours, clock = our_trainer(args, cell, copy.deepcopy(start), tokenizer, rows)
    theirs = trl_trainer(args, cell, copy.deepcopy(start), tokenizer, rows, lambda: ours.rollout.ids)
    others = {name: Plain(args, cell, start, ours) for name in ("plain", "bare", "SFT")}
    sides: dict[str, Callable[[int], float]] = {
        "ours": lambda step: our_step(ours, step),
        "TRL": lambda step: trl_step(theirs, rows, cell.generations),
        "plain": lambda step: others["plain"].plain(),
        "bare": lambda step: others["bare"].bare(),
        "SFT": lambda step: others["SFT"].sft(),
    }
    losses = {name: side(0) for name, side in sides.items()}
    compared = [loss for name, loss in losses.items() if name != "SFT"]
    tolerance = 2e-5 if args.device == "cpu" else 2e-2
    if not max(compared) - min(compared) < tolerance * max(1.0, abs(losses["plain"])):
        raise SystemExit(f"The sides computed different losses, so there is nothing to compare: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    order = list(sides)
    for step in range(1, args.repeats + 1):
        order = order[1:] + order[:1]
        for name in order:
            clock.parts.clear()
            started = clock.now()
            sides[name](step)
            seconds[name].append(clock.now() - started)
            if name == "ours":
                total = seconds[name][-1]
                for part in PARTS[:-1]:
                    parts[part].append(clock.parts[part] / total)
                parts["rest"].append(1 - sum(clock.parts.values()) / total)
    teacher = teacher_seconds(ours, theirs, clock, args.repeats)
    gc.collect()
    return {
        **asdict(cell),
        "loss": losses,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {
            name: quantiles([b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)])
            for name in seconds
            if name != "ours"
        },
        "teacher_ratio": teacher,
        "parts": {name: statistics.median(values) for name, values in parts.items()},
    }


def teacher_seconds(ours: Ours, theirs: Any, clock: Clock, repeats: int) -> list[float]:
    """TRL's teacher forward against ours, alternating: [low, median, high] of the ratio."""
    batch = theirs._prepare_training_batch(
        [dict(row) for row in theirs.train_dataset for _ in range(theirs.num_generations)]
    )
    ids = batch["teacher_input_ids"], batch["teacher_attention_mask"], batch["completion_ids"].size(1)
    seconds = defaultdict(list)
    for step in range(repeats):
        clock.parts.clear()
        ours.state.global_step = step
        with torch.no_grad():
            ours.compute_loss(ours.model, {"examples": ours.queries})
        ours.teacher.update()
        seconds["ours"].append(clock.parts["teacher"])
        started = clock.now()
        with torch.no_grad(), theirs._get_teacher_context_for_self_distillation():
            theirs._forward_logits(theirs.teacher_model, *ids)
        seconds["TRL"].append(clock.now() - started)
    return quantiles([b / a for a, b in zip(seconds["ours"], seconds["TRL"], strict=True)])


def quantiles(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"


def table(results: list[dict[str, Any]]) -> str:
    """Two tables in Markdown: other sides' seconds ÷ ours (ours ÷ theirs for bare and SFT), and where ours go."""
    head = "| demonstration | completions a query | tokens | teacher |"
    lines = [
        head + " ours, s | TRL ÷ ours | plain ÷ ours | teacher: TRL ÷ ours | ours ÷ bare | ours ÷ SFT |",
        "|---" * 10 + "|",
    ]
    settings = [f"| {r['words']} words | {r['generations']} | {r['completion']} | {r['teacher']} |" for r in results]
    for start, r in zip(settings, results, strict=True):
        ratio = {name: "{1:.2f} ({0:.2f}–{2:.2f})".format(*r["ratio"][name]) for name in ("TRL", "plain")}
        inverse = {name: "{1:.2f} ({2:.2f}–{0:.2f})".format(*(1 / v for v in r["ratio"][name])) for name in ("bare", "SFT")}
        teacher = "{1:.1f} ({0:.1f}–{2:.1f})".format(*r["teacher_ratio"])
        cells = (f"{r['seconds']['ours']:.2f}", ratio["TRL"], ratio["plain"], teacher, inverse["bare"], inverse["SFT"])
        lines.append(f"{start} {' | '.join(cells)} |")
    lines += ["", head + "".join(f" {part} |" for part in PARTS), "|---" * (4 + len(PARTS)) + "|"]
    for start, r in zip(settings, results, strict=True):
        lines.append(start + "".join(f" {100 * r['parts'][part]:.0f} % |" for part in PARTS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
