"""What a checkpoint holds beside the Trainer's own files: the teachers' weights, and where their prompts were cut."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from text_sdft.core.errors import UserError
from text_sdft.core.files import Shape, disk_errors_explained, fingerprint, read_json, write_json
from text_sdft.core.scoring import TeacherReader
from text_sdft.core.sharding import whole
from text_sdft.core.teachers import LiveTeacher
from text_sdft.training.placement import whole_state_dict

TEACHER_FILE = "teacher.safetensors"
PREFIXES_FILE = "prefixes.safetensors"
#: The checkpoint's other files and their fingerprints.
FILES = "files.json"


class CheckpointedTrainer(Trainer):
    """A trainer whose checkpoints hold its teachers.

    Attributes:
        teacher: who reads the queries' completions.
        start_teacher: the model as it was at the start; the same object where the teacher is that.
        reader: of the teachers' prompts.
    """

    teacher: LiveTeacher
    start_teacher: LiveTeacher
    reader: TeacherReader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """No step more where all were done before the run went on: the Trainer looks only after the next one."""
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_teachers(self.teachers(), checkpoint)
            self.reader.load_state_dict(load_file(Path(checkpoint) / PREFIXES_FILE), self._versions())

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
                f"Cannot resume from {folder}: it holds no weights of the {owner}. It was saved with save_only_model, "
                "another teacher_model_kind or without retention prompts: start anew, or go on with the settings of before."
            )
        try:
            teacher.load_state_dict(state)
        except ValueError as error:
            raise UserError(f"Cannot resume from {folder}: {error}.") from error


def damage(checkpoint: Path) -> str:
    """What keeps a run from going on from a checkpoint; empty where it is whole."""
    state_file = checkpoint / TRAINER_STATE_NAME
    try:
        state: Any = TrainerState.load_from_json(str(state_file))
        sound = isinstance(state.log_history, list) and isinstance(state.stateful_callbacks, dict)
        if not sound or f"checkpoint-{state.global_step}" != checkpoint.name:
            return f"{TRAINER_STATE_NAME} was edited"
        files = read_json(checkpoint / FILES, Shape({"*": str}))
    except (OSError, ValueError, TypeError, RecursionError, UserError):
        return f"{TRAINER_STATE_NAME} or {FILES} is missing or damaged"
    if files is None:
        return f"it has no {FILES}, as with save_only_model"
    for name, mark in files.items():
        if not (checkpoint / name).is_file() or fingerprint(checkpoint / name) != mark:
            return f"{name} is missing or damaged"
    return ""


def check_weights(model: nn.Module, step: int, learning_rate: float) -> None:
    """Raise `UserError` where the trained weights have diverged: such as are not finite, or whose square is not."""
    for parameter in model.parameters():
        norm = torch.linalg.vector_norm(parameter.detach(), dtype=torch.float32) if parameter.requires_grad else 0.0
        if not math.isfinite(float(norm)):
            raise diverged(f"The weights after step {step} are not finite", learning_rate)


def diverged(what: str, learning_rate: float) -> UserError:
    """The error of a run whose numbers are not finite any more."""
    return UserError(
        f"{what}: the run has diverged. Weights of that step were not saved, and earlier checkpoints are untouched. Lower "
        f"learning_rate (it is {learning_rate:g}), or raise warmup_steps."
    )
