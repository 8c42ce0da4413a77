"""The README's first commands: the builtin model learns five unseen types from image files, and is put to use."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent


def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(ROOT / "configs" / "quickstart.yaml"), "--train.disable_tqdm", "true"]) == 0
    printed = capsys.readouterr().out
    assert "new types" in printed and "teacher (new, in context)" in printed
    results = json.loads(Path("runs/quickstart/results.json").read_text())
    before, after = results["before"], results["after"]
    assert before["new"]["accuracy"] <= 0.05
    assert before["teacher"]["accuracy"] >= 0.9
    assert after["new"]["accuracy"] >= before["teacher"]["accuracy"] - 0.05
    for known in ("old", "old skills"):
        assert after[known]["accuracy"] >= before[known]["accuracy"] - 0.05
    assert not [p for p in os.listdir() if p != "runs"], "nothing is written outside the runs folder"
    readable = {".safetensors", ".json", ".jinja", ".md"}
    assert {file.suffix for file in Path("runs/quickstart/model").iterdir()} == readable, "no pickle is passed on"
    answers_new_images(capsys)
    is_exported(capsys)


def answers_new_images(capsys):
    """`predict` answers as the run's model did when it was measured, and shows what is like an image."""
    records = map(json.loads, Path("runs/quickstart/samples.jsonl").read_text().splitlines())
    asked = [r for r in records if r.get("phase") == "after" and r["set"] == "new" and r["view"] == "student"][:3]
    images = [r["images"][0] for r in asked]
    assert main(["predict", "runs/quickstart", *images, "--explain", "--out", "runs/answers.jsonl"]) == 0
    printed = capsys.readouterr().out
    told = [json.loads(line) for line in Path("runs/answers.jsonl").read_text().splitlines()]
    assert [r["answer"] for r in told] == [r["answer"] for r in asked]
    for record, image in zip(told, images, strict=True):
        assert f"{image}: {record['answer']}" in printed and 0.5 < record["confidence"] <= 1.0
        assert record["nearest"][0]["answer"] == record["answer"] and "/train/" in record["nearest"][0]["image"]


def is_exported(capsys):
    """`export` writes a checkpoint that answers as the run's model does; it works alone, as the run's `model/` does."""
    assert main(["export", "runs/quickstart", "runs/exported", "--check"]) == 0
    assert "32 answers are equal" in capsys.readouterr().out
    image = next(Path("runs/data").rglob("test/*/*.png"))
    for folder in ("runs/exported", "runs/quickstart/model"):
        assert main(["predict", folder, str(image), "--prompt", "Describe this."]) == 0
    described = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(image))]
    assert len(described) == 2 and described[0] == described[1]
    assert main(["export", "runs/quickstart", "runs/exported"]) == 2
    assert "runs/exported exists already" in capsys.readouterr().err
