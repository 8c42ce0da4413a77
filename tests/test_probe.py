"""The probe's numbers mean what they say, and its verdict follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_text import save_tiny_text_model
from text_sdft.core import Example, TeacherContext
from text_sdft.experiments.probe import gap_between, verdict
from text_sdft.experiments.scores import Accuracy, sample
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.cli import main
from vlm_sdft.controls import CONTROLS
from vlm_sdft.images import load_image
from vlm_sdft.zoo import resolve_data

CLEAR = {"mean": 0.8, "low": 0.7, "high": 0.9}
NONE = {"mean": 0.02, "low": -0.05, "high": 0.09}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return resolve_data(
        "builtin:novel-objects", tmp_path_factory.mktemp("made"), n_types=4, n_unlabelled=1, n_test=6, n_old=1
    )


def test_verdicts():
    good = verdict(0.1, 0.9, CLEAR, {"blank images": 0.2}, {"1-NN": 0.5})
    assert good.train and not good.notes and "teacher 90 %, student 10 %" in good.reason
    assert verdict(0.1, 0.9, CLEAR, {}, {"1-NN": 0.9}).notes[0].startswith("1-NN")
    no_gap = verdict(0.8, 0.82, NONE, {}, {})
    assert not no_gap.train and "no better" in no_gap.reason and "stronger model" in no_gap.notes[0]
    blind = verdict(0.1, 0.9, CLEAR, {"blank images": 0.6, "shuffled labels": 0.1}, {})
    assert not blind.train and "blank images: 60 %" in blind.reason


def test_the_gaps_interval():
    """Newcombe (1998), table II, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339; and it never collapses."""
    gap = gap_between(Accuracy.of([1.0] * 56 + [0.0] * 14), Accuracy.of([1.0] * 48 + [0.0] * 32))
    assert gap["mean"] == pytest.approx(0.2)
    assert (gap["low"], gap["high"]) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert gap_between(Accuracy.of([1.0]), Accuracy.of([0.0]))["low"] < 0


def test_a_sample_is_drawn_from_all():
    examples = [Example(str(i), []) for i in range(100)]
    drawn = [int(example.id) for example in sample(examples, 20)]
    assert len(drawn) == 20 and drawn == sorted(drawn) and max(drawn) > 60
    assert sample(examples, None) == sample(examples, 200) == examples


def test_the_builtin_model_can_teach_itself_and_only_through_its_demonstrations(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["probe", "--model", "builtin:tiny-qwen3-vl", "--data", str(folder), "--train.output_dir", "runs/x"])
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    accuracy = {name: value["accuracy"] for name, value in numbers["accuracy"].items()}
    assert code == 0 and numbers["verdict"]["train"]
    assert accuracy["student"] <= 0.1 and accuracy["teacher"] >= 0.9
    assert max(accuracy[control] for control in CONTROLS) <= 0.4  # 4 types: chance is 0.25
    assert numbers["tokens"]["teacher"] > numbers["tokens"]["student"]
    assert numbers["divergence"] > 0.5
    assert "Train: with demonstrations" in capsys.readouterr().out


def test_a_student_that_sees_the_demonstrations_itself_has_nothing_to_learn(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["--model", "builtin:tiny-qwen3-vl", "--data", str(folder), "--train.output_dir", "runs/x"]
    assert main(["probe", *args, "--demonstrations.context", "both"]) == 3
    assert "Do not train" in capsys.readouterr().out
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    assert numbers["divergence"] < 0.2


def test_text_is_probed_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_text_model(tmp_path / "tiny")
    rows = [{"prompt": f"What is {i}?", "privileged_context": f"It is {i}.", "reference": str(i)} for i in range(6)]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    args = ["--adapter", "text", "--model", model, "--data", "rows.jsonl", "--data.test", "rows.jsonl"]
    assert main(["probe", *args, "--train.max_completion_length", "4"]) == 3
    numbers = json.loads(Path("runs/rows/probe.json").read_text())
    assert set(numbers["accuracy"]) == {"student", "teacher"}
    assert main(["probe", *args[:6], "--train.max_completion_length", "4"]) == 2
    assert "with a reference" in capsys.readouterr().err


def test_controls_spoil_what_they_say(folder):
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, selection="fixed", n_types=4)
    example = adapter.examples(demos.test)[0]
    right = adapter.demonstrations(example, TeacherContext(3))

    def parts(shown):
        return [(d.messages[0]["content"][0]["image"], d.messages[-1]["content"]) for d in shown]

    blank, shuffled, missing = (parts(adapter.demonstrations(example, TeacherContext(3, control=c))) for c in CONTROLS)
    assert [answer for _, answer in blank] == [answer for _, answer in parts(right)]
    assert all(len(load_image(image).getcolors() or []) == 1 for image, _ in blank)
    pairs = {(before, after) for (_, before), (_, after) in zip(parts(right), shuffled, strict=True)}
    assert len(pairs) == 4 and all(before != after for before, after in pairs), "one wrong answer for each type"
    assert [image for image, _ in shuffled] == [image for image, _ in parts(right)]
    assert example.reference not in {answer for _, answer in missing} and len(missing) == 6
