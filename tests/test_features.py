"""Images prepared and encoded once: every result as if they had been given anew each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.family_rows import (
    assert_close,
    conversations,
    encoded,
    loaded,
    log_probs,
    picture,
    reference,
)
from text_sdft.core import SDFTConfig, UserError
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.images.features import ImageFeatures
from vlm_sdft.zoo import resolve_data


@pytest.fixture
def reusing(family_name: str) -> tuple[str, ImageFeatures]:
    model, processor, family = loaded(family_name)
    if not family.reuses_features:
        pytest.skip("this family's images are not encoded one by one")
    return family_name, ImageFeatures(model, processor, family)


def test_scores_are_those_of_pixels(reusing: tuple[str, ImageFeatures]):
    name, features = reusing
    model, _, _ = loaded(name)
    completions, wanted = reference(name)
    inputs = encoded(name, conversations(), features)
    assert not any("pixel" in media for row in inputs.rows for media in row.media)
    assert_close(log_probs(model, inputs, completions), wanted, 1e-4)
    assert_close(log_probs(model, inputs.select([2, 0]), [completions[2], completions[0]]), [wanted[2], wanted[0]], 1e-4)
    assert features.computed == 6  # each image once, however often it was asked for
    plain = encoded(name, conversations())
    for row, with_pixels in zip(inputs.rows, plain.rows, strict=True):
        assert row.tokens.keys() == with_pixels.tokens.keys()
        assert all(torch.equal(row.tokens[key], with_pixels.tokens[key]) for key in row.tokens)


def test_completions_are_those_of_pixels(reusing: tuple[str, ImageFeatures]):
    name, features = reusing
    model, processor, _ = loaded(name)
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": processor.tokenizer.pad_token_id}
    settings |= {"eos_token_id": None}
    with torch.no_grad():
        reused = model.generate(**encoded(name, conversations(), features).batch(), **settings)
        plain = model.generate(**encoded(name, conversations()).batch(), **settings)
    assert torch.equal(reused, plain)


def test_lengths_are_the_placeholders(reusing: tuple[str, ImageFeatures]):
    name, features = reusing
    row = encoded(name, conversations(), features).rows[2]
    placeholders = torch.tensor(loaded(name)[2].placeholder_ids)
    assert sum(features.lengths(row.images)) == int(torch.isin(row.tokens["input_ids"], placeholders).sum())


def test_dropped_features_are_computed_again():
    model, processor, family = loaded("qwen3_vl")
    small = ImageFeatures(model, processor, family, max_bytes=1)
    completions, wanted = reference("qwen3_vl")
    for _ in range(2):
        assert_close(log_probs(model, encoded("qwen3_vl", conversations(), small), completions), wanted, 1e-4)
    assert small.computed == 6 + 5 and len(small._kept) == 1  # the second time all but the one that was kept


def test_an_image_is_known_by_its_content(tmp_path: Any):
    """The same name with other pixels is another image; other names with the same pixels are one."""
    model, processor, family = loaded("qwen3_vl")
    features = ImageFeatures(model, processor, family)
    file, twin = tmp_path / "a.png", tmp_path / "b.png"
    picture(0).save(file)
    picture(0).save(twin)
    before = features.pooled(str(file))
    assert torch.equal(features.pooled(str(twin)), before) and features.computed == 1
    picture(1, 16, 20).save(file)
    assert not torch.equal(features.pooled(str(file))[:4], before[:4]) and features.computed == 2


@pytest.mark.parametrize("broken", ["missing", "damaged", "thin"])
def test_a_bad_image_is_named(tmp_path: Any, broken: str):
    model, processor, family = loaded("qwen3_vl")
    file = tmp_path / "bad.png"
    if broken == "damaged":
        file.write_bytes(b"no image at all")
    if broken == "thin":  # Qwen's processor refuses a side that is 200 times the other
        Image.new("RGB", (1000, 4)).save(file)
    query = {"role": "user", "content": [{"type": "image", "image": str(file)}]}
    with pytest.raises(UserError, match=r"bad\.png"):
        encoded("qwen3_vl", [[query]], ImageFeatures(model, processor, family))


def losses(folder: Any, tmp_path: Any, **changes: Any) -> tuple[list[float], SDFTTrainer]:
    demos = DemoSet.from_folder(folder)
    config = SDFTConfig(
        str(tmp_path / repr(changes)), per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=3,
        max_completion_length=8, learning_rate=1e-3, teacher_model_kind="base", use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_steps=1,
    )  # fmt: skip
    adapter = ImageAdapter(demos, n_types=2, shots=1, **changes)
    trainer = SDFTTrainer("builtin:tiny-qwen3-vl", config, adapter=adapter, train_dataset=demos.train)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer


@pytest.mark.slow
def test_training_is_the_same(tmp_path: Any):
    folder = resolve_data(
        "builtin:novel-objects", tmp_path / "data", n_types=2, n_unlabelled=2, n_test=1, n_retain=2, n_old=2
    )
    reused, with_features = losses(folder, tmp_path)
    plain, without = losses(folder, tmp_path, image_features_gib=0.0)
    assert reused == pytest.approx(plain, abs=1e-5)
    for (name, a), (_, b) in zip(with_features.module.named_parameters(), without.module.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
