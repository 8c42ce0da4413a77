"""What demonstration images cost in a step, with each saving on and off: `python benchmarks/image_demos.py`.

A model of Qwen3-VL's architecture with random weights (on a GPU: `--device cuda --model Qwen/Qwen3-VL-2B-Instruct`), drawn
images, frozen teacher, vision tower untouched. Every setting is measured after an epoch, with what it keeps from step to
step; sides alternate. *Features*: each image through the tower once. *Prefix*: demonstrations that queries have in common
(selection by group) are read once. All settings must give the same loss before they are timed. A tower that is trained:
`benchmarks/trained_tower.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from text_sdft.core import Group, Reader, Step, TeacherContext
from vlm_sdft import DemoSet, ImageAdapter, SDFTConfig, SDFTTrainer, vlm
from vlm_sdft.zoo import resolve_data, resolve_model

SAVINGS = {
    "both": (4.0, 2.0),
    "features": (4.0, 0.0),
    "neither": (0.0, 0.0),
}
SHOWN = {0: (1, 1), 1: (1, 1), 4: (2, 2), 16: (8, 2)}


def blind(step: Step) -> list[Group]:
    """The teacher sees no demonstrations: what a step costs without them."""
    queries, seeds = step.rollouts()
    contexts = [TeacherContext(seed, max_demonstrations=0) for seed in seeds]
    return [Group(queries, seeds, reader=Reader(step.teacher, contexts))]


@dataclass
class Side:
    """One setting: a trainer and the queries of its steps."""

    trainer: SDFTTrainer
    seconds: list[float]

    def step(self, number: int, rows: int) -> float:
        trainer = self.trainer
        trainer.state.global_step = number
        start = number * rows % len(trainer.queries)
        queries = (trainer.queries * 2)[start : start + rows]
        trainer.model.train()
        loss = trainer.training_step(trainer.model, {"examples": queries})
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.teacher.update()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        return float(loss)


def main() -> None:
    args, model, demos = read_arguments(__doc__ or "", "benchmarks/results/image_demos.json")
    cells = []
    for count in SHOWN:
        cells += cell(args, model, demos, count)
        print(table(cells), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(cells, indent=1) + "\n")


def read_arguments(doc: str, out: str) -> tuple[argparse.Namespace, str, DemoSet]:
    """The command's arguments, the model's name or folder, and drawn images."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: Qwen3-VL's architecture, 12 M parameters.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="Queries a step.")
    parser.add_argument("--pixels", type=int, default=128, help="Side of an image.")
    parser.add_argument("--repeats", type=int, default=7, help="Alternations.")
    parser.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = args.model or random_model(args.pixels)
    folder = resolve_data(
        "builtin:novel-objects", Path("runs/data"), n_types=8, shots=3, n_unlabelled=4, n_test=1, n_retain=0, n_old=1,
        size=args.pixels,
    )  # fmt: skip
    return args, model, DemoSet.from_folder(folder)


def cell(args: argparse.Namespace, model: str, demos: DemoSet, count: int, **setting: Any) -> list[dict[str, Any]]:
    """All savings for so many demonstration images, against the step without any; ``setting``: see `side`."""
    sides = {"without": side(args, model, demos, 0, SAVINGS["both"], **setting)}
    savings = SAVINGS if count else {"neither": SAVINGS["neither"]}
    sides |= {name: side(args, model, demos, count, saving, **setting) for name, saving in savings.items()}
    rows, epoch = args.rows, -(-len(demos.unlabelled) // args.rows)
    losses = {name: [s.step(number, rows) for number in range(epoch)] for name, s in sides.items()}
    compared = [losses[name] for name in savings]
    gap = max(abs(a - b) for other in compared for a, b in zip(compared[0], other, strict=True))
    if gap > (1e-4 if args.device == "cpu" else 2e-2):
        raise SystemExit(f"The settings computed different losses, so there is nothing to compare: {losses}")
    names = list(sides)
    for number in range(epoch, epoch + args.repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            sides[name].step(number, rows)
            sides[name].seconds.append(time.perf_counter() - started)
    tokens = teacher_tokens(sides[names[-1]].trainer)
    base = sides["without"].seconds
    return [
        {
            "images": count,
            "tokens": tokens,
            "savings": name,
            "seconds": statistics.median(sides[name].seconds),
            "ratio": [b / a for a, b in zip(base, sides[name].seconds, strict=True)],
        }
        for name in savings
    ]


def side(
    args: argparse.Namespace, model: str, demos: DemoSet, count: int, saving: tuple[float, float],
    train_vision: bool = False, teacher: str = "base",
) -> Side:  # fmt: skip
    n_types, shots = SHOWN[count]
    features_gib, prefix_gib = saving
    adapter = ImageAdapter(
        demos, selection="grouped", n_types=n_types, shots=shots, image_features_gib=features_gib, train_vision=train_vision
    )
    changes = {"per_device_train_batch_size": args.rows, "gradient_accumulation_steps": 1, "teacher_model_kind": teacher}
    config = SDFTConfig(
        tempfile.mkdtemp(), **{**vlm(), **changes},
        learning_rate=1e-6, teacher_prefix_gib=prefix_gib, max_steps=1000, use_cpu=args.device == "cpu",
        bf16=args.device == "cuda", report_to=[], warmup_steps=0, lr_scheduler_type="constant",
    )  # fmt: skip
    torch.manual_seed(0)
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    method = "sdft" if count else blind
    trainer = SDFTTrainer(loaded, config, adapter=adapter, method=method, train_dataset=demos.unlabelled)
    trainer.create_optimizer()
    return Side(trainer, [])


def teacher_tokens(trainer: SDFTTrainer) -> float:
    """Tokens of a teacher prompt, on average."""
    adapter, queries = trainer.adapter, trainer.queries
    conversations = [adapter.teacher_messages(query, TeacherContext()) for query in queries]
    return statistics.mean(adapter.encode(conversations).lengths)


def random_model(pixels: int) -> str:
    """A folder with Qwen3-VL's architecture, larger than the builtin model, and its processor."""
    folder = tempfile.mkdtemp()
    builtin = resolve_model("builtin:tiny-qwen3-vl")
    config = AutoConfig.from_pretrained(builtin)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 768, 8
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 8, 2, 32
    vision.out_hidden_size = 256
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(builtin)
    processor.image_processor.size = {"shortest_edge": pixels**2, "longest_edge": pixels**2}
    processor.save_pretrained(folder)
    return folder


def table(cells: list[dict[str, Any]]) -> str:
    lines = [
        "| images | tokens of a teacher prompt | reused | step, s | ÷ the step without demonstrations |",
        "|---" * 5 + "|",
    ]
    for c in cells:
        low, middle, high = min(c["ratio"]), statistics.median(c["ratio"]), max(c["ratio"])
        ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})"
        lines.append(f"| {c['images']} | {c['tokens']:.0f} | {c['savings']} | {c['seconds']:.2f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
