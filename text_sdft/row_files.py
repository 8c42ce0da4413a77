"""JSON and CSV files as rows, every value as it stands in the file: no guessed dates, numbers or missing values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from text_sdft.core import UserError

Row = dict[str, Any]
#: Where a row stands in its file, such as "line 3", and the row.
PlacedRow = tuple[str, Row]


def read_rows(file: Path) -> list[Row]:
    """Rows of a .jsonl, .json or .csv file (UTF-8). Cells of CSV are strings, empty ones None. Raises `UserError`: the file
    holds no rows, or one that cannot be read; names its line.
    """
    rows = [row for _, row in placed_rows(file)]
    if not rows:
        raise UserError(f"{file} holds no rows. Give some, or leave the file out.")
    return rows


def placed_rows(file: Path) -> list[PlacedRow]:
    """Each row of such a file after its place, as "line 3"; a file may hold none, and of any other name it is JSON. Raises
    `UserError`: a row cannot be read; names its line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # Excel and Notepad begin files with a mark
            return list(_csv_rows(stream) if file.suffix == ".csv" else _json_rows(stream))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read: {error}. Save it as UTF-8.") from error
    except _Unreadable as error:
        raise UserError(f"{file} cannot be read as {'csv' if file.suffix == '.csv' else 'json'}: {error}") from error


class _Unreadable(Exception):
    """Where a file is broken, and the remedy."""


def _json_rows(stream: TextIO) -> Iterator[PlacedRow]:
    """One object a line, or one list of them, in files of either name."""
    text = stream.read()
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parsed(text)):
            place = f"row {number}"
            yield place, _row(row, place)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also split at marks that stand in strings
        if line.strip():
            place = f"line {number}"
            yield place, _row(_parsed(line, number), place)


def _parsed(text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Unreadable(
            f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}. Give one row a line, as "
            '{"column": "value"}, or a list of such rows.'
        ) from error


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise _Unreadable(f'{place} is a {type(value).__name__}; a row is an object, as {{"column": "value"}}.')
    return value


def _csv_rows(stream: TextIO) -> Iterator[PlacedRow]:
    csv.field_size_limit(2**31 - 1)  # its default of 128 KiB is less than a document to learn may have
    reader = csv.reader(stream, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = cells
            elif cells and len(cells) != len(columns):
                raise _Unreadable(
                    f"line {line}: {len(cells)} cells for {len(columns)} columns. Put cells with commas, "
                    "quotes or line breaks in double quotes."
                )
            elif cells:
                yield f"line {line}", {name: cell or None for name, cell in zip(columns, cells, strict=True)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise _Unreadable(f"the row from line {line} on: {error}. Check its double quotes.") from error
