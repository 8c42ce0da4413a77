"""What a run takes: memory and FLOPs by formulas, a step's time and memory measured on its first micro-batches."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from text_sdft.core import SDFTConfig
from text_sdft.core.divergence import CHUNK_BYTES
from text_sdft.training import SDFTTrainer

#: In words, for tables.
FLOPS_FORMULA = (
    "FLOPs ≈ 2·P a token that is sampled or read by the teacher, 4·P + 2·P' a token that the student learns from (forward "
    "2·P, backward 2·P for activations, 2·P' for weights); P weights of the language model that each token is multiplied "
    "with, P' those of them that are trained; prompts count as tokens. Attention's quadratic part, vision towers and what "
    "caches save are left out."
)


def memory(
    args: SDFTConfig,
    module: nn.Module,
    device: torch.device,
    *,
    rows: int,
    student_tokens: int,
    teacher_tokens: int,
    copies: Sequence[Tensor] = (),
) -> dict[str, int]:
    """Bytes of what lies in memory at the worst moment, the student's backward pass.

    Args:
        module: the model, wherever it is ("meta" too); ``device`` is where the run will be.
        rows: of a micro-batch, retention prompts included.
        student_tokens, teacher_tokens: of the longest prompt in each view.
        copies: the teachers' own weights.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    text = module.config.get_text_config()  # type: ignore[operator, union-attr]
    width = 2 if args.bf16 else next(module.parameters()).element_size()
    tokens = rows * (student_tokens + args.max_completion_length)
    # Kept for the backward pass of one layer: about 16 hidden-sized and 3 MLP-sized tensors a token; with checkpointing 1.
    mlp = getattr(text, "intermediate_size", None) or 4 * text.hidden_size  # what GPT-2 and its like have
    per_layer = text.hidden_size if args.activation_checkpointing else 16 * text.hidden_size + 3 * mlp
    return {
        "weights": sum(p.nbytes for p in module.parameters()),
        "gradients": sum(p.nbytes for p in trained),
        "optimiser states (AdamW)": sum(2 * p.nbytes for p in trained),
        "teacher's copies": sum(tensor.nbytes for tensor in copies),
        "two chunks of logits": 2 * CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]),
        "activations": text.num_hidden_layers * per_layer * tokens * width,
        "teacher's forward": 8 * text.hidden_size * rows * (teacher_tokens + args.max_completion_length) * width,
    }


def step_cost(trainer: SDFTTrainer, warm: int = 2) -> dict[str, float]:
    """Seconds and peak memory of an optimiser step, predicted from single micro-batches; no weight is changed.

    What is kept from step to step (image features, prefixes) is there for the queries that the first ``warm`` ones read
    already, so an epoch's first steps take longer than predicted where images are large.

    Returns ``seconds`` a step, and ``peak`` bytes: of the device's allocator on a GPU, else of the whole process.
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
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:  # in KiB, on macOS in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trained = sum(2 * p.nbytes for p in trainer.module.parameters() if p.requires_grad)
    return {"seconds": seconds * args.gradient_accumulation_steps, "peak": peak + trained}


def training_flops(trainer: SDFTTrainer) -> float:
    """Operations of what this trainer has done so far, by `FLOPS_FORMULA`, over all processes alike."""
    module, tokens = trainer.module, trainer.tokens
    frozen = trainer.adapter.frozen_modules(module)
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    looked_up = set() if head is None or head.weight is embedding.weight else {id(p) for p in embedding.parameters()}
    multiplied = [
        p
        for name, p in module.named_parameters()
        if id(p) not in looked_up and not any(f".{part}." in f".{name}." for part in frozen)
    ]
    weights = sum(p.numel() for p in multiplied)
    trained = sum(p.numel() for p in multiplied if p.requires_grad)
    read = tokens["sampled"] + tokens["teacher"]
    return float(trainer.args.world_size * (2 * weights * read + (4 * weights + 2 * trained) * tokens["student"]))
