"""Running `vlm-sdft` in a test: the shortest training, and the message of a command that the user got wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent
FAST = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "max_completion_length": 2, "save_strategy": "no"}


def options(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--train.{name}", str(value).lower())]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that the user got wrong."""
    assert main(argv) == 2
    _, ours, message = capsys.readouterr().err.partition("vlm-sdft: ")
    assert ours and "Traceback" not in message
    return message
