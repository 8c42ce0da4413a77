"""Runs, comparisons and sequences that are killed at each of their writes, or at any moment: nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.cli_runs import jsonl, read
from tests.tiny_text import save_tiny_text_model
from text_sdft.core import UserError
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


class States:
    """What lies in a folder before each of the writes into it: all that a process leaves that is killed there."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self.kept, self.active, self.all = folder, kept, False, []
        sys.addaudithook(self._look)  # it stays for good, so it looks only while it is active

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        writing = event in WRITES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
        if self.active and writing and str(args[0]).startswith(str(self.folder)) and self.folder.exists():
            self.active = False
            self.all.append(shutil.copytree(self.folder, self.kept / str(len(self.all))))
            self.active = True

    def of(self, work: Callable[[], Any]) -> list[Path]:
        """Those of this work that differ."""
        self.active = True
        work()
        self.active = False
        distinct = {
            tuple((str(f.relative_to(state)), f.read_bytes()) for f in sorted(state.rglob("*")) if f.is_file()): state
            for state in self.all
        }
        return list(distinct.values())


def rows(name: str, count: int = 4) -> list[dict[str, Any]]:
    shown = [{"prompt": f"Colour of a {name}?", "answer": "red"}]
    return [
        {"prompt": f"Colour of {name} {i}?", "demonstrations": shown, "reference": "red", "golden_response": "red"}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = {part: jsonl(folder / f"{part}.jsonl", rows("dax", 4)) for part in ("path", "test")}
    return {
        "model": save_tiny_text_model(folder / "llama"),
        "adapter": "text",
        "data": {**data, "old": jsonl(folder / "old.jsonl", [{"prompt": "1 + 1?", "reference": "2"}])},
        "lora": {"enabled": False},
        "eval": {"teacher": False},
        "train": {
            "use_cpu": True, "disable_tqdm": True, "max_completion_length": 4, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "max_steps": 3, "save_steps": 1, "logging_steps": 2,
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
        if "checkpoint" in name or "training-" in name:
            continue
        assert not name.endswith((".part", ".lock")), name
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
    states = States(folder, tmp_path / "states").of(lambda: run_training(made))
    goes_on_alike(states, folder, lambda resume: run_training(made, resume=resume))


def test_a_sequence_killed_at_any_write_goes_on_alike(experiment, tmp_path):
    tasks = [experiment(f"work/task-{k}", max_steps=1, save_strategy="no") for k in (1, 2)]
    states = States(tmp_path / "work", tmp_path / "states").of(lambda: run_sequence(tasks, tmp_path / "work"))
    states = [*states[::4], *states[-5:]]  # most writes are those of a run

    def go_on(resume: bool) -> None:
        run_sequence(tasks, tmp_path / "work", resume=(tmp_path / "work" / "sequence.json").exists())

    goes_on_alike(states, tmp_path / "work", go_on)


def test_a_comparison_killed_at_any_write_goes_on_alike(experiment, tmp_path):
    made, folder = experiment(max_steps=1), tmp_path / "work"
    states = States(folder, tmp_path / "states").of(lambda: compare(made, ["sdft", "sft"], 1, [1e-3]))
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
