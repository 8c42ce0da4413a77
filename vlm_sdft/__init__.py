"""On-policy self-distillation for vision-language models that learn from demonstration images.

    from vlm_sdft import DemoSet, ImageAdapter, SDFTConfig, SDFTTrainer, vlm

Names load when they are first used.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DemoSet": "vlm_sdft.demos.sets",
    "ImageAdapter": "vlm_sdft.adapter",
    "vlm": "vlm_sdft.config",
    "SDFTConfig": "text_sdft.core",
    "SDFTTrainer": "text_sdft.training",
    "UserError": "text_sdft.core",
    "default_lora": "text_sdft.training",
    "lora": "text_sdft.core",
    "retain_in_context": "vlm_sdft.demos.retention",
    "retain_made": "vlm_sdft.demos.retention",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlm_sdft' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
