"""On-policy self-distillation for language models: the core, the text adapter and the experiments.

    from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter

Names load when they are first used, so that ``import text_sdft`` itself costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "SDFTTrainer": "text_sdft.training",
    "TextAdapter": "text_sdft.adapter",
    **dict.fromkeys(["ChatAdapter", "answered"], "text_sdft.core.chat"),
    "default_lora": "text_sdft.training",
    **dict.fromkeys(
        [
            "Answer",
            "ConfigurableAdapter",
            "Demonstration",
            "Example",
            "Group",
            "ModalityAdapter",
            "ModelInputs",
            "Reader",
            "RowInputs",
            "SDFTConfig",
            "Splits",
            "Step",
            "TeacherContext",
            "UserError",
            "lora",
            "paper",
        ],
        "text_sdft.core",
    ),
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'text_sdft' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
