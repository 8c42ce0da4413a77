"""Second stage of the build: the language model, on features of the frozen tower computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import load_state, one_cycle, save_state
from episodes import FULL, Batch, Source, Writer, episodes, single_questions
from pictures import TRANSFORMS, to_patches, transform
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tower import tower_features
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from vlm_sdft.zoo.objects import DrawnType
from vlm_sdft.zoo.vocabulary import DESCRIBE_AND_NAME_QUESTION, DESCRIBE_QUESTION, NAME_QUESTION

STEPS = 2000
LEARNING_RATE = 1e-3
#: (layout, most types in an episode, accuracy on validation types at which the next stage begins). Telling two types apart
#: comes first, then many, both in the bare layout, where steps are short; then the layout grows.
STAGES = (
    (0, 2, 0.95),
    (0, 6, 0.93),
    *((layout, 6, 0.93) for layout in range(1, FULL + 1)),
)
#: Turns of an episode while stages are passed.
TURNS = {2: 8, 6: 11}
CHECK_EVERY = 25
SAVE_EVERY = 200


@dataclass
class Bank:
    """Features [classes, pictures, width] with what the classes are."""

    features: Tensor
    source: Source


@torch.no_grad()
def feature_bank(
    tower: Qwen3VLVisionModel,
    pictures: Tensor,
    kinds: Sequence[DrawnType],
    names: Sequence[str] | None = None,
    transforms: int = TRANSFORMS,
    cache: Path | None = None,
) -> Bank:
    """Features of pictures uint8 [types, pictures, 3, 32, 32]; each transform of a type is a class of its own.

    ``cache`` names a safetensors file to read the features from if it exists, or to keep them in.
    """
    count = pictures.shape[1]
    descriptions = [kind.description for kind in kinds for _ in range(transforms)]
    source = Source(descriptions, names, count)
    if cache is not None and cache.exists():
        return Bank(load_file(cache)["features"], source)
    rows = []
    for start in tqdm(range(0, len(kinds), 16), desc="features", unit_scale=16, unit="type", disable=len(kinds) < 1000):
        chunk = pictures[start : start + 16]
        turned = torch.stack([transform(chunk, way) for way in range(transforms)], dim=1)
        rows.append(tower_features(tower, to_patches(turned.flatten(0, 2))).view(-1, count, tower.config.out_hidden_size))
    features = torch.cat(rows)
    if cache is not None:
        save_file({"features": features}, cache)
    return Bank(features, source)


def batch_logits(model: Qwen3VLForConditionalGeneration, features: Tensor, batch: Batch, where: Tensor) -> Tensor:
    """Logits that predict the tokens at ``where``.

    With one token an image, M-RoPE's positions are 0, 1, 2, … on all three axes: this is the model's own forward.

    Args:
        model: of which the language model and the head are used.
        features: of a `Bank`, [classes, pictures, width].
        batch: the sequences.
        where: bool [rows, length]; the first column must be False.

    Returns:
        [True values of ``where``, vocabulary].
    """
    embeddings = model.get_input_embeddings()(batch.ids)
    images = batch.ids == model.config.image_token_id
    embeddings[images] = features[batch.images[:, 0], batch.images[:, 1]]
    positions = torch.arange(batch.ids.shape[1]).expand(3, *batch.ids.shape)
    hidden = model.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    return model.lm_head(hidden.last_hidden_state[:, :-1][where[:, 1:]])


def batch_loss(model: Qwen3VLForConditionalGeneration, bank: Bank, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of a batch, a scalar."""
    where = batch.weights > 0
    losses = F.cross_entropy(batch_logits(model, bank.features, batch, where), batch.ids[where], reduction="none")
    weights = batch.weights[where]
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def naming_accuracy(model: Qwen3VLForConditionalGeneration, bank: Bank, batch: Batch) -> float:
    """Share of known names whose first syllable is right, given all that stands before."""
    logits = batch_logits(model, bank.features, batch, batch.decisive)
    return (logits.argmax(-1) == batch.ids[batch.decisive]).float().mean().item()


class Curriculum:
    """What is trained in a step: `STAGES` one after the other, then episodes of all kinds in the full template."""

    def __init__(self, writer: Writer, making: Bank, base: Bank, validation: Bank) -> None:
        self.writer = writer
        self.making, self.base, self.validation = making, base, validation

    def batches(self, step: int, stage: int, rng: np.random.Generator) -> list[tuple[Bank, Batch]]:
        """The batches of a step; the losses of all are added up. The first stage is naming from demonstrations alone."""
        named = (self.making, self._episodes(step, stage, rng))
        if stage == 0:
            return [named]
        single = [
            (self.base, 8, NAME_QUESTION),
            (self.making, 12, DESCRIBE_QUESTION),
            (self.base, 6, DESCRIBE_AND_NAME_QUESTION),
        ]
        questions = [(bank, single_questions(self.writer, bank.source, rng, n, text)) for bank, n, text in single]
        return [named, *questions]

    def _episodes(self, step: int, stage: int, rng: np.random.Generator) -> Batch:
        source = self.making.source
        if stage < len(STAGES):
            layout, ways, _ = STAGES[stage]
            if rng.random() > 0.7:
                layout = int(rng.integers(layout + 1))
            return episodes(self.writer, source, rng, 32, TURNS[ways], (2, ways), layout)
        system = bool(rng.random() < 0.1)
        if step % 4 == 3:
            return episodes(self.writer, source, rng, 12, 10, (2, 6), describe=True, system=system)
        turns = int(rng.integers(7, 26)) if step % 4 == 1 else 11
        return episodes(self.writer, source, rng, 264 // turns, turns, (2, 6), system=system)

    def accuracy(self, model: Qwen3VLForConditionalGeneration, stage: int, seed: int) -> float:
        """Naming of validation types in the stage's episodes."""
        layout, ways, _ = STAGES[min(stage, len(STAGES) - 1)]
        rng = np.random.default_rng([seed, 7])
        batch = episodes(self.writer, self.validation.source, rng, 32, TURNS[ways], (2, ways), layout)
        return naming_accuracy(model, self.validation, batch)


def train_language(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    making: Bank,
    base: Bank,
    validation: Bank,
    work: Path,
    seed: int,
) -> dict[str, Any]:
    """Train the language model in place, going on from a checkpoint in ``work`` if there is one.

    Returns:
        The progress: steps, and the step at which each stage was passed.
    """
    curriculum = Curriculum(Writer(tokenizer), making, base, validation)
    language = nn.ModuleDict({"language": model.model.language_model})
    optimizer = torch.optim.AdamW(language.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    progress = load_state(work / "language.safetensors", language, optimizer) or {"step": 0, "stage": 0, "passed": []}
    accuracy = 0.0
    model.train()
    start = progress["step"]
    for step in (bar := tqdm(range(start, STEPS), "language", STEPS, initial=start, mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 1.6 * one_cycle(step, STEPS, warmup=100))
        rng = np.random.default_rng([seed, 5, step])
        losses = [batch_loss(model, bank, batch) for bank, batch in curriculum.batches(step, progress["stage"], rng)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(language.parameters(), 1.0)
        optimizer.step()
        progress["step"] = step + 1
        if (step + 1) % CHECK_EVERY == 0:
            accuracy = curriculum.accuracy(model, progress["stage"], step)
            if progress["stage"] < len(STAGES) and accuracy > STAGES[progress["stage"]][2]:
                progress["stage"] += 1
                progress["passed"].append(step + 1)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            save_state(work / "language.safetensors", language, optimizer, progress)
        shown = [f"{loss.item():.2f}" for loss in losses]
        bar.set_postfix(loss=" ".join(shown), stage=progress["stage"], unseen=f"{accuracy:.2f}", refresh=False)
    model.eval()
    return progress
