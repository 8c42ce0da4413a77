"""What training cost, in floating-point operations."""

from __future__ import annotations

from text_sdft.training import SDFTTrainer

#: In words, for tables.
FORMULA = (
    "FLOPs ≈ 2·P a token that is sampled or read by the teacher, 4·P + 2·P' a token that the student learns from (forward "
    "2·P, backward 2·P for activations, 2·P' for weights); P weights of the language model that each token is multiplied "
    "with, P' those of them that are trained; prompts count as tokens. Attention's quadratic part, vision towers and what "
    "caches save are left out."
)


def training_flops(trainer: SDFTTrainer) -> float:
    """Operations of what this trainer has done so far, by `FORMULA`, over all processes alike."""
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
