"""Steps made into a run, on transformers' `Trainer`: read `trainer.py` first."""

from text_sdft.training.modeling import default_lora
from text_sdft.training.trainer import SDFTTrainer

__all__ = ["SDFTTrainer", "default_lora"]
