"""Medical questions (the paper's HuatuoGPT-o1 task): free answers, judged.

Columns, as in the public data of HuatuoGPT-o1. Training: ``Question``, ``Complex_CoT`` (optional), ``Response``: the last
two are the demonstration. Test: ``Open-ended Verifiable Question``, ``Ground-True Answer``. Also ``prompt``, ``answer``,
``response``. The paper's own split and its judge's prompt were never released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from text_sdft.columns import messages_of, row_id
from text_sdft.config import MedicalData, TaskDemonstrations
from text_sdft.core.chat import answered
from text_sdft.core.data import Example, Splits
from text_sdft.core.errors import UserError
from text_sdft.tasks.base import TaskAdapter
from text_sdft.tasks.judges import EndpointJudge, Judge, exact_match

QUESTIONS = ("Question", "Open-ended Verifiable Question", "prompt")
RESPONSES = ("Response", "response")
ANSWERS = ("Ground-True Answer", "answer")


class MedicalAdapter(TaskAdapter):
    """``adapter: medical``. A judge, by default exact match, decides whether an answer means the same as the right one."""

    answer = "Ground-True Answer"

    def __init__(self, *, judge: Judge = exact_match, **settings: Any) -> None:
        super().__init__(**settings)
        self.judge = judge

    @classmethod
    def from_config(cls, data: MedicalData, demonstrations: TaskDemonstrations) -> tuple[Self, Splits]:  # type: ignore[override]
        """See `TaskAdapter`; also raises `UserError` where the judge cannot be reached."""
        adapter, splits = super().from_config(data, demonstrations)
        if data.judge_url:
            if not data.judge_model:
                raise UserError(f"data.judge_url {data.judge_url} needs data.judge_model, the model's name there.")
            adapter.judge = judge = EndpointJudge(data.judge_url, data.judge_model, data.judge_key_variable)
            judge.check()
        return adapter, splits

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """See `TaskAdapter`. Rows without a right answer are for training only and are not scored."""
        messages = messages_of(_first(row, QUESTIONS), " or ".join(QUESTIONS), number)
        response, answer = _first(row, RESPONSES), _first(row, ANSWERS)
        for name, text in (("Response", response), ("Ground-True Answer", answer)):
            if text is not None and not isinstance(text, str):
                raise UserError(f"Row {number}: '{name}' is a {type(text).__name__}; it must be a string.")
        if response is None and answer is None:
            raise UserError(f"Row {number} has neither a 'Response' to show nor a 'Ground-True Answer' to compare with.")
        reasoning = row.get("Complex_CoT")
        thoughts = f"{reasoning.strip()}\n\n" if isinstance(reasoning, str) and reasoning.strip() else ""
        reply = [answered(messages[-1], f"{thoughts}{response}")] if response else []
        return Example(row_id(row, number), messages, reply, reference=answer, meta={"gold": answer, "response": response})

    def answer_only(self, example: Example) -> str:
        """The right answer, or where none is given the response without its reasoning."""
        return str(example.reference or example.meta["response"])

    def grade(self, example: Example, answer: str) -> float:
        """The judge's verdict."""
        return self.judge(str(example.messages[-1]["content"]), example.meta["gold"], answer)

    def scoring_notes(self) -> list[str]:
        """What the judge could not judge."""
        return self.judge.notes() if isinstance(self.judge, EndpointJudge) else []


def _first(row: Mapping[str, Any], columns: tuple[str, ...]) -> Any:
    return next((row[column] for column in columns if str(row.get(column) or "").strip()), None)
