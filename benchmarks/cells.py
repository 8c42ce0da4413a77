"""What the benchmarks on drawn types share: a trainer on the builtin model, scores, a file of finished cells, and how
means are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from text_sdft.core import SDFTConfig
from text_sdft.experiments.scores import evaluate
from text_sdft.experiments.stats import Interval
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.demos.sets import ImageRow
from vlm_sdft.zoo import resolve_data

MODEL = "builtin:tiny-qwen3-vl"


class Cells:
    """Results by key in one JSON file, written after each; a finished cell is not run again."""

    def __init__(self, file: Path) -> None:
        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.file = file
        self.done: dict[str, dict[str, Any]] = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.done:
            result = {name: round(v, 4) if isinstance(v, float) else v for name, v in run().items()}
            print(key, result, flush=True)
            self.done = {**self._read(), key: result}  # another process may have added cells meanwhile
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.done, indent=1) + "\n")
        return self.done[key]


def demo_set(**options: Any) -> DemoSet:
    """Drawn types that the builtin model has never seen; options as in `vlm_sdft.zoo.novel_objects`."""
    folder = resolve_data("builtin:novel-objects", Path("runs/data"), **options)
    return DemoSet.from_folder(folder, retain_questions=["What is this?", "Describe this."])


def make_trainer(
    adapter: ImageAdapter, rows: Sequence[Any], rate: float, steps: int, seed: int, model: Any = MODEL,
    kind: Callable[..., SDFTTrainer] = SDFTTrainer, folder: str = "runs/benchmark", peft_config: Any = None, **changes: Any,
) -> SDFTTrainer:  # fmt: skip
    """A trainer with 16 queries a step, cosine; ``changes`` are further settings of `SDFTConfig`."""
    settings = {**vlm(), "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_completion_length": 16}
    config = SDFTConfig(
        folder, **{**settings, "learning_rate": rate, "max_steps": steps, "seed": seed, **changes},
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=steps,
    )  # fmt: skip
    return kind(model, config, adapter=adapter, train_dataset=rows, peft_config=peft_config)


def mixed_types(rows: Sequence[ImageRow], purpose: int, seed: int, types: int) -> list[int]:
    """The number of each row's type, in a folder of drawn pictures that lie mixed under running numbers.

    Args:
        rows: of `unlabelled/` (``purpose`` 3) or `retain/` (5); one file may have several rows, but none is missing.
        seed, types: of the folder.
    """
    numbers = [int(Path(str(row.images[0])).stem) for row in rows]
    count = (max(numbers) + 1) // types
    order = np.random.default_rng([2026, purpose, seed, 1, 1]).permutation(types * count)
    return [int(order[number]) // count for number in numbers]


def accuracies(trainer: SDFTTrainer, demos: DemoSet) -> dict[str, float]:
    """Accuracy on new types (``teacher``: in context), old types and old skills."""
    sets = {
        "new": trainer.adapter.examples(demos.test),
        "old": trainer.adapter.examples([row for row in demos.old if row.type]),
        "skills": trainer.adapter.examples([row for row in demos.old if not row.type]),
    }
    scores, _ = evaluate(trainer, sets, teacher=True, batch_size=32, phase="eval")
    return {name: score["accuracy"] for name, score in scores.items()}


def shown(values: Sequence[float], signed: bool = False) -> str:
    """Mean and, from three seeds on, half of its interval, in per cent; a dash where there is nothing."""
    if not values:
        return "–"
    interval = Interval.over_seeds([100 * value for value in values])
    sign = "+" if signed else ""
    if interval.low is None or interval.high is None or len(values) < 3:
        return f"{interval.mean:{sign}.1f}"
    text = f"{interval.mean:{sign}.1f} ± {interval.high - interval.mean:.1f}"
    return f"**{text}**" if signed and interval.low * interval.high > 0 else text
