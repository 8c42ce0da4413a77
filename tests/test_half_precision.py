"""fp16: the loss scale reaches gradients before they are rounded."""

from __future__ import annotations

import torch
from peft import LoraConfig
from torch import Tensor

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.training import SDFTTrainer

LENGTH = 100
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def gradient(tmp_path, dtype: torch.dtype, seen: list) -> Tensor:
    """That of an adapter on weights of fp16, with completions of 100 tokens; in fp32 the same weights are read exactly."""
    model = toy_model(tied=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.003)  # as flat as a large vocabulary's first logits: small gradients
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    settings = {"mask_truncated_completions": False, "distillation_is_clip": None}
    args = toy_args(tmp_path, max_completion_length=LENGTH, num_loss_tokens_to_skip=0, **settings)
    rows = toy_rows(4)
    trainer = SDFTTrainer(model.half().to(dtype), args, adapter=ToyAdapter(), train_dataset=rows, peft_config=LORA)
    sample = trainer.rollouts
    trainer.rollouts = lambda *given: seen[0] if seen else seen.append(sample(*given)) or seen[0]
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    trainer.accelerator.scaler = scaler if scaler.is_enabled() else None  # accelerate has one on GPUs alone
    scaler.scale(trainer.compute_loss(trainer.model, {"examples": trainer.queries}, num_items_in_batch=4)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]) / scaler.get_scale()


def test_small_gradients_of_long_completions_survive_fp16(tmp_path):
    seen: list = []
    exact, half = (gradient(tmp_path, dtype, seen) for dtype in (torch.float32, torch.float16))
    assert (half - exact).norm() < 0.02 * exact.norm()
