"""Files of runs: written whole or not at all, read with what is wrong in them said, in folders of one run at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from text_sdft.core.errors import UserError, first_line
from text_sdft.core.shapes import shape_fault

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
LOCK_FILE = ".lock"
#: A full disk, a quota, a file's largest size; in the messages of libraries that raise no OSError too.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
DISK_MESSAGES = ("PytorchStreamWriter", "inline_container", *(f"(os error {number})" for number in DISK_ERRORS))
#: Bytes of a file's beginning and of its end that `fingerprint` reads.
ENDS = 2**20
DAMAGED = "The file was edited, or its disk is damaged: put it back as it was, or start anew in another folder."


def write_text(file: Path, text: str) -> None:
    """UTF-8, whole or not at all: written beside the file and renamed; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    try:
        # Names of files that are no UTF-8 are lone surrogates in a text; JSON reads their escapes back as such.
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Any) -> None:
    """JSON, as `write_text`."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_json_lines(file: Path, records: Iterable[Record]) -> None:
    """One record a line, as `write_text`."""
    write_text(file, _lines(records))


def append_json_lines(file: Path, records: Iterable[Record]) -> None:
    """Append records to a file, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        stream.write(_lines(records).encode("utf-8", "backslashreplace"))


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False, default=float) + "\n" for record in records)


def read_json(file: Path, shape: Any = object) -> Any:
    """A file's content; None where there is none. Raises `UserError` where it is damaged, or of another shape."""
    return _parsed(_text(file), str(file), shape) if file.exists() else None


def read_json_lines(file: Path, shape: Any = object) -> list[Record]:
    """One record a line; half a last line, of a run that was killed while it wrote, is left out.

    Raises `UserError` naming the line that is damaged, or of another shape.
    """
    *lines, _ = _text(file).split("\n") if file.exists() else [""]
    return [_parsed(line, f"{file}, line {n}", shape) for n, line in enumerate(lines, 1) if line]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}). {DAMAGED}") from error


def _parsed(text: str, where: str, shape: Any) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not whole JSON ({first_line(error)}). {DAMAGED}") from error
    if fault := shape_fault(content, shape):
        raise UserError(f"{where}: {fault}. {DAMAGED}")
    return content


def fingerprint(file: Path) -> str:
    """A file's size and a hash of its beginning and its end (all of a small one): cheap, and other where it was cut."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        digest = hashlib.blake2b(stream.read(ENDS), digest_size=16)
        stream.seek(max(ENDS, size - ENDS))
        digest.update(stream.read(ENDS))
    return f"{size}-{digest.hexdigest()}"


@contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """What goes on here may fill the disk. Raises `UserError` of that, whatever the library that wrote makes of it."""
    try:
        yield
    except Exception as error:
        if not is_of_the_disk(error):
            raise
        raise UserError(
            f"{folder} could not be written ({first_line(error)}). What was written whole before is untouched: free space "
            "(or set save_total_limit) and run the same command with --resume."
        ) from error


def is_of_the_disk(error: Exception) -> bool:
    """Whether the disk is full or failed, and no code is wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_ERRORS
    return not isinstance(error, UserError) and any(message in str(error) for message in DISK_MESSAGES)


@contextmanager
def claimed(folder: Path, main: bool = True) -> Iterator[None]:
    """One run owns the folder until this ends; the operating system takes the claim from a process that is killed.

    Args:
        main: whether this is the process that writes.

    Raises:
        UserError: another run owns it, or nothing can be written there.
    """
    if not main:
        yield
        return
    remedy = "name another folder with --train.output_dir"
    file, made = folder / LOCK_FILE, [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{folder} is a file: {remedy}.") from error
    except OSError as error:
        raise UserError(f"Nothing can be written into {folder} ({error.strerror}): {remedy}.") from error
    with stream:
        try:
            if fcntl is not None:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owned = file.exists() and os.path.samestat(file.stat(), os.fstat(stream.fileno()))  # and not just given up
        except OSError:
            owned = False
        if not owned:
            stream.seek(0)
            raise UserError(f"{folder} is in use by a run that began at {stream.read()}: wait for its end, or {remedy}.")
        stream.truncate(0)
        stream.write(time.strftime("%Y-%m-%d %H:%M:%S"))
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            for path in made:  # where nothing was written
                with suppress(OSError):
                    path.rmdir()
