"""A commented config for a folder of images."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

_TEMPLATE = """\
# {report}
model: {model}
adapter: image

data:
  path: {path}
  question: What is this?        # asked about every image; answers come from the folders' names or types.yaml
  # retain: general_images       # a folder of any images that the model should go on answering as it does{retain_note}
{pixels}
demonstrations:                  # what the teacher sees before each query
  selection: retrieved           # the most similar labelled images; random where nothing retrieves well
  n_types: {n_types:<22}# the fewer types, the more retrieval decides; `vlm-sdft probe --sweep` says what is best
  shots: {shots}

train:
  output_dir: {name}
{train}  # num_train_epochs: 10
"""

_TINY = """\
  learning_rate: 5.0e-4          # all weights of a tiny model
  # per_device_train_batch_size: 8
  # gradient_accumulation_steps: 2
"""
_HUB = """\
  learning_rate: 2.0e-4          # of the LoRA adapter (lora.enabled: false trains all weights: 1.0e-5)
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 4
  bf16: true
  activation_checkpointing: true   # less memory for more time; `vlm-sdft preview` says how much memory
"""


def run_name(data: str) -> str:
    """What to call the run's folder after its data: ``my_objects`` of ``data/my_objects/`` and of ``my_objects.jsonl``."""
    return Path(data.removeprefix("builtin:").removeprefix("hub:")).resolve().name.removesuffix(".jsonl") or "run"


def _quoted(text: str) -> str:
    """As it stands where YAML would read it so, else quoted, with escapes for all that could end a line."""
    if all(char.isalnum() or char in "/._-:" for char in text) and yaml.safe_load(text) == text:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def init_config(folder: str, model: str) -> str:
    """The config as YAML text. Raises `UserError` where the folder cannot be used."""
    from vlm_sdft.demos.sets import DemoSet
    from vlm_sdft.zoo import limits

    demos = DemoSet.load(folder)
    images = [sum(row.type == name for row in demos.labelled) for name in {row.type for row in demos.labelled}]
    builtin = model.startswith("builtin:")
    said = limits(model, dict.fromkeys(str(row.answer) for row in demos.labelled))
    return _TEMPLATE.format(
        report="".join(char if char.isprintable() else " " for char in " ".join([*demos.report, *said])),
        model=_quoted(model),
        path=_quoted(folder.rstrip("/") or "/"),
        name=_quoted(f"runs/{run_name(folder)}"),
        n_types=min(5, len(images)),
        shots=min(2, min(images)),
        pixels="" if builtin else "  max_pixels: 200704             # 448 × 448: fewer pixels, shorter prompts\n",
        train=_TINY if builtin else _HUB,
        retain_note="" if demos.retain else " (recommended)",
    )
