"""Two processes (gloo, CPU) give the single process's losses and weights: data parallel, FSDP, and DeepSpeed's ZeRO-2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli_runs import SETTINGS, read
from tests.distributed_run import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
#: `--multi_gpu` is accelerate's name for several local processes; the run itself asks for the CPU.
DATA_PARALLEL = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
SHARDED = ["--config_file", "configs/accelerate/fsdp2.yaml", "--mixed_precision", "no"]
ZERO = ["--config_file", "configs/accelerate/zero2.yaml", "--mixed_precision", "no"]

BASE, LIVE = {"teacher_model_kind": "base"}, {"teacher_model_kind": "live"}
#: Gradients are reduced after each micro-batch, so that none is ever held whole.
EACH_BATCH = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
IN_PARALLEL = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "stored answers": {"tied": False, "method": "sft_teacher"},
}
IN_SHARDS = {
    "ema": {"tied": True},
    "base": {"tied": False, "args": BASE},
    "live, two micro-batches": {"tied": False, "rows": 2, "args": LIVE},
    "checkpointed, two micro-batches": {"tied": True, "rows": 2, "args": {"activation_checkpointing": True, **EACH_BATCH}},
    "lora, ema": {"tied": True, "lora": True},
    "lora, base": {"tied": False, "lora": True, "args": BASE},
    "stored answers": {"tied": False, "method": "sft_teacher"},
}
IN_ZERO = {
    "ema": {"tied": True},
    "base, two micro-batches": {"tied": False, "rows": 2, "args": BASE},
    "lora, live": {"tied": False, "lora": True, "args": LIVE},
}
ADAMW = {"optim": "adamw_torch"}
SAVING = {**ADAMW, "save_strategy": "steps", "save_steps": 2}
IMAGES = {"all weights": [], "lora": ["--lora.enabled", "true"]}
IMAGES |= {"the tower too": ["--data.train_vision", "true"], "rung 4": ["--demonstrations.rung", "4"]}
#: Whether each image's one run through the tower reaches the wrapper's gradients, which it finds in two ways.
TOWERS = {
    "the tower too": IMAGES["the tower too"],
    "the tower too, not checkpointed": [*IMAGES["the tower too"], "--train.activation_checkpointing", "false"],
}


def launch(folder: Path, options: list[str], cases: dict[str, Any]) -> Path:
    """Run the cases in two processes, each in a folder of its own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    command += ["--dynamo_backend", "no", "--main_process_port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "-m", "tests.distributed_run", str(folder), json.dumps(cases)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> Path:
    return launch(tmp_path_factory.mktemp("parallel"), DATA_PARALLEL, IN_PARALLEL)


def with_resumed(folder: Path, cases: dict[str, Any]) -> dict[str, Any]:
    """The cases, and runs that go on from another's checkpoint."""
    more: dict[str, Any] = {}
    for kind, lora in (("full", False), ("lora", True)):
        checkpoint = str(folder / f"{kind}, whole" / "checkpoint-2")
        more[f"{kind}, whole"] = {"tied": lora, "lora": lora, "args": SAVING}
        more[f"{kind}, resumed"] = {"tied": lora, "lora": lora, "args": ADAMW, "resume": checkpoint}
    return {**cases, **more}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    return launch(folder, SHARDED, with_resumed(folder, IN_SHARDS))


@pytest.fixture(scope="module")
def zero(tmp_path_factory) -> Path:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    return launch(folder, ZERO, with_resumed(folder, IN_ZERO))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Three steps of the builtin model, which two processes split by rows."""
    folder = tmp_path_factory.mktemp("config")
    train = {"max_steps": 3, "save_strategy": "no", "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 3e-2}
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "cache": str(folder / "data")}}
    settings["train"] = {**SETTINGS["train"], "weight_decay": 0.0, "activation_checkpointing": True, **train}
    (folder / "images.yaml").write_text(yaml.safe_dump(settings))
    return folder / "images.yaml"


@pytest.fixture(scope="module")
def images(config, tmp_path_factory) -> Path:
    return launch(tmp_path_factory.mktemp("images"), SHARDED, halved(config, IMAGES))


@pytest.fixture(scope="module")
def towers(config, tmp_path_factory) -> Path:
    return launch(tmp_path_factory.mktemp("towers"), DATA_PARALLEL, halved(config, TOWERS))


@pytest.fixture(scope="module")
def towers_in_zero(config, tmp_path_factory) -> Path:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return launch(tmp_path_factory.mktemp("towers"), ZERO, halved(config, TOWERS))


def halved(config: Path, options: dict[str, list[str]]) -> dict[str, Any]:
    half = ["--train.per_device_train_batch_size", "2"]
    return {name: {"config": [str(config), *half, *others]} for name, others in options.items()}


def assert_equal(one: Path, two: Path) -> None:
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (one, two))
    assert (a["processes"], b["processes"]) == (1, 2)
    assert b["losses"] == pytest.approx(a["losses"], abs=1e-5) and len(a["losses"]) == 4
    assert b["accuracy"] == pytest.approx(a["accuracy"])
    assert_equal_weights(one / "model", two / "model", 1e-5)


def assert_equal_weights(one: Path, two: Path, atol: float) -> None:
    (file,) = one.glob("*.safetensors")
    a, b = load_file(file), load_file(two / file.name)
    b.pop("lm_head.weight" if "lm_head.weight" not in a else "", None)  # tied weights in shards are written twice
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("case", IN_PARALLEL)
def test_data_parallel_equals_one(case, parallel, tmp_path):
    main(tmp_path, IN_PARALLEL[case])
    assert_equal(tmp_path, parallel / case)


@pytest.mark.parametrize("case", IN_SHARDS)
def test_shards_equal_one(case, sharded, tmp_path):
    assert json.loads((sharded / case / "result.json").read_text())["wrapper"].startswith("FSDP")
    main(tmp_path, IN_SHARDS[case])
    assert_equal(tmp_path, sharded / case)


@pytest.mark.parametrize("case", IN_ZERO)
def test_zero_equals_one(case, zero, tmp_path):
    assert json.loads((zero / case / "result.json").read_text())["wrapper"] == "DeepSpeedEngine"
    main(tmp_path, IN_ZERO[case])
    assert_equal(tmp_path, zero / case)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("how", ["sharded", "zero"])
def test_a_resumed_run_is_the_uninterrupted_one(how, kind, request):
    folder = request.getfixturevalue(how)
    whole, resumed = (folder / f"{kind}, {name}" for name in ("whole", "resumed"))
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (whole, resumed))
    assert b["losses"] == a["losses"]
    assert_equal_weights(whole / "model", resumed / "model", 0.0)


@pytest.mark.parametrize("case", IMAGES)
def test_images_in_shards_equal_one(case, images, config, tmp_path):
    """A whole run: measured, trained, measured again, saved; with the vision tower whole on each process, or trained."""
    main(tmp_path / "run", {"config": [str(config), *IMAGES[case]]})
    assert_equal_runs(tmp_path / "run", images / case)


@pytest.mark.parametrize("how", ["towers", "towers_in_zero"])
@pytest.mark.parametrize("case", TOWERS)
def test_a_tower_that_is_not_in_shards_equals_one(case, how, config, tmp_path, request):
    folder = request.getfixturevalue(how)
    main(tmp_path / "run", {"config": [str(config), *TOWERS[case]]})
    assert_equal_runs(tmp_path / "run", folder / case)


def assert_equal_runs(one: Path, two: Path) -> None:
    a, b = (read(folder / "results.json") for folder in (one, two))
    assert b["before"] == a["before"] and b["after"] == a["after"]
    losses = [[row["loss"] for row in map(json.loads, (f / "metrics.jsonl").open()) if "loss" in row] for f in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[0]) == 3
    assert_equal_weights(one / "model", two / "model", 1e-5)
