"""Builds the builtin model from nothing: `python benchmarks/builtin_model/build.py --out DIR`.

Draws the pictures, trains the tower, then the language model, measures the skills and writes the model card. What is
done is kept in ``DIR/.work``: a build that was cut off goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from architecture import model_config
from card import card
from language import feature_bank, train_language
from pictures import draw_small
from processor import new_processor, vocabulary
from skills import measure
from tower import train_tower
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, Qwen3VLForConditionalGeneration

from vlm_sdft.zoo.objects import SPLIT_SIZES, base_types, sample_types
from vlm_sdft.zoo.vocabulary import base_names

MAKING_TYPES, MAKING_IMAGES = 4000, 12
#: Pictures of a type and transform whose features the language model sees.
LANGUAGE_IMAGES = 6
BASE_IMAGES = 60


def build(out: Path, seed: int) -> None:
    """Build everything into ``out``."""
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n", encoding="utf-8")
    making = sample_types("making", MAKING_TYPES, seed)
    validation = sample_types("validation", SPLIT_SIZES["validation"], seed)
    making_pictures = draw_small(making, MAKING_IMAGES, 10 * seed + 1, work / "making.safetensors")
    validation_pictures = draw_small(validation, 8, 10 * seed + 2, work / "validation.safetensors")
    tower = train_tower(making_pictures, making, validation_pictures, work, seed)

    processor = new_processor()
    ids = {token: i for i, token in enumerate(vocabulary())}
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(model_config(ids, len(ids)))
    model.model.visual.load_state_dict(tower.state_dict())
    base_pictures = draw_small(base_types(), BASE_IMAGES, 10 * seed + 3)
    progress = train_language(
        model,
        processor.tokenizer,
        making=feature_bank(tower, making_pictures[:, :LANGUAGE_IMAGES], making, cache=work / "features.safetensors"),
        base=feature_bank(tower, base_pictures, base_types(), base_names(), transforms=1),
        validation=feature_bank(tower, validation_pictures, validation, transforms=1),
        work=work,
        seed=seed,
    )
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"], max_new_tokens=32
    )
    weights = {name: w.half() if name.startswith("model.visual.") else w for name, w in model.state_dict().items()}
    model.save_pretrained(out, state_dict=weights)
    processor.save_pretrained(out)
    write_card(out, seed, f"{progress['step']} steps; the curriculum's stages were passed at steps {progress['passed']}")


def write_card(out: Path, seed: int, how: str) -> None:
    """Measure the saved model as a user would load it, print the numbers, and write its card."""
    model = AutoModelForImageTextToText.from_pretrained(out)
    scores = measure(model, AutoProcessor.from_pretrained(out))
    for name, score in scores.items():
        print(f"{name}: {score}")
    numbers = {name: {"right": score.right, "total": score.total} for name, score in scores.items()}
    (out / ".work" / "scores.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(scores, model.num_parameters(), seed, how), encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="of drawings, initial weights and batches")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; unset: as many as torch finds")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    build(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
