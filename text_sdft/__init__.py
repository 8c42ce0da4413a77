"""On-policy self-distillation for language models: the core, the text adapter and the experiments.

    from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter

Names load when they are first used, so that ``import text_sdft`` itself costs nothing.
"""

from importlib import import_module
from typing import Any

#: Module -> its public names.
_NAMES = {
    "adapter": "TextAdapter",
    "core": "Answer ConfigurableAdapter Demonstration Example Group ModalityAdapter ModelInputs Reader RowInputs "
    "SDFTConfig Splits Step TeacherContext UserError lora paper",
    "core.chat": "ChatAdapter answered",
    "training": "SDFTTrainer default_lora",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'text_sdft' has no attribute '{name}'")
    return getattr(import_module(f"text_sdft.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
