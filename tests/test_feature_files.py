"""Image features on disk: those that were computed, whoever reads them, and never more than the bound."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_families import assert_close, conversations, encoded, loaded, log_probs, picture, reference
from text_sdft.core import SDFTConfig
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.images.feature_files import FeatureFiles, tower_key
from vlm_sdft.images.features import ImageFeatures
from vlm_sdft.zoo import resolve_data

GIB = 2**30


def features_in(folder: Path, name: str = "qwen3_vl") -> ImageFeatures:
    model, processor, family = loaded(name)
    return ImageFeatures(model, processor, family, files=FeatureFiles(folder, tower_key(model, processor, family), GIB))


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "idefics3"])  # with deeper layers' features, joined, listed
def test_another_process_reads_what_was_computed(tmp_path: Path, name: str):
    completions, wanted = reference(name)
    model, _, _ = loaded(name)
    first, second = features_in(tmp_path, name), features_in(tmp_path, name)
    for features in (first, second):
        assert_close(log_probs(model, encoded(name, conversations(), features), completions), wanted, 1e-4)
    assert (first.computed, second.computed, len(written(tmp_path))) == (6, 0, 6)
    assert torch.equal(first.pooled(picture(0)), second.pooled(picture(0)))


def test_other_weights_and_other_settings_are_another_tower(tmp_path: Path):
    model, processor, family = loaded("qwen3_vl")
    keys = [tower_key(model, processor, family)]
    tower = next(p for name, p in model.named_parameters() if ".visual." in name)
    language = model.get_input_embeddings().weight
    with torch.no_grad():
        language[0, 0] += 1
        assert tower_key(model, processor, family) == keys[0]  # no feature hangs on them
        language[0, 0] -= 1
        tower.view(-1)[0] += 1e-3
        keys.append(tower_key(model, processor, family))
        tower.view(-1)[0] -= 1e-3
    size = dict(processor.image_processor.size)
    processor.image_processor.size = {**size, "longest_edge": size["longest_edge"] // 2}
    keys.append(tower_key(model, processor, family))
    processor.image_processor.size = size
    assert len(set(keys)) == 3


def test_a_half_written_file_is_computed_again_and_replaced(tmp_path: Path):
    wanted = features_in(tmp_path).pooled(picture(0)).clone()
    (file,) = written(tmp_path)
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4], b""):
        file.unlink()
        file.write_bytes(broken)
        again = features_in(tmp_path)
        assert torch.equal(again.pooled(picture(0)), wanted) and again.computed == 1
        assert file.read_bytes() == whole


def test_the_least_recently_used_go_first(tmp_path: Path):
    values = {f"{i:02d}": torch.full((1000,), float(i)) for i in range(8)}
    files = FeatureFiles(tmp_path, "tower-a", 20_000)  # some four files of four kilobytes
    for name, tensor in values.items():
        files.write(name, {"pooled": tensor})
        if (first := files.read("00")) is not None:
            assert torch.equal(first["pooled"], values["00"])
        time.sleep(0.01)  # files are told apart by the time of their last use
    assert [file.stem for file in written(tmp_path)] == ["00", "05", "06", "07"]
    other = FeatureFiles(tmp_path, "tower-b", 9_000)  # one bound for all towers
    assert [file.stem for file in written(tmp_path)] == ["00", "07"]
    assert other.read("07") is None


def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(tmp_path: Path):
    (tmp_path / "tower-a").mkdir()
    old, new, own = tmp_path / "tower-a" / "x.part", tmp_path / "tower-a" / "y.part", tmp_path / "notes.txt"
    for file in (old, new, own):
        file.write_text("half")
    os.utime(old, (0, 0))
    FeatureFiles(tmp_path, "tower-a", 0)
    assert not old.exists() and new.exists() and own.exists()


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm_sdft.images.feature_files.save_file", full)
    features = features_in(tmp_path)
    features.pooled(picture(0))
    features.pooled(picture(1))
    assert features.computed == 2 and not list(tmp_path.glob("*/*"))


def reads_and_writes(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    files, rng = FeatureFiles(folder, "tower-a", 100_000), random.Random(seed)
    hits = 0
    for _ in range(600):
        i = rng.randrange(40)
        tensors = files.read(str(i))
        if tensors is None:
            files.write(str(i), {"pooled": torch.full((1000,), float(i))})
        else:
            hits += 1
            assert torch.equal(tensors["pooled"], torch.full((1000,), float(i)))
    assert hits


def test_processes_that_read_write_and_clear_away_at_once(tmp_path: Path):
    """Forty files of four kilobytes under a bound of twenty-five."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=reads_and_writes, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    FeatureFiles(tmp_path, "tower-a", 100_000)
    assert 0 < sum(file.stat().st_size for file in tmp_path.glob("*/*")) <= 100_000


def test_training_from_files_is_the_same(tmp_path: Path):
    folder = resolve_data(
        "builtin:novel-objects", tmp_path / "data", n_types=2, n_unlabelled=2, n_test=1, n_retain=2, n_old=2
    )
    runs = []
    for name in ("a", "b"):
        demos = DemoSet.from_folder(folder)
        args = SDFTConfig(
            str(tmp_path / name), per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=3,
            max_completion_length=8, learning_rate=1e-3, teacher_model_kind="base", use_cpu=True, disable_tqdm=True,
            save_strategy="no", logging_steps=1,
        )  # fmt: skip
        adapter = ImageAdapter(demos, n_types=2, shots=1, image_features_dir=str(tmp_path / "features"))
        trainer = SDFTTrainer("builtin:tiny-qwen3-vl", args, adapter=adapter, train_dataset=demos.train)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, trainer.adapter._features.computed))
    assert runs[1][0] == runs[0][0]
    assert runs[0][1] and runs[1][1] == 0
