"""A broader model for this benchmark: `python benchmarks/unseen_types/build_model.py` (data/unseen_types/model).

The builtin model was made from drawn objects alone; emoji and characters mean little to its vision tower. This one goes on
from it, with that model's own build: the tower also learns to tell emoji and characters apart, and the language model also
names them from demonstrations. Kinds of the splits "validation" and "test", the held-out vendor, the held-out hand
and all clothes are never shown. What is done is kept in MODEL/.work: a build that was cut off goes on where it stood.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sources import BROADER_MODEL, SOURCES, Source
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).parent.parent / "builtin_model"))

from checkpoints import load_state, one_cycle, save_state
from episodes import Writer, episodes, single_questions
from language import LEARNING_RATE, SAVE_EVERY, Bank, batch_loss, feature_bank
from pictures import draw_small, shrink
from tower import TowerTrainer, train_tower

from vlm_sdft.zoo import resolve_model
from vlm_sdft.zoo.objects import base_types, sample_types
from vlm_sdft.zoo.vocabulary import DESCRIBE_AND_NAME_QUESTION, DESCRIBE_QUESTION, NAME_QUESTION, base_names

BROADER = ("emoji", "handwriting")
DRAWN, CHARACTERS, PICTURES, SEED = 1000, 800, 12, 0
#: The builtin model counts as one that was cut off here, of `tower.STEPS` and of `STEPS`.
TOWER_STEP, STEP, STEPS = 1500, 1800, 2000
#: Pictures of a kind, and turns and mirrorings of them, whose features the language model sees.
LANGUAGE_PICTURES, LANGUAGE_TRANSFORMS = 8, 4


def build(out: Path) -> None:
    """Build everything into ``out``."""
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    model = AutoModelForImageTextToText.from_pretrained(resolve_model("builtin:tiny-qwen3-vl"), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(resolve_model("builtin:tiny-qwen3-vl"))
    drawn = sample_types("making", DRAWN, SEED)
    pictures = [draw_small(drawn, PICTURES, 10 * SEED + 1, work / "drawn.safetensors")]
    for name in BROADER:
        source = SOURCES[name]()
        pictures.append(small_pictures(source, source.kinds["making"][:CHARACTERS], work / f"{name}.safetensors"))
    tower = broader_tower(model, pictures, drawn, work)

    model.model.visual.load_state_dict(tower.state_dict())
    banks = []
    for name, part in zip(("drawn", *BROADER), pictures, strict=True):
        kinds = drawn if name == "drawn" else drawn[: len(part)]  # descriptions of others are not used
        banks.append(
            feature_bank(
                tower, part[:, :LANGUAGE_PICTURES], kinds, transforms=LANGUAGE_TRANSFORMS, cache=work / f"{name}-features"
            )
        )
    old_pictures = draw_small(base_types(), 60, 10 * SEED + 3)
    old = feature_bank(tower, old_pictures, base_types(), base_names(), transforms=1)
    broader_language(model, Writer(processor.tokenizer), banks, old, work)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def small_pictures(source: Source, kinds: Sequence[str], cache: Path) -> Tensor:
    """Shown pictures of every kind at the size the tower sees, uint8 [kinds, pictures, 3, 32, 32]."""
    if cache.exists():
        return load_file(cache)["pictures"]
    rows = []
    for t, kind in enumerate(tqdm(kinds, cache.stem)):
        shots = [
            np.asarray(source.picture(kind, np.random.default_rng([2028, t, i]), held_out=False)) for i in range(PICTURES)
        ]
        rows.append(shrink(torch.from_numpy(np.stack(shots)).permute(0, 3, 1, 2)))
    pictures = torch.stack(rows).contiguous()
    save_file({"pictures": pictures}, cache)
    return pictures


def broader_tower(model: Any, pictures: Sequence[Tensor], drawn: Sequence[Any], work: Path) -> Any:
    """The builtin tower, trained on; its progress is measured across vendors on validation kinds."""
    if not (work / "tower.safetensors").exists():
        torch.manual_seed(SEED)
        trainer = TowerTrainer()
        trainer.tower.load_state_dict(model.model.visual.state_dict())
        save_state(work / "tower.safetensors", trainer, torch.optim.AdamW(trainer.parameters()), {"step": TOWER_STEP})
    emoji = SOURCES["emoji"]()
    pairs = [
        [emoji.picture(kind, np.random.default_rng([2029, t, i]), held_out=bool(i)) for i in range(2)]
        for t, kind in enumerate(emoji.kinds["validation"])
    ]
    held_out = shrink(
        torch.from_numpy(np.asarray([[np.asarray(p) for p in pair] for pair in pairs])).permute(0, 1, 4, 2, 3)
    )
    kinds = [*drawn, *[None] * sum(len(part) for part in pictures[1:])]
    return train_tower(torch.cat(list(pictures)), kinds, held_out, work, SEED)


def broader_language(model: Any, writer: Writer, banks: Sequence[Bank], old: Bank, work: Path) -> None:
    """The builtin language model, trained on in place: all its skills, and episodes about every kind of picture."""
    drawn = banks[0]
    language = nn.ModuleDict({"language": model.model.language_model})
    optimizer = torch.optim.AdamW(language.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    progress = load_state(work / "language.safetensors", language, optimizer) or {"step": STEP}
    model.train()
    for step in (bar := tqdm(range(progress["step"], STEPS), "language", STEPS, initial=progress["step"], mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 1.6 * one_cycle(step, STEPS, warmup=100))
        rng = np.random.default_rng([SEED, 9, step])
        bank = drawn if step % 4 == 3 else banks[step % 4 % len(banks)]
        turns = int(rng.integers(7, 26)) if step % 2 else 11
        told = episodes(writer, bank.source, rng, 264 // turns, turns, (2, 6), describe=step % 4 == 3)
        single = [(old, 8, NAME_QUESTION), (drawn, 12, DESCRIBE_QUESTION), (old, 6, DESCRIBE_AND_NAME_QUESTION)]
        losses = [batch_loss(model, bank, told)]
        losses += [batch_loss(model, b, single_questions(writer, b.source, rng, n, text)) for b, n, text in single]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(language.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            save_state(work / "language.safetensors", language, optimizer, {"step": step + 1})
        bar.set_postfix(loss=" ".join(f"{loss.item():.2f}" for loss in losses), refresh=False)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BROADER_MODEL)
    torch.set_num_threads(1)
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
