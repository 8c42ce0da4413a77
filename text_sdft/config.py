"""The YAML sections of the text adapter and of the paper's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from text_sdft.core.settings import setting

TeacherSees = Literal["demonstration", "answer", "nothing", "wrong"]
KnowledgeSees = Literal["text_and_answer", "text", "answer", "nothing", "wrong"]
Scoring = Literal["strict", "lenient"]


@dataclass
class TextData:
    """Section ``data`` of ``adapter: text``."""

    path: str = setting(help="Training rows: a .jsonl, .json, .parquet or .csv file, or a data set NAME:SPLIT.")
    test: str | None = setting(None, "Rows that measure what is to be learnt (the set 'new').")
    old: str | None = setting(None, "Rows with 'prompt' and 'reference' that the model solves already (the set 'old').")
    retain: str | None = setting(None, "Prompts the model should go on answering as it does (retention prompts).")
    system_prompt: str | None = setting(None, "System message of both views, for rows without one.")

    def tests(self) -> dict[str, str]:
        """The files of rows that measure what is to be learnt, by the name of their set."""
        return {"new": self.test} if self.test else {}


@dataclass
class TextDemonstrations:
    """Section ``demonstrations`` of ``adapter: text``."""

    teacher_prompt_template: str | None = setting(
        None, "turns, paper, quoted, context, or a string with {question}. Unset: what suits the rows."
    )
    enable_thinking: bool | None = setting(
        None, "Passed to the chat template, to both views alike; unset: the model's default."
    )


@dataclass
class TaskData(TextData):
    """Section ``data`` of a task."""

    validation: str | None = setting(None, "Rows for choosing settings; unset: a part of the training rows, held out.")
    holdout: float = setting(0.1, "Share of the training rows held out where validation is unset.")


@dataclass
class TaskDemonstrations(TextDemonstrations):
    """Section ``demonstrations`` of a task."""

    teacher_sees: TeacherSees = setting(
        "demonstration", "demonstration, answer (without its reasoning), nothing, or wrong (another row's demonstration)."
    )


@dataclass
class KnowledgeData(TaskData):
    """Section ``data`` of ``adapter: knowledge``."""

    ood: str | None = setting(None, "Out-of-distribution questions (the set 'ood').")
    scoring: Scoring = setting("strict", "strict (the answer's values and no others) or lenient (its numbers are there).")

    def tests(self) -> dict[str, str]:
        """See `TextData`."""
        return super().tests() | ({"ood": self.ood} if self.ood else {})


@dataclass
class KnowledgeDemonstrations(TaskDemonstrations):
    """Section ``demonstrations`` of ``adapter: knowledge``."""

    teacher_sees: KnowledgeSees = setting(  # type: ignore[assignment]
        "text_and_answer", "text_and_answer, text, answer, nothing, or wrong (another document and its answer)."
    )


@dataclass
class MedicalData(TaskData):
    """Section ``data`` of ``adapter: medical``."""

    judge_url: str | None = setting(
        None, "OpenAI-compatible endpoint of a judge model, such as http://localhost:8000/v1; unset: exact match."
    )
    judge_model: str = setting("", "The judge model's name at that endpoint.")
    judge_key_variable: str = setting("OPENAI_API_KEY", "Environment variable with the endpoint's key.")
