"""`SDFTConfig`: transformers' `TrainingArguments` and what self-distillation adds. Presets are plain functions.

Names are those that TRL's users know; defaults follow the paper's public code (arXiv 2601.19897): forward KL over the full
vocabulary, EMA teacher at rate 0.01 moved every step, 3 tokens skipped, 1 completion a prompt, temperature 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from multiprocessing import get_all_start_methods
from typing import Any, Literal, cast

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.training_args import trainer_log_levels
from transformers.utils import logging

from text_sdft.core.divergence import DivergenceSettings
from text_sdft.core.inherited import BOUNDS, REFUSED
from text_sdft.core.settings import setting, wrong_value
from text_sdft.core.teachers import TeacherKind

logger = logging.get_logger(__name__)

#: Answers of at most so many tokens are labels: no token of theirs is skipped, and cut ones still count.
SHORT_ANSWER = 16


#: What `torch.utils.checkpoint` takes.
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "debug")
#: Setting -> what holds of a good value, and what to use instead of a bad one.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "output_dir": (lambda v: bool(str(v)), "name the run's folder, such as runs/mine"),
    "max_steps": (lambda v: v == -1 or v >= 1, "use 1 or more, or -1 for epochs"),
    "metric_for_best_model": (
        lambda v: v not in ("loss", "eval_loss"),
        "answers are measured by their accuracy: use accuracy",
    ),
    "train_sampling_strategy": (
        lambda v: v in ("random", "sequential"),
        "rows have no tokens before a step; use random or sequential (a forward pads little, as it takes rows of similar "
        "length together)",
    ),
    "model_init_kwargs": (lambda v: not isinstance(v, str), "use a mapping, such as {'attn_implementation': 'sdpa'}"),
    "accelerator_config": (
        lambda v: not (v.dispatch_batches or v.split_batches),
        "dispatch_batches and split_batches must stay off: every process reads its own rows",
    ),
    "ddp_find_unused_parameters": (lambda v: not v, "must stay off: every trained parameter takes part in each step"),
    "warmup_steps": (lambda v: v < 1 or v == int(v), "use a whole number, or below 1 the share of all steps"),
    "activation_checkpointing_kwargs": (lambda v: set(CHECKPOINTING) >= set(v or ()), f"use {', '.join(CHECKPOINTING)}"),
    "gradient_checkpointing_kwargs": (lambda v: set(CHECKPOINTING) >= set(v or ()), f"use {', '.join(CHECKPOINTING)}"),
    "dataloader_multiprocessing_context": (
        lambda v: v is None or v in get_all_start_methods(),
        f"use {' or '.join(get_all_start_methods())}",
    ),
    "log_level": (lambda v: v in trainer_log_levels, f"use one of {', '.join(trainer_log_levels)}"),
    "log_level_replica": (lambda v: v in trainer_log_levels, f"use one of {', '.join(trainer_log_levels)}"),
}
#: Settings that do nothing alone: what they need.
NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fsdp": (lambda args: int(os.environ.get("WORLD_SIZE", "1")) > 1, "several processes: begin with `accelerate launch`"),
    "fsdp_config": (lambda args: bool(args.fsdp or os.environ.get("ACCELERATE_USE_FSDP")), "fsdp"),
    "dataloader_multiprocessing_context": (lambda args: args.dataloader_num_workers > 0, "dataloader_num_workers"),
    "dataloader_persistent_workers": (lambda args: args.dataloader_num_workers > 0, "dataloader_num_workers"),
    "load_best_model_at_end": (lambda args: args.eval_strategy != "no", "eval_strategy, by which the best is found"),
}


@dataclass
class SDFTConfig(TrainingArguments):
    """Settings of one training run. Everything not listed here is `transformers.TrainingArguments`.

    Raises:
        ValueError: a value out of range, with what to use instead.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # JSON too  # noqa: RUF012

    learning_rate: float = setting(
        2e-5, "Peak learning rate. Full fine-tuning 5e-6 … 5e-5, LoRA 1e-4 … 5e-4.", least=0, most=1e38
    )
    per_device_train_batch_size: int = setting(8, "Queries in one forward pass of one device.", least=1, most=65_536)
    gradient_accumulation_steps: int = setting(
        4, "Forward passes of one optimiser step; with 8 queries each and one device, 32 a step.", least=1, most=65_536
    )
    lr_scheduler_type: str = setting("cosine", "Learning-rate schedule.")
    warmup_steps: float = setting(0.1, "Warm-up: steps, or below 1 the share of all steps.", least=0)
    logging_steps: float = setting(10, "Log every so many optimiser steps.", least=0, above=True)
    save_steps: float = setting(
        0.2,
        "A checkpoint every so many optimiser steps; below 1: after that share of all, and the newest alone is "
        "kept, unless save_total_limit is set.",
        least=0,
        above=True,
    )
    dataloader_pin_memory: bool = setting(False, "Batches hold no tensors: nothing to pin.")
    remove_unused_columns: bool = setting(False, "Must stay off: rows are read by the adapter.")

    # The output layer is used after the wrapped forward (by the divergence), where a search from its outputs misses it.
    ddp_find_unused_parameters: bool | None = setting(
        False, "Must stay off: every trained parameter takes part in each step."
    )

    distillation_alpha: float = setting(
        0.0, "0 forward KL(teacher‖student), 1 reverse KL, between generalised Jensen-Shannon.", least=0, most=1
    )
    distillation_topk: int | None = setting(
        None, "Compare the student's k most probable tokens only; unset: the full vocabulary.", least=1
    )
    distillation_is_clip: float | None = setting(
        2.0,
        "Token weights p_trainer / p_sampler, clipped here (they are 1 unless another engine samples).",
        least=0,
        above=True,
    )
    distillation_chunk_size: int | None = setting(
        None, "Tokens whose logits exist at once; unset: as many as fit into 64 MiB (GPU: 512).", least=1
    )
    num_loss_tokens_to_skip: int | None = setting(
        None, "First completion tokens left out of the loss. Unset: 3, or 0 for answers of at most 16 tokens.", least=0
    )
    mask_truncated_completions: bool | None = setting(
        None, "Leave completions cut by the length limit out. Unset: yes, but no for answers of at most 16 tokens."
    )

    teacher_model_kind: TeacherKind = setting("ema", "The teacher's weights: base (frozen at the start), ema or live.")
    teacher_update_rate: float = setting(0.01, "EMA rate r: φ ← (1-r)·φ + r·θ.", least=0, above=True, most=1)
    teacher_sync_steps: int = setting(1, "Move an EMA teacher every so many optimiser steps.", least=1)

    teacher_prefix_gib: float = setting(
        2.0,
        "Memory (GiB) for what teacher prompts have in common at their beginning: it is read once, and again "
        "only when the teacher has moved. 0 reads every prompt whole.",
        least=0,
    )

    num_generations: int = setting(1, "Completions sampled of each query (the paper: 1).", least=1, most=1_024)
    max_prompt_length: int | None = setting(
        None,
        "Longest prompt in tokens; unset: the model's context less the completion. Longer teacher "
        "prompts drop whole demonstrations, longer queries are an error.",
        least=1,
    )
    max_completion_length: int = setting(1024, "Longest completion in tokens.", least=1, most=1_048_576)
    temperature: float = setting(1.0, "Sampling temperature; both sides' logits are divided by it.", least=0, above=True)
    top_p: float = setting(1.0, "Nucleus sampling; 1 samples from the whole distribution.", least=0, above=True, most=1)

    sampler: Literal["transformers", "vllm"] = setting(
        "transformers", "What samples: transformers, or vllm (to be installed beside it; one process)."
    )
    vllm_cache_gib: float = setting(
        4.0, "With sampler vllm: memory (GiB) for its keys and values, beside a copy of the weights.", least=0, above=True
    )

    retain_weight: float = setting(
        1.0, "Weight of retention prompts beside queries (there must be some in the data).", least=0
    )
    retain_ratio: float = setting(1.0, "Retention prompts for each query, at most 1.", least=0, most=1)

    model_init_kwargs: dict[str, Any] | str | None = setting(
        None, "Passed to from_pretrained where the model is given by name."
    )
    trust_remote_code: bool = setting(False, "Run Python code that comes with a hub model.")

    def __post_init__(self) -> None:
        by_metric = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if self.metric_for_best_model is None and (
            self.load_best_model_at_end or self.save_strategy == "best" or by_metric
        ):
            self.metric_for_best_model = "accuracy"  # what `SDFTTrainer.evaluate` reports; there is no eval_loss
        if wrong := wrong_value(self, inherited=BOUNDS) or _refused(self):
            raise ValueError(wrong)
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise ValueError("save_strategy best needs eval_strategy, by which the best is found")
        if self.save_strategy == "steps" and self.save_steps < 1 and self.save_total_limit is None:
            self.save_total_limit = 1
        measured_every = self.eval_steps or self.logging_steps
        if self.load_best_model_at_end and self.save_steps < 1 <= measured_every:  # else transformers refuses the mixture
            self.save_steps = measured_every
        if self.bf16 and not self.use_cpu and not torch.accelerator.is_available():
            self.bf16 = False
            logger.warning_once("bf16: there is no GPU here, so this run computes in fp32 on the CPU.")
        super().__post_init__()
        if by_metric and self.greater_is_better:  # both schedules' own default is that less is better
            self.lr_scheduler_kwargs = {"mode": "max", **cast(dict[str, Any], self.lr_scheduler_kwargs or {})}
        unusable = _unusable_logger(self.report_to or ())
        if unusable:
            raise ValueError(f"report_to {unusable} Or use none")
        for name, (good, remedy) in RULES.items():
            if not good(getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r}: {remedy}")
        if not 0 <= self.loss_tokens_to_skip < self.max_completion_length:
            raise ValueError(
                f"num_loss_tokens_to_skip {self.num_loss_tokens_to_skip} leaves nothing of max_completion_length "
                f"{self.max_completion_length}"
            )

    @property
    def divergence_settings(self) -> DivergenceSettings:
        """How the two views of a completion are compared."""
        return DivergenceSettings(
            self.distillation_alpha, self.distillation_topk, self.distillation_chunk_size, self.distillation_is_clip
        )

    @property
    def short_answers(self) -> bool:
        """Whether answers are labels (at most 16 tokens) rather than texts."""
        return self.max_completion_length <= SHORT_ANSWER

    @property
    def loss_tokens_to_skip(self) -> int:
        """`num_loss_tokens_to_skip`, chosen from the task where it is unset: a label has no tokens to spare."""
        if self.num_loss_tokens_to_skip is not None:
            return self.num_loss_tokens_to_skip
        return 0 if self.short_answers else 3

    @property
    def masks_truncated(self) -> bool:
        """`mask_truncated_completions`, chosen from the task where it is unset: a label's first tokens still teach."""
        if self.mask_truncated_completions is not None:
            return self.mask_truncated_completions
        return not self.short_answers


def _refused(config: SDFTConfig) -> str:
    """``NAME VALUE: remedy`` of the first setting that does nothing and is set all the same; empty where none is."""
    for name, (there, what) in NEEDS.items():
        if getattr(config, name) and not there(config):
            return f"{name} {getattr(config, name)} needs {what}"
    for f in fields(config):
        value, default = getattr(config, f.name), f.default if f.default_factory is MISSING else f.default_factory()
        if f.name in REFUSED and value != default and (value or default != "no"):  # "no" may be said by False
            return f"{f.name} {value!r}: {REFUSED[f.name]}"
    return ""


def _unusable_logger(names: Iterable[str]) -> str:
    """``NAME: why`` of the first of them that is unknown or not installed; empty where there is none.

    transformers lists not all that it can use, so that the others are asked themselves.
    """
    for name in set(names) - set(get_available_reporting_integrations()):
        try:
            get_reporting_integration_callbacks([name])[0]()
        except (ValueError, RuntimeError, ImportError) as error:
            return f"{name}: {error}"
    return ""


def paper() -> dict[str, Any]:
    """Settings of the paper's public code: ``SDFTConfig("runs/x", **paper())``.

    The learning rate is the code's; the values selected from the paper's grid were never published.
    """
    return {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
        "bf16": True,
        "max_prompt_length": 1024,
        "max_completion_length": 1024,
        "num_loss_tokens_to_skip": 3,
        "mask_truncated_completions": False,
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.01,
    }


def lora() -> dict[str, Any]:
    """What changes when only a LoRA adapter is trained: a tenfold learning rate (reports agree on 1e-4 … 5e-4)."""
    return {"learning_rate": 2e-4}
