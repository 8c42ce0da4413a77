"""A run that was stopped: what is kept of it, what is said, and what its report counts after it went on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli_runs import FAST, fails, options, read, stop_before
from tests.image_files import WHOLE, fill, save
from text_sdft.core import SDFTConfig
from text_sdft.experiments.report import write_report
from vlm_sdft.cli import main

STEPS = 5
SETTINGS = {**{k: v for k, v in FAST.items() if k != "save_strategy"}, "max_steps": STEPS, "logging_steps": 1}


def command(data: Path, run: Path) -> list[str]:
    return [
        "train", "--model", "builtin:tiny-qwen3-vl", "--data", str(data), "--train.output_dir", str(run), "--force",
        "--eval.teacher", "false",
        "--train.per_device_train_batch_size", "1", "--train.gradient_accumulation_steps", "1", *options(SETTINGS),
    ]  # fmt: skip


def report_of(run: Path, out: Path) -> str:
    write_report([run], out)
    return out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_nobody_loses_more_than_a_fifth_of_a_run(tmp_path, monkeypatch, capsys):
    data, run = fill(tmp_path / "data", WHOLE), tmp_path / "run"
    argv = command(data, run)
    with monkeypatch.context() as patch:
        stop_before(0, patch)
        assert "--resume trains from the start" in fails(capsys, *argv), "nothing is kept yet"
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert "checkpoint-3" in fails(capsys, *argv, "--resume")
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"], "the newest alone"
    page = report_of(run, tmp_path / "stopped.html")
    assert "seconds a step" not in page and "This run has not finished" in page

    more = save(data / "unlabelled" / "more.png", 99)
    message = fails(capsys, *argv, "--resume")
    assert "rows of train 9, not 10" in message and "output_dir" in message
    more.unlink()
    shown = next((data / "unlabelled").glob("*.png"))
    painted = shown.read_bytes()
    save(shown, 98)
    message = fails(capsys, *argv, "--resume")
    assert "as many rows, but another content of train" in message and "output_dir" in message
    shown.write_bytes(painted)
    assert main([*argv, "--resume"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["resumed_at"] == 3
    page = report_of(run, tmp_path / "finished.html")
    assert f"{results['seconds'] / (STEPS - 3):.2f}</td>" in page.partition("seconds a step")[2][:60]
    assert "training since step 3, where it was resumed" in page
    assert "tokens that the student read since step 3" in page


@pytest.mark.slow
def test_a_run_that_took_no_step_is_begun_anew_with_other_settings(tmp_path, monkeypatch, capsys, caplog):
    data, run = fill(tmp_path / "data", WHOLE), tmp_path / "run"
    argv = [*command(data, run), "--train.max_steps", "1"]
    with monkeypatch.context() as patch:
        stop_before(0, patch)
        fails(capsys, *argv)
    assert "after" not in read(run / "results.json")
    assert main([*argv, "--train.learning_rate", "1e-3"]) == 0
    assert "took no step: it is begun anew" in caplog.text
    assert read(run / "results.json")["settings"]["train"]["learning_rate"] == 1e-3
    ids = [(record["set"], record["id"]) for record in read(run / "samples.jsonl") if record.get("phase") == "before"]
    assert len(ids) == len(set(ids)), "measured once"
    assert "holds a run already" in fails(capsys, *argv)


def test_checkpoints_at_steps_of_ones_own_are_all_kept():
    usual, own = SDFTConfig("x", use_cpu=True), SDFTConfig("x", use_cpu=True, save_steps=50)
    assert (usual.save_total_limit, own.save_total_limit) == (1, None)
    assert SDFTConfig("x", use_cpu=True, save_total_limit=3).save_total_limit == 3
    assert SDFTConfig("x", use_cpu=True, save_strategy="epoch").save_total_limit is None


def test_a_stopped_comparison_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    data = fill(tmp_path / "data", {**WHOLE, "test/dax": 3})
    stop_before(0, monkeypatch)
    argv = ["compare", *command(data, tmp_path / "run")[1:], "--methods", "sdft", "--seeds", "1"]
    assert "The same command goes on" in fails(capsys, *[arg for arg in argv if arg != "--force"])
