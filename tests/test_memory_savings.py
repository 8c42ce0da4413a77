"""What saves memory leaves the result: activation checkpointing to the last digits, bf16 as far as bf16 goes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

from tests.family_rows import loaded
from tests.tiers import further
from tests.tiny_text import tiny_text_model
from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter
from text_sdft.core import ModelInputs, Rollout, TransformersSampler
from text_sdft.experiments.cost import memory, step_cost
from vlm_sdft import DemoSet, ImageAdapter

ROWS = [
    {"prompt": f"Question {i}?", "privileged_context": "An answer. " * (1 + i), "id": str(i), "retain": i > 3}
    for i in range(6)
]


def train(
    folder: Path,
    model: Any,
    adapter: Any,
    rows: Any,
    lora: bool,
    processing: Any = None,
    sampler: Any = None,
    **settings: Any,
) -> Any:
    """Losses and trained weights after three steps."""
    config = SDFTConfig(
        str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=3, learning_rate=1e-3,
        max_completion_length=6, save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, report_to=[],
        **settings,
    )  # fmt: skip
    peft = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    torch.manual_seed(0)  # of the LoRA weights
    trainer = SDFTTrainer(
        model, config, adapter=adapter, train_dataset=rows, processing_class=processing, peft_config=peft, sampler=sampler
    )  # fmt: skip
    trainer.train()
    assert trainer.module.is_activation_checkpointing == config.activation_checkpointing
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: p.detach().clone() for name, p in trainer.module.named_parameters() if p.requires_grad}


def assert_same(plain: Any, saving: Any, tolerance: float) -> None:
    assert saving[0] == pytest.approx(plain[0], abs=tolerance) and max(plain[0]) > 1e-3
    assert plain[1].keys() == saving[1].keys() and plain[1]
    for name, weight in plain[1].items():
        torch.testing.assert_close(saving[1][name], weight, atol=tolerance, rtol=1e-4, msg=name)


@pytest.fixture
def demos(tmp_path: Path) -> DemoSet:
    for i in range(6):
        kind = tmp_path / "objects" / "train" / f"kind{i % 2}"
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24 + 8 * i, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(kind / f"{i}.png")
    return DemoSet.from_folder(tmp_path / "objects", holdout=0.0)


@pytest.mark.parametrize("lora", [False, True])
def test_activation_checkpointing_of_a_text_model(tmp_path: Path, lora: bool):
    results = []
    for checkpointing in (False, True):
        model, tokenizer = tiny_text_model()
        folder = tmp_path / str(checkpointing)
        results.append(train(folder, model, TextAdapter(), ROWS, lora, tokenizer, activation_checkpointing=checkpointing))
    assert_same(*results, tolerance=1e-5)


@pytest.mark.parametrize("lora", [True, *further(False)])
def test_activation_checkpointing_of_every_family(tmp_path: Path, demos: DemoSet, trained_family: str, lora: bool):
    results = []
    for on in (False, True):
        model, processor, _ = loaded(trained_family)
        adapter = ImageAdapter(demos, n_types=2, shots=1)
        own = copy.deepcopy(model)
        results.append(train(tmp_path / str(on), own, adapter, demos.train, lora, processor, activation_checkpointing=on))
    assert_same(*results, tolerance=1e-5)


class Replayed:
    """Samples, and gives the same completions when it starts anew: bf16 itself would draw other ones."""

    def __init__(self) -> None:
        self.sampler, self.rollouts, self.next = TransformersSampler(6), [], 0

    def sample(self, model: Any, inputs: ModelInputs, seeds: Any) -> Rollout:
        if self.next == len(self.rollouts):
            self.rollouts.append(self.sampler.sample(model, inputs, seeds))
        self.next += 1
        return self.rollouts[self.next - 1]


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_is_near_fp32_on_the_same_completions_and_the_weights_stay_fp32(tmp_path: Path, lora: bool):
    results, sampler = [], Replayed()
    for bf16 in (False, True):
        sampler.next = 0
        model, tokenizer = tiny_text_model()
        folder = tmp_path / str(bf16)
        results.append(train(folder, model, TextAdapter(), ROWS, lora, tokenizer, sampler=sampler, bf16=bf16))
    plain, half = results
    assert half[0] == pytest.approx(plain[0], rel=0.05) and half[0] != plain[0]
    assert all(weight.dtype == torch.float32 for weight in half[1].values())


def test_memory_is_estimated_where_a_config_names_no_width_of_its_mlp(tmp_path: Path):
    """(GPT-2's and OPT's do not.)"""
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, bos_token_id=None, eos_token_id=1))
    config = SDFTConfig(str(tmp_path), max_completion_length=4, use_cpu=True)
    found = memory(config, model, torch.device("cpu"), rows=2, student_tokens=6, teacher_tokens=9)
    assert found["activations"] == 2 * (16 * 32 + 3 * 4 * 32) * 2 * (6 + 4) * 4


def test_a_previews_micro_batches_run_in_the_runs_precision(tmp_path: Path):
    """accelerate puts mixed precision into the forward that a run prepares."""
    model, tokenizer = tiny_text_model()
    config = SDFTConfig(str(tmp_path), per_device_train_batch_size=2, max_completion_length=4, bf16=True, use_cpu=True)
    trainer = SDFTTrainer(model, config, adapter=TextAdapter(), train_dataset=ROWS, processing_class=tokenizer)
    modes: list[bool] = []
    layer = model.get_input_embeddings()
    with layer.register_forward_hook(
        lambda *_: modes.append(torch.is_autocast_enabled("cpu")) if torch.is_grad_enabled() else None
    ):
        step_cost(trainer, warm=0)
    assert modes and all(modes)
