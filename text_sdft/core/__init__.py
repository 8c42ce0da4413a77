"""The distillation core: token ids, masks and hidden states; nothing of pixels, templates or tasks.

Read `trainer.py` first: `SDFTTrainer.compute_loss` is one training step, top to bottom.
"""

from text_sdft.core.adapter import ENTRY_POINT_GROUP, ModalityAdapter, adapter_class
from text_sdft.core.data import Conversation, Demonstration, Example, Message, TeacherContext, UserError
from text_sdft.core.inputs import ModelInputs, RowInputs

__all__ = [
    "ENTRY_POINT_GROUP",
    "Conversation",
    "Demonstration",
    "Example",
    "Message",
    "ModalityAdapter",
    "ModelInputs",
    "RowInputs",
    "TeacherContext",
    "UserError",
    "adapter_class",
]
