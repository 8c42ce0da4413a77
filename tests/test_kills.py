"""Runs, comparisons and sequences that are killed at each of their writes, or at any moment: nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.cli_runs import jsonl, read
from tests.tiny_text import save_tiny_text_model
from text_sdft.core import UserError
from text_sdft.core.files import LOCK_FILE
from text_sdft.experiments.compare import compare
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.run import run_training
from text_sdft.experiments.sequence import run_sequence
from vlm_sdft.cli.parsing import config_of, load_experiment, read_call

pytestmark = pytest.mark.slow
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vlm_sdft.cli.commands", "text_sdft.experiments.report", "text_sdft.experiments.run"])
#: What hangs on the clock, and on where work went on.
CLOCK = {"seconds", "tokens", "resumed_at", "versions", "settings"}
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


#: What is called before a write; hooks stay for good, so there is one.
BEFORE_WRITE: list[Callable[[str], None]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    writing = event in WRITES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
    if writing and BEFORE_WRITE:
        call = BEFORE_WRITE.pop()  # what it writes itself is not looked at
        call(str(args[0]))
        BEFORE_WRITE.append(call)


sys.addaudithook(_hook)


@contextmanager
def before_write(folder: Path, call: Callable[[], None]) -> Iterator[None]:
    """Within this context something happens before each write into the folder."""
    BEFORE_WRITE.append(lambda path: call() if path.startswith(str(folder)) and folder.exists() else None)
    try:
        yield
    finally:
        BEFORE_WRITE.clear()


def states_of(work: Callable[[], Any], folder: Path, kept: Path) -> list[Path]:
    """What lies in the folder before each write into it, where that differs: what a process leaves that is killed there."""
    copies: list[Path] = []
    with before_write(folder, lambda: copies.append(shutil.copytree(folder, kept / str(len(copies))))):
        work()
    contents = {
        tuple((str(f.relative_to(copy)), f.read_bytes()) for f in sorted(copy.rglob("*")) if f.is_file()): copy
        for copy in copies
    }
    return list(contents.values())


def rows(name: str, count: int = 4) -> list[dict[str, Any]]:
    shown = [{"prompt": f"Colour of a {name}?", "answer": "red"}]
    return [
        {"prompt": f"Colour of {name} {i}?", "demonstrations": shown, "reference": "red", "golden_response": "red"}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = {part: jsonl(folder / f"{part}.jsonl", rows("dax", 6)) for part in ("path", "test")}
    return {
        "model": save_tiny_text_model(folder / "llama"),
        "adapter": "text",
        "data": {**data, "old": jsonl(folder / "old.jsonl", [{"prompt": "1 + 1?", "reference": "2"}])},
        "lora": {"enabled": False},
        "eval": {"teacher": False},
        "train": {
            "use_cpu": True, "disable_tqdm": True, "max_completion_length": 4, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "max_steps": 2, "save_steps": 1, "logging_steps": 2,
            "save_total_limit": 1,
        },
    }  # fmt: skip


@pytest.fixture
def experiment(settings, tmp_path):
    """Of the settings, changed; written into the folder "work"."""

    def read_again(folder: str = "work", **changes: Any) -> Experiment:
        given = {**settings, "train": {**settings["train"], "output_dir": str(tmp_path / folder), **changes}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
        call = read_call(["train", str(tmp_path / "config.yaml")])
        return load_experiment(call, config_of(call))[0]

    return read_again


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(part) for key, part in value.items() if key not in CLOCK}
    return value


def content(folder: Path) -> dict[str, Any]:
    """All that a folder says, without what hangs on the clock."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if "checkpoint" in name or "training-" in name or file.name == LOCK_FILE:  # nobody holds it any more
            continue
        assert not name.endswith(".part"), name
        if file.name == "model.safetensors":
            found[name] = {key: tensor.tolist() for key, tensor in load_file(file).items()}
        elif file.suffix == ".json":
            found[name] = without_clock(read(file))
        elif file.suffix == ".jsonl":
            lines = read(file)
            found[name] = [line for line in lines if "train_runtime" not in line]
            found[f"{name}: ends"] = sum("train_runtime" in line for line in lines)
        else:
            found[name] = file.suffix != ".html" or "</html>" in file.read_text()
    return found


def goes_on_alike(states: Sequence[Path], folder: Path, work: Callable[[bool], Any]) -> None:
    whole = content(folder)
    assert states
    for state in states:
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        try:
            work(True)
        except UserError as error:
            assert "to resume" in str(error), error  # killed before anything was written
            work(False)
        assert content(folder) == whole, state


def test_a_run_killed_at_any_write_goes_on_alike(experiment, tmp_path):
    made, folder = experiment(), tmp_path / "work"
    states = states_of(lambda: run_training(made), folder, tmp_path / "states")
    goes_on_alike(states, folder, lambda resume: run_training(made, resume=resume))


def test_a_sequence_killed_at_any_write_goes_on_alike(experiment, tmp_path):
    tasks = [experiment(f"work/task-{k}", max_steps=1, save_strategy="no") for k in (1, 2)]
    states = states_of(lambda: run_sequence(tasks, tmp_path / "work"), tmp_path / "work", tmp_path / "states")
    states = [*states[::4], *states[-5:]]  # most writes are those of a run

    def go_on(resume: bool) -> None:
        run_sequence(tasks, tmp_path / "work", resume=(tmp_path / "work" / "sequence.json").exists())

    goes_on_alike(states, tmp_path / "work", go_on)


def test_a_comparison_killed_at_any_write_goes_on_alike(experiment, tmp_path):
    made, folder = experiment(max_steps=1), tmp_path / "work"
    states = states_of(lambda: compare(made, ["sdft", "sft"], 1, [1e-3]), folder, tmp_path / "states")
    goes_on_alike(states, folder, lambda resume: compare(made, ["sdft", "sft"], 1, [1e-3]))


def train(argv: Sequence[str]) -> None:
    from vlm_sdft.cli import main

    main(argv)


def test_a_run_killed_at_any_moment_goes_on_alike(experiment, tmp_path):
    made, folder = experiment(), tmp_path / "work"
    run_training(made)
    whole = content(folder)
    drawn = random.Random(0)
    argv = ["train", str(tmp_path / "config.yaml"), "--force"]
    killed = 0
    for _ in range(10):
        shutil.rmtree(folder)
        child = FORKS.Process(target=train, args=(argv,))
        child.start()
        while not (folder / "config.yaml").exists():
            time.sleep(0.02)
        time.sleep(drawn.uniform(0, 2))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        run_training(made, resume=True)
        assert content(folder) == whole
    assert killed > 3


def test_a_full_disk_is_one_message_at_any_write_and_goes_on_alike(experiment, tmp_path):
    """(The system refuses to write into any file; of a full disk there is as much said.)"""
    made, folder, limits = experiment(), tmp_path / "work", resource.getrlimit(resource.RLIMIT_FSIZE)
    writes: list[None] = []
    with before_write(folder, lambda: writes.append(None)):
        run_training(made)
    whole = content(folder)
    for first in range(2, len(writes) - 2, 8):  # the last three rename the report and give up the folder: no room is needed
        shutil.rmtree(folder)
        writes.clear()

        def fill(first: int = first) -> None:
            writes.append(None)
            if len(writes) == first:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))

        try:
            with before_write(folder, fill), pytest.raises(UserError, match=r"could not be written .*--resume"):
                run_training(made)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        run_training(made, resume=(folder / "results.json").exists())
        assert content(folder) == whole, first
