"""What a checkpoint holds beside the Trainer's own files: the teachers' weights, and where their prompts were cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from text_sdft.core.data import UserError
from text_sdft.core.prefix import PrefixStore
from text_sdft.core.teacher import LiveTeacher

TEACHER_FILE = "teacher.safetensors"
PREFIXES_FILE = "prefixes.safetensors"


def save_teachers(teachers: Mapping[str, LiveTeacher], folder: str | Path) -> None:
    """Write the teachers' tensors, by teacher and parameter name; nothing where they have none."""
    tensors = {
        f"{owner}.{name}": tensor.contiguous()
        for owner, teacher in teachers.items()
        for name, tensor in teacher.state_dict().items()
    }
    if tensors:
        save_file(tensors, Path(folder) / TEACHER_FILE)


def load_teachers(teachers: Mapping[str, LiveTeacher], folder: str | Path) -> None:
    """Restore what `save_teachers` wrote. Raises `UserError` where it is of another teacher."""
    file = Path(folder) / TEACHER_FILE
    tensors = load_file(file) if file.exists() else {}
    for owner, teacher in teachers.items():
        state = {name[len(owner) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{owner}.")}
        try:
            teacher.load_state_dict(state)
        except ValueError as error:
            raise UserError(f"Cannot resume from {folder}: {error}.") from error


def save_prefixes(prefixes: PrefixStore, folder: str | Path) -> None:
    """Write where teacher prompts were cut, so that a resumed run rounds as this one would have."""
    save_file(prefixes.state_dict(), Path(folder) / PREFIXES_FILE)


def load_prefixes(prefixes: PrefixStore, teachers: Mapping[str, LiveTeacher], folder: str | Path) -> None:
    """Restore what `save_prefixes` wrote; an older checkpoint has none."""
    file = Path(folder) / PREFIXES_FILE
    if file.exists():
        prefixes.load_state_dict(load_file(file), {name: teacher.version for name, teacher in teachers.items()})


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
