"""Settings that cannot be are refused by their name, with what to use instead."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import integration_utils
from transformers.training_args import OptimizerNames

from tests.cli_runs import fails
from tests.toy import ToyAdapter, toy_args, toy_rows
from text_sdft.core import SDFTConfig, UserError
from text_sdft.core.inherited import BOUNDS, REFUSED
from text_sdft.training import SDFTTrainer
from text_sdft.training.checks import check_optimiser

#: transformers' settings that do what their help says.
TAKEN = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "neftune_noise_alpha", "torch_empty_cache_steps", "logging_strategy", "logging_steps", "logging_first_step",
    "log_on_each_node", "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "report_to",
    "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
    "eval_steps", "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_only_model", "save_strategy",
    "save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "full_determinism", "seed", "data_seed", "use_cpu", "accelerator_config", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "train_sampling_strategy", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config",
    "deepspeed", "debug", "skip_memory_metrics", "do_eval", "local_rank",
}  # fmt: skip


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


def test_an_optimiser_or_schedule_that_cannot_be_built_is_refused_before_the_model_is_loaded(tmp_path):
    """All that transformers names: each is built, or refused by one sentence; none of them fails later."""
    refused = {}
    for name, kind in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        for one in kind:
            args = toy_args(tmp_path, **{name: one.value}, eval_strategy="steps")
            try:
                check_optimiser(args)
            except UserError as error:
                refused[one.value] = str(error)
                with pytest.raises(UserError, match=f"^{name} {one.value} "):
                    SDFTTrainer("nowhere", args, adapter=ToyAdapter(), train_dataset=toy_rows())
    assert "min_lr" in refused["cosine_with_min_lr"] and "num_decay_steps" in refused["warmup_stable_decay"]
    assert refused.keys().isdisjoint(("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "linear", "cosine", "greedy"))
    for given, said in (
        ({"optim_args": "momentum"}, "optim adamw_torch_fused with optim_args momentum cannot be used"),
        ({"optim_args": "momentum=0.9"}, "adamw_torch_fused takes none"),
        ({"optim_target_modules": "all-linear"}, "only GaLore and APOLLO"),
        ({"lr_scheduler_kwargs": {"rate": 1}}, "lr_scheduler_type cosine with lr_scheduler_kwargs"),
    ):
        with pytest.raises(UserError, match=said):
            check_optimiser(toy_args(tmp_path, **given))
    check_optimiser(toy_args(tmp_path, optim="sgd", optim_args="momentum=0.9"))


@pytest.mark.parametrize("command", ["train", "probe"])
def test_a_folder_that_cannot_be_written_is_said_at_once(data, tmp_path, capsys, command):
    """(A file stands in the way: a test may run as root, who may write everywhere.) Nothing is left behind."""
    (tmp_path / "file").write_text("")
    given = ["--model", "nowhere", "--data", data, "--train.output_dir"]
    for folder, why in ((tmp_path / "file" / "run", "Not a directory"), (tmp_path / ("x" * 300), "too long")):
        message = fails(capsys, command, *given, str(folder))
        assert f"{folder} cannot be written" in message and why in message and "--train.output_dir" in message
    assert "lies in the data's folder" in fails(capsys, command, *given, f"{data}/runs/x")
    assert fails(capsys, "train", *given, str(tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and not (Path(data) / "runs").exists()


def test_a_setting_that_does_nothing_alone_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for given, said in (
        ({"fsdp": "full_shard"}, "fsdp full_shard needs several processes"),
        ({"fsdp_config": {"min_num_params": 1}}, "fsdp_config .* needs fsdp"),
        ({"save_strategy": "best"}, "save_strategy best needs eval_strategy"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end True needs eval_strategy"),
        ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers"),
        ({"activation_checkpointing_kwargs": {"reentrant": True}}, "use use_reentrant"),
        ({"warmup_steps": 1.5}, "use a whole number"),
        ({"train_sampling_strategy": "sorted"}, "use random or sequential"),
    ):
        with pytest.raises(ValueError, match=said):
            toy_args(tmp_path, **given)
    for given in ({"torch_compile_backend": "nothing"}, {"torch_compile_mode": "nothing"}):
        args = toy_args(tmp_path, torch_compile=True, **given)
        with pytest.raises(UserError, match="nothing"):
            SDFTTrainer("nowhere", args, adapter=ToyAdapter(), train_dataset=toy_rows())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU here")
def test_bf16_without_a_gpu_is_fp32_and_said(tmp_path, caplog, monkeypatch):
    """A config for a GPU is tried on a laptop. With use_cpu it is meant: bf16 on the CPU."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert not SDFTConfig(str(tmp_path), bf16=True).bf16 and SDFTConfig(str(tmp_path), bf16=True, use_cpu=True).bf16
    assert "computes in fp32 on the CPU" in caplog.text


def test_settings_of_pushing_that_a_command_does_not_use_are_refused(data, capsys):
    given = ["--model", "nowhere", "--data", data, "--train.push_to_hub", "true"]
    assert "pushed once" in fails(capsys, "train", *given, "--train.hub_strategy", "all_checkpoints")
