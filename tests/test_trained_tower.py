"""A vision tower that is trained: images encoded once for as long as its weights stay, and everything as from pixels.

The oracle is the path without any reuse (``image_features_gib=0``): every forward encodes its own pixels.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from torch import Tensor, nn
from transformers import TrainerCallback

from tests.families import build_family
from tests.family_rows import conversations, encoded, loaded
from tests.kinds import demo_set
from tests.tiers import further
from tests.toy import toy_args
from text_sdft.core import Rollout, TeacherContext, UserError
from text_sdft.fast.vllm_sampler import _prompt
from text_sdft.training import SDFTTrainer
from vlm_sdft.adapter import ImageAdapter
from vlm_sdft.cli import main
from vlm_sdft.images.families import vision_modules
from vlm_sdft.images.features import ImageFeatures

LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)


class Recorder(TrainerCallback):
    """Each optimiser step's gradients, and how many images had gone through the tower after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.computed: list[int] = []
        self.adapter: Any = None

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.computed.append(self.adapter._features.computed)


def trained(
    name: str, folder: Any, gib: float, lora: LoraConfig | None = None, resume: str | None = None, **changes: Any
) -> tuple[SDFTTrainer, Recorder]:
    """A run over one query of each type, each with two types' demonstrations in its teacher's view."""
    model, processor = build_family(name)
    adapter = ImageAdapter(demo_set(), n_types=2, shots=1, selection="grouped", train_vision=True, image_features_gib=gib)
    rows = [row for row in demo_set().train if row.split == "retain" or row.id.endswith("-0")]
    settings = {"optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    settings |= {"max_steps": 3, "teacher_update_rate": 0.5, "num_generations": 2, **changes}
    recorder = Recorder()
    trainer = SDFTTrainer(
        model, toy_args(folder, **settings), adapter=adapter, train_dataset=rows, processing_class=processor,
        peft_config=lora, callbacks=[recorder],
    )  # fmt: skip
    recorder.adapter = trainer.adapter
    trainer.train(resume_from_checkpoint=resume)
    return trainer, recorder


def losses(trainer: SDFTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same(one: tuple[SDFTTrainer, Recorder], two: tuple[SDFTTrainer, Recorder]) -> None:
    assert losses(one[0]) == pytest.approx(losses(two[0]), abs=1e-5)
    assert any("vision" in name or "visual" in name for name in one[1].gradients[0])
    for a, b in zip(one[1].gradients, two[1].gradients, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            gap, size = float((a[name] - b[name]).norm()), float(b[name].norm())
            assert gap <= 1e-4 * size + 1e-6, f"{name}: {gap:.1e} of {size:.1e}"


@pytest.mark.parametrize("teacher", ["ema", *further("base")])
def test_losses_and_gradients_are_those_of_pixels(trained_family: str, teacher: str, tmp_path: Any, monkeypatch: Any):
    """Both runs read the completions of the first: a draw within rounding of the border between two tokens may differ."""
    drawn: list[list[Rollout]] = []
    rollouts = SDFTTrainer.rollouts

    def watched(trainer: SDFTTrainer, *args: Any) -> list[Rollout]:
        own = rollouts(trainer, *args)
        if trainer.adapter._image_features_gib:  # type: ignore[attr-defined]
            drawn.append(own)
            return own
        first = drawn[trainer.state.global_step]
        if trainer.state.global_step == 0:  # the weights are still the same
            mine, theirs = (Rollout.joined(parts).ids for parts in (own, first))
            assert [ids.tolist() for ids in mine] == [ids.tolist() for ids in theirs]
        return first

    monkeypatch.setattr(SDFTTrainer, "rollouts", watched)
    runs = [trained(trained_family, tmp_path / str(gib), gib, teacher_model_kind=teacher) for gib in (1.0, 0.0)]
    assert len(drawn) == 3
    assert_same(*runs)
    rows = [run[0].adapter.encode([run[0].queries[0].messages]).rows[0] for run in runs]
    assert bool(rows[0].images) == loaded(trained_family)[2].reuses_features and not rows[1].images


@pytest.mark.parametrize(("lora", "checkpointed"), [(LORA, True), *further((LORA, False), (None, True), (None, False))])
def test_with_lora_and_activation_checkpointing(lora: LoraConfig | None, checkpointed: bool, tmp_path: Any):
    settings = {"lora": lora, "teacher_model_kind": "ema", "activation_checkpointing": checkpointed}
    assert_same(*(trained("qwen3_vl", tmp_path / str(gib), gib, **settings) for gib in (1.0, 0.0)))


@pytest.mark.parametrize("teacher", ["ema", *further("base")])
def test_micro_batches_change_nothing(teacher: str, tmp_path: Any):
    kind = {"teacher_model_kind": teacher}
    whole = trained("qwen3_vl", tmp_path / "1", 1.0, **kind)
    parts = trained("qwen3_vl", tmp_path / "2", 1.0, per_device_train_batch_size=1, gradient_accumulation_steps=4, **kind)
    assert_same(parts, whole)


@pytest.mark.parametrize(("teacher", "sync_steps"), [("ema", 3), *further(("base", 1), ("ema", 1))])
def test_a_resumed_run_is_the_uninterrupted_one(teacher: str, sync_steps: int, tmp_path: Any):
    settings = {"teacher_model_kind": teacher, "teacher_sync_steps": sync_steps, "max_steps": 4, "optim": "adamw_torch"}
    whole, _ = trained("qwen3_vl", tmp_path, 1.0, **settings, save_strategy="steps", save_steps=2)
    resumed, _ = trained("qwen3_vl", tmp_path / "2", 1.0, resume=str(tmp_path / "checkpoint-2"), **settings)
    assert losses(resumed) == losses(whole)
    for (name, a), (_, b) in zip(whole.module.named_parameters(), resumed.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("teacher", ["base", "ema"])
def test_how_often_an_image_is_encoded(teacher: str, tmp_path: Any):
    """A step encodes its queries once for the student; the teacher's images only under weights that they have not met."""
    settings = {"teacher_model_kind": teacher, "per_device_train_batch_size": 6, "max_steps": 3, "retain_ratio": 1e-9}
    trainer, recorder = trained("qwen3_vl", tmp_path, 1.0, teacher_prefix_gib=0.0, **settings)
    views = [trainer.adapter.teacher_messages(query, TeacherContext()) for query in trainer.queries]
    shown = {image.key for row in trainer.adapter.encode(views).rows for image in row.images}
    each = [after - before for before, after in zip(recorder.computed, recorder.computed[1:], strict=False)]
    assert len(shown) > 6  # the queries' six, and demonstrations
    assert each == ([6, 6] if teacher == "base" else [6 + len(shown)] * 2)


def test_prefixes_are_shared(tmp_path: Any):
    trainer, _ = trained("qwen3_vl", tmp_path, 1.0, teacher_model_kind="base", max_steps=4)
    assert all(trainer.reader._trusted.values()) and trainer.reader._trusted
    assert trainer.state.log_history[-2]["teacher/reused_tokens"] > 0.3


def test_features_of_older_weights_are_dropped():
    model, processor, family = loaded("qwen3_vl")
    features = ImageFeatures(model, processor, family, trained=True)
    row = encoded("qwen3_vl", conversations(), features).rows[2]
    for owner, version, kept in (("teacher", 0, 5), ("start", 0, 10), ("teacher", 1, 10), ("start", 0, 10)):
        features.for_weights(owner, version, fleeting=False).encode(row.images)
        assert len(features._kept) == kept
    assert features.computed == 15
    features.encode(row.images)  # whose weights these are is not known
    assert features.computed == 20 and len(features._kept) == 10


@pytest.mark.slow
def test_a_resumed_comparison_measures_the_tower_that_was_trained(tmp_path: Any):
    """Where the base model's cell is done already, too."""
    settings = {
        "model": "builtin:tiny-qwen3-vl",
        "data": {
            "path": "builtin:novel-objects", "cache": str(tmp_path / "data"), "train_vision": True,
            "options": {"n_types": 2, "n_unlabelled": 0, "n_test": 3, "n_retain": 1, "n_old": 1},
        },
        "eval": {"max_examples": 6},
        "train": {"use_cpu": True, "disable_tqdm": True, "max_steps": 2, "learning_rate": 1e-2, "max_completion_length": 6},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = ["compare", str(tmp_path / "config.yaml"), "--methods", "sft", "--seeds", "1"]
    command += ["--train.output_dir", str(tmp_path / "run")]
    assert main(command) == 0
    (cell,) = (tmp_path / "run").glob("cells/sft/test-*.json")
    first = json.loads(cell.read_text())
    cell.unlink()
    assert main(command) == 0
    again = json.loads(cell.read_text())
    assert again["test"] == first["test"] and again["drift"]["kl"] == pytest.approx(first["drift"]["kl"], rel=1e-5)


def test_dropout_in_the_tower_does_not_reach_the_sampler():
    model, processor = build_family("qwen3_vl")
    features = ImageFeatures(model, processor, loaded("qwen3_vl")[2], trained=True)
    images = encoded("qwen3_vl", conversations(), features).rows[1].images

    def values(encoder: Any) -> Tensor:
        return encoder.encode(images)["mm_encoder_outputs"]["image"].pooler_output[0]

    wanted, before = values(features), features.computed
    with torch.no_grad():
        assert torch.equal(values(features.encoded_once(images)), wanted)
    assert features.computed == before + 1 and features.encoded_once(images).encode(images)  # the one run serves both
    tower = model.get_submodule(vision_modules(model)[0])
    tower.blocks[0].mlp = nn.Sequential(tower.blocks[0].mlp, nn.Dropout(0.5))
    model.train()
    encoder = features.encoded_once(images)
    assert values(encoder).requires_grad and not torch.allclose(values(encoder), wanted)
    with torch.no_grad():
        assert torch.equal(values(encoder), wanted)


def test_vllm_refuses_it():
    model, processor, family = loaded("qwen3_vl")
    inputs = encoded("qwen3_vl", conversations(), ImageFeatures(model, processor, family, trained=True))
    with pytest.raises(UserError, match="untouched vision tower"):
        _prompt(replace(inputs, placeholder_ids=family.placeholder_ids), inputs.rows[1])
