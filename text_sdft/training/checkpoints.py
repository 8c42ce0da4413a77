"""What a checkpoint holds beside the Trainer's own files: the teachers' weights, and where their prompts were cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer

from text_sdft.core.errors import UserError
from text_sdft.core.sharding import whole
from text_sdft.core.teachers import LiveTeacher
from text_sdft.fast.prefix import PrefixStore
from text_sdft.training.placement import whole_state_dict

TEACHER_FILE = "teacher.safetensors"
PREFIXES_FILE = "prefixes.safetensors"


class CheckpointedTrainer(Trainer):
    """A trainer whose checkpoints hold its teachers.

    Attributes:
        teacher: who reads the queries' completions.
        start_teacher: the model as it was at the start; the same object where the teacher is that.
        reader: of the teachers' prompts.
    """

    teacher: LiveTeacher
    start_teacher: LiveTeacher
    reader: PrefixStore

    def teachers(self) -> dict[str, LiveTeacher]:
        """Those whose weights differ, by name."""
        teachers = {"teacher": self.teacher}
        if self.start_teacher is not self.teacher:
            teachers["start"] = self.start_teacher
        return teachers

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `transformers.Trainer.save_model`; a model in shards is written whole, if not into a checkpoint."""
        with nullcontext() if _internal_call else whole_state_dict(self.accelerator):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with whole_or_removed(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

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


@contextmanager
def whole_or_removed(folder: Path) -> Iterator[None]:
    """Remove the checkpoint's folder if writing it fails: the next resume would find half of it.

    Raises:
        UserError: there is no space, or the disk failed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(
            f"Checkpoint {folder} could not be written ({error}); the incomplete folder was removed, earlier ones are "
            "untouched. Free space (or set save_total_limit) and run the same command with --resume."
        ) from error
