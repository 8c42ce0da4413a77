"""Memory of training a real VLM by `configs/*.yaml`, without its weights: `python benchmarks/vlm_memory.py`.

The formula of `vlm-sdft preview`, on models that are built from their published sizes without memory of their own (the
"meta" device), and on prompts of as many tokens as images of the config's size take. Prints a table for docs/visual-icl.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from text_sdft.core import SDFTConfig
from text_sdft.experiments.cost import memory
from text_sdft.training import default_lora
from text_sdft.training.modeling import prepare_model
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.zoo import resolve_data

CONFIGS = Path(__file__).parent.parent / "configs"
#: Tokens of a user turn and its answer beside the image, rounded up.
WORDS = 32
QWEN3 = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
#: Config -> tokens of an image of 448 × 448, and the sizes in which the model differs from its family's defaults.
MODELS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "qwen3-vl-2b": (
        196,
        "qwen3_vl",
        {
            "text_config": {
                **QWEN3,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
            },
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2048,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-vl-7b": (
        256,
        "qwen2_5_vl",
        {
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            },
            "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        },
    ),
    "qwen3-vl-8b": (
        196,
        "qwen3_vl",
        {
            "text_config": {
                **QWEN3,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
            },
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "out_hidden_size": 4096,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
    ),
}


def main() -> None:
    columns = ("config", "parameters", "queries a micro-batch", "LoRA", "of it weights", "all weights, fp32")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, (image, family, sizes) in MODELS.items():
        settings = yaml.safe_load((CONFIGS / f"{name}-new-types.yaml").read_text())
        lora = total(settings, image, model(family, sizes, torch.bfloat16), True)
        full = total(settings, image, model(family, sizes, torch.float32), False)
        count = sum(p.numel() for p in model(family, sizes, torch.bfloat16).parameters())
        cells = (f"{size / 2**30:.0f} GiB" for size in (sum(lora.values()), lora["weights"], sum(full.values())))
        batch = settings["train"]["per_device_train_batch_size"]
        print(f"| `configs/{name}-new-types.yaml` | {count / 1e9:.2f} B | {batch} | {' | '.join(cells)} |")


def model(family: str, sizes: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **sizes), dtype=dtype)


def total(settings: dict[str, Any], image: int, module: PreTrainedModel, lora: bool) -> dict[str, int]:
    """Bytes by use, for a config's batch and demonstrations, with retention prompts."""
    folder = resolve_data("builtin:novel-objects", Path("runs/data"), n_types=1)
    adapter = ImageAdapter(DemoSet.from_folder(folder))
    args = SDFTConfig(**{**vlm(), **settings["train"], "bf16": False, "use_cpu": True})
    args.bf16 = True  # of the run; this machine need not have it
    trained = prepare_model(module, adapter, default_lora() if lora else None, args.seed)
    copies = [p for p in trained.parameters() if p.requires_grad]  # of a frozen teacher
    shown = settings["demonstrations"]["n_types"] * settings["demonstrations"]["shots"]
    return memory(
        args, trained, torch.device("cuda"), rows=2 * args.per_device_train_batch_size,
        student_tokens=image + WORDS, teacher_tokens=(shown + 1) * (image + WORDS), copies=copies,
    )  # fmt: skip


if __name__ == "__main__":
    main()
