"""Rows of the text tasks in the paper's column layouts, written for the tests.

`ROWS[name](mark)` gives training rows whose privileged columns contain ``mark`` and whose prompts do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from text_sdft.tasks.base import TaskAdapter
from text_sdft.tasks.knowledge import KnowledgeAdapter
from text_sdft.tasks.medical import MedicalAdapter
from text_sdft.tasks.science import ScienceAdapter
from text_sdft.tasks.tool_use import ToolUseAdapter

Row = dict[str, Any]
ADAPTERS: dict[str, type[TaskAdapter]] = {
    "tool_use": ToolUseAdapter,
    "science": ScienceAdapter,
    "medical": MedicalAdapter,
    "knowledge": KnowledgeAdapter,
}


def call(action: str, arguments: Any) -> Row:
    return {"Action": action, "Action_Input": arguments if isinstance(arguments, str) else json.dumps(arguments)}


#: Golden answers, each with something that a careless parser loses.
GOLDS: list[list[Row]] = [
    [call("listBoats", "{}")],
    [call("listBoats", "")],
    [call("rentBoat", {"harbour": "Oslo", "days": 2})],
    [call("rentBoat", {"harbour": "Oslo", "crew": {"cook": True, "captain": {"name": "Ada"}}})],
    [call("sendNote", {"text": 'Say "hello}" to {everyone}\nAction: none', "to": ["a@b.example", "c@d.example"]})],
    [call("tagBoat", '{"tag": "red", "tag": "blue"}')],
    [call("rentBoat", {"harbour": "Oslo"}), call("rentBoat", {"harbour": "Bergen"})],
    [call("rentBoat", {"harbour": "Oslo"}), call("rentBoat", {"harbour": "Oslo"}), call("payRent", {"sum": 12.5})],
    [call("getProfile", {"id": "u1"}), call("[Optional]setProfile", {"id": "u1", "name": "Ada"})],
    [{**call("rentBoat", {"harbour": "Oslo"}), "Accepted": json.dumps({"harbour": ["Oslo", "oslo"], "days": ["", 1]})}],
]


def tool_use(mark: str = "") -> list[Row]:
    return [
        {
            "prompt": f"Use the harbour's tools. Question: request number {i}",
            "name": "Harbour",
            "description": "Boats for rent",
            "nl_documentation": "rentBoat: rent a boat.",
            "instruction": f"request number {i}",
            "golden_answer": golden,
            "golden_response": [f"Thought: I follow {mark}.\n" + "\n".join(written(c) for c in golden)],
        }
        for i, golden in enumerate(GOLDS)
    ]


def written(golden: Row) -> str:
    return f"Action: {golden['Action']}\nAction Input: {golden['Action_Input']}"


def science(mark: str = "") -> list[Row]:
    system = "Choose one option. Reply with <reasoning>…</reasoning> and <answer>LETTER</answer>."
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Which salt, {i}?\nA: x\nB: y\nC: z"},
            ],
            "output_text": f"<reasoning>\n{mark} tells.\n</reasoning>\n<answer>\n{letter}\n</answer>",
        }
        for i, letter in enumerate("ABCA")
    ]


def science_test() -> list[Row]:
    return [{"prompt": row["messages"], "answer": letter} for row, letter in zip(science(), "ABCA", strict=True)]


def medical(mark: str = "") -> list[Row]:
    return [
        {"Question": f"What helps case {i}?", "Complex_CoT": f"{mark} comes to mind.", "Response": f"Rest, {mark} {i}."}
        for i in range(4)
    ]


def medical_test() -> list[Row]:
    return [
        {"Open-ended Verifiable Question": f"What helps case {i}?", "Ground-True Answer": f"Rest {i}"} for i in range(4)
    ]


def knowledge(mark: str = "") -> list[Row]:
    values = ("$1,500.00", "2.5%", "3 per year", "up to 40 days")
    return [
        {"prompt": f"What is fee number {i}?", "article": f"Guide {mark}: fee {i} is {value}.", "answer": value}
        for i, value in enumerate(values)
    ]


ROWS: dict[str, Callable[[str], list[Row]]] = {
    "tool_use": tool_use,
    "science": science,
    "medical": medical,
    "knowledge": knowledge,
}
