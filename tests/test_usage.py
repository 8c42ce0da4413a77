"""A trained model in use: LoRA merged, text, and what cannot work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli_runs import BUILTIN, SETTINGS, fails, jsonl
from tests.tiny_text import save_tiny_text_model
from vlm_sdft.cli import main

ROWS = [{"prompt": f"Say {word}.", "golden_response": word} for word in ("red", "green", "blue", "grey")]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A finished run of two steps with LoRA on a tiny text model, with its base and its rows."""
    folder = tmp_path_factory.mktemp("text")
    base = save_tiny_text_model(folder / "base")
    rows = jsonl(folder / "rows.jsonl", [{**row, "reference": row["golden_response"]} for row in ROWS])
    argv = [
        "train",
        "--adapter",
        "text",
        "--model",
        base,
        "--data",
        rows,
        "--data.test",
        rows,
        "--data.system_prompt",
        "Be brief.",
    ]
    argv += ["--train.max_steps", "2", "--train.learning_rate", "0.01", "--train.max_completion_length", "6", "--force"]
    argv += ["--train.use_cpu", "true", "--train.disable_tqdm", "true", "--train.output_dir", str(folder / "run")]
    assert main(argv) == 0
    return folder


def test_a_model_of_text_answers_a_prompt(text_run, capsys):
    """As it did when the run measured it: with the run's system prompt, from `model/` alone."""
    records = map(json.loads, (text_run / "run" / "samples.jsonl").read_text().splitlines())
    asked = next(r for r in records if r.get("phase") == "after" and r["view"] == "student")
    out = text_run / "answer.jsonl"
    capsys.readouterr()
    assert main(["predict", str(text_run / "run" / "model"), "--prompt", asked["prompt"], "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["answer"] == asked["answer"] and told["prompt"] == asked["prompt"] and 0 < told["confidence"] <= 1
    assert f"{asked['prompt']}: {asked['answer']}" in capsys.readouterr().out


def test_lora_is_merged_into_the_base(text_run, capsys):
    """In the base's dtype, under the names of the base's checkpoint; plain transformers loads it and computes the same."""
    run, base, out = text_run / "run", text_run / "base", text_run / "merged"
    assert main(["export", str(run), str(out), "--check"]) == 0
    assert "4 answers are equal" in capsys.readouterr().out
    ours, theirs = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run / "model")).eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_used_is_one_sentence(text_run, tmp_path, capsys):
    run = str(text_run / "run")
    assert "no usage.json" in fails(capsys, "predict", str(tmp_path), "photo.jpg")
    assert "give --prompt TEXT" in fails(capsys, "predict", run)
    assert "takes no images" in fails(capsys, "predict", run, "--prompt", "x", "photo.jpg")
    assert "is empty" in fails(capsys, "predict", run, "--prompt", " ")
    assert "is no folder" in fails(capsys, "predict", str(tmp_path / "none"), "--explain", "photo.jpg")
    (tmp_path / "file").touch()
    assert "is a file" in fails(capsys, "predict", run, "--prompt", "x", "--out", str(tmp_path / "file" / "a.jsonl"))
    assert "is a file" in fails(capsys, "export", run, str(tmp_path / "file"))
    assert "give the run's folder" in fails(capsys, "predict", f"{run}/model", "--prompt", "x", "--explain")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "new or empty" in fails(capsys, "export", run, str(tmp_path / "full"))
    assert "nothing to compare on" in fails(capsys, "export", f"{run}/model", str(tmp_path / "new"), "--check")


def run_card(card: Path, **replaced: str) -> str:
    """What the model card's code prints, in a process of its own."""
    code = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.S)[1]
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    done = subprocess.run([sys.executable, "-c", code], cwd=card.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_code_in_the_model_card_answers_as_measured(text_run):
    records = map(json.loads, (text_run / "run" / "samples.jsonl").read_text().splitlines())
    asked = next(r for r in records if r.get("phase") == "after" and r["view"] == "student")
    assert run_card(text_run / "run" / "model" / "README.md", **{"…": asked["prompt"]}) == asked["answer"].strip()


@pytest.mark.slow
def test_lora_of_a_vision_language_model_is_merged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({**SETTINGS, "lora": {"enabled": True}}))
    assert main(["train", "config.json", "--model", BUILTIN, "--train.output_dir", "run", "--force"]) == 0
    assert main(["export", "run", "merged", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "of the run's own queries" in printed and "as rounding does" in printed
    records = map(json.loads, Path("run/samples.jsonl").read_text().splitlines())
    asked = next(r for r in records if r.get("phase") == "after" and r["view"] == "student")
    shown = run_card(
        Path("run/model/README.md"),
        **{"image.jpg": str(Path(asked["images"][0]).resolve()), '"What is this?"': json.dumps(asked["prompt"])},
    )
    assert shown == asked["answer"].strip()
