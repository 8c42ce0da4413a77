"""SDFT and its rivals on drawn types that the builtin model has never seen: `python benchmarks/new_types.py --seeds 3`.

Every method gets the same labelled images, the same unlabelled ones where it can use them, the same optimiser steps and the
same grid of learning rates, chosen on validation types; test types are touched once. Prints a table and writes JSON; a
finished cell is not run again.

- *untrained*: the model at the start, whose column "in context" is the teacher; *1-NN*: the nearest labelled image by the
  model's own vision features;
- *SFT*: cross-entropy on the labelled answers; *SFT from teacher*: on one answer that the teacher gave to each labelled and
  unlabelled image; *+ retention*: with the same retention prompts as SDFT (distillation to the starting model);
- *SDFT*: this package's trainer, without and with unlabelled images and retention prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from text_sdft.core import Example, FrozenTeacher, SDFTConfig, SDFTTrainer, TeacherContext, TransformersSampler
from text_sdft.core.rollout import draw_seed
from text_sdft.core.scoring import completion_hidden_states, head_of
from text_sdft.core.views import encode_student, encode_teacher
from text_sdft.experiments.scores import evaluate
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.zoo import resolve_data

MODEL = "builtin:tiny-qwen3-vl"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
#: method -> (kind, unlabelled images, retention prompts)
METHODS = {
    "SFT": ("sft", False, False),
    "SFT + retention": ("sft", False, True),
    "SFT from teacher": ("teacher", True, False),
    "SFT from teacher + retention": ("teacher", True, True),
    "SDFT, labelled images only": ("sdft", False, False),
    "SDFT, unlabelled too": ("sdft", True, False),
    "SDFT, unlabelled + retention": ("sdft", True, True),
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
    for method in ("untrained", *METHODS):
        rates = RATES if method in METHODS else (0.0,)
        best = max(rates, key=lambda rate: harmonic(cell("validation", 0, method, rate))) if len(rates) > 1 else rates[0]
        rows.append((method, best, [cell("test", seed, method, best) for seed in range(args.seeds)]))
    print(table(rows))


def run(split: str, seed: int, method: str, rate: float, args: argparse.Namespace) -> dict[str, float]:
    """Train once and measure new types, old types, old skills, and in-context learning on the new types' images."""
    folder = resolve_data(
        "builtin:novel-objects", Path("runs/data"), n_types=args.types, seed=seed, split=split, noise=args.noise
    )
    demos = DemoSet.from_folder(folder, retain_questions=["What is this?", "Describe this."])
    kind, unlabelled, retention = METHODS.get(method, ("none", True, False))
    adapter = ImageAdapter(demos, n_types=5, shots=2)
    rows = demos.labelled + (demos.unlabelled if unlabelled else []) + (demos.retain if retention else [])
    settings = {**vlm(), "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_completion_length": 16}
    config = SDFTConfig(
        "runs/benchmark", **{**settings, "learning_rate": rate, "max_steps": args.steps, "seed": seed},
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    trainer = SDFTTrainer(MODEL, config, adapter=adapter, train_dataset=rows)
    if kind == "sdft":
        trainer.train()
    elif kind != "none":
        supervised(trainer, answers(trainer, from_teacher=kind == "teacher"), retention)
    sets = {
        "new": adapter.examples(demos.test),
        "old": adapter.examples([row for row in demos.old if row.type]),
        "skills": adapter.examples([row for row in demos.old if not row.type]),
    }
    scores, _ = evaluate(trainer, sets, teacher=True, batch_size=32, phase="eval")
    result = {name: score["accuracy"] for name, score in scores.items()}
    if kind == "none":
        nearest = adapter.rivals(sets["new"])["1-nearest-neighbour"]
        result["1-NN"] = sum(given == e.reference for given, e in zip(nearest, sets["new"], strict=True)) / len(nearest)
    return result


def answers(trainer: SDFTTrainer, from_teacher: bool) -> list[tuple[Example, Tensor]]:
    """Targets: the labelled answers, or one answer that the teacher samples for each query."""
    tokenizer = trainer.adapter.processing_class.tokenizer
    if not from_teacher:
        eos = trainer.module.generation_config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        return [(e, torch.tensor(tokenizer(e.reference)["input_ids"] + ends[:1])) for e in trainer.queries]
    targets = []
    for start in range(0, len(trainer.queries), 16):
        queries = trainer.queries[start : start + 16]
        seeds = [draw_seed(trainer.args.seed, "teacher answers", e.id) for e in queries]
        inputs, _ = encode_teacher(trainer.adapter, queries, [TeacherContext(s) for s in seeds], trainer.prompt_limit)
        targets += list(zip(queries, trainer.sampler.sample(trainer.module, inputs, seeds).ids, strict=True))
    return targets


def supervised(trainer: SDFTTrainer, targets: list[tuple[Example, Tensor]], retention: bool) -> None:
    """Cross-entropy on the targets, with the optimiser, schedule, batch and steps of the SDFT runs."""
    args, module, rng = trainer.args, trainer.module, random.Random(trainer.args.seed)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, args.learning_rate, weight_decay=0.0)
    warmup = math.ceil(args.warmup_steps * args.max_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _cosine(warmup, args.max_steps))
    start = FrozenTeacher(module)
    sampler = TransformersSampler(args.max_completion_length)
    module.train()
    for step in range(args.max_steps):
        batch = [targets[i] for i in rng.sample(range(len(targets)), min(16, len(targets)))]
        ids = [target for _, target in batch]
        inputs = encode_student(trainer.adapter, [example for example, _ in batch], trainer.prompt_limit)
        logits_NV = head_of(module, 1.0).logits(completion_hidden_states(module, module, inputs, ids))
        tokens_N = cross_entropy(logits_NV, torch.cat(ids), reduction="none")
        loss = torch.stack([row.mean() for row in tokens_N.split([len(i) for i in ids])]).mean()
        if retention:
            kept = rng.choices(trainer.retained, k=16)
            view = encode_student(trainer.adapter, kept, trainer.prompt_limit)
            drawn = sampler.sample(module, view, [draw_seed(args.seed, step, i) for i in range(16)]).ids
            with torch.no_grad(), start.applied():
                log_q_NV = (
                    head_of(module, 1.0).logits(completion_hidden_states(module, module, view, drawn)).log_softmax(-1)
                )
            log_p_NV = head_of(module, 1.0).logits(completion_hidden_states(module, module, view, drawn)).log_softmax(-1)
            kl_N = (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1)
            loss = loss + torch.stack([row.mean() for row in kl_N.split([len(i) for i in drawn])]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    module.eval()


def _cosine(warmup: int, steps: int) -> Callable[[int], float]:
    return lambda step: (
        step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    )


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
