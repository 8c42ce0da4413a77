"""Rows of very different lengths: batches with little padding, and what each row alone gives; heads that can be scored."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    InklingTextConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from tests.toy import EOS, SHAPE, ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import ModelInputs, RowInputs, UserError, scoring
from text_sdft.core.scoring import by_length, completion_hidden_states
from text_sdft.training import SDFTTrainer


def test_little_padding_and_every_row_once():
    for rng in map(random.Random, range(20)):
        lengths = [rng.randrange(1, rng.choice([50, 500, 4000])) for _ in range(rng.randrange(1, 40))]
        batches = by_length(lengths)
        assert sorted(i for rows in batches for i in rows) == list(range(len(lengths)))
        for rows in batches:
            padded = len(rows) * max(lengths[i] for i in rows)
            assert padded <= scoring.SMALL_BATCH or sum(lengths[i] for i in rows) >= 0.9 * padded


def test_splitting_changes_neither_states_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    prompts = [[rng.randrange(2, 40) for _ in range(n)] for n in (3, 50, 4, 47, 21, 20)]
    inputs = ModelInputs([RowInputs({"input_ids": torch.tensor(prompt)}) for prompt in prompts], 0)
    completions = [torch.tensor([*(rng.randrange(2, 40) for _ in range(n)), EOS]) for n in (9, 0, 1, 30, 5, 2)]
    results = []
    for small in (10_000, 0):
        monkeypatch.setattr(scoring, "SMALL_BATCH", small)
        model = toy_model(dtype=torch.float64)
        states_NH = completion_hidden_states(model, model, inputs, completions)
        states_NH.square().sum().backward()
        results.append((states_NH.detach(), [p.grad for p in model.parameters()]))
    lengths = [len(p) + len(c) - 1 for p, c in zip(prompts, completions, strict=True)]
    assert len(by_length(lengths)) > 2
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-8)


SCORED = [
    GraniteConfig(**SHAPE, logits_scaling=8.0),
    CohereConfig(**SHAPE, logit_scale=0.06),
    Gemma2Config(**SHAPE, final_logit_softcapping=2.0),
]
EXPERTS = {"n_routed_experts": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 1}
OWN = [
    RecurrentGemmaConfig(**SHAPE, lru_width=32, attention_window_size=8),  # caps under another name
    InklingTextConfig(**SHAPE, **EXPERTS, unpadded_vocab_size=30),  # cuts the padding of its vocabulary off
]


@pytest.mark.parametrize("config", [*SCORED, *OWN], ids=lambda config: config.model_type)
def test_logits_that_the_divergence_would_not_compute_are_refused(config: PreTrainedConfig, tmp_path):
    """(Without a word others would be compared: a model's own cap would bend hidden states in the logits' place.)"""
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        trainer = SDFTTrainer(model, toy_args(tmp_path), adapter=ToyAdapter(), train_dataset=toy_rows(2))
        if config in OWN:
            with pytest.raises(UserError, match=f"{type(model).__name__} changes its logits"):
                trainer.check_prompts()
        else:
            trainer.check_prompts()
