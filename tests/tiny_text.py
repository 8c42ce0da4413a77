"""A tiny random Llama with a byte-level tokenizer and a chat template: any text, no download.

Call `tiny_text_model()` for both in memory, `save_tiny_text_model(folder)` for what the Auto classes load.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    symbols = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


@cache
def _weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config()).state_dict()


def _config() -> LlamaConfig:
    tokenizer = _tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,  # large, so that the context visibly changes the next token's distribution
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def tiny_text_model(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A fresh copy of the model (fp32, fewer than 300k parameters), and its tokenizer."""
    model = LlamaForCausalLM(_config())
    model.load_state_dict(_weights(seed))
    return model.eval(), _tokenizer()


def save_tiny_text_model(folder: Path, seed: int = 0) -> str:
    """The model and its tokenizer in a folder, whose path is returned."""
    model, tokenizer = tiny_text_model(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
