"""From a sequence's YAML to its tasks, each an experiment of its own.

The file holds what all tasks share, and ``tasks``: a list, whose entries are files of experiments (their paths start at
this file) or mappings of what differs; or a number, by which the types of ``data`` are split. ``retain_earlier``: how many
queries of each earlier task come back as retention prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from text_sdft.core.errors import UserError
from vlm_sdft.cli.parsing import Call, Settings, load_experiment, merged, read_call, read_config

if TYPE_CHECKING:
    from text_sdft.experiments.config import Experiment


class TaskSequence(NamedTuple):
    """The arguments of `text_sdft.experiments.sequence.run_sequence`, as a YAML gives them."""

    tasks: list[Experiment]
    folder: Path
    joint: Experiment | None
    retain_earlier: Any  # checked where it is used


def read_sequence(file: Path, options: Sequence[str], joint: bool) -> TaskSequence:
    """The tasks, the sequence's folder, and the experiment on all tasks at once where ``joint`` asks for it.

    Args:
        file: the YAML.
        options: ``--key value`` for every task, or for the sequence; they win over the file.

    Raises:
        UserError: the file lacks ``tasks``, an entry of it cannot be read, the data cannot be split, or there is nothing to
            train jointly on.
    """
    call = read_call(["sequence", str(file), *options])
    common = read_config(file)
    if "tasks" not in common:
        raise UserError(f"{file} has no `tasks`: a list of experiments' files, or a number to split the types of data by.")
    entries, together = common.pop("tasks"), common.pop("joint", None)
    in_file = common.pop("retain_earlier", 0)
    retain_earlier = call.given.get("retain_earlier", in_file)
    folder = Path(merged(common, call.given).get("train", {}).get("output_dir") or f"runs/{file.stem}")

    def read(name: str, settings: Settings, *further: str) -> Experiment:
        own = [*call.argv, "--train.output_dir", str(folder / name), *further]
        return load_experiment(call._replace(argv=own), settings)[0]

    if isinstance(entries, int):
        common = read("joint", common).settings  # with the options in it, so that none undoes the split
        call, together = Call("sequence", [], {}), {}
        entries = [{"data": part} for part in _split(common, entries)]
    if not isinstance(entries, list):
        raise UserError(f"{file}: `tasks` is neither a list nor a number.")
    tasks = [read(f"task-{k}", merged(common, _entry(e, file))) for k, e in enumerate(entries, start=1)]
    if not joint:
        return TaskSequence(tasks, folder, None, retain_earlier)
    if together is None:
        raise UserError(f"{file}: --joint needs `joint`, the file or settings of an experiment on all tasks' data.")
    steps = [task.args.max_steps for task in tasks]
    budget = ["--train.max_steps", str(sum(steps))] if min(steps) > 0 else []
    return TaskSequence(tasks, folder, read("joint", merged(common, _entry(together, file)), *budget), retain_earlier)


def _split(settings: Settings, count: int) -> list[Settings]:
    """The section ``data`` of each of so many tasks."""
    from text_sdft.core import adapter_class

    section = get_type_hints(adapter_class(settings["adapter"]).from_config)["data"]
    if not hasattr(section, "split"):
        raise UserError(f"The data of the adapter '{settings['adapter']}' cannot be split: give `tasks` as a list.")
    return section(**settings["data"]).split(count)


def _entry(entry: Any, file: Path) -> Settings:
    """A task's own settings."""
    if isinstance(entry, str):
        return read_config(file.parent / entry)
    if not isinstance(entry, dict):
        raise UserError(f"{file}: a task is the name of an experiment's file, or its settings; not {entry!r}.")
    return entry
