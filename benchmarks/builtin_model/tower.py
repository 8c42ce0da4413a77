"""First stage of the build: the vision tower alone, by supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from architecture import IMAGE_SIDE, PATCH, WIDTH, vision_settings
from checkpoints import load_state, one_cycle, save_state
from pictures import TRANSFORMS, to_patches, transform
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision

from vlm_sdft.zoo.objects import COLOURS, LEGS, PATTERNS, SHAPES, DrawnType

STEPS = 3000
CLASSES, IMAGES = 64, 4
TEMPERATURE = 0.1
LEARNING_RATE = 1.5e-3
SAVE_EVERY = 250


def tower_features(tower: Qwen3VLVisionModel, patches: Tensor) -> Tensor:
    """The tower's output for images of one size, computed as a batch.

    The tower's own forward packs all images in one sequence and loops over them in attention; for many small images
    this is several times faster, with the same modules and the same result.

    Args:
        tower: the vision tower.
        patches: [images, 16, 384].

    Returns:
        One feature an image, [images, width].
    """
    images, count, _ = patches.shape
    hidden = tower.patch_embed(patches.reshape(images * count, -1)).view(images, count, -1) + tower.pos_embed.weight
    side = IMAGE_SIDE // PATCH
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cos, sin = tower.rotary_pos_emb(hidden, torch.stack([rows.flatten(), columns.flatten()]).T)
    blocks: Any = tower.blocks
    for block in blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).view(images, count, 3, attention.num_heads, -1)
        query, key = apply_rotary_pos_emb_vision(qkv[:, :, 0], qkv[:, :, 1], cos, sin)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), qkv[:, :, 2].transpose(1, 2), scale=attention.scaling
        )
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(images, count, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden)


def attribute_targets(kinds: Sequence[DrawnType | None]) -> Tensor:
    """Indices of each type's word attributes, [types, 4]: colour, shape, pattern with its colour, legs; -100 of None."""
    lists: list[list[Any]] = [list(COLOURS), list(SHAPES), list(PATTERNS), list(LEGS)]
    values = [k and (k.colour, k.shape, (k.pattern, k.pattern_colour), k.legs) for k in kinds]
    return torch.tensor([[o.index(v) for o, v in zip(lists, row, strict=True)] if row else [-100] * 4 for row in values])


class TowerTrainer(nn.Module):
    """The tower with linear heads that read the word attributes; the heads only help training and are not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Qwen3VLVisionModel(Qwen3VLVisionConfig(**vision_settings()))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(o)) for o in (COLOURS, SHAPES, PATTERNS, LEGS))

    def forward(self, pictures: Tensor, attributes: Tensor) -> Tensor:
        """Loss of uint8 pictures [classes, images, 3, 32, 32] whose classes have the attributes [classes, 4]."""
        classes, images = pictures.shape[:2]
        features = F.normalize(tower_features(self.tower, to_patches(pictures.flatten(0, 1))), dim=-1)
        labels = torch.arange(classes).repeat_interleave(images)
        loss = contrastive_loss(features, labels)
        for head, target in zip(self.heads, attributes.T, strict=True):
            logits = head(features * WIDTH**0.5)
            loss = loss + 0.25 * F.cross_entropy(logits, target.repeat_interleave(images))
        return loss


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of unit features [n, width] with class labels [n]: a scalar."""
    itself = torch.eye(len(labels), dtype=torch.bool)
    logits = (features @ features.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    positive = (labels[:, None] == labels) & ~itself
    return -(logits.log_softmax(-1)[positive]).mean()


@torch.no_grad()
def one_shot_accuracy(tower: Qwen3VLVisionModel, pictures: Tensor) -> float:
    """Share of second pictures whose nearest first picture has the same type; pictures uint8 [types, 2, 3, 32, 32]."""
    first, second = (F.normalize(tower_features(tower, to_patches(pictures[:, i])), dim=-1) for i in (0, 1))
    return ((second @ first.T).argmax(-1) == torch.arange(len(pictures))).float().mean().item()


def train_tower(
    pictures: Tensor, kinds: Sequence[DrawnType | None], held_out: Tensor, work: Path, seed: int
) -> Qwen3VLVisionModel:
    """Train the tower, going on from a checkpoint in ``work`` if there is one.

    Args:
        pictures: uint8 [types, images, 3, 32, 32].
        kinds: their types; None for what is no drawn object.
        held_out: pictures of validation types, uint8 [types, 2 or more, 3, 32, 32], for the progress bar.
        work: folder for the checkpoint.
        seed: of the initial weights and the batches.

    Returns:
        The tower; its features are of unit length on average, its weights of half precision (kept as fp32).
    """
    torch.manual_seed(seed)
    trainer = TowerTrainer()
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    progress = load_state(work / "tower.safetensors", trainer, optimizer) or {"step": 0}
    attributes = attribute_targets(kinds)
    accuracy = 0.0
    for step in (bar := tqdm(range(progress["step"], STEPS), "tower", STEPS, initial=progress["step"], mininterval=5)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randperm(len(kinds), generator=generator)[:CLASSES]
        shown = torch.stack([torch.randperm(pictures.shape[1], generator=generator)[:IMAGES] for _ in chosen])
        ways = torch.randint(TRANSFORMS, (CLASSES,), generator=generator).tolist()
        batch = torch.stack([transform(pictures[c, i], w) for c, i, w in zip(chosen, shown, ways, strict=True)])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * one_cycle(step, STEPS, warmup=200)
        loss = trainer(batch, attributes[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            accuracy = one_shot_accuracy(trainer.tower, held_out)
            save_state(work / "tower.safetensors", trainer, optimizer, {"step": step + 1, "one_shot": accuracy})
        bar.set_postfix(loss=f"{loss.item():.3f}", unseen_one_shot=f"{accuracy:.3f}", refresh=False)
    _finish(trainer.tower, pictures)
    return trainer.tower.eval()


@torch.no_grad()
def _finish(tower: Qwen3VLVisionModel, pictures: Tensor) -> None:
    """Scale the last layer so that features are of unit length on average, and round all weights to half precision.

    The weights stay fp32 in memory; rounded, they are stored in half the space without loss.
    """
    length = tower_features(tower, to_patches(pictures[:1000, 0])).norm(dim=-1).mean()
    for parameter in tower.merger.linear_fc2.parameters():
        parameter.div_(length)
    for parameter in tower.parameters():
        parameter.copy_(parameter.half().float())
