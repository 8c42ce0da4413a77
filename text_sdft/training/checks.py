"""What a trainer is given, checked before anything is loaded: mistakes whose errors would come late, and far from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from text_sdft.core.adapter import ExperimentAdapter, ModalityAdapter, missing_methods, with_defaults
from text_sdft.core.config import SDFTConfig
from text_sdft.core.errors import UserError

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
