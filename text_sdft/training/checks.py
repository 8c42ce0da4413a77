"""What a trainer is given, checked before anything is loaded: mistakes whose errors would come late, and far from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from importlib.util import find_spec
from os import PathLike
from typing import Any, cast

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from text_sdft.core.adapter import ExperimentAdapter, ModalityAdapter, missing_methods, with_defaults
from text_sdft.core.config import SDFTConfig
from text_sdft.core.errors import UserError, first_line
from text_sdft.fast.vllm_sampler import REMEDY

logger = logging.get_logger(__name__)


def checked_args(args: SDFTConfig | None, model: Any) -> SDFTConfig:
    """The settings, or the default ones; one GPU a process.

    Raises `UserError` where they are another trainer's, or say how to load a model that is loaded already.
    """
    args = SDFTConfig() if args is None else args
    if not isinstance(args, SDFTConfig):
        same = ", which takes the same settings" if isinstance(args, TrainingArguments) else ""
        raise UserError(f"args is a {type(args).__name__}: give an SDFTConfig{same}.")
    if args.model_init_kwargs and not isinstance(model, str | PathLike):
        raise UserError(
            f"model_init_kwargs {args.model_init_kwargs} come too late: the model is loaded already. Give them to its "
            "from_pretrained, or give SDFTTrainer the model's name."
        )
    if args.n_gpu > 1:
        # `nn.DataParallel` would split a batch's packed images anywhere; one process a GPU splits it by rows.
        logger.warning(f"Using one of {args.n_gpu} GPUs: start the same command with `accelerate launch` for all.")
        args._n_gpu = 1
    return args


def check_optimiser(args: SDFTConfig) -> None:
    """Build the optimiser and the schedule of these settings for a small layer: both may lack a package or an argument.

    Raises:
        UserError: one cannot be built, or a setting of it would be ignored.
    """
    layer, name = nn.Linear(2, 2), OptimizerNames(args.optim).value
    if args.optim_target_modules is not None and not name.startswith(("galore", "apollo")):
        raise UserError(f"optim_target_modules: {name} does not take it, only GaLore and APOLLO do. Leave it out.")
    try:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, layer)  # type: ignore[arg-type]
    except Exception as error:
        if args.optim_target_modules is None or isinstance(error, ImportError):  # else the layer may lack those modules
            raise UserError(_unusable_optimiser(name, args, error)) from error
        kind, kwargs = torch.optim.SGD, {"lr": 0.1}
    if args.optim_args and args.optim_target_modules is None:
        bare = copy(args)
        bare.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(bare, layer) == (kind, kwargs):  # type: ignore[arg-type]
            raise UserError(f"optim_args {args.optim_args}: {name} takes none. Leave them out.")
    if is_optimizer_factory(kind) or kwargs.keys() & {"params", "model", "optimizer_dict"}:
        kind, kwargs = torch.optim.SGD, {"lr": 0.1}
    try:
        optimiser = kind(layer.parameters(), **kwargs)
    except Exception as error:
        raise UserError(_unusable_optimiser(name, args, error)) from error
    steps, given = max(args.max_steps, 1_000), cast(dict[str, Any], args.lr_scheduler_kwargs or {})
    try:
        made = get_scheduler(args.lr_scheduler_type, optimiser, args.get_warmup_steps(steps), steps, dict(given))
        for factor in getattr(made, "lr_lambdas", ()):  # some arguments are of use behind the warm-up alone
            factor(steps - 1)
    except Exception as error:
        raise UserError(
            f"lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value} with lr_scheduler_kwargs {given} cannot be "
            f"used: {first_line(error)} Or use cosine without any."
        ) from error


def check_engines(args: SDFTConfig) -> None:
    """Raise `UserError` where vLLM is asked for and not installed, or torch knows no such way to compile."""
    if args.sampler == "vllm" and find_spec("vllm") is None:
        raise UserError(f"train.sampler is vllm, which is not installed: see docs/benchmarks.md. {REMEDY}")
    if args.torch_compile:
        try:
            torch.compile(nn.Identity(), backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)
        except Exception as error:
            given = f"torch_compile_backend {args.torch_compile_backend}, torch_compile_mode {args.torch_compile_mode}"
            raise UserError(f"{given}: {first_line(error)}") from error


def _unusable_optimiser(name: str, args: SDFTConfig, error: Exception) -> str:
    given = f" with optim_args {args.optim_args}" if args.optim_args else ""
    return f"optim {name}{given} cannot be used: {first_line(error)} Or use adamw_torch{' without any' * bool(given)}."


def checked_adapter(adapter: Any) -> ExperimentAdapter:
    """The adapter, `with_defaults`. Raises `UserError` where it lacks a method: some are asked for after hours."""
    if isinstance(adapter, type):
        raise UserError(f"adapter is the class {adapter.__name__}: make one of it, {adapter.__name__}(…).")
    if isinstance(adapter, str):
        raise UserError(f"adapter is the name '{adapter}': make one, text_sdft.core.adapter_class('{adapter}')(…).")
    if missing := missing_methods(adapter):
        raise UserError(
            f"The adapter {type(adapter).__name__} lacks {', '.join(missing)} (see text_sdft.core.ModalityAdapter)."
        )
    return with_defaults(adapter)


def checked_rows(rows: Any) -> Any:
    """The rows. Raises `UserError` where they are a file's name, or splits or columns by name: those give names."""
    if isinstance(rows, str):
        raise UserError(f"Rows are given as the string '{rows}': give datasets.load_dataset(…, split=…) or a list of rows.")
    if isinstance(rows, Mapping):
        names = ", ".join(str(name) for name in rows)
        raise UserError(f"Rows are given as a {type(rows).__name__} of {names}: give one split of it, or a list of rows.")
    return rows


def checked_evals(args: SDFTConfig, adapter: ModalityAdapter, rows: Iterable[Any] | dict[str, Iterable[Any]] | None) -> Any:
    """What a Trainer takes as ``eval_dataset``, with examples for rows: one set, several by name, or None.

    Raises `UserError` as `checked_rows`, and where no evaluation would give the metric of the best checkpoint.
    """
    if isinstance(rows, dict):
        examples: Any = {name: adapter.examples(checked_rows(part)) for name, part in rows.items()}
        problem = f"each set has its own, choose one of {', '.join(f'{name}_accuracy' for name in rows)}"
    else:
        examples = None if rows is None else adapter.examples(checked_rows(rows))
        lacking = bool(examples) and all(example.reference is None for example in examples)
        problem = "no row of eval_dataset has a reference by which answers are scored" if lacking else ""
    if problem and args.eval_strategy != "no" and args.metric_for_best_model in ("accuracy", "eval_accuracy"):
        raise UserError(f"metric_for_best_model {args.metric_for_best_model}: {problem}.")
    return examples
