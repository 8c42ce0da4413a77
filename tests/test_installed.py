"""What the package asks for is what its libraries ask for, and it works where processes are not forked."""

from __future__ import annotations

import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.training import SDFTTrainer


def test_the_python_that_is_asked_for_is_the_one_that_transformers_needs():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    ours, theirs = (
        SpecifierSet(asked) for asked in (project["requires-python"], metadata("transformers")["Requires-Python"])
    )
    versions = [f"3.{minor}" for minor in range(8, 20)]
    assert [v for v in versions if v in ours and v not in theirs] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_read_the_same_rows(tmp_path, method):
    """(macOS and Windows spawn, and so does Python 3.14: what a worker is given must be found by name.)"""
    made = []
    for further in ({}, {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": method}):
        args = toy_args(tmp_path, max_steps=2, save_strategy="no", **further)
        trainer = SDFTTrainer(toy_model(), args, adapter=ToyAdapter(), train_dataset=toy_rows())
        trainer.train()
        made.append(trainer.module.state_dict())
    assert all(torch.equal(made[0][name], tensor) for name, tensor in made[1].items())
