"""Runs on text: trained, measured, loaded; in a text's own words."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli_runs import SETTINGS, jsonl, measured, read, steps
from tests.tiny_text import save_tiny_text_model
from vlm_sdft.cli import main


def test_a_text_model_is_trained_measured_and_loaded(tmp_path, capsys):
    shown = [{"prompt": "Colour of a dax?", "answer": "red"}]
    queries = [{"prompt": f"Colour of dax {i}?", "demonstrations": shown, "reference": "red"} for i in range(4)]
    settings = {
        "model": save_tiny_text_model(tmp_path / "llama"),
        "adapter": "text",
        "data": {
            "path": jsonl(tmp_path / "train.jsonl", queries),
            "test": jsonl(tmp_path / "test.jsonl", queries[:3]),
            "old": jsonl(tmp_path / "old.jsonl", [{"prompt": "1 + 1?", "reference": "2"}]),
            "retain": jsonl(tmp_path / "retain.jsonl", [{"prompt": "Hello?"}]),
        },
        "lora": {"enabled": False},
        "train": {**SETTINGS["train"], "max_steps": 2, "output_dir": str(tmp_path / "run")},
    }
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(settings))
    assert main(["preview", str(tmp_path / "text.yaml")]) == 0
    assert "Colour of a dax?" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "text.yaml"), "--force"]) == 0
    run = tmp_path / "run"
    results = read(run / "results.json")
    assert {name: score["n"] for name, score in results["after"].items()} == {"new": 3, "old": 1, "teacher": 3}
    moved = results["drift"]
    assert moved["before"]["kl"] == pytest.approx(0, abs=1e-6) and moved["after"]["kl"] > 1e-6
    assert moved["before"]["perplexity"] > 1 and moved["before"]["perplexity"] != moved["after"]["perplexity"]
    printed = capsys.readouterr().out
    assert f"KL from the start {moved['after']['kl']:.3g} nats" in printed
    assert "types" not in printed and re.search(r"^│ new +│", printed, re.M) and re.search(r"^│ old +│", printed, re.M)
    assert all("retain/loss" in log for log in steps(run))
    start, end = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "llama", run / "model"))
    assert not all(torch.equal(start[name], end[name]) for name in start)
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    assert main(["eval", str(run)]) == 0
    assert read(run / "eval.json") == results["after"] and "types" not in capsys.readouterr().out


def test_a_run_that_measures_nothing_is_finished_all_the_same(tmp_path):
    model = save_tiny_text_model(tmp_path / "llama")
    data = jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hello?", "privileged_context": "Be kind."}] * 2)
    argv = ["train", "--model", model, "--adapter", "text", "--data", data, "--train.output_dir", str(tmp_path / "run")]
    argv += ["--train.max_steps", "1", "--train.max_completion_length", "4", "--train.use_cpu", "true"]
    assert main(argv) == 0
    assert measured(tmp_path / "run") == ({}, {})
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main([*argv, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == times


def test_test_rows_that_show_the_teacher_nothing_are_no_verdict_on_it(tmp_path, caplog):
    """With prompt and reference alone both views are the same: no teacher is measured, and training goes on."""
    argv = ["train", "--adapter", "text", "--model", save_tiny_text_model(tmp_path / "llama")]
    argv += ["--data", jsonl(tmp_path / "rows.jsonl", [{"prompt": f"q{i}?", "golden_response": f"a{i}"} for i in range(4)])]
    argv += ["--data.test", jsonl(tmp_path / "test.jsonl", [{"prompt": f"t{i}?", "reference": f"a{i}"} for i in range(4)])]
    argv += ["--train.max_steps", "1", "--train.max_completion_length", "4", "--train.use_cpu", "true"]
    assert main([*argv, "--train.output_dir", str(tmp_path / "run")]) == 0
    assert set(read(tmp_path / "run" / "results.json")["after"]) == {"new"}
    assert "No probe before training: in every test row" in caplog.text


def test_the_teacher_is_measured_on_the_rows_that_show_it_something(tmp_path, caplog):
    """On all others it would be the student: its accuracy would be diluted."""
    shown = [{"prompt": f"q{i}?", "privileged_context": f"Say {i}.", "reference": str(i)} for i in range(2)]
    bare = [{"prompt": f"t{i}?", "reference": str(i)} for i in range(3)]
    argv = ["train", "--force", "--adapter", "text", "--model", save_tiny_text_model(tmp_path / "llama")]
    argv += ["--data", jsonl(tmp_path / "rows.jsonl", shown), "--data.test", jsonl(tmp_path / "test.jsonl", shown + bare)]
    argv += ["--train.max_steps", "1", "--train.max_completion_length", "4", "--train.use_cpu", "true"]
    assert main([*argv, "--train.output_dir", str(tmp_path / "run")]) == 0
    for phase in measured(tmp_path / "run"):
        assert {name: score["n"] for name, score in phase.items()} == {"new": 5, "teacher": 2}
    answers = [a for a in read(tmp_path / "run" / "samples.jsonl") if a.get("view") == "teacher"]
    assert {a["prompt"] for a in answers} == {"q0?", "q1?"}
    assert caplog.text.count("The teacher is measured on 2 of the 5 rows of 'new' alone") == 1


@pytest.mark.slow
def test_accuracies_while_training_need_something_to_measure(tmp_path, capsys):
    """What `eval_strategy` asks of training is no matter of the commands that only measure."""
    rows = [{"prompt": "Hello?", "privileged_context": "Be kind.", "reference": "Hi."}] * 2
    data = jsonl(tmp_path / "rows.jsonl", rows)
    train = {**SETTINGS["train"], "max_steps": 1, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings = {
        "model": save_tiny_text_model(tmp_path / "llama"),
        "adapter": "text",
        "data": {"path": data},
        "lora": {"enabled": False},
        "train": {**train, "load_best_model_at_end": True, "output_dir": str(tmp_path / "run")},
    }
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(tmp_path / "text.yaml")]) == 2
    message = capsys.readouterr().err
    assert "train.eval_strategy steps" in message and "data.test" in message and not (tmp_path / "run").exists()
    assert main(["train", str(tmp_path / "text.yaml"), "--data.test", data, "--force"]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert read(tmp_path / "run" / "eval.json") == measured(tmp_path / "run")[1]
    tasks = {**settings, "data": {"path": data, "test": data}, "tasks": [{}, {}]}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tasks))
    assert main(["sequence", str(tmp_path / "tasks.yaml"), "--train.output_dir", str(tmp_path / "tasks")]) == 0
