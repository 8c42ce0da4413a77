"""From a sequence's YAML to its tasks, each an experiment of its own.

The file holds what all tasks share, and ``tasks``: a list, whose entries are files of experiments (their paths start at
this file) or mappings of what differs; or a number, by which the types of ``data`` are split. ``retain_earlier``: how many
queries of each earlier task come back as retention prompts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import yaml

from vlm_sdft.cli.parsing import read_experiment, taken

if TYPE_CHECKING:
    from text_sdft.experiments.config import Experiment

Settings = dict[str, Any]


class TaskSequence(NamedTuple):
    """The arguments of `text_sdft.experiments.sequence.run_sequence`, as a YAML gives them."""

    tasks: list[Experiment]
    folder: Path
    joint: Experiment | None
    retain_earlier: int


def read_sequence(file: Path, options: Sequence[str], joint: bool) -> TaskSequence:
    """The tasks, the sequence's folder, and the experiment on all tasks at once where ``joint`` asks for it.

    Args:
        file: the YAML.
        options: ``--key value`` for every task, or for the sequence; they win over the file.

    Raises:
        UserError: the file lacks ``tasks``, an entry of it cannot be read, the data cannot be split, or there is nothing to
            train jointly on.
    """
    from text_sdft.core import UserError

    common = _load(file)
    if "tasks" not in common:
        raise UserError(f"{file} has no `tasks`: a list of experiments' files, or a number to split the types of data by.")
    entries, together = common.pop("tasks"), common.pop("joint", None)
    name, options = taken(options, "--train.output_dir")
    folder = Path(name or (common.get("train") or {}).get("output_dir") or f"runs/{file.stem}")
    kept, options = taken(options, "--retain_earlier")
    in_file = common.pop("retain_earlier", 0)
    retain_earlier = in_file if kept is None else yaml.safe_load(kept)
    with tempfile.TemporaryDirectory() as scratch:

        def read(name: str, settings: Settings, extra: Sequence[str] = options) -> Experiment:
            written = Path(scratch) / f"{name}.yaml"
            written.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
            return read_experiment("sequence", [str(written), *extra, "--train.output_dir", str(folder / name)])

        if isinstance(entries, int):
            common = read("joint", common).settings  # with the options in it, so that none undoes the split
            options, together = [], {}
            entries = [{"data": part} for part in _split(common, entries)]
        if not isinstance(entries, list):
            raise UserError(f"{file}: `tasks` is neither a list nor a number.")
        tasks = [read(f"task-{k}", _over(common, _entry(e, file)), options) for k, e in enumerate(entries, start=1)]
        if not joint:
            return TaskSequence(tasks, folder, None, retain_earlier)
        if together is None:
            raise UserError(f"{file}: --joint needs `joint`, the file or settings of an experiment on all tasks' data.")
        steps = [task.args.max_steps for task in tasks]
        budget = ["--train.max_steps", str(sum(steps))] if min(steps) > 0 else []
        whole = read("joint", _over(common, _entry(together, file)), [*options, *budget])
        return TaskSequence(tasks, folder, whole, retain_earlier)


def _split(settings: Settings, count: int) -> list[Settings]:
    """The section ``data`` of each of so many tasks."""
    from text_sdft.core import UserError, adapter_class

    section = get_type_hints(adapter_class(settings["adapter"]).from_config)["data"]
    if not hasattr(section, "split"):
        raise UserError(f"The data of the adapter '{settings['adapter']}' cannot be split: give `tasks` as a list.")
    return section(**settings["data"]).split(count)


def _entry(entry: Any, file: Path) -> Settings:
    from text_sdft.core import UserError

    if isinstance(entry, str):
        return _load(file.parent / entry)
    if not isinstance(entry, dict):
        raise UserError(f"{file}: a task is the name of an experiment's file, or its settings; not {entry!r}.")
    return entry


def _over(common: Settings, own: Settings) -> Settings:
    """Nested settings with a task's own over the common ones."""
    merged = dict(common)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _load(file: Path) -> Settings:
    from text_sdft.core import UserError

    if not file.is_file():
        raise UserError(f"There is no config file {file}.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file}: needs keys such as model, data and train at its top.")
    return settings
