"""What the tasks share: files as splits, what the teacher sees, rows that are no task's (old skills, retention prompts)."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from text_sdft.adapter import TextAdapter
from text_sdft.answers import states
from text_sdft.columns import file_examples
from text_sdft.config import TaskData, TaskDemonstrations, TextData
from text_sdft.core.chat import answered, without_reasoning
from text_sdft.core.data import Demonstration, Example, Splits, TeacherContext
from text_sdft.core.errors import UserError

#: Seed of the held-out part: the same rows in every run, so that settings are chosen on rows that no run trains on.
HOLDOUT_SEED = 0


class TaskAdapter(TextAdapter):
    """A `TextAdapter` whose rows have a task's columns and whose answers a task's scorer grades.

    Subclasses give `example` and `grade`. Examples of the task carry ``meta["gold"]``, what `grade` compares with; those
    without it are plain text rows, right where the answer states the reference.

    For ``teacher_sees`` see `TaskDemonstrations`, for other settings `TextAdapter`; the template is the paper's if none is
    given. Raises `UserError` where it is unknown.
    """

    answer = "answer"

    def __init__(
        self, *, teacher_sees: str = "demonstration", teacher_prompt_template: str | None = None, **settings: Any
    ) -> None:
        super().__init__(teacher_prompt_template=teacher_prompt_template or "paper", **settings)
        self.teacher_sees = teacher_sees
        self._others: Sequence[Example] = ()  # training examples, whose demonstrations are wrong for any other row

    @classmethod
    def from_config(cls, data: TaskData, demonstrations: TaskDemonstrations) -> tuple[Self, Splits]:  # type: ignore[override]
        """See `TextAdapter`; every training row must have something to show the teacher."""
        adapter, splits = super().from_config(data, demonstrations)
        if any(not e.demonstrations and not e.privileged_context for e in splits.evals.get("new", ())):
            told = "Rows of data.test without a demonstration: there the teacher sees their right answer instead."
            splits = replace(splits, report=[*splits.report, told])
        return adapter, splits

    def training_rows(self, data: TextData) -> tuple[list[Example], list[Example], list[str]]:
        """What ``path`` holds, less a part that is held out where no file gives validation rows."""
        assert isinstance(data, TaskData)
        train = file_examples(data.path, self.examples)
        for example in train:
            if not example.demonstrations and not example.privileged_context:
                raise UserError(
                    f"{data.path}, {example.id}: nothing to show the teacher. Training rows need a demonstration; rows "
                    "that are only measured belong in data.test."
                )
        held_out = 0 if data.validation else round(data.holdout * len(train))
        if not 0 <= data.holdout < 1 or held_out >= len(train):
            raise UserError(
                f"data.holdout {data.holdout} leaves nothing of {len(train)} training rows: use less, such as 0.1."
            )
        chosen = set(random.Random(HOLDOUT_SEED).sample(range(len(train)), held_out))
        validation = [example for i, example in enumerate(train) if i in chosen]
        if data.validation:
            validation = file_examples(data.validation, self.examples)
        self._others = train = [example for i, example in enumerate(train) if i not in chosen]
        return train, validation, []

    @abstractmethod
    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """One row of the task, its gold parsed into ``meta["gold"]``. Raises `UserError` naming row, column and remedy."""

    @abstractmethod
    def grade(self, example: Example, answer: str) -> float:
        """How right an answer to an example of the task is, in [0, 1]."""

    def answer_only(self, example: Example) -> str:
        """The right answer without reasoning, as a response would end with it."""
        return str(example.reference)

    def score(self, example: Example, answer: str) -> float | None:
        """`grade` for the task's rows; for plain rows 1 where the answer, thoughts aside, states the reference, else 0."""
        if example.reference is None:
            return None
        answer = without_reasoning(answer)
        if "gold" in example.meta:
            return self.grade(example, answer)
        return float(states(answer, example.reference))

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """What ``teacher_sees`` or the context's control says, as replies to the row's own question.

        Rows without a demonstration (a test file's) show their right answer instead.
        """
        sees = context.control or self._sees(context)
        if sees == "nothing" or example.retain or "gold" not in example.meta or context.max_demonstrations == 0:
            return []
        question = example.messages[-1]
        if sees == "wrong":
            return [answered(question, self._wrong(example, context.seed).demonstrations[0].messages[-1]["content"])]
        if sees == "answer" or not example.demonstrations:
            return [answered(question, self.answer_only(example))]
        return self.chosen_demonstrations(example, context)

    def rungs(self, example: Example) -> tuple[int, ...]:
        """Nothing, what ``teacher_sees`` says, and the answer alone; none for a plain row."""
        return (0, 2, 5) if "gold" in example.meta and not example.retain else ()

    def controls(self, example: Example) -> tuple[str, ...]:
        """Another row's demonstration; a plain row has none to exchange."""
        return ("wrong",) if "gold" in example.meta and not example.retain else ()

    def _sees(self, context: TeacherContext) -> str:
        """``teacher_sees``, unless the context asks for another rung."""
        rungs: dict[int | None, str] = {0: "nothing", 5: "answer"}
        return rungs.get(context.rung, self.teacher_sees)

    def _wrong(self, example: Example, seed: int) -> Example:
        """Another training example, with another answer."""
        own = self.answer_only(example)
        others = [o for o in self._others if o.id != example.id and self.answer_only(o) != own]
        if not others:
            raise UserError("A wrong demonstration is another training row's, and there is none: give more training rows.")
        return random.Random(seed).choice(others)


def required(row: Mapping[str, Any], column: str, number: int) -> Any:
    """The column's value. Raises `UserError` where it is missing or empty."""
    value = row.get(column)
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise UserError(f"Row {number}: '{column}' is missing or empty; its columns are {', '.join(map(str, row))}.")
    return value
