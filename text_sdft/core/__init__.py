"""The distillation core: token ids, masks and hidden states; nothing of pixels or tasks.

Read `groups.py` first: what a step consumes.

Names load when they are first used: the command line says a user's mistake before the libraries of models are loaded.
"""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same once more, for what checks types
    from text_sdft.core.adapter import ConfigurableAdapter, ExperimentAdapter, ModalityAdapter, adapter_class
    from text_sdft.core.chat import ChatAdapter
    from text_sdft.core.config import SDFTConfig, lora, paper
    from text_sdft.core.data import RUNGS, Conversation, Demonstration, Example, Message, Model, Splits, TeacherContext
    from text_sdft.core.divergence import DivergenceSettings, Head
    from text_sdft.core.errors import UserError
    from text_sdft.core.groups import Answer, Group, Reader, Step
    from text_sdft.core.inputs import ModelInputs, RowInputs
    from text_sdft.core.sampling import Rollout, Sampler, TransformersSampler, answer
    from text_sdft.core.teachers import EMATeacher, FrozenTeacher, LiveTeacher

#: File -> its public names; none may be called like a file of this folder.
_NAMES = {
    "adapter": "ConfigurableAdapter ExperimentAdapter ModalityAdapter adapter_class",
    "chat": "ChatAdapter",
    "config": "SDFTConfig lora paper",
    "data": "RUNGS Conversation Demonstration Example Message Model Splits TeacherContext",
    "divergence": "DivergenceSettings Head",
    "errors": "UserError",
    "groups": "Answer Group Reader Step",
    "inputs": "ModelInputs RowInputs",
    "sampling": "Rollout Sampler TransformersSampler answer",
    "teachers": "EMATeacher FrozenTeacher LiveTeacher",
}
_HOME = {name: file for file, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'text_sdft.core' has no attribute '{name}'")
    return getattr(import_module(f"text_sdft.core.{_HOME[name]}"), name)
