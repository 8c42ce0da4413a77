"""What a step of a run will take, measured on its first micro-batch and scaled up."""

from __future__ import annotations

import resource
import sys
import time

import torch

from text_sdft.core import SDFTTrainer


def step_cost(trainer: SDFTTrainer, warm: int = 2) -> dict[str, float]:
    """Seconds and peak memory of an optimiser step, predicted from single micro-batches; no weight is changed.

    What is kept from step to step (image features, prefixes) is there for the queries that the first ones read already,
    so an epoch's first steps take longer than predicted where images are large.

    Args:
        warm: micro-batches before the one that is timed.

    Returns:
        ``seconds`` a step; ``peak`` bytes: of the device's allocator on a GPU, else of the whole process.
    """
    args, device = trainer.args, trainer.args.device
    size = args.per_device_train_batch_size
    if trainer.optimizer is None:
        trainer.create_optimizer()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = trainer.accelerator.prepare_model(trainer.model_wrapped)  # as a run does: mixed precision is in its forward
    model.train()
    seconds = 0.0
    for number in range(warm + 1):
        start = number * size % len(trainer.queries)
        queries = (trainer.queries * 2)[start : start + size]
        started = time.perf_counter()
        trainer.training_step(model, {"examples": queries})
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    for parameter in trainer.module.parameters():
        parameter.grad = None
    trained = sum(2 * p.numel() * p.element_size() for p in trainer.module.parameters() if p.requires_grad)
    return {"seconds": seconds * args.gradient_accumulation_steps, "peak": peak_bytes(device) + trained}


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: by tensors on a GPU, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
