"""`adapter: glossary`: the student is asked what a term means; the teacher reads its entry first.

Rows have the columns ``term`` and ``definition``. Everything else is `TextAdapter`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from text_sdft import Example, Splits, TextAdapter, UserError
from text_sdft.columns import load_rows


@dataclass
class GlossaryData:
    """Section ``data`` of ``adapter: glossary``."""

    path: str = field(metadata={"help": "A .csv, .jsonl, .json or .parquet file with the columns term and definition."})
    retain: str | None = field(default=None, metadata={"help": "Rows with 'prompt', to be answered as before."})


@dataclass
class GlossaryDemonstrations:
    """Section ``demonstrations`` of ``adapter: glossary``: nothing to set, a term's entry is its demonstration."""


class GlossaryAdapter(TextAdapter):
    """Teaches the terms of a glossary. An answer's score is the share of the definition's words that it holds."""

    def __init__(self) -> None:
        super().__init__(teacher_prompt_template="context", scorer=words_found)

    @classmethod
    def from_config(cls, data: GlossaryData, demonstrations: GlossaryDemonstrations) -> tuple[GlossaryAdapter, Splits]:  # type: ignore[override]
        """The adapter and its rows from the YAML sections; the same entries are measured before and after."""
        entries = load_rows(data.path)
        retained = [{**row, "retain": True} for row in load_rows(data.retain)] if data.retain else []
        report = [f"Found {len(entries)} entries and {len(retained)} retention prompts."]
        return cls(), Splits([*entries, *retained], {"new": entries}, report)

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """Examples from entries, from retention rows with ``prompt``, or ready ones. Raises `UserError`."""
        return super().examples([columns(row, number) for number, row in enumerate(rows)])


def columns(row: Any, number: int) -> Any:
    """An entry in `TextAdapter`'s columns; retention rows and ready examples pass through."""
    if isinstance(row, Example) or row.get("retain"):
        return row
    return {
        "id": f"row {number}: {_cell(row, 'term', number)}",
        "prompt": f"What is meant by '{_cell(row, 'term', number)}'?",
        "privileged_context": f"From the glossary: {row['term']}: {_cell(row, 'definition', number)}",
        "reference": row["definition"],
    }


def _cell(row: Mapping[str, Any], column: str, number: int) -> str:
    if not row.get(column):
        raise UserError(f"Row {number} of the glossary has no '{column}'; it has {', '.join(row) or 'no columns'}.")
    return row[column]


def words_found(example: Example, answer: str) -> float:
    """The share of the reference's words that stand in the answer."""
    wanted, given = ({word.strip(".,;:").casefold() for word in text.split()} for text in (example.reference or "", answer))
    return len(wanted & given) / max(1, len(wanted))
