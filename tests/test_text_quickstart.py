"""The README's second command: the builtin language model learns facts that only its teacher reads, and forgets little."""

from __future__ import annotations

import json
from pathlib import Path

from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent


def test_text_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert main(["train", str(ROOT / "configs" / "text-quickstart.yaml"), "--train.disable_tqdm", "true"]) == 0
    assert "teacher (new, in context)" in capsys.readouterr().out
    results = json.loads(Path("runs/text-quickstart/results.json").read_text())
    before, after = results["before"], results["after"]
    assert before["new"]["accuracy"] <= 0.2 and before["teacher"]["accuracy"] >= 0.9
    assert after["new"]["accuracy"] >= before["teacher"]["accuracy"] - 0.15
    assert after["old"]["accuracy"] >= before["old"]["accuracy"] - 0.1
    argv = ["predict", "runs/text-quickstart", "--prompt", "which colour does zelfal have?"]
    assert main(argv) == 0
    assert "zelfal have?: orange" in capsys.readouterr().out
