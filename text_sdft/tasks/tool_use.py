"""Tool use (the paper's ToolAlpaca task): the calls that fulfil a request, compared with the golden ones.

Columns, as in the paper's files: ``prompt``, ``golden_answer`` [{"Action", "Action_Input" (JSON text)}],
``golden_response`` (a string or a list of them: the demonstration); ``name``, ``description``, ``nl_documentation``,
``instruction`` are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from text_sdft.columns import messages_of, row_id
from text_sdft.core.chat import answered
from text_sdft.core.data import Example
from text_sdft.core.errors import UserError
from text_sdft.tasks.base import TaskAdapter, required
from text_sdft.tasks.calls import parse_calls, parse_gold, right


class ToolUseAdapter(TaskAdapter):
    """``adapter: tool_use``. An answer is right where its calls are the golden ones, as a multiset: names and arguments."""

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """See `TaskAdapter`."""
        messages = messages_of(row.get("prompt"), "prompt", number)
        golden = required(row, "golden_answer", number)
        try:
            calls = parse_gold(golden)
        except ValueError as error:
            raise UserError(f"Row {number}: 'golden_answer' {error}. Correct the row or leave it out.") from error
        given = row.get("golden_response") or []
        responses = [given] if isinstance(given, str) else given
        if not isinstance(responses, list) or not all(isinstance(r, str) and r.strip() for r in responses):
            raise UserError(f"Row {number}: 'golden_response' must be a string or a list of strings.")
        return Example(
            id=row_id(row, number),
            messages=messages,
            demonstrations=[answered(messages[-1], response) for response in responses],
            reference="\n".join(f"Action: {c['Action']}\nAction Input: {_json(c.get('Action_Input'))}" for c in golden),
            meta={"gold": calls},
        )

    def grade(self, example: Example, answer: str) -> float:
        """1 where the calls are right, else 0."""
        return float(right(parse_calls(answer), example.meta["gold"]))


def _json(given: Any) -> str:
    if isinstance(given, str) and given.strip():
        return given.strip()
    return json.dumps({k: v for k, v in dict(given or {}).items() if v is not None}, ensure_ascii=False)
