"""Dataset rows as examples: the columns of docs/your-own-text.md, under the names that users of TRL know."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from text_sdft.core.adapter import with_unique_ids
from text_sdft.core.chat import answered, with_system, with_text
from text_sdft.core.data import Conversation, Demonstration, Example
from text_sdft.core.errors import UserError, does_not_exist, listed
from text_sdft.files import check_file
from text_sdft.row_files import read_rows

COLUMNS = (
    "prompt", "privileged_context", "demonstrations", "golden_response",
    "teacher_prompt", "reference", "retain", "id",
)  # fmt: skip
_TURNS = "its turns up to the last user's go into 'prompt', the assistant's last one into 'golden_response'"
#: Columns of other programs' files, and what their content is called here.
RENAMED = {
    "messages": _TURNS,
    "conversations": _TURNS + ", each with 'role' and 'content'",
    "instruction": "rename it 'prompt' (with 'input' behind it), and 'output' 'golden_response'",
    "question": "rename it 'prompt', and the right answer 'golden_response' or 'reference'",
}
KINDS = (".jsonl", ".json", ".parquet", ".csv")


def load_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSONL, JSON, Parquet or CSV file, or of a data set: a folder that ``datasets`` saved, or a hub's name.

    Args:
        path: behind a data set's name ``:SPLIT`` names one of its splits; without it, that is ``train``.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    file = Path(path)
    if file.suffix in KINDS:
        if not os.path.lexists(file):
            raise UserError(does_not_exist(file))
        check_file(file)
        if file.suffix != ".parquet":  # whose columns have types; for other files `datasets` would guess them
            return read_rows(file)
    import datasets  # takes seconds

    name, _, split = (path, "", "") if file.exists() else path.partition(":")
    try:
        if file.suffix == ".parquet":
            return list(datasets.load_dataset("parquet", data_files=str(file), split="train"))
        if not any((Path(name) / saved).is_file() for saved in ("dataset_info.json", "dataset_dict.json")):
            return list(datasets.load_dataset(name, split=split or "train"))
        found = datasets.load_from_disk(name)
        return list(found[split or "train"] if isinstance(found, Mapping) else found)
    except Exception as error:
        if file.suffix == ".parquet":
            raise UserError(f"{file} cannot be read as parquet: {error}") from error
        raise UserError(
            f"'{path}' is neither a file ({', '.join(KINDS)}) nor a data set that can be loaded: {error}"
        ) from error


def file_examples(file: str, read: Callable[[Sequence[dict[str, Any]]], list[Example]]) -> list[Example]:
    """What ``read`` makes of the file's rows. Raises `UserError` naming file and row."""
    try:
        return read(load_rows(file))
    except UserError as error:
        raise UserError(str(error) if file in str(error) else f"{file}: {error}") from error


def to_example(row: Any, number: int, system_prompt: str | None = None) -> Example:
    """One row as an example; a ready example passes through. Raises `UserError`: the prompt is missing or empty, a column
    has another form, or a name is nearly a known one.
    """
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"Row {number} is a {type(row).__name__}; it must be a mapping with the column 'prompt'.")
    _check_names(row, number)
    row = {name: value for name, value in row.items() if not _is_nan(value)}  # as pandas writes missing values
    messages = with_system(messages_of(row.get("prompt"), "prompt", number), system_prompt)
    golden = row.get("golden_response")
    answers = [golden] if isinstance(golden, str) else golden or []
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"Row {number}: 'golden_response' must be a string or a list of strings.")
    if not all(answer.strip() for answer in answers):
        raise UserError(f"Row {number}: 'golden_response' is empty: leave it out where there is none.")
    given_shown = row.get("demonstrations") or []
    if not isinstance(given_shown, list):
        raise UserError(f"Row {number}: 'demonstrations' must be a list of {{'prompt', 'answer'}}.")
    shown = [_demonstration(given, number) for given in given_shown]
    shown += [answered(messages[-1], answer) for answer in answers]
    teacher = row.get("teacher_prompt") or None
    if teacher is not None:
        teacher = with_system(messages_of(teacher, "teacher_prompt", number), system_prompt)
    reference = row.get("reference")
    if isinstance(reference, list | Mapping):
        raise UserError(f"Row {number}: 'reference' is a {type(reference).__name__}; it must be one right answer.")
    return Example(
        id=row_id(row, number),
        messages=messages,
        demonstrations=shown,
        privileged_context=_context(row.get("privileged_context"), number),
        reference=None if reference is None or not str(reference).strip() else str(reference),
        retain=_flag(row.get("retain"), number),
        meta={"teacher_messages": teacher, "golden": len(answers)},  # the golden ones are the last demonstrations
    )


def row_id(row: Mapping[str, Any], number: int) -> str:
    """The row's id, or its number."""
    return str(row["id"]) if row.get("id") is not None else f"row {number}"


def to_examples(rows: Iterable[Any], system_prompt: str | None = None) -> list[Example]:
    """All rows as examples, with unique ids. Raises `UserError`."""
    return with_unique_ids([to_example(row, number, system_prompt) for number, row in enumerate(rows)])


def _check_names(row: Mapping[str, Any], number: int) -> None:
    if any(row.get(name) is not None for name in ("images", "image", "teacher_images")):
        raise UserError(f"Row {number} has images, which the text adapter would drop. Use `adapter: image`.")
    if row.get("prompt") is None and (other := next((name for name in RENAMED if row.get(name) is not None), None)):
        raise UserError(f"Row {number} has '{other}' and no 'prompt': {RENAMED[other]}.")
    if row.get("tools"):
        raise UserError(
            f"Row {number} has 'tools', which neither student nor teacher would be shown. Write them into a system message "
            "of 'prompt', or leave the column out."
        )
    for name in row:
        near = difflib.get_close_matches(str(name), COLUMNS, n=1, cutoff=0.85)
        if near and name not in COLUMNS and near[0] not in row:
            raise UserError(f"Row {number} has the column '{name}'; did you mean '{near[0]}'? Rename it.")


def messages_of(given: Any, column: str, number: int) -> Conversation:
    """A query from a string or from messages that end in a user turn. Raises `UserError` naming row and column."""
    if isinstance(given, str) and given.strip():
        return [{"role": "user", "content": given}]
    if isinstance(given, list) and given:
        messages = _texts(given, column, number)
        if (last := messages[-1]["role"]) != "user":
            raise UserError(f"Row {number}: '{column}' ends in a turn of '{listed([last])}'; it must end in a user turn.")
        if messages[-1]["content"].strip():
            return messages
        given = None
    state = "is missing or empty" if not given or isinstance(given, str) else f"is a {type(given).__name__}"
    raise UserError(f"Row {number}: '{column}' {state}; give a string, or messages with role and content.")


def _context(given: Any, number: int) -> str | Conversation | None:
    if given is None or given == [] or isinstance(given, str):
        return given if given and given.strip() else None
    if isinstance(given, list):
        return _texts(given, "privileged_context", number)
    raise UserError(f"Row {number}: 'privileged_context' must be a string, or messages with role and content.")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _flag(given: Any, number: int) -> bool:
    """True or false; CSV files carry words for it."""
    words = {"true": True, "1": True, "false": False, "0": False, "": False}
    word = "" if given is None else str(given).strip().lower()
    if word not in words:
        raise UserError(f"Row {number}: 'retain' is {listed([given])}; it must be true or false.")
    return words[word]


def _texts(messages: list[Any], column: str, number: int) -> Conversation:
    """The messages with texts for contents, parts joined. Raises `UserError` where a part is no text."""
    for place, message in enumerate(messages, 1):
        role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
        if role is None or not isinstance(content, str | list):
            has = "another form" if role is None or content is not None else "no content (null)"
            if role is not None and message.get("tool_calls"):
                has += ". Its tool calls go into its content, as text"
            raise UserError(
                f"Row {number}: '{column}' is a string, or messages with role and content; message {place} "
                f"({listed([role or 'without role'])}) has {has}."
            )
    return [dict(with_text(message, f"Row {number}: '{column}'", "Use `adapter: image`.")) for message in messages]


def _demonstration(given: Any, number: int) -> Demonstration:
    if isinstance(given, list) and len(given) >= 2:
        turns = _texts(given, "demonstrations", number)
        if turns[-1]["role"] == "assistant":
            return Demonstration(turns)
    elif isinstance(given, Mapping):
        asked, answer = given.get("prompt"), given.get("answer")
        if isinstance(asked, str) and isinstance(answer, str) and asked.strip() and answer.strip():
            return answered(asked, answer)
    raise UserError(f"Row {number}: a demonstration needs 'prompt' and 'answer', or user and assistant messages.")
