"""Steps made into a run, on transformers' `Trainer`: read `trainer.py` first."""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from text_sdft.training.modeling import default_lora
    from text_sdft.training.trainer import SDFTTrainer

_HOME = {"SDFTTrainer": "trainer", "default_lora": "modeling"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Names load when they are first used: checks of data and settings need no Trainer."""
    if name not in _HOME:
        raise AttributeError(f"module 'text_sdft.training' has no attribute '{name}'")
    return getattr(import_module(f"text_sdft.training.{_HOME[name]}"), name)
