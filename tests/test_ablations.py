"""The sweeps of docs/reproduce.md run, with a small model and local rows in the place of the paper's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.task_rows import knowledge
from tests.tiers import further
from tests.tiny_text import save_tiny_text_model
from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent
LINES = re.findall(r"^    vlm-sdft (compare .*)$", (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"), re.M)


def test_each_has_a_folder_of_its_own():
    folders = [line.rpartition(" ")[2] for line in LINES]
    assert len(folders) == len(set(folders)) >= 9


@pytest.mark.parametrize(
    "line",
    [LINES[0], *further(*LINES[1:])],
    ids=lambda line: line.rpartition("/")[2],
)
def test_one_step_of_each_method_runs(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in knowledge("")), encoding="utf-8")
    command, config, *rest = shlex.split(line)
    args = [command, str(ROOT / config), *rest, "--model", save_tiny_text_model(tmp_path / "tiny"), "--seeds", "1"]
    args += ["--data", "rows.jsonl", "--data.test", "rows.jsonl", "--data.validation", "null", "--data.ood", "null"]
    train = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 8,
        "activation_checkpointing": "false",
        "bf16": "false",
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    assert main([*args, *(part for key, value in train.items() for part in (f"--train.{key}", str(value)))]) == 0
    results = json.loads((Path(rest[-1]) / "compare.json").read_text())
    methods = rest[rest.index("--methods") + 1].split(",")
    assert results["failed"] == {} and list(results["methods"]) == ["base", *methods]
