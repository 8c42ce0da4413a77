"""The model card of a run: what was trained, on what, how, and what was measured."""

from __future__ import annotations

from typing import Any

from text_sdft.experiments.config import Experiment
from text_sdft.methods.table import find_method

_SETTINGS = (
    "learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "distillation_alpha", "teacher_model_kind", "teacher_update_rate", "retain_weight", "temperature",
    "max_completion_length", "seed",
)  # fmt: skip


def model_card(experiment: Experiment, results: dict[str, Any]) -> str:
    """Markdown with the hub's YAML header."""
    args, settings = experiment.args, experiment.settings
    lora = experiment.peft_config is not None
    header = [
        "---",
        f"library_name: {'peft' if lora else 'transformers'}",
        *([f"base_model: {experiment.model}"] if not experiment.model.startswith("builtin:") else []),
        f"tags: [{experiment.method.partition('/')[0]}, vlm-sdft]",
        "---",
    ]
    rows = [
        f"| {name} | {_cell(results['before'].get(name))} | {_cell(results['after'].get(name))} |"
        for name in results["before"]
    ]
    return "\n".join(
        [
            *header,
            "",
            f"# {experiment.model}, taught with {experiment.method}",
            "",
            f"Trained with vlm-sdft on `{settings['data']['path']}`. " + results["trained"],
            "",
            f"**Method.** {find_method(experiment.method).summary}",
            "",
            "| measured (95 % interval) | before | after |",
            "|---|---|---|",
            *rows,
            "",
            "`new` is what was taught, `old` what the model knew before, `teacher` the same model's accuracy on `new` with "
            "demonstrations in its context.",
            "",
            "**Settings.** " + ", ".join(f"{name} {getattr(args, name)}" for name in _SETTINGS) + ".",
            "",
            "**Data.** " + " ".join(experiment.splits.report),
            "",
            "**Versions.** " + ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + ".",
            "",
        ]
    )


def _cell(accuracy: dict[str, float] | None) -> str:
    if accuracy is None:
        return "–"
    return f"{accuracy['accuracy']:.3f} ({accuracy['low']:.3f}–{accuracy['high']:.3f}, n = {accuracy['n']})"
