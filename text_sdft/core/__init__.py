"""The distillation core: token ids, masks and hidden states; nothing of pixels, templates or tasks.

Read `trainer.py` first: `SDFTTrainer.compute_loss` is one training step, top to bottom.
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
from text_sdft.core.evaluation import answer
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.sampling import Rollout, Sampler, TransformersSampler
from text_sdft.core.teachers import EMATeacher, FrozenTeacher, LiveTeacher

__all__ = [
    "ENTRY_POINT_GROUP",
    "RUNGS",
    "ChatAdapter",
    "ConfigurableAdapter",
    "Conversation",
    "Demonstration",
    "DivergenceSettings",
    "EMATeacher",
    "Example",
    "ExperimentAdapter",
    "FrozenTeacher",
    "Head",
    "LiveTeacher",
    "Message",
    "ModalityAdapter",
    "Model",
    "ModelInputs",
    "Rollout",
    "RowInputs",
    "SDFTConfig",
    "Sampler",
    "Splits",
    "TeacherContext",
    "TransformersSampler",
    "UserError",
    "adapter_class",
    "answer",
    "divergence",
    "lora",
    "paper",
]
