"""What the command says: help at once, a user's mistake in one message with the remedy, and exit codes to rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli_runs import FAST, fails, options
from tests.image_files import fill
from tests.tiny_text import save_tiny_text_model
from text_sdft.training.callbacks import MetricsWriter
from vlm_sdft.cli import main
from vlm_sdft.cli.tables import print_results


def written(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def config(file: Path, **sections: Any) -> str:
    file.write_text(yaml.safe_dump(sections))
    return str(file)


# ---- help ----


#: What takes seconds to import, or only training and measuring need.
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas", "scipy", "sklearn", "matplotlib")
QUICK = [
    [], ["--help"], ["--version"], ["init", "--help"], ["report", "--help"], ["eval", "--help"],
    ["trian"], ["init", "x", "--modle", "y"], ["report", "x", "--uot", "y"], ["eval", "x", "--sampels", "3"],
    ["eval", "x", "--nothing"], ["eval", "x", "--eval.batch_siz", "4"], ["eval", "x"], ["train", "--resme"],
    ["compare", "--methds", "sft"], ["train", "--lora.rank", "4"], ["train", "none.yaml"], ["report", "x", "--out"],
]  # fmt: skip


def python(code: str, *argv: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_mistakes_load_no_library_of_models():
    code = "import sys; from vlm_sdft.cli import main\n"
    code += f"for argv in {QUICK}: main(argv); assert not {{*{LIBRARIES}}} & {{*sys.modules}}, (argv, sys.modules.keys())"
    shown = python(code)
    for command in ("init", "probe", "preview", "train", "eval", "report", "sequence", "compare"):
        assert f"\n  {command} " in shown
    assert f"vlm-sdft {version('vlm-sdft')}\n" in shown


def test_settings_are_read_without_what_trains():
    """Beyond `transformers.TrainingArguments`, which itself loads much, nothing that takes long."""
    code = (
        "import sys; from transformers import TrainingArguments; before = {*sys.modules}; from vlm_sdft.cli import main\n"
    )
    code += "for command in ('probe', 'preview', 'train', 'sequence', 'compare'): assert main([command, '--help']) == 0\n"
    code += "for adapter in ('image', 'text', 'science'):\n"
    code += "    assert main(['train', f'--adapter={adapter}', '--model=x', '--data=y', '--train.learning_rat=1']) == 2\n"
    code += f"new = {{*sys.modules}} - before; assert not new & {{*{LIBRARIES}, 'open_clip', 'transformers.trainer'}}, new"
    assert python(code).count("--train.learning_rate") == 5


def test_what_is_read_is_said_before_any_library_is_loaded(tmp_path):
    """And at once: the process ends without flushing anything."""
    run = tmp_path / "run"
    run.mkdir()
    for file in (run / "config.yaml", tmp_path / "c.yaml"):
        config(file, model="x", data={"path": "objects"})
    code = "import os, sys; from vlm_sdft.cli import main; sys.modules['torch'] = sys.modules['transformers'] = None\n"
    code += "try: main(sys.argv[1:])\nexcept ImportError: os._exit(0)"
    for command in ("train", "probe", "preview", "compare"):
        assert python(code, command, str(tmp_path / "c.yaml")) == "Reading objects …\n"
    assert python(code, "train", "--model", "x", "--data", "mine") == "Reading mine …\n"
    assert python(code, "eval", str(run)) == f"Reading {run} …\n"
    tasks = config(tmp_path / "sequence.yaml", model="x", tasks=[{"data": {"path": "objects"}}, {}])
    assert python(code, "sequence", tasks) == f"Reading {tasks} …\n"


@pytest.mark.parametrize("module", ["vlm_sdft", "vlm_sdft.cli"])
def test_the_command_is_a_module_too(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"vlm-sdft {version('vlm-sdft')}\n"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_the_help_of_train_lists_what_is_common(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    own = ("distillation_alpha", "teacher_model_kind", "retain_weight", "max_completion_length", "learning_rate")
    for key in (
        "model",
        "data.path",
        "data.retain",
        "demonstrations.shots",
        "lora.r",
        "eval.teacher",
        *(f"train.{k}" for k in own),
    ):
        assert f"--{key} " in shown, key
    for key in ("train.adam_beta1", "train.fsdp", "train.dataloader_num_workers", "train.hub_token"):
        assert key not in shown, key
    assert "--resume" in shown


def test_the_help_of_the_text_adapter_lists_its_keys(capsys):
    assert main(["train", "--adapter", "text", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--demonstrations.teacher_prompt_template" in shown and "--demonstrations.shots" not in shown


def test_commands_with_one_argument_show_their_usage(capsys):
    for command in ["init", "eval", "report", "sequence"]:
        for given in [[], ["something"]]:
            assert main([command, *given, "--help"]) == 0
            assert f"usage: vlm-sdft {command}" in capsys.readouterr().out


def test_the_help_of_a_command_lists_its_settings(capsys):
    for command, own in (
        ("init", ["FOLDER", "--model"]),
        ("probe", ["CONFIG.yaml", "--sweep", "--data.path", "--train.seed"]),
        ("preview", ["CONFIG.yaml", "--measure", "--demonstrations.shots"]),
        ("train", ["CONFIG.yaml", "--resume", "--force", "--method"]),
        ("eval", ["RUN", "--samples", "--skills", "--eval.max_examples"]),
        ("report", ["RUN", "--out"]),
        ("sequence", ["SEQUENCE.yaml", "--retain_earlier", "--joint", "--resume", "--train.learning_rate"]),
        ("compare", ["CONFIG.yaml", "--methods", "--seeds", "--validation_seeds", "--lr_sweep", "--lora.r"]),
    ):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: vlm-sdft {command} ") and "%%" not in shown
        for name in own:
            assert re.search(rf"^  {re.escape(name)}\b", shown, re.M), name


# ---- mistakes ----


def test_what_is_missing_or_out_of_range_is_said(data, model, capsys):
    for argv, expected in (
        (["eval", "--samples", "2"], "eval takes a run's folder first"),
        (["eval", "--eval.batch_size", "4"], "eval takes a run's folder first"),
        (["sequence", "--joint"], "sequence takes the sequence's YAML first"),
        (["train", "--eval.batch_size", "0"], "eval.batch_size 0: use 1 or more"),
        (["train", "--eval.max_examples", "-1"], "eval.max_examples -1: use 0 or more"),
        (["train", "--train.learning_rate", "-1"], "learning_rate -1.0: use 0 or more"),
        (["train", "--train.max_steps", "0"], "max_steps 0: use 1 or more"),
        (["train", "--train.max_steps", "-3"], "max_steps -3: use 1 or more"),
        (["train", "--train.num_train_epochs", "0"], "num_train_epochs 0.0: use more than 0"),
        (["train", "--train.per_device_train_batch_size", "0"], "per_device_train_batch_size 0: use 1 or more"),
        (["train", "--train.gradient_accumulation_steps", "0"], "gradient_accumulation_steps 0: use 1 or more"),
        (["train", "--train.seed", "-1"], "seed -1: use 0 or more"),
        (["train", "--lora.enabled", "true", "--lora.r", "0"], "lora.r 0: use 1 or more"),
        (["train", "--lora.enabled", "true", "--lora.dropout", "2"], "lora.dropout 2.0: use at most 0.99"),
        (["train", "--data.types", "[]"], "data.types is empty"),
        (["eval", "run", "--samples", "0"], "--samples 0: give the number of answers"),
        (["compare", "--resume"], "`compare` goes on by itself"),
        (["report", "run", "--out"], "--out needs a file's name"),
    ):
        given = ["--model", model, "--data", data] if argv[0] in ("train", "compare") else []
        assert expected in fails(capsys, *argv, *given)


def test_a_measurement_on_other_numbers_of_examples_says_both(tmp_path, capsys):
    score = {"accuracy": 0.5, "n": 100, "low": 0.4, "high": 0.6}
    print_results({"before": {"new": score}, "after": {"new": {**score, "n": 8}}}, tmp_path, "image")
    assert "100, 8" in capsys.readouterr().out


def test_sampled_answers_need_rows_to_ask(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hello?", "golden_response": "Hi."}) + "\n")
    run = tmp_path / "run"
    argv = [
        "--model",
        save_tiny_text_model(tmp_path / "llama"),
        "--adapter",
        "text",
        "--data",
        str(tmp_path / "rows.jsonl"),
    ]
    assert main(["train", *argv, "--lora.enabled", "false", "--train.output_dir", str(run), *options(FAST)]) == 0
    message = fails(capsys, "eval", str(run), "--samples", "2")
    assert "set new" in message and "data.test" in message


def test_a_full_memory_says_what_to_lower(data, model, tmp_path, monkeypatch, capsys):
    def on_step_begin(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(MetricsWriter, "on_step_begin", on_step_begin)
    run = str(tmp_path / "run")
    message = fails(capsys, "train", "--force", "--model", model, "--data", data, "--train.output_dir", run, *options(FAST))
    for key in ("train.per_device_train_batch_size", "gradient_accumulation_steps", "train.activation_checkpointing true"):
        assert key in message
    for words in (
        "data.max_pixels",
        "demonstrations.n_types",
        "demonstrations.shots",
        "--resume",
        "Tried to allocate 2 GiB",
    ):
        assert words in message


def test_an_unknown_command_names_the_known_ones(capsys):
    assert "Did you mean 'train'? Commands: init, probe, preview, train, eval" in fails(capsys, "trian")


def test_a_misspelt_flag_names_the_nearest(capsys):
    for argv, nearest in (
        (["train", "--resme"], "resume"),
        (["preview", "--measre"], "measure"),
        (["eval", "run", "--sampels", "3"], "samples"),
        (["report", "run", "--ouut", "x"], "--out"),
        (["compare", "--lr_swep"], "lr_sweep"),
        (["sequence", "file.yaml", "--retain_earlir", "3"], "retain_earlier"),
    ):
        assert f"Did you mean '{nearest}'?" in fails(capsys, *argv)


def test_an_unknown_key_names_the_nearest(tmp_path, data, model, capsys):
    for key, nearest in (
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("shots", "demonstrations.shots"),
        ("lora.rank", "lora.r"),
        ("data.questoin", "data.question"),
        ("demonstrations.shot", "demonstrations.shots"),
        ("train.weight_decy", "train.weight_decay"),
        ("modell", "model"),
    ):
        expected = f"Unknown key '{key}'. Did you mean '{nearest}'?"
        assert expected in fails(capsys, "train", "--model", model, "--data", data, f"--{key}", "1")
        sections: dict[str, Any] = {"model": model, "data": {"path": data}}
        section, _, name = key.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[name] = 1
        assert expected in fails(capsys, "train", config(tmp_path / "c.yaml", **sections))


def test_a_wrong_value_is_named(data, model, tmp_path, capsys):
    for argv, expected in (
        (["--train.learning_rate", "fast"], ["train.learning_rate", "fast"]),
        (["--train.distillation_alpha", "3"], ["distillation_alpha 3", "use at most 1"]),
        (["--train.temperature", "0"], ["temperature 0", "use more than 0"]),
        (
            ["--demonstrations.selection", "nearest"],
            ["demonstrations.selection", "'retrieved', 'grouped', 'random'"],
        ),
        (["--demonstrations.n_types", "0"], ["n_types 0", "at least 1"]),
        (["--demonstrations.template", "quotd"], ["quotd"]),
        (["--data.types", "dax"], ["data.types", """'["one", "two"]'"""]),
        (["--data.on_bad_image", "skip"], ["data.on_bad_image", "'error', 'drop'"]),
        (["--lora.enabled", "["], ["lora.enabled"]),
        (
            ["--train.activation_checkpointing", "true", "--train.gradient_checkpointing", "false"],
            ["train.gradient_checkpointing is the old name"],
        ),
        (["--data.options", "{n_types: 2}"], ["options", "builtin data"]),
        (["--adapter", "imag"], ["No adapter 'imag'. Did you mean 'image'?", "Installed: image, "]),
        (["more"], ["more"]),
        (["--config", "a.yaml", "--config", "b.yaml"], ["There is no config file b.yaml"]),
    ):
        message = fails(
            capsys, "train", "--model", model, "--data", data, "--train.output_dir", str(tmp_path / "run"), *argv
        )
        assert all(words in message for words in expected), message
        assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot be"


def test_a_config_that_cannot_be_read_says_why(tmp_path, capsys):
    for text, expected in (
        ("model: [", "is not valid YAML"),
        ("- model", "needs keys such as model, data and train"),
        ("model: x\ndata: my_objects\n", "write `data: {path: my_objects}`"),
        ("model: x\ndata: {path: y}\ntrain:\n", "'train' has no keys below it"),
        ("model: x\ndata: {path: y}\nlora: 3\n", "'lora' has no keys below it"),
        ("model: x\n", "data.path"),
        ("", "needs keys such as model, data and train"),
        ("# nothing yet\n", "needs keys such as model, data and train"),
        ("data: {path: x}\n", "model"),
        ("model: x\ndata: {path: y}\nadapter: txt\n", "No adapter 'txt'. Did you mean 'text'?"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        assert expected in fails(capsys, "train", str(tmp_path / "c.yaml"))


def test_what_does_not_exist_is_named(tmp_path, data, model, capsys):
    assert "There is no config file" in fails(capsys, "train", str(tmp_path / "none.yaml"))
    assert "Did you mean" in fails(capsys, "train", "--model", model, "--data", data[:-1])
    assert "is not a run's folder" in fails(capsys, "eval", str(tmp_path))
    message = fails(capsys, "train", "--model", str(tmp_path / "no-model"), "--data", data)
    assert "no-model' could not be loaded as a vision-language model" in message
    assert "Known: builtin:tiny-qwen3-vl" in fails(capsys, "train", "--model", "builtin:tiny", "--data", data)
    assert "Known: builtin:novel-objects" in fails(capsys, "train", "--model", model, "--data", "builtin:objects")
    argv = ["--data", "builtin:novel-objects", "--data.options", "{shot: 1}"]
    assert "Unknown option 'shot'. Did you mean 'shots'?" in fails(capsys, "train", "--model", model, *argv)


def test_what_is_needed_is_asked_for(data, model, capsys):
    assert "model" in fails(capsys, "train")
    assert "model" in fails(capsys, "train", "--data", data)
    assert "data.path" in fails(capsys, "train", "--model", model)
    assert "config" in fails(capsys, "train", "--config")


def test_a_text_model_is_refused_by_the_image_adapter(tmp_path, data, capsys):
    text_model = save_tiny_text_model(tmp_path / "llama")
    message = fails(capsys, "train", "--model", text_model, "--data", data, "--train.output_dir", str(tmp_path / "run"))
    assert "could not be loaded as a vision-language model" in message
    assert 0 < message.index("adapter: text") < message.index("Unrecognized configuration") and len(message) < 1000


def test_a_vision_language_model_is_refused_by_the_text_adapter(tmp_path, model, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a?", "golden_response": "b"}')
    options = ["--adapter", "text", "--data", str(tmp_path / "rows.jsonl"), "--train.output_dir", str(tmp_path / "run")]
    message = fails(capsys, "train", "--model", model, *options)
    assert "could not be loaded as a causal language model" in message
    assert 0 < message.index("adapter: image") < message.index("Unrecognized configuration") and len(message) < 1000


def test_resuming_nothing_is_an_error(tmp_path, data, model, capsys):
    folder = str(tmp_path / "none")
    message = fails(capsys, "train", "--model", model, "--data", data, "--train.output_dir", folder, "--resume")
    assert "holds no run to resume" in message and folder in message


def test_a_file_in_place_of_the_runs_folder_is_an_error(tmp_path, data, model, capsys):
    file = config(tmp_path / "c.yaml", model=model)
    assert "is a file" in fails(capsys, "train", "--model", model, "--data", data, "--train.output_dir", file)


def test_bad_data_is_an_error_before_anything_is_loaded(tmp_path, capsys):
    root = fill(tmp_path / "data", {"train/dax": 2})
    (root / "train/dax/0.png").write_bytes(b"nothing")
    message = fails(capsys, "train", "--model", "no/such-model", "--data", str(root))
    assert "0.png cannot be read as an image" in message and "data.on_bad_image: drop" in message


# ---- where settings come from ----


def test_data_may_be_given_short_and_names_the_run(tmp_path, data, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--force", "--model", model, "--data", data, *options(FAST)]) == 0
    assert written(tmp_path / "runs" / "my objects")["data"]["path"] == data
    monkeypatch.chdir(data)
    output = tmp_path / "here"
    assert main(["preview", "--model", model, "--data=.", "--train.output_dir", str(output)]) == 0


def test_options_override_the_config_wherever_it_stands(tmp_path, data, model):
    settings = {"model": "none", "data": {"path": data, "question": "From the file?"}, "train": {**FAST, "seed": 1}}
    file = config(tmp_path / "c.yaml", **settings)
    orders: list[list[str]] = [
        [file, "--model", model, "--train.seed", "2"],
        ["--model", model, "--train.seed=2", "--config", file],
        ["--model", model, f"--config={file}", "--train.seed", "2"],
    ]
    for i, argv in enumerate(orders):
        assert main(["train", "--force", *argv, "--train.output_dir", str(tmp_path / f"run{i}")]) == 0
        got = written(tmp_path / f"run{i}")
        assert (got["model"], got["data"]["question"], got["train"]["seed"]) == (model, "From the file?", 2)


@pytest.mark.slow
def test_the_learning_rate_suits_what_is_trained(tmp_path, data, model):
    file = config(tmp_path / "c.yaml", model=model, data={"path": data}, train=FAST)
    rates = {}
    for name, argv in {"lora": [], "all": ["--lora.enabled=false"], "own": ["--train.learning_rate", "0.5"]}.items():
        assert main(["train", file, "--force", *argv, "--train.output_dir", str(tmp_path / name)]) == 0
        rates[name] = written(tmp_path / name)["train"]["learning_rate"]
    assert rates == {"lora": 2e-4, "all": 2e-5, "own": 0.5}


def test_printed_settings_are_a_config(tmp_path, data, model, capsys):
    some = config(tmp_path / "train.yaml", seed=3, adam_beta1=0.7)
    given = ["--model", model, "--data", data, "--train", some, "--data.options.a", "1", "--train.adam_beta1", "0.8"]
    assert main(["train", *given, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    settings = yaml.safe_load(printed)
    assert yaml.safe_load(capsys.readouterr().out) == settings
    seed, beta = (settings["train"][name] for name in ("seed", "adam_beta1"))
    assert (beta, seed) == (0.8, 3) and settings["data"]["options"] == {"a": 1}
    assert settings["train"]["learning_rate"] == 2e-4 and "adam_beta2" not in settings["train"]
