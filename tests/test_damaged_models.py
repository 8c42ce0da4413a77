"""A model's folder that is damaged or odd: one sentence with the file at fault and the remedy; its code is never run."""

from __future__ import annotations

import builtins
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_text import save_tiny_text_model
from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter
from text_sdft.core import UserError

ROWS = [{"prompt": "Hello?", "golden_response": "Hi.", "reference": "Hi."}] * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Path(save_tiny_text_model(tmp_path_factory.mktemp("model") / "llama"))


def told(folder, tmp_path):
    """What is said of a model's folder before training begins."""
    args = SDFTConfig(str(tmp_path / "run"), max_completion_length=2, use_cpu=True, max_steps=1)
    with pytest.raises(UserError) as raised:
        SDFTTrainer(str(folder), args, adapter=TextAdapter(), train_dataset=ROWS).check_prompts()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700
    return str(raised.value)


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def without_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values()))[:] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGES = {
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5_000]),
        "whole",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is no whole"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 5_000), "model.safetensors is no whole"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "a pickle": (as_pickle, "pickles alone, which are never loaded"),
    "no numbers": (without_numbers, "weights that are no numbers"),
    "a cut config": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), "config.json"),
    "an empty config": (lambda f: (f / "config.json").write_text("{}"), "could not be loaded"),
    "a list as config": (lambda f: (f / "config.json").write_text("[]"), "could not be loaded"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "could not be loaded"),
    "no heads": (lambda f: changed(f, num_attention_heads=0), "could not be loaded"),
    "another size": (lambda f: changed(f, hidden_size=24), "could not be loaded"),
    "a word as a size": (lambda f: changed(f, hidden_size="large"), "could not be loaded"),
    "no such kind": (lambda f: changed(f, model_type="nothing", architectures=["Nothing"]), "could not be loaded"),
    "no tokenizer": (lambda f: [x.unlink() for x in f.glob("*token*")], "No tokenizer could be loaded"),
    "cut tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"version'), "No tokenizer could be loaded"),
    "a folder as config": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_with_the_remedy(whole, tmp_path, damage):
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    spoil, said = DAMAGES[damage]
    spoil(folder)
    message = told(folder, tmp_path)
    assert said in message and str(folder) in message


def test_a_tokenizer_of_another_model_is_refused(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    rows = {key: value[:8].clone() if "embed" in key or "lm_head" in key else value for key, value in tensors.items()}
    save_file(rows, folder / "model.safetensors", {"format": "pt"})
    changed(folder, vocab_size=8)
    assert "the model's own tokenizer" in told(folder, tmp_path)


def test_the_code_of_a_model_is_not_run_and_nobody_is_asked(whole, tmp_path, monkeypatch):
    """(transformers would ask on standard input where it is not told.)"""
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    changed(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    assert "Python code, which was not run" in told(folder, tmp_path)
    folder = Path(shutil.copytree(whole, tmp_path / "model2"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with suppress(pytest.fail.Exception):  # transformers may take a tokenizer of its own instead
        told(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_runs_folder_stands_for_its_model(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "run" / "model")
    args = SDFTConfig(str(tmp_path / "other"), max_completion_length=2, use_cpu=True, max_steps=1)
    trainer = SDFTTrainer(str(tmp_path / "run"), args, adapter=TextAdapter(), train_dataset=ROWS)
    assert trainer.module.name_or_path == str(tmp_path / "run" / "model")
    assert f"{tmp_path / 'run' / 'model'} is taken" in caplog.text
