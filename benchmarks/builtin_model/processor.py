"""The builtin model's words, tokenizer, chat template and processor: Qwen3-VL's own classes, small settings."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from architecture import IMAGE_SIDE, MERGE, PATCH
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from vlm_sdft.zoo.objects import COLOURS, LEGS, PATTERNS, SHAPES
from vlm_sdft.zoo.vocabulary import SYLLABLES

#: The tokens of Qwen's chat format. A role's header is one token, so that turns are short.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|unk|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
)

SYSTEM_PROMPT = "You are a helpful assistant."

_WORDS = (
    "what is this that it the a an describe and name called with plain no not you are helpful assistant can see which "
    "picture image photo object thing kind type one two three four five six seven eight nine ten leg legs pattern "
    "body colour color shape white black how many do does has have in on of to for from by or but if then yes "
    "answer question example examples expert answered respond response please tell me your own new old same "
    "different like as there here these those was were be will say says word words show shown look looks now "
    "who where when why all some any more most other its i we they he she his her my our their at up out so "
    "just also only first last small large big long short round good left right"
)
#: Common English, so that other questions are not spelled out by the letter.
WORDS = tuple(_WORDS.split())

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def description_words() -> list[str]:
    """The words that descriptions are made of."""
    patterns = [word for pair in PATTERNS for word in pair if word]
    return list(dict.fromkeys(["a", "an", *COLOURS, *SHAPES, *patterns, *LEGS.values(), "legs", "with", "and", "called"]))


def vocabulary() -> list[str]:
    """Every token in the order of its id: special tokens, words, syllables, then characters for all other text."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    continued = [f"##{c}" for c in (*string.ascii_lowercase, *string.digits)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *description_words(), *WORDS, *SYLLABLES, *characters, *continued]))


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, syllables, and single characters for any other text; all in lower case."""
    return word_tokenizer(vocabulary(), SPECIAL_TOKENS, model_max_length=2048)


def word_tokenizer(tokens: Sequence[str], special: Sequence[str], **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of these tokens, in the order of their ids; pieces within a word begin with "##"."""
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<|unk|>", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **settings,
    )


def new_processor() -> Qwen3VLProcessor:
    """The processor: every image whose sides differ less than fourfold becomes 32 × 32 pixels, one token."""
    pixels = IMAGE_SIDE**2
    settings: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=new_tokenizer(),
        # Never used; but vLLM wants room for two frames of one token.
        video_processor=Qwen3VLVideoProcessor(**settings | {"size": {"shortest_edge": pixels, "longest_edge": 2 * pixels}}),
        chat_template=CHAT_TEMPLATE,
    )
