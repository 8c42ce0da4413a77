"""What happens beside the step: the teacher moves, metrics and samples are written to the run's folder as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from text_sdft.core.files import append_json_lines
from text_sdft.core.teachers import LiveTeacher


class TeacherUpdate(TrainerCallback):
    """Moves the teacher after each optimiser step, before anything is saved."""

    def __init__(self, teacher: LiveTeacher) -> None:
        self.teacher = teacher

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.teacher.update()


class MetricsWriter(TrainerCallback):
    """Appends each log to ``metrics.jsonl``."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            append_json_lines(Path(args.output_dir or ".") / "metrics.jsonl", [{"step": state.global_step, **logs}])
