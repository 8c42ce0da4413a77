"""Settings that cannot be are refused by their name, with what to use instead."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from tests.toy import toy_args
from text_sdft.core import SDFTConfig
from text_sdft.core.inherited import BOUNDS, REFUSED, TAKEN


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


def test_every_setting_of_transformers_is_known():
    """Each does what its help says, or is refused: a new one fails here by its name, until it is put where it belongs."""
    installed = {f.name for f in fields(TrainingArguments)}
    assert installed ^ (TAKEN | REFUSED.keys()) == set() and not TAKEN & REFUSED.keys()
    assert BOUNDS.keys() <= TAKEN


def test_settings_without_effect_are_refused_with_what_to_do(tmp_path):
    others = {"include_for_metrics": ["loss"], "label_names": ["labels"], "length_column_name": "tokens"}
    others |= {"liger_kernel_config": {"rope": True}, "resume_from_checkpoint": "runs/x/checkpoint-5"}
    others |= {"include_num_input_tokens_seen": "all", "eval_accumulation_steps": 2, "label_smoothing_factor": 0.1}
    others |= {"parallelism_config": object()}
    for name, remedy in REFUSED.items():
        value = others.get(name) or not SDFTConfig.__dataclass_fields__[name].default
        with pytest.raises(ValueError, match=f"^{name} .*{re.escape(remedy)}"):
            toy_args(tmp_path, **{name: value})


def test_numbers_beyond_sense_are_refused_with_the_largest_that_has_some(tmp_path):
    for name, value, use in (
        ("num_generations", 10**6, "at most 1,024"),
        ("max_steps", 10**30, "at most 1,000,000,000"),
        ("max_completion_length", 10**12, "at most 1,048,576"),
        ("seed", 2**32, "at most 4,294,967,295"),
        ("data_seed", -1, "0 or more"),
        ("save_steps", 0, "more than 0"),
        ("save_steps", -1, "more than 0"),
        ("save_steps", float("nan"), "more than 0"),
        ("logging_steps", float("inf"), "at most 1,000,000,000"),
        ("eval_steps", 0, "more than 0"),
        ("save_total_limit", 0, "1 or more"),
        ("dataloader_num_workers", -1, "0 or more"),
        ("temperature", float("nan"), "more than 0"),
        ("num_generations", 2.5, "a whole number"),
        ("num_generations", True, "a whole number"),
        ("teacher_model_kind", "frozen", "base or ema or live"),
        ("log_level", "loud", "one of detail, debug"),
        ("accelerator_config", {"dispatch_batches": True}, "every process reads its own rows"),
    ):
        with pytest.raises(ValueError, match=f"^{name} .*{use}"):
            toy_args(tmp_path, **{name: value})
    with pytest.raises(ValueError) as told:
        toy_args(tmp_path, seed=int("9" * 4_000))
    assert len(str(told.value)) < 200
