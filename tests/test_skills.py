"""Prior skills by lm-evaluation-harness against the log-likelihoods of plain transformers."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from tests.tiny_text import save_tiny_text_model, tiny_text_model
from text_sdft import TextAdapter
from text_sdft.core import SDFTConfig, UserError
from text_sdft.experiments.skills import prior_skills
from text_sdft.training import SDFTTrainer
from vlm_sdft.cli import main

ITEMS = [
    {"question": "Which?", "choices": ["aa", "bb", "cc"], "answer": 0},
    {"question": "Who was it, then?", "choices": ["you", "me"], "answer": 1},
    {"question": "x", "choices": ["yes", "no", "or"], "answer": 2},
    {"question": "Why not?", "choices": ["so", "ha"], "answer": 0},
]


def trainer() -> SDFTTrainer:
    model, tokenizer = tiny_text_model()
    args = SDFTConfig("runs/x", use_cpu=True, max_completion_length=4, report_to=[])
    return SDFTTrainer(model, args, adapter=TextAdapter(), processing_class=tokenizer)


def local_task(folder) -> str:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(task))
    return str(folder / "tiny.yaml")


@torch.no_grad()
def test_a_local_task_is_what_the_likelihoods_say(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra 'skills' is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_text_model()
    right = []
    for item in ITEMS:
        prompt = tokenizer(item["question"])["input_ids"]
        logps = []
        for choice in item["choices"]:
            ids = tokenizer(f" {choice}")["input_ids"]
            z = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logps.append(float(z.gather(-1, torch.tensor(ids)[:, None]).sum()))
        right.append(logps.index(max(logps)) == item["answer"])
    assert 0 < sum(right) < len(right)
    found = prior_skills(trainer(), [local_task(tmp_path)], batch_size=2)
    assert found["tiny"]["metric"] == "acc" and found["tiny"]["score"] == pytest.approx(sum(right) / len(right))


def test_what_cannot_be_measured_is_one_message(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra 'skills' is not installed")
    with pytest.raises(UserError, match="cannot measure helloswag"):
        prior_skills(trainer(), ["helloswag"], batch_size=2)
    with pytest.raises(UserError, match=r"no task file .*gone\.yaml"):
        prior_skills(trainer(), [str(tmp_path / "gone.yaml")], batch_size=2)


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'vlm-sdft\[skills\]'"):
        prior_skills(trainer(), ["hellaswag"], batch_size=2)


@pytest.mark.parametrize(("lora", "dtype"), [("true", torch.bfloat16), ("false", torch.float32)])
def test_the_start_is_measured_in_the_precision_of_the_run(tmp_path, monkeypatch, lora, dtype):
    """(The harness is out: what it would read is noted.)"""
    model, tokenizer = tiny_text_model()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{i}?", "golden_response": "2", "reference": "2"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["train", "--model", str(tmp_path / "model"), "--adapter", "text", "--data", str(tmp_path / "rows.jsonl")]
    argv += ["--lora.enabled", lora, "--train.max_steps", "1", "--train.use_cpu", "true", "--force"]
    assert main([*argv, "--train.max_completion_length", "4", "--train.output_dir", str(tmp_path / "run")]) == 0
    measured = []

    def note(trainer: SDFTTrainer, *_: object) -> dict[str, object]:
        measured.append(next(p.dtype for name, p in trainer.module.named_parameters() if "embed_tokens" in name))
        return {}

    monkeypatch.setattr("text_sdft.experiments.run.prior_skills", note)
    assert main(["eval", str(tmp_path / "run"), "--skills", "paper"]) == 0
    assert measured == [dtype, dtype]


def test_eval_measures_skills_and_pass_at_k(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="the extra 'skills' is not installed")
    rows = [{"prompt": f"{i}?", "demonstrations": [{"prompt": "2?", "answer": "2"}], "reference": "2"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, data = str(tmp_path / "run"), str(tmp_path / "rows.jsonl")
    argv = ["--model", save_tiny_text_model(tmp_path / "model"), "--adapter", "text", "--data", data, "--data.test", data]
    argv += ["--lora.enabled", "false", "--train.max_steps", "1", "--train.use_cpu", "true", "--train.output_dir", run]
    assert main(["train", *argv, "--train.max_completion_length", "4", "--force"]) == 0
    assert main(["eval", run, "--samples", "3", "--skills", local_task(tmp_path)]) == 0
    out = capsys.readouterr().out
    skills = json.loads((tmp_path / "run" / "skills.json").read_text())
    assert set(skills) == {"before", "after"} and f"{100 * skills['after']['tiny']['score']:.1f} %" in out
    assert "pass@3" in out
