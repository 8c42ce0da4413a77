"""Configs of older versions: settings that are gone pass where they changed nothing, and else the remedy is named."""

from __future__ import annotations

import pytest
import yaml

from tests.cli_runs import fails
from text_sdft.core import SDFTConfig
from text_sdft.experiments.gone import GONE, still_there
from text_sdft.experiments.settings import first_change, resumable
from vlm_sdft.cli.parsing import config_of, load_experiment, read_call

#: As version 0.1.0 wrote it before these settings were gone.
OLD = {
    "data": {"image_features_dir": None, "image_features_dir_gib": 50.0},
    "demonstrations": {"context": "teacher"},
    "train": {"confidence": "none", "distillation_add_tail": False, "overwrite_output_dir": False},
}


def test_an_old_config_says_what_it_said(data, tmp_path):
    """The experiment of a config with settings that are gone is that of the same config without them."""
    model = {"model": "builtin:tiny-qwen3-vl", "train": {"output_dir": str(tmp_path / "run")}}
    new = {**model, "data": {"path": data}}
    old = {**new, **{name: {**new.get(name, {}), **part} for name, part in OLD.items()}}
    made = []
    for k, config in enumerate((new, old)):
        (tmp_path / f"{k}.yaml").write_text(yaml.safe_dump(config))
        call = read_call(["train", str(tmp_path / f"{k}.yaml"), "--resume"])
        made.append(load_experiment(call, config_of(call))[0].settings)
    assert made[0] == made[1]
    assert first_change(resumable(old), resumable(new), {}) is None


@pytest.mark.parametrize("command", ["train", "eval", "preview"])
def test_a_value_that_changed_something_is_refused_with_the_remedy(command, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for key, value, remedy in (
        ("train.confidence", "entropy", "leave it out"),
        ("data.image_features_dir", "features", "data.image_features_gib"),
        ("train.group_by_length", True, "by itself"),
        ("train.evaluation_strategy", "steps", "train.eval_strategy"),
    ):
        section, _, name = key.partition(".")
        config = {"model": "builtin:tiny-qwen3-vl", "data": {"path": "."}}
        config[section] = {**config.get(section, {}), name: value}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        message = fails(capsys, command, str(run if command == "eval" else run / "config.yaml"))
        assert f"{key} {value}: this setting is gone." in message and remedy in message
        assert "Did you mean" not in message
        if command == "train":
            assert f"{key}: this setting is gone." in fails(capsys, command, f"--{key}", str(value), "--model", "m")


def test_none_of_them_is_there():
    """(What came back to transformers would be refused for nothing.)"""
    assert not {key for key in GONE if key.removeprefix("train.") in SDFTConfig.__dataclass_fields__}


def test_settings_that_stay_are_left_alone():
    config = {"model": "m", "train": {"seed": 1}, "data": {"path": "x"}}
    assert still_there(config) == config
