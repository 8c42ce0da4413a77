"""Training with torch.compile: slow to begin, and the same."""

from __future__ import annotations

import pytest

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.training import SDFTTrainer


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tmp_path):
    """Batches of several lengths, over weights that move."""
    losses = {}
    for compiled in (False, True):
        config = toy_args(tmp_path / str(compiled), max_steps=4, torch_compile=compiled)
        trainer = SDFTTrainer(toy_model(), config, adapter=ToyAdapter(), train_dataset=toy_rows(8))
        trainer.train()
        assert hasattr(trainer.model_wrapped, "_orig_mod") == compiled  # the student's forward
        assert not hasattr(trainer.module, "_orig_mod")  # what samples and what the teacher reads with
        losses[compiled] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
