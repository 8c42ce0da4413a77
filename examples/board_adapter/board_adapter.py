"""`adapter: board`: positions of noughts and crosses. The teacher is shown an expert's moves in the most similar ones.

Rows have the columns ``board`` (nine of x, o and ., row by row from the top; x is to move), ``moves`` (the right squares,
such as ``a1 c3``: rows with them are measured) and ``why`` (an expert's reason for the first of them: rows with it are
demonstrations). A row with ``prompt`` instead is a retention prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from text_sdft import ChatAdapter, Demonstration, Example, Splits, TeacherContext, UserError, answered
from text_sdft.columns import load_rows
from text_sdft.core.settings import setting


@dataclass
class BoardData:
    """Section ``data`` of ``adapter: board``."""

    path: str = setting(help="Positions to learn from: a .csv, .jsonl, .json or .parquet file.")
    test: str | None = setting(None, "Positions with moves, to measure (the set 'new').")


@dataclass
class BoardDemonstrations:
    """Section ``demonstrations`` of ``adapter: board``."""

    shots: int = setting(3, "Positions that the teacher is shown, the most similar ones.")


class BoardAdapter(ChatAdapter):
    """Teaches moves. An answer is right where the last square that it names is.

    Args:
        rows: those with ``why`` are shown to the teacher.
        shots: so many of them.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), shots: int = 3) -> None:
        super().__init__(system_prompt="You play noughts and crosses.")
        self._shown = [example for example in self.examples(rows) if example.demonstrations]
        self._shots = shots

    @classmethod
    def from_config(cls, data: BoardData, demonstrations: BoardDemonstrations) -> tuple[BoardAdapter, Splits]:
        """The adapter and its rows from the YAML sections."""
        rows = load_rows(data.path)
        adapter = cls(rows, demonstrations.shots)
        report = [f"Found {len(rows)} positions, {len(adapter._shown)} of them with an expert's move."]
        return adapter, Splits(rows, {"new": load_rows(data.test)} if data.test else {}, report)

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """A position as a grid of letters, with the expert's move where one is given. Raises `UserError`."""
        if row.get("prompt"):
            return Example(f"row {number}", [{"role": "user", "content": row["prompt"]}], retain=True)
        board, moves = str(row.get("board")), row.get("moves")
        if not re.fullmatch("[xo.]{9}", board):
            raise UserError(f"Row {number}: 'board' is '{board}'; give nine of x, o and '.', row by row from the top.")
        if moves is not None and not re.fullmatch("([abc][123] ?)+", moves):
            raise UserError(f"Row {number}: 'moves' is '{moves}'; give squares such as a1 c3, or leave it out.")
        grid = "\n".join(f"{3 - i} {' '.join(board[3 * i : 3 * i + 3])}" for i in range(3))
        question = {"role": "user", "content": f"{grid}\n  a b c\nx is to move. Which square?"}
        shown = [answered(question, f"{row['why']} I take {moves.split()[0]}.")] if moves and row.get("why") else []
        return Example(f"row {number}", [question], shown, reference=moves, meta={"board": board})

    def chosen_demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The positions that share most squares with the query, the nearest last; of equal ones the seed decides."""
        board = example.meta["board"]
        others = [other for other in self._shown if other.meta["board"] != board]
        random.Random(context.seed).shuffle(others)
        others.sort(key=lambda other: sum(a != b for a, b in zip(other.meta["board"], board, strict=True)))
        limit = self._shots if context.max_demonstrations is None else min(self._shots, context.max_demonstrations)
        return [other.demonstrations[0] for other in reversed(others[:limit])]

    def score(self, example: Example, answer: str) -> float | None:
        """1 where the last square named in the answer is a right one, else 0; None where no right one is known."""
        if example.reference is None:
            return None
        named = re.findall(r"\b[abc][123]\b", answer.lower())
        return float(bool(named) and named[-1] in example.reference.split())
