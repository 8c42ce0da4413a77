"""The README's first command: the builtin model learns five unseen types from image files, and forgets nothing."""

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
