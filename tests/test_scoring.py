"""Rows of very different lengths: batches with little padding, and what each row alone gives."""

from __future__ import annotations

import random

import pytest
import torch

from tests.toy import EOS, toy_model
from text_sdft.core import ModelInputs, RowInputs, scoring
from text_sdft.core.scoring import by_length, completion_hidden_states


@pytest.mark.parametrize("seed", range(20))
def test_little_padding_and_every_row_once(seed: int):
    rng = random.Random(seed)
    lengths = [rng.randrange(1, rng.choice([50, 500, 4000])) for _ in range(rng.randrange(1, 40))]
    batches = by_length(lengths)
    assert sorted(i for rows in batches for i in rows) == list(range(len(lengths)))
    for rows in batches:
        padded = len(rows) * max(lengths[i] for i in rows)
        assert padded <= scoring.SMALL or sum(lengths[i] for i in rows) >= 0.9 * padded


def test_splitting_changes_neither_states_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    prompts = [[rng.randrange(2, 40) for _ in range(n)] for n in (3, 50, 4, 47, 21, 20)]
    inputs = ModelInputs([RowInputs({"input_ids": torch.tensor(prompt)}) for prompt in prompts], 0)
    completions = [torch.tensor([*(rng.randrange(2, 40) for _ in range(n)), EOS]) for n in (9, 0, 1, 30, 5, 2)]
    results = []
    for small in (10_000, 0):
        monkeypatch.setattr(scoring, "SMALL", small)
        model = toy_model(dtype=torch.float64)
        states_NH = completion_hidden_states(model, model, inputs, completions)
        states_NH.square().sum().backward()
        results.append((states_NH.detach(), [p.grad for p in model.parameters()]))
    lengths = [len(p) + len(c) - 1 for p, c in zip(prompts, completions, strict=True)]
    assert len(by_length(lengths)) > 2
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-8)
