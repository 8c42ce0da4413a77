"""The model that is trained: loaded, its untouched parts frozen, a LoRA adapter put on where one is wanted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.config import SDFTConfig
from text_sdft.core.data import Model
from text_sdft.core.errors import UserError, first_line

logger = logging.get_logger(__name__)
#: What a model's folder holds, or that of a peft adapter.
CONFIGS = ("config.json", "adapter_config.json")


def default_lora() -> LoraConfig:
    """LoRA on all linear layers of the language model, the output layer excepted; rank 16."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def load_model(name: str, adapter: ModalityAdapter, args: SDFTConfig, peft_config: PeftConfig | None) -> PreTrainedModel:
    """The model of that name; of a run's folder the run's.

    All weights trained: fp32 unless ``model_init_kwargs`` says otherwise, because small updates of bf16 weights are rounded
    away (``bf16: true`` still computes in bf16). With LoRA: the checkpoint's own dtype.

    Raises:
        UserError: it cannot be loaded, with the file at fault; or a weight is no number.
    """
    run = Path(name) / "model"
    if not (run.parent / "config.json").exists() and any((run / file).is_file() for file in CONFIGS):
        name = str(run)
        logger.warning(f"A run's folder is given as the model: {name} is taken.")
    dtype = torch.float32 if peft_config is None else "auto"
    # Said outright: transformers would ask on standard input, and load pickles.
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": args.trust_remote_code, "use_safetensors": True}
    try:
        model = adapter.load_model(name, **{**kwargs, **cast(dict[str, Any], args.model_init_kwargs or {})})
    except Exception as error:
        given = f" model_init_kwargs were {args.model_init_kwargs}." if args.model_init_kwargs else ""
        raise UserError(_why_not_loaded(name, error) + given) from error
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(parameter.isfinite().all()):
            raise UserError(
                f"The model '{name}' has weights that are no numbers ({key}): take one from before it diverged."
            )
    return model


def _why_not_loaded(name: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if "trust_remote_code" in str(cause):
        return f"'{name}' comes with Python code, which was not run. If you trust it, set train.trust_remote_code true."
    again = "Copy the model's folder again."
    for file in sorted(Path(name).glob("*.safetensors")):
        try:
            safe_open(file, "pt")
        except Exception as damage:
            return f"{file} is no whole safetensors file ({first_line(damage)}). {again}"
    for file in sorted(Path(name).glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as damage:
            return f"{file} is no JSON ({first_line(damage)}). {again}"
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")) and any(Path(name).glob("*.bin")):
        return f"{name} has weights as pickles alone, which are never loaded. Save it with save_pretrained, as safetensors."
    if isinstance(error, UserError):
        return str(error)
    told = f"{type(error).__name__}: {first_line(error)}"
    return f"'{name}' could not be loaded ({told}): its config.json and its weights do not fit each other. {again}"


def prepare_model(model: Model, adapter: ModalityAdapter, peft_config: PeftConfig | None, seed: int) -> Model:
    """Freeze the adapter's ``frozen_modules`` and put LoRA on the rest, if wanted.

    Args:
        seed: of LoRA's start; `Trainer` sets it when the model is there already.

    Raises:
        UserError: a frozen module does not exist, nothing is left to train, or the kind of adapter cannot work.
    """
    frozen = adapter.frozen_modules(model)
    there = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}  # LLaVA's newline is a bare parameter
    if missing := [name for name in frozen if name not in there]:
        raise UserError(
            f"{type(adapter).__name__}.frozen_modules gives {frozen!r}; the model has no such module as '{missing[0]}'. "
            "Give a list of names as in model.named_modules()."
        )
    if getattr(model, "_hf_peft_config_loaded", False) and not isinstance(model, PeftModel):
        # transformers leaves it untrainable, and `get_peft_model` would put a new one in its place.
        raise UserError(
            "The model is a peft adapter's folder. To train that adapter further give PeftModel.from_pretrained(base, "
            "folder, is_trainable=True), without peft_config; to train another on top call merge_and_unload() on it first."
        )
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise UserError("The model already carries a peft adapter: leave peft_config out, or merge it first.")
        if frozen and getattr(peft_config, "exclude_modules", None) is None:
            pattern = "|".join(re.escape(name) for name in frozen)
            peft_config = replace(peft_config, exclude_modules=rf"(.*\.)?({pattern})(\..*)?")  # type: ignore[call-arg]
        set_seed(seed)
        model = get_peft_model(model, peft_config)
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        if config.is_prompt_learning and config.peft_type != PeftType.PREFIX_TUNING:
            raise UserError(
                f"{config.peft_type.value} puts its virtual tokens before a batch's padding, so that a row's result hangs "
                "on the rows beside it: use LoRA."
            )
    for name, parameter in model.named_parameters():
        if any(f".{part}." in f".{name}." for part in frozen):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        remedy = " A peft adapter that is to be trained is loaded with is_trainable=True."
        raise UserError(
            f"Nothing is left to train: every parameter is frozen.{remedy if isinstance(model, PeftModel) else ''}"
        )
    return model


def training_summary(model: nn.Module, frozen: list[str]) -> str:
    """A sentence on what is trained and what stays as it is; one more where the weights are too coarse for it."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kind = "a LoRA adapter on" if isinstance(model, PeftModel) else "all weights of"
    part = "the language model" if frozen else "the model"
    names = ", ".join(name.removeprefix("base_model.model.") for name in frozen)  # peft's prefix says nothing to a user
    left = f" Untouched: {names}." if frozen else ""
    coarse = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    lost = "".join(
        f" Trained weights are {str(dtype).removeprefix('torch.')}: small updates are rounded away. Load the model with "
        "dtype float32 (bf16: true still computes in bfloat16)."
        for dtype in coarse
    )
    return f"Training {trained / 1e6:,.2f} M of {total / 1e6:,.2f} M parameters ({kind} {part}).{left}{lost}"


def loss_summary(args: SDFTConfig) -> str:
    """One sentence on which completion tokens count, since unset settings choose by the answers' length."""
    kind = "short" if args.short_answers else "long"
    cut = "left out" if args.masks_truncated else "counted"
    return (
        f"Answers are {kind} (at most {args.max_completion_length} tokens): the first {args.loss_tokens_to_skip} tokens of "
        f"each are skipped, those cut by the limit are {cut}."
    )


def prompt_limit(model: Model, args: SDFTConfig) -> int:
    """Tokens that a prompt may have: ``max_prompt_length``, or what the model's context leaves beside a completion.

    Raises `UserError` where it leaves nothing.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = 2**31 if context is None else context - args.max_completion_length
    if room < 1:
        raise UserError(
            f"max_completion_length {args.max_completion_length} fills the model's context of {context} tokens: lower it."
        )
    return room if args.max_prompt_length is None else min(args.max_prompt_length, room)
