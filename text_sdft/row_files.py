"""JSON and CSV files as rows, every value as it stands in the file: no guessed dates, numbers or missing values."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from text_sdft.core import UserError
from text_sdft.files import check_file

Row = dict[str, Any]
#: Where a row stands in its file, such as "line 3", and the row.
PlacedRow = tuple[str, Row]
#: Characters that a row, or a line of a file, may have at most.
MOST_CHARACTERS = 10_000_000


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
    check_file(file)
    is_csv = file.suffix == ".csv"
    try:
        # Excel and Notepad begin files with a mark. Lines of JSON end at \n alone: other ends may stand in strings.
        with file.open(encoding="utf-8-sig", newline="" if is_csv else "\n") as stream:
            return list(_csv_rows(stream) if is_csv else _json_rows(stream))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read: {error}. Save it as UTF-8.") from error
    except _Unreadable as error:
        raise UserError(f"{file} cannot be read as {'csv' if is_csv else 'json'}: {error}") from error


class _Unreadable(Exception):
    """Where a file is broken, and the remedy."""


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines; one without end would fill the memory."""
    number = 0
    while line := stream.readline(MOST_CHARACTERS + 1):
        number += 1
        if len(line) > MOST_CHARACTERS:
            raise _Unreadable(f"line {number} {_TOO_LONG}")
        yield line


_TOO_LONG = f"has more than {MOST_CHARACTERS:,} characters. Split its row, or leave it out."


def _json_rows(stream: TextIO) -> Iterator[PlacedRow]:
    """One object a line, or one list of them, in files of either name."""
    if stream.read(MOST_CHARACTERS).lstrip().startswith("["):
        stream.seek(0)
        text = stream.read()
        for number, row in enumerate(_parsed(text)):
            place = f"row {number}"
            if len(text) > MOST_CHARACTERS and len(json.dumps(row)) > MOST_CHARACTERS:
                raise _Unreadable(f"{place} {_TOO_LONG}")
            yield place, _row(row, place)
        return
    stream.seek(0)
    for number, line in enumerate(_lines(stream), 1):
        if line.strip():
            place = f"line {number}"
            yield place, _row(_parsed(line, number), place)


def _parsed(text: str, line: int = 1) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise _Unreadable(
            f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}. Give one row a line, as "
            '{"column": "value"}, or a list of such rows.'
        ) from error
    except RecursionError as error:
        raise _Unreadable(f"line {line}: lists or objects stand a thousand deep in each other. Make it flat.") from error
    except UnicodeEncodeError as error:
        raise _Unreadable(f"line {line}: half of a character ({error.object[error.start]!r}). Write it whole.") from error
    except ValueError as error:  # of `_object`, or of a number that Python does not take
        why = error if isinstance(error, _Twice) else "a number has more than 4,300 digits. Write it as a text, in quotes"
        raise _Unreadable(f"line {line}: {why}.") from error


class _Twice(ValueError):
    """A name that stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        [name, *_] = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise _Twice(f"'{name}' stands twice in one object. Leave one of them out")
    return made


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise _Unreadable(f'{place} is a {type(value).__name__}; a row is an object, as {{"column": "value"}}.')
    return value


def _csv_rows(stream: TextIO) -> Iterator[PlacedRow]:
    csv.field_size_limit(MOST_CHARACTERS)  # its default of 128 KiB is less than a document to learn may have
    reader = csv.reader(_lines(stream), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = cells
                if twice := [name for name, count in Counter(cells).items() if name and count > 1]:
                    raise _Unreadable(f"line {line}: the column '{twice[0]}' stands twice. Rename one of them.")
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
