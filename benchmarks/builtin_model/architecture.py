"""The sizes of the builtin model: Qwen3-VL's architecture, one token an image."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig

#: Pixels a side, after the processor; patches a side that the tower merges into one token.
IMAGE_SIDE = 32
PATCH = 8
MERGE = 4
#: Width of the language model, and of an image's feature.
WIDTH = 128


def vision_settings() -> dict[str, Any]:
    """Arguments of `Qwen3VLVisionConfig`."""
    return {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": (IMAGE_SIDE // PATCH) ** 2,
        "deepstack_visual_indexes": [],
    }


def text_settings(vocab_size: int, pad_token_id: int, eos_token_id: int) -> dict[str, Any]:
    """Arguments of `Qwen3VLTextConfig`."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
    }


def model_config(special_ids: dict[str, int], vocab_size: int) -> Qwen3VLConfig:
    """Configuration of the whole model.

    Args:
        special_ids: ids of "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
            "<|endoftext|>" (padding) and "<|im_end|>" (end of a turn).
        vocab_size: number of tokens.
    """
    return Qwen3VLConfig(
        vision_config=vision_settings(),
        text_config=text_settings(vocab_size, special_ids["<|endoftext|>"], special_ids["<|im_end|>"]),
        image_token_id=special_ids["<|image_pad|>"],
        video_token_id=special_ids["<|video_pad|>"],
        vision_start_token_id=special_ids["<|vision_start|>"],
        vision_end_token_id=special_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
