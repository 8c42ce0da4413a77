"""The distillation core: token ids, masks and hidden states; nothing of pixels or tasks.

Read `groups.py` first: what a step consumes. `text_sdft.training.trainer` is the step, top to bottom.
"""

from text_sdft.core.adapter import ENTRY_POINT_GROUP, ConfigurableAdapter, ExperimentAdapter, ModalityAdapter, adapter_class
from text_sdft.core.chat import ChatAdapter
from text_sdft.core.config import SDFTConfig, lora, paper
from text_sdft.core.data import (
    RUNGS,
    Conversation,
    Demonstration,
    Example,
    Message,
    Model,
    Splits,
    TeacherContext,
)
from text_sdft.core.divergence import DivergenceSettings, Head, divergence
from text_sdft.core.errors import UserError
from text_sdft.core.groups import Answer, Group, Reader, Step
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.sampling import Rollout, Sampler, TransformersSampler, answer
from text_sdft.core.teachers import EMATeacher, FrozenTeacher, LiveTeacher

__all__ = [
    "ENTRY_POINT_GROUP",
    "RUNGS",
    "Answer",
    "ChatAdapter",
    "ConfigurableAdapter",
    "Conversation",
    "Demonstration",
    "DivergenceSettings",
    "EMATeacher",
    "Example",
    "ExperimentAdapter",
    "FrozenTeacher",
    "Group",
    "Head",
    "LiveTeacher",
    "Message",
    "ModalityAdapter",
    "Model",
    "ModelInputs",
    "Reader",
    "Rollout",
    "RowInputs",
    "SDFTConfig",
    "Sampler",
    "Splits",
    "Step",
    "TeacherContext",
    "TransformersSampler",
    "UserError",
    "adapter_class",
    "answer",
    "divergence",
    "lora",
    "paper",
]
