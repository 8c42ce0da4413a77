"""The smallest real thing: a two-layer Llama over 40 token ids and an adapter whose prompts are lists of ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from text_sdft.core import Conversation, Demonstration, Example, ModelInputs, RowInputs, SDFTConfig, TeacherContext

EOS, VOCABULARY = 1, 40
#: Settings of as small a model of other families.
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS,
}  # fmt: skip


def toy_model(seed: int = 0, tied: bool = True, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def sliding(kind: str) -> Any:
    """ "mistral" or "gemma3": models whose attention slides over 16 tokens, in all layers or in every other one."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3, "sliding_window": 16, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape)).eval()
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, head_dim=8, layer_types=layers)).eval()


class ToyAdapter:
    """Rows {"id", "prompt": ids, "context": ids, "reference": str, "retain": bool}."""

    processing_class = None

    def load_model(self, name: str, **kwargs: Any) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(name, **kwargs)

    def frozen_modules(self, model: Any) -> list[str]:
        return []

    def bind(self, model: Any, processing_class: Any = None) -> ToyAdapter:
        return self

    def examples(self, rows: Any) -> list[Example]:
        return [
            row
            if isinstance(row, Example)
            else Example(
                id=row["id"],
                messages=[{"role": "user", "content": row["prompt"]}],
                demonstrations=[Demonstration([{"role": "user", "content": ids}]) for ids in row.get("context", [])],
                reference=row.get("reference"),
                retain=row.get("retain", False),
            )
            for row in rows
        ]

    def student_messages(self, example: Example) -> Conversation:
        return list(example.messages)

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        kept = list(example.demonstrations)
        torch_order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(context.seed % 2**31)).tolist()
        return [kept[i] for i in torch_order][: context.max_demonstrations]

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        shown = self.demonstrations(example, context)
        return [message for d in shown for message in d.messages] + list(example.messages)

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        return ModelInputs(
            [RowInputs({"input_ids": torch.tensor([t for m in c for t in m["content"]])}) for c in conversations], 0
        )

    def decode(self, ids: Tensor) -> str:
        return " ".join(str(i) for i in ids.tolist() if i != EOS)

    def score(self, example: Example, answer: str) -> float | None:
        return None if example.reference is None else float(answer == example.reference)


def toy_rows(count: int = 8, retained: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Queries of 2-7 tokens with 1-3 demonstrations, and retention prompts."""
    g = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=g))
        return torch.randint(2, VOCABULARY, (length,), generator=g).tolist()

    queries = [
        {"id": f"q{i}", "prompt": ids(2, 8), "context": [ids(3, 9) for _ in range(1 + i % 3)], "reference": "5"}
        for i in range(count)
    ]
    return queries + [{"id": f"r{i}", "prompt": ids(2, 8), "retain": True} for i in range(retained)]


def toy_args(folder: Path, **changes: Any) -> SDFTConfig:
    """Full fine-tuning at a rate that visibly moves the weights; skips no token."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "max_steps": 2,
        "max_completion_length": 6,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "teacher_update_rate": 0.1,
        **changes,
    }
    return SDFTConfig(str(folder), **settings)
