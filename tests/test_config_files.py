"""Config files that cannot be meant are refused by one line that names the file, the line and the remedy."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from tests.cli_runs import fails
from text_sdft.core import UserError
from vlm_sdft.cli.config_files import KIB, read_yaml

#: A name after which each value is nine of the one before.
NINEFOLD = "a: &a [1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
BAD = {
    "a key twice": ("model: m\ndata: {path: x}\nmodel: n\n", "line 3.: .*'model' stands in line 1 already"),
    "a key twice below": ("train:\n  seed: 1\n  bf16: true\n  seed: 2\n", "line 4.: .*'seed' stands in line 2 already"),
    "a key twice in JSON": ('{"model": "m",\n "model": "n"}', "line 2.: .*'model' stands in line 1 already"),
    "aliases of aliases": (NINEFOLD, "more than .* values, counted with what its aliases repeat"),
    "merged aliases": (MERGED, "more than .* values"),
    "a value in itself": ("a: &a [*a]\n", "more than .* values"),
    "brackets": ("a: " + "[" * 2_000 + "]" * 2_000, "nested too deeply"),
    "an integer": ("train: {seed: " + "9" * 5_000 + "}", "limit .* for integer"),
    "no such day": ("a: 2024-13-45", "month must be"),
    "a tag that runs code": ("a: !!python/object/apply:os.mkdir [made]", "could not determine a constructor"),
    "a tag that does not fit": ("a: !!timestamp 5", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2.: .*another document"),
    "an open bracket": ("a: [1,\n", "not valid YAML"),
    "a list as a key": ("? [1]\n: 2\n", "unhashable"),
    "too large": ("# " + "x" * 2**10 * KIB, f"larger than {KIB} KiB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, said = BAD[name]
    Path("a.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"^a\.yaml(?s:.*){said}") as told:
        read_yaml(Path("a.yaml"))
    assert time.monotonic() - started < 10 and len(str(told.value)) < 300 and "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_what_is_no_regular_file_or_no_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"a: \xe9\xff")
    for name, said in (
        ("pipe", "is no file"),
        (".", "is no file"),
        ("no", "There is no file"),
        ("latin", "not valid YAML"),
    ):
        with pytest.raises(UserError, match=said):
            read_yaml(tmp_path / name)


def test_aliases_and_merged_keys_that_a_person_writes_are_read(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("common: &common {seed: 1, bf16: true}\ntrain:\n  <<: *common\n  seed: 2\nagain: *common\n")
    assert read_yaml(file) == yaml.safe_load(file.read_text()) and read_yaml(file)["train"] == {"bf16": True, "seed": 2}


@pytest.mark.parametrize("where", ["", "train", "data", "lora", "eval", "demonstrations"])
def test_a_config_within_a_config_is_not_read(tmp_path, capsys, where):
    secret = tmp_path / "secret"
    secret.write_text("the secret: 1\n")
    config: dict[str, object] = {"model": "m", "data": {"path": str(tmp_path)}}
    config = {
        **config,
        **({where: {**dict(config.get(where, {})), "config": str(secret)}} if where else {"config": str(secret)}),
    }  # type: ignore[call-overload]
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(config))
    message = fails(capsys, "train", str(file))
    assert "config" in message and "the secret" not in message
    (tmp_path / "sequence.yaml").write_text(yaml.safe_dump({**config, "tasks": [str(secret)]}))
    assert "the secret" not in fails(capsys, "sequence", str(tmp_path / "sequence.yaml"))


def test_a_setting_of_another_type_is_told_in_one_line(data, capsys):
    for option, value in (("train.seed", "9" * 5_000), ("eval.batch_size", "[1]"), ("lora.enabled", "maybe")):
        message = fails(capsys, "train", "--model", "m", "--data", data, f"--{option}", value)
        assert option.partition(".")[0] in message and message.count("\n") == 1 and len(message) < 700
