"""Tiny models with random weights and real processors, one of each family, made on the spot."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

TILE = 16  # side of the tiny models' images (tiles, where a family has them)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "image_size": TILE, "patch_size": 4, "vision_use_head": False}

# The forms of the families' own templates, shortened.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% elif 'text' in c %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
INTERNVL = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
IDEFICS = (  # goes over the characters of a plain string and writes none of them
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}"
    "{% else %}{{ ': ' }}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA = (  # puts all images of a turn first
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% for c in m['content'] if c['type'] == 'image' %}"
    "{{ '<image>' }}{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ '\n' + c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (  # folds the system message into the first user turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ first if loop.first else '' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer(template: str, special: dict[str, str], others: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens: attributes by name, and others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *others],
        chat_template=template,
        **special,
    )


def _qwen(name: str) -> tuple[PreTrainedModel, Any]:
    tok = tokenizer(QWEN, {}, ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"))
    ids = {key: tok.convert_tokens_to_ids(f"<|{value}|>") for key, value in QWEN_TOKENS.items()}
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    images = Qwen2VLImageProcessor(**sizes, temporal_patch_size=2)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**TEXT, "vocab_size": len(tok), "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None}
    vision = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "initializer_range": 0.3}
    video = Qwen3VLVideoProcessor if name == "qwen3_vl" else Qwen2VLVideoProcessor
    videos = video(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    if name == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        return Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(images, tok, videos, chat_template=QWEN)
    vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    if name == "qwen2_5_vl":
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        return Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor(images, tok, videos, chat_template=QWEN)
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config={**text, "head_dim": 8}, vision_config=vision, **ids)
    return Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor(images, tok, videos, chat_template=QWEN)


QWEN_TOKENS = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}


def _idefics(name: str) -> tuple[PreTrainedModel, Any]:
    places = tuple(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))
    others = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *places)
    special = {"fake_image_token": others[0], "image_token": others[1], "end_of_utterance_token": others[2]}
    tok = tokenizer(IDEFICS, {} if name == "idefics3" else {**special, "global_image_token": others[3]}, others)
    size = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    text = {**TEXT, "model_type": "llama", "vocab_size": len(tok), "pad_token_id": tok.pad_token_id}
    text |= {"bos_token_id": None, "eos_token_id": tok.eos_token_id}
    settings = {
        "text_config": text,
        "vision_config": {**VISION, "image_size": TILE, "patch_size": 4},
        "image_token_id": tok.convert_tokens_to_ids("<image>"),
        "pad_token_id": tok.pad_token_id,
        "scale_factor": 2,
    }
    if name == "idefics3":
        processor: Any = Idefics3Processor(Idefics3ImageProcessor(**size), tok, image_seq_len=4, chat_template=IDEFICS)
        return Idefics3ForConditionalGeneration(Idefics3Config(**settings)), processor
    images, videos = SmolVLMImageProcessor(**size), SmolVLMVideoProcessor(**size)
    processor = SmolVLMProcessor(images, tok, videos, image_seq_len=4, chat_template=IDEFICS)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**settings)), processor


def _llava_onevision(name: str) -> tuple[PreTrainedModel, Any]:
    tok = tokenizer(LLAVA, {}, ("<image>", "<video>"))
    pinpoints = [[TILE * i, TILE * j] for i in (1, 2) for j in (1, 2)]
    size = {"height": TILE, "width": TILE}
    images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tok), "bos_token_id": None, "eos_token_id": None},
        vision_config=SIGLIP,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    videos = LlavaOnevisionVideoProcessor(size=size)
    processor = LlavaOnevisionProcessor(
        images, tok, videos, num_image_tokens=16, vision_feature_select_strategy="full", chat_template=LLAVA
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _gemma3(name: str) -> tuple[PreTrainedModel, Any]:
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer(GEMMA, {**special, "bos_token": "<bos>"}, ("<start_of_turn>", "<end_of_turn>"))
    text = {**TEXT, "vocab_size": len(tok), "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    text |= {"pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id, "bos_token_id": tok.bos_token_id}
    config = Gemma3Config(
        text_config=text,
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
        initializer_range=0.3,
    )
    images = Gemma3ImageProcessor(size={"height": TILE, "width": TILE})
    processor = Gemma3Processor(images, tok, chat_template=GEMMA, image_seq_length=4)
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero when new: blind
    return model, processor


def _internvl(name: str) -> tuple[PreTrainedModel, Any]:
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tok = tokenizer(INTERNVL, {**special, "video_token": "<video>"})
    size = {"height": TILE, "width": TILE}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=3)
    config = InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tok), "bos_token_id": None, "eos_token_id": None},
        vision_config={**VISION, "image_size": [TILE, TILE], "patch_size": [4, 4], "layer_scale_init_value": 1.0},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    videos = InternVLVideoProcessor(size=size)
    processor = InternVLProcessor(images, tok, videos, image_seq_length=4, chat_template=INTERNVL)
    return InternVLForConditionalGeneration(config), processor


_MAKERS = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "llava_onevision": _llava_onevision,
    "gemma3": _gemma3,
    "internvl": _internvl,
}
FAMILIES: tuple[str, ...] = tuple(_MAKERS)


@functools.cache
def family_folder(name: str) -> Path:
    """A folder with a saved model and its processor."""
    torch.manual_seed(0)
    model, processor = _MAKERS[name](name)
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{name}-"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_family(name: str) -> tuple[PreTrainedModel, Any]:
    """A fresh model (fp32, eval) and processor of a family, loaded from its folder."""
    folder = family_folder(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)
