"""What a checkpoint holds beside the Trainer's own files, and whether it is whole.

The teachers' weights, where their prompts were cut, what was summed up for the next log, and each file's fingerprint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from text_sdft.core.errors import UserError
from text_sdft.core.files import Record, disk_errors_explained, fingerprint, read_json, write_json
from text_sdft.core.shapes import ANY, NUMBER
from text_sdft.core.sharding import whole
from text_sdft.core.teachers import LiveTeacher
from text_sdft.fast.prefix import PrefixStore
from text_sdft.training.metrics import StepMetrics
from text_sdft.training.placement import whole_state_dict

logger = logging.get_logger(__name__)
TEACHER_FILE = "teacher.safetensors"
PREFIXES_FILE = "prefixes.safetensors"
STATE = {
    "global_step": int, "log_history": list, "epoch?": (*NUMBER, NoneType), "total_flos?": NUMBER,
    "stateful_callbacks?": dict,
}  # fmt: skip
#: One a process.
UNLOGGED_FILE = "unlogged_{}.json"
#: The checkpoint's other files and their fingerprints.
FILES = "files.json"


class CheckpointedTrainer(Trainer):
    """A trainer whose checkpoints hold its teachers.

    Attributes:
        teacher: who reads the queries' completions.
        start_teacher: the model as it was at the start; the same object where the teacher is that.
        reader: of the teachers' prompts.
        metrics: of the steps since the last log.
    """

    teacher: LiveTeacher
    start_teacher: LiveTeacher
    reader: PrefixStore
    metrics: StepMetrics
    _unlogged: Record | None = None  # of a run that goes on: what it had summed up for its next log

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """No step more where all were done before the run went on: the Trainer looks only after the next one."""
        if self._unlogged:
            self._tr_loss += self._unlogged["loss"]
            self._globalstep_last_logged, self.metrics.sums = self._unlogged["logged"], self._unlogged["sums"]
            self._unlogged = None
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def teachers(self) -> dict[str, LiveTeacher]:
        """Those whose weights differ, by name."""
        teachers = {"teacher": self.teacher}
        if self.start_teacher is not self.teacher:
            teachers["start"] = self.start_teacher
        return teachers

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `transformers.Trainer.save_model`; a model in shards is written whole, if not into a checkpoint."""
        check_weights(self.accelerator.unwrap_model(self.model), self.state.global_step, self.args.learning_rate)
        with nullcontext() if _internal_call else whole_state_dict(self.accelerator):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:  # a pickle, which nothing here reads
            (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with disk_errors_explained(folder):
            try:
                super()._save_checkpoint(model, trial)
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)  # the next resume would find half of it
                raise

    def _save_rng_state(self, output_dir: str) -> None:
        """The last files of a checkpoint but for the Trainer's state: with them goes what tells whether all are whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(output_dir)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            write_json(folder / FILES, {str(path.relative_to(folder)): fingerprint(path) for path in files})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        tensors: dict[str, Tensor] = {}
        for owner, teacher in self.teachers().items():
            for name, tensor in teacher.state_dict().items():
                values = whole(tensor)  # on every process: shards come from all of them
                if self.args.should_save:
                    tensors[f"{owner}.{name}"] = values.contiguous()
        if tensors:
            save_file(tensors, Path(output_dir) / TEACHER_FILE)
        if self.args.should_save:
            save_file(self.reader.state_dict(self._versions()), Path(output_dir) / PREFIXES_FILE)
        self.metrics.add_sum("teacher/reused_tokens", *self.reader.take_counts())
        unlogged = {"loss": float(self._tr_loss), "logged": self._globalstep_last_logged, "sums": self.metrics.sums}
        write_json(Path(output_dir) / UNLOGGED_FILE.format(self.args.process_index), unlogged)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_teachers(self.teachers(), checkpoint)
            self.reader.load_state_dict(load_file(Path(checkpoint) / PREFIXES_FILE), self._versions())
            self._unlogged = read_json(Path(checkpoint) / UNLOGGED_FILE.format(self.args.process_index))

    def _versions(self) -> dict[str, int]:
        return {name: teacher.version for name, teacher in self.teachers().items()}


def load_teachers(teachers: Mapping[str, LiveTeacher], folder: str | Path) -> None:
    """Restore the teachers' tensors. Raises `UserError` where they are of others."""
    file = Path(folder) / TEACHER_FILE
    tensors = load_file(file) if file.exists() else {}
    for owner, teacher in teachers.items():
        state = {name[len(owner) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{owner}.")}
        if teacher.state_dict() and not state:
            raise UserError(
                f"Cannot resume from {folder}: it holds no weights of the {owner}. It was saved with another "
                "teacher_model_kind or without retention prompts: start anew, or go on with the settings of before."
            )
        try:
            teacher.load_state_dict(state)
        except ValueError as error:
            raise UserError(f"Cannot resume from {folder}: {error}.") from error


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=checkpoint_step, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; says which ones are passed over."""
    for checkpoint in checkpoints(folder):
        if not (why := damage(checkpoint)):
            return checkpoint
        logger.warning_once(f"{checkpoint} is passed over: {why}.")
    return None


def checkpoint_step(checkpoint: Path | None) -> int:
    """Optimiser steps done when a checkpoint was written; 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))


def damage(checkpoint: Path) -> str:
    """What keeps a run from going on from a checkpoint; empty where it is whole."""
    state_file = checkpoint / TRAINER_STATE_NAME
    try:
        if (read_json(state_file, STATE) or {}).get("global_step") != checkpoint_step(checkpoint):
            return f"{TRAINER_STATE_NAME} is missing, or of another step"
        TrainerState.load_from_json(str(state_file))
        files = read_json(checkpoint / FILES, {ANY: str})
    except (TypeError, UserError):
        return f"{TRAINER_STATE_NAME} or {FILES} is damaged"
    for part in ("optimizer", "scheduler", "rng_state") if files is None else ():  # an older version wrote it
        if not any(checkpoint.glob(f"{part}*")):
            return f"it has no {part}, as with save_only_model"
    for name, mark in (files or {}).items():
        if not (checkpoint / name).is_file() or fingerprint(checkpoint / name) != mark:
            return f"{name} is missing or damaged"
    return ""


def check_weights(model: nn.Module, step: int, learning_rate: float) -> None:
    """Raise `UserError` where the trained weights have diverged: such as are not finite, or whose square is not."""
    for parameter in model.parameters():
        values = parameter.detach() if parameter.requires_grad else torch.zeros(1)
        values = values.to_local() if isinstance(values, DTensor) else values
        if not math.isfinite(float(torch.linalg.vector_norm(values, dtype=torch.float32))):
            raise diverged(f"The weights after step {step} are not finite", learning_rate)


def diverged(what: str, learning_rate: float) -> UserError:
    """The error of a run whose numbers are not finite any more."""
    return UserError(
        f"{what}: the run has diverged. Weights of that step were not saved, and earlier checkpoints are untouched. Lower "
        f"learning_rate (it is {learning_rate:g}), or raise warmup_steps."
    )
