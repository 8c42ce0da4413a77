"""What README.md and docs/ tell a user to type works, with the builtin model in place of a hub model."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from peft import PeftModel

from tests.tiers import further
from tests.tiny_text import save_tiny_text_model
from vlm_sdft.cli import main
from vlm_sdft.zoo import resolve_data

ROOT = Path(__file__).parent.parent
HUB = "Qwen/Qwen3-VL-8B-Instruct"
BUILTIN = "builtin:tiny-qwen3-vl"
SMALL = ["--train.max_steps", "1", "--train.disable_tqdm", "true", "--eval.max_examples", "6"]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A folder of images, as a user has it, in an empty working folder."""
    data = resolve_data(
        "builtin:novel-objects", tmp_path / "made", n_types=2, n_unlabelled=2, n_test=2, n_retain=1, n_old=1
    )
    data.rename(tmp_path / "my_objects")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(file: str) -> list[str]:
    """Lines of a file that call `vlm-sdft`, in blocks or between backticks, other than mere mentions of a command."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.findall(r"^    (vlm-sdft .*)$", text, re.M) + re.findall(
        r"`(vlm-sdft (?:train|preview|init|eval) -[^`]+)`", text
    )
    # Tested in test_quickstart, test_init_preview, test_cli, test_sequence and test_hub, and those on text below.
    elsewhere = ("quickstart", "--help", "vlm-sdft sequence", "configs/unseen", "configs/text.yaml")
    return [line for line in found if not any(part in line for part in elsewhere)]


@pytest.mark.parametrize("file", ["README.md", *further("docs/your-own-images.md")])
def test_commands_run(user, capsys, file):
    lines = commands(file)
    assert len(lines) >= 3
    for line in lines:
        command, _, target = line.replace(HUB, BUILTIN).partition(" > ")
        args = shlex.split(command)[1:]
        if args[0] == "train":
            args += ["--train.max_steps", "2", "--train.disable_tqdm", "true", "--train.output_dir", f"runs/{len(line)}"]
        if args[0] == "compare":
            args += [*SMALL, "--seeds", "1", "--lr_sweep", "1e-3"]
        assert main(args) == 0, line
        printed = capsys.readouterr().out
        if target:
            (user / target).write_text(printed)


@pytest.mark.slow
def test_method_commands_run(user, capsys):
    assert main(["init", "my_objects"]) == 0
    (user / "my_objects.yaml").write_text(capsys.readouterr().out)
    lines = commands("docs/methods.md")
    assert len(lines) == 2
    for line in lines:
        args = shlex.split(line)[1:]
        args += ["--seeds", "1", "--lr_sweep", "1e-3"] if args[0] == "compare" else []
        assert main([*args, *SMALL]) == 0, line
    assert "| sft_teacher |" in capsys.readouterr().out


def test_the_python_example_of_the_readme_runs(user):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert block is not None and HUB in block[1]
    names: dict = {}
    code = block[1].replace(HUB, BUILTIN).replace("bf16=True", "use_cpu=True, disable_tqdm=True")
    exec(code, names)
    trainer = names["trainer"]
    assert isinstance(trainer.module, PeftModel), "all weights of a model of 8 B fit on no single GPU"
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert trainer.evaluate()["eval_accuracy"] >= 0.0


@pytest.fixture
def text_user(user):
    """A tiny text model, and the rows of docs/your-own-text.md as a file."""
    text = (ROOT / "docs" / "your-own-text.md").read_text(encoding="utf-8")
    rows = re.findall(r"^    (\{.*\})$", text, re.M)
    assert len(rows) == 3
    (user / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return save_tiny_text_model(user / "tiny")


def test_text_commands_run(text_user, capsys):
    lines = re.findall(r"^    (vlm-sdft .*)$", (ROOT / "docs" / "your-own-text.md").read_text(encoding="utf-8"), re.M)
    assert len(lines) == 2
    assert all(f"    {line}\n" in (ROOT / "README.md").read_text(encoding="utf-8") for line in lines)
    for line in lines:
        args = shlex.split(line.replace("configs/", f"{ROOT}/configs/"))[1:]
        args += [
            "--model",
            text_user,
            "--train.bf16",
            "false",
            "--train.max_steps",
            "1",
            "--train.max_prompt_length",
            "400",
        ]
        args += ["--train.max_completion_length", "8", "--train.disable_tqdm", "true"]
        assert main(args) == 0, line
    assert "The storm made landfall" in capsys.readouterr().out


def test_the_python_example_for_text_runs(text_user):
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "your-own-text.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    code = block[1].replace("Qwen/Qwen2.5-7B-Instruct", text_user)
    names: dict = {}
    exec(code.replace("bf16=True", "use_cpu=True, disable_tqdm=True, max_steps=1, max_completion_length=8"), names)
    assert names["trainer"].state.global_step == 1 and isinstance(names["trainer"].module, PeftModel)


def test_every_config_is_read(text_user, capsys):
    """With a small model in place of its own, and this user's data."""
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        is_text = settings["adapter"] == "text"
        settings["model"] = text_user if is_text else BUILTIN
        settings["data"] = {"path": "rows.jsonl" if is_text else "my_objects"}
        if is_text:
            settings["train"] |= {"max_prompt_length": 400, "max_completion_length": 8}
        settings["train"] |= {"bf16": False, "output_dir": f"runs/{file.stem}"}
        Path("config.yaml").write_text(yaml.safe_dump(settings))
        assert main(["preview", "config.yaml"]) == 0, file
        assert "tokens)" in capsys.readouterr().out


def test_links_lead_somewhere():
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert target.startswith("http") or (file.parent / target).exists(), f"{file.name}: {target}"


@pytest.mark.slow
def test_the_memory_of_the_configs_is_what_the_benchmark_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "benchmarks" / "vlm_memory.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 5
    assert "\n".join(printed) in (ROOT / "docs" / "visual-icl.md").read_text(encoding="utf-8")
