"""Science questions (the paper's SciKnowEval chemistry, level 3): multiple choice, the letter in <answer> tags.

Columns, as in the paper's files. Training: ``messages`` [system, user], ``output_text`` (reasoning, then
<answer>B</answer>: the demonstration). Test: ``prompt``, ``answer`` (the letter); an ``output_text`` there is shown to
the teacher too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from text_sdft.answers import tagged
from text_sdft.columns import messages_of, row_id
from text_sdft.core.chat import answered
from text_sdft.core.data import Example
from text_sdft.core.errors import UserError
from text_sdft.tasks.base import TaskAdapter, required


class ScienceAdapter(TaskAdapter):
    """``adapter: science``. An answer is right where its last <answer>…</answer> holds exactly the right letter."""

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """See `TaskAdapter`."""
        column = "messages" if row.get("messages") else "prompt"
        messages = messages_of(row.get(column), column, number)
        output = row.get("output_text")
        if output is not None and not isinstance(output, str):
            raise UserError(f"Row {number}: 'output_text' is a {type(output).__name__}; it must be a string.")
        letter = row.get("answer")
        if letter is None:
            letter = tagged(required(row, "output_text", number))
        if not isinstance(letter, str) or not re.fullmatch(r"[A-Za-z]", letter.strip()):
            raise UserError(
                f"Row {number}: no letter as the right answer (found {letter!r}). It stands in 'answer', or in "
                "'output_text' as <answer>B</answer>. Correct the row or leave it out."
            )
        reply = [answered(messages[-1], output)] if output and output.strip() else []
        return Example(row_id(row, number), messages, reply, reference=letter.strip(), meta={"gold": letter.strip()})

    def grade(self, example: Example, answer: str) -> float:
        """1 where the last tagged answer is the letter, else 0."""
        return float(tagged(answer) == example.meta["gold"])

    def answer_only(self, example: Example) -> str:
        """The letter in its tags."""
        return f"<answer>{example.reference}</answer>"
