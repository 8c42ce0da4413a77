"""FLOPs of training follow the formula that `compare` prints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny_text import tiny_text_model
from tests.toy import toy_args
from text_sdft import TeacherContext, TextAdapter
from text_sdft.experiments.cost import training_flops
from text_sdft.training import SDFTTrainer


def test_flops_follow_the_stated_formula(tmp_path):
    """One SFT step and SDFT steps, counted by hand from prompts and completions."""
    for method, readings in (("sft", 0), ("sdft", 1)):
        model, tokenizer = tiny_text_model()
        trainer = SDFTTrainer(
            model, toy_args(tmp_path, max_steps=1, per_device_train_batch_size=1), adapter=TextAdapter(), method=method,
            train_dataset=[{"prompt": "A question?", "golden_response": "yes"}], processing_class=tokenizer,
        )  # fmt: skip
        lengths: dict[str, int] = {}
        rollouts = trainer.rollouts

        def watched(groups: Any, inputs: Any, lengths: Any = lengths, rollouts: Any = rollouts) -> Any:
            found = rollouts(groups, inputs)
            lengths["prompt"], lengths["completion"] = inputs.lengths[0], len(found[0].ids[0])
            return found

        trainer.rollouts = watched  # type: ignore[method-assign]
        trainer.train()
        P = sum(p.numel() for p in trainer.module.parameters())
        student = lengths["prompt"] + lengths["completion"]
        expected = 6 * P * student
        if readings:
            view = trainer.adapter.teacher_messages(trainer.queries[0], TeacherContext())
            prompt = trainer.adapter.encode([view]).lengths[0]
            assert prompt > lengths["prompt"]
            expected += 2 * P * student + readings * 2 * P * (prompt + lengths["completion"])
        assert training_flops(trainer) == pytest.approx(expected)
    assert torch.get_num_threads() == 1
