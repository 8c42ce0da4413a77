"""Knowledge acquisition: questions about documents that the model has never read.

Columns: ``prompt``, ``article`` (the document), ``answer``; ``distractors`` (optional list: answers that must not be
given). The paper's nine articles on disasters of 2025 were never released; its teacher sees the article, or article and
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from text_sdft.answers import MONTH, quantities, states
from text_sdft.columns import messages_of, row_id
from text_sdft.config import KnowledgeData, KnowledgeDemonstrations, Scoring
from text_sdft.core.chat import answered
from text_sdft.core.data import Conversation, Demonstration, Example, Splits, TeacherContext
from text_sdft.core.errors import UserError
from text_sdft.core.templates import render
from text_sdft.tasks.base import TaskAdapter, required

#: What the teacher is shown before the question and behind it, where it sees the document and the answer.
DOCUMENT, ANSWER = "{privileged_context}\n\n", "\n\nThe right answer is: {answers}\n\nNow answer in your own words."


class KnowledgeAdapter(TaskAdapter):
    """``adapter: knowledge``. The teacher reads the document that the student is asked about.

    Answers are graded by `strict` or `lenient`, as ``scoring`` says. For the other settings see `TaskAdapter`.
    """

    def __init__(self, *, teacher_sees: str = "text_and_answer", scoring: Scoring = "strict", **settings: Any) -> None:
        super().__init__(teacher_sees=teacher_sees, **settings)
        self._own_template = settings.get("teacher_prompt_template") is not None
        self.scoring = scoring

    @classmethod
    def from_config(cls, data: KnowledgeData, demonstrations: KnowledgeDemonstrations) -> tuple[Self, Splits]:  # type: ignore[override]
        """See `TaskAdapter`; the set ``ood`` is measured too."""
        adapter, splits = super().from_config(data, demonstrations)
        adapter.scoring = data.scoring
        return adapter, splits

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """See `TaskAdapter`."""
        messages = messages_of(row.get("prompt"), "prompt", number)
        answer, article = required(row, "answer", number), required(row, "article", number)
        distractors = row.get("distractors") or []
        if not isinstance(answer, str) or not isinstance(article, str) or not isinstance(distractors, list):
            raise UserError(f"Row {number}: 'answer' and 'article' must be strings, 'distractors' a list of strings.")
        return Example(
            id=row_id(row, number),
            messages=messages,
            demonstrations=[answered(messages[-1], answer)],
            privileged_context=article,
            reference=answer,
            meta={"gold": answer, "distractors": [str(d) for d in distractors]},
        )

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The answer, where the teacher sees it; see `teacher_messages` for the document."""
        return [] if self._sees(context) == "text" else super().demonstrations(example, context)

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The question with the document, the answer, or both; wrong ones are both of the same other row."""
        if example.retain or "gold" not in example.meta:
            return self.student_messages(example)
        choices = (self._sees(context), context.control)
        shown = self.demonstrations(example, context)
        source = self._wrong(example, context.seed) if "wrong" in choices else example
        article = None if "answer" in choices or "nothing" in choices else source.privileged_context
        template = DOCUMENT * bool(article) + "{question}" + ANSWER * bool(shown)
        return render(example.messages, shown, article, str(self.template) if self._own_template else template)

    def grade(self, example: Example, answer: str) -> float:
        """`strict` or `lenient`, as the adapter was told."""
        rule = strict if self.scoring == "strict" else lenient
        return float(rule(answer, example.meta["gold"], example.meta["distractors"]))


def strict(answer: str, gold: str, distractors: list[str]) -> bool:
    """Whether the answer gives the gold's values with their signs and no others; for a gold in words, whether it states it.

    No distractor may be stated.
    """
    if any(states(answer, other) for other in distractors):
        return False
    return quantities(answer) == quantities(gold) if quantities(gold) else states(answer, gold)


def lenient(answer: str, gold: str, distractors: list[str]) -> bool:
    """Whether the gold's numbers are in the answer, signs and other numbers aside; a gold in words as under `strict`."""
    if not quantities(gold):
        return strict(answer, gold, distractors)
    wanted, said = ({(sign == MONTH, abs(number)) for sign, number in quantities(text)} for text in (gold, answer))
    return wanted <= said
