"""Running `vlm-sdft` in a test: short runs, what is in their folders, and the message of a command that went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from text_sdft.training.callbacks import MetricsWriter
from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent
FAST = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "max_completion_length": 2, "save_strategy": "no"}

BUILTIN = "builtin:tiny-qwen3-vl"
STEPS = 6
#: Six steps at a rate at which the builtin model's answers visibly change.
SETTINGS: dict[str, Any] = {
    "model": BUILTIN,
    "data": {
        "path": "builtin:novel-objects",
        "options": {"n_types": 2, "n_unlabelled": 4, "n_test": 4, "n_retain": 1, "n_old": 1},
    },
    "demonstrations": {"n_types": 2},
    "eval": {"max_examples": 12},
    "train": {
        "use_cpu": True,
        "disable_tqdm": True,
        "max_completion_length": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "distillation_is_clip": None,
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 1,
    },
}


def jsonl(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def options(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--train.{name}", str(value).lower())]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that the user got wrong."""
    assert main(argv) == 2
    _, ours, message = capsys.readouterr().err.partition("vlm-sdft: ")
    assert ours and "Traceback" not in message
    return message


def read(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def measured(folder: Path) -> tuple[Any, Any]:
    results = read(folder / "results.json")
    return results["before"], results["after"]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The logs of training steps, without what hangs on the clock."""
    return [log for log in read(folder / "metrics.jsonl") if "loss" in log]


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when so many steps are done."""

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsWriter, "on_step_begin", on_step_begin)
