"""Two processes (gloo, CPU) give the single process's losses and weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed_run import main

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("head", "method"), [("tied", "sdft"), ("untied", "sdft"), ("untied", "sft_teacher")])
def test_two_processes_equal_one(tmp_path, head, method):
    one, two = tmp_path / "one", tmp_path / "two"
    main(one, head == "tied", method)
    # `--multi_gpu` is accelerate's name for several local processes; the run itself asks for the CPU.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port())]
    command = [*launch, "-m", "tests.distributed_run", str(two), head, method]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (one, two))
    assert (a["processes"], b["processes"]) == (1, 2)
    assert b["losses"] == pytest.approx(a["losses"], abs=1e-5)
    assert b["accuracy"] == pytest.approx(a["accuracy"])
    for name, total in a["weights"].items():
        assert b["weights"][name] == pytest.approx(total, abs=1e-4), name
