"""What `vlm-sdft init` prints and `vlm-sdft preview` shows, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import yaml

from tests.cli_runs import BUILTIN, FAST, ROOT, fails, options
from tests.image_files import fill, save
from tests.tiers import further
from tests.tiny_text import save_tiny_text_model
from text_sdft import Splits, TextAdapter
from text_sdft.config import TextData, TextDemonstrations
from vlm_sdft.cli import main


@pytest.mark.parametrize("name", ["my_objects", *further("my objects: 2 #1", "Äpfel", "7")])
def test_init_prints_a_config_that_train_accepts(name, tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / name, {"train/dax": 2, "train/wug": 3, "test/dax": 1})
    assert main(["init", f"{name}/", "--model", model]) == 0
    text = capsys.readouterr().out
    settings = yaml.safe_load(text)
    assert settings["data"]["path"] == name and settings["train"]["output_dir"] == f"runs/{name}"
    assert (settings["demonstrations"]["n_types"], settings["demonstrations"]["shots"]) == (2, 2)
    assert "5 labelled images" in text.splitlines()[0]
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "c.yaml", "--force", *options({**FAST, "bf16": False})]) == 0
    assert (tmp_path / "runs" / name / "model").is_dir()


def test_init_takes_the_builtin_model_unless_told(tmp_path, data, capsys):
    assert main(["init", data]) == 0
    printed = capsys.readouterr().out
    builtin = yaml.safe_load(printed)
    assert builtin["model"] == "builtin:tiny-qwen3-vl" and "max_pixels" not in printed, "its images have one size"
    assert main(["init", data, "--model=some/model"]) == 0
    hub = yaml.safe_load(capsys.readouterr().out)
    assert hub["model"] == "some/model"
    shipped = yaml.safe_load((ROOT / "configs" / "qwen3-vl-8b-new-types.yaml").read_text(encoding="utf-8"))
    assert hub["data"]["max_pixels"] == shipped["data"]["max_pixels"], "the memory in docs/visual-icl.md is this config's"
    assert {k: v for k, v in hub["train"].items() if k != "output_dir"}.items() <= shipped["train"].items()


def test_the_builtin_model_says_what_it_cannot_name(tmp_path, capsys):
    """In a config's first line, and where it is measured; nothing of names that it has words for."""
    told = "it will hardly learn to say hammer, gear. Your own images need a larger model"
    fill(tmp_path / "parts", {"train/hammer": 2, "train/gear": 2, "test/gear": 1})
    fill(tmp_path / "drawn", {"train/dax ru": 2, "train/wug": 2, "test/wug": 1})
    for folder, is_told in (("parts", True), ("drawn", False)):
        assert main(["init", str(tmp_path / folder)]) == 0
        assert (told in capsys.readouterr().out.splitlines()[0].replace("gear, hammer", "hammer, gear")) == is_told
    argv = ["preview", "--model", BUILTIN, "--data", str(tmp_path / "parts"), *options(FAST)]
    assert main(argv) == 0
    assert told in capsys.readouterr().out.replace("gear, hammer", "hammer, gear")


def test_init_refuses_what_it_does_not_know(tmp_path, data, capsys):
    assert "--modle" in fails(capsys, "init", data, "--modle", "x")
    assert "does not exist" in fails(capsys, "init", str(tmp_path / "none"))


def test_preview_shows_both_prompts_and_leaves_no_run(tmp_path, data, model, capsys):
    argv = ["--model", model, "--data", data, "--train.output_dir", str(tmp_path / "run"), *options(FAST)]
    assert main(["preview", *argv]) == 0
    shown = capsys.readouterr().out
    student, teacher = shown.split("teacher (", 1)
    assert "student (38 tokens)" in student and "<|image_pad|>×4" in student and "What is this?" in student
    assert "train/dax/0.png" in student and "dax<|im_end|>" not in student, "the student sees no answer"
    assert "dax<|im_end|>" in teacher.split("image:")[0] and "wug<|im_end|>" in teacher.split("image:")[0]
    assert "retain/any/0.png" in shown and "Tokens of a prompt" in shown and "Expected peak memory" in shown
    assert not list((tmp_path / "run").rglob("*")), "nothing is written"
    assert main(["train", "--force", *argv]) == 0, "and the run may follow in the same folder"


def test_the_report_on_the_data_is_printed(tmp_path, model, capsys):
    root = fill(tmp_path / "data", {"train/dax": 3, "train/wug": 1})
    save(root / "train/loose.png", 99)
    assert main(["preview", "--model", model, "--data", str(root), "--train.output_dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "held out" in shown and "One labelled image only: wug" in shown and "no type's folder" in shown


def test_a_run_with_nothing_to_measure_says_so(tmp_path, model, capsys):
    root = fill(tmp_path / "data", {"train/dax": 1, "train/wug": 1})
    argv = ["--model", model, "--data", str(root), "--train.output_dir", str(tmp_path / "run"), *options(FAST)]
    assert main(["train", *argv]) == 0
    assert "Nothing was measured" in capsys.readouterr().out


def test_preview_without_queries_says_so(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Hello?", "retain": True}) + "\n")
    argv = ["--model", save_tiny_text_model(tmp_path / "llama"), "--adapter", "text", "--data", str(rows)]
    message = fails(capsys, "preview", *argv, "--train.output_dir", str(tmp_path / "run"), *options(FAST))
    assert "no training queries" in message


def test_an_adapter_whose_section_has_no_fields(tmp_path, monkeypatch, capsys):
    """Its config.yaml is written and read like any other."""
    monkeypatch.setattr("text_sdft.core.adapter_class", lambda name: NothingToSet)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hello?", "golden_response": "yes"}) + "\n")
    args = ["--adapter", "mine", "--model", save_tiny_text_model(tmp_path / "tiny"), "--data", "rows.jsonl"]
    assert main(["preview", *args, "--train.max_completion_length", "8"]) == 0
    assert "student" in capsys.readouterr().out


@dataclass
class NoSettings:
    """A section without fields."""


class NothingToSet(TextAdapter):
    @classmethod
    def from_config(cls, data: TextData, demonstrations: NoSettings) -> tuple[NothingToSet, Splits]:
        return super().from_config(data, TextDemonstrations())


@pytest.mark.parametrize(
    "name", ["a\x85model: evil", "a\u2028model: evil", "a\nmodel: evil", "a\x07b", "no", "null", "1e3", "é🙂"]
)
def test_a_name_adds_nothing_to_a_config(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / name, {f"train/{name}": 1, "train/wug": 2, "test/wug": 1})
    assert main(["init", name, "--model", name]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert list(settings) == ["model", "adapter", "data", "demonstrations", "train"]
    assert settings["model"] == settings["data"]["path"] == name
    assert settings["train"]["output_dir"] == f"runs/{name}"
