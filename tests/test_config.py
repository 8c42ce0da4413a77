"""Settings that cannot be are refused by their name, with what to use instead."""

from __future__ import annotations

import pytest
from transformers.integrations import integration_utils

from tests.toy import toy_args
from text_sdft.core import SDFTConfig


def test_evaluation_in_another_precision_is_refused(tmp_path):
    """transformers would then leave the model where it is, and the teacher's copies with it."""
    with pytest.raises(ValueError, match="bf16_full_eval"):
        toy_args(tmp_path, bf16_full_eval=True)


@pytest.mark.parametrize(
    ("name", "value"), [("distillation_chunk_size", -5), ("distillation_topk", 0), ("distillation_is_clip", 0.0)]
)
def test_divergences_that_cannot_be_are_refused_by_their_setting(tmp_path, name, value):
    """(A negative chunk would leave every token out, and the loss whatever was in memory.)"""
    with pytest.raises(ValueError, match=f"{name} {value}: use"):
        toy_args(tmp_path, **{name: value})


@pytest.mark.parametrize(("name", "remedy"), [("nowhere", "only .*wandb"), ("wandb", "pip install wandb")])
def test_a_logger_that_is_not_there_is_refused_with_a_remedy(tmp_path, monkeypatch, name, remedy):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match=rf"report_to {name}: .*{remedy}.*none"):
        toy_args(tmp_path, report_to=name)


def test_a_logger_that_transformers_can_use_is_taken_where_it_does_not_list_it(tmp_path, monkeypatch):
    """(It leaves azure_ml out of the available ones beside mlflow, and flyte always.)"""
    for name in ("azureml", "mlflow"):
        monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: True)
    assert toy_args(tmp_path, report_to="azure_ml").report_to == ["azure_ml"]


def test_a_run_needs_a_folder():
    with pytest.raises(ValueError, match="output_dir"):
        SDFTConfig("")


@pytest.mark.parametrize(("given", "saved"), [({"eval_steps": 20}, 20), ({"eval_steps": 0.1}, 0.2), ({}, 10)])
def test_the_best_model_is_one_that_was_measured(tmp_path, given, saved):
    """(A checkpoint after each fifth of a run is the default: whole steps of evaluation are not mixed with it.)"""
    args = SDFTConfig(str(tmp_path), load_best_model_at_end=True, eval_strategy="steps", **given)
    assert args.save_steps == saved
