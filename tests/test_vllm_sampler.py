"""vLLM samples what transformers samples: same greedy tokens and log-probabilities, from the weights of the moment.

Runs where vLLM can be imported, on a CPU too (docs/benchmarks.md says how).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from tests.family_rows import answer, picture, turn
from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import EMATeacher, ModelInputs, Rollout, RowInputs, TransformersSampler, UserError
from text_sdft.fast.vllm_sampler import VLLMSampler, _prompt
from text_sdft.training import SDFTTrainer
from vlm_sdft.images.encoding import encode_row
from vlm_sdft.images.families import find_family
from vlm_sdft.images.features import ImageFeatures
from vlm_sdft.zoo import resolve_model

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")
ROWS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12], [13, 14]]


def text_model() -> LlamaForCausalLM:
    """As `toy_model`, with heads of a width (32) that vLLM's CPU attention has a kernel for."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**toy_model().config.to_dict(), "head_dim": 32})).eval()


def inputs_of(rows: list[list[int]], **settings: Any) -> ModelInputs:
    return ModelInputs([RowInputs({"input_ids": torch.tensor(row)}) for row in rows], 0, **settings)


def move(model: torch.nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * p.std() * torch.randn_like(p))


def assert_same(mine: Rollout, reference: Rollout) -> None:
    assert [ids.tolist() for ids in mine.ids] == [ids.tolist() for ids in reference.ids]
    torch.testing.assert_close(torch.cat(mine.logps), torch.cat(reference.logps), atol=1e-4, rtol=1e-4)
    assert mine.finished == reference.finished


def sampler_in(folder: Path, length: int = 8, processor: Any = None, **settings: Any) -> VLLMSampler:
    return VLLMSampler(length, processor=processor, folder=folder, cache_bytes=2**26, **settings)


@needs_vllm
def test_greedy_tokens_are_those_of_transformers_whatever_the_weights(tmp_path):
    """At the start, when the student has moved, with a teacher's weights swapped in, and after them."""
    model, inputs = text_model(), inputs_of(ROWS)
    teacher = EMATeacher(model, rate=0.5)
    sampler, reference = sampler_in(tmp_path), TransformersSampler(8)
    seen = []

    def check() -> None:
        mine = sampler.sample(model, inputs, None)
        assert_same(mine, reference.sample(model, inputs, None))
        seen.append([ids.tolist() for ids in mine.ids])

    check()
    move(model)
    check()
    with teacher.applied():
        check()
    check()
    assert seen[0] == seen[2] != seen[1] == seen[3]


@needs_vllm
def test_lora_is_merged_for_the_engine_and_left_alone_here(tmp_path):
    model, inputs = text_model(), inputs_of(ROWS)
    plain = TransformersSampler(8).sample(model, inputs, None)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, modules_to_save=["norm"])
    wrapped = get_peft_model(model, config)
    move(wrapped)
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    sampler = sampler_in(tmp_path)
    for _ in range(2):
        mine = sampler.sample(wrapped, inputs, None)
        assert_same(mine, TransformersSampler(8).sample(wrapped, inputs, None))
        assert [ids.tolist() for ids in mine.ids] != [ids.tolist() for ids in plain.ids]
        assert all(torch.equal(tensor, before[name]) for name, tensor in wrapped.state_dict().items())
        move(wrapped)
        before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}


@needs_vllm
def test_seeded_samples_follow_the_distribution_and_hang_on_their_seed(tmp_path):
    """2,000 first tokens: chi-square below its 99.9 % quantile for at most 39 degrees of freedom (72.1)."""
    model, n = text_model(), 2000
    likely = tuple(model(torch.tensor([ROWS[0]])).logits[0, -1].topk(2).indices.tolist())
    sampler = sampler_in(tmp_path, 2, temperature=0.7)
    rollout = sampler.sample(model, inputs_of([ROWS[0]] * n, placeholder_ids=likely), list(range(n)))
    z = model(torch.tensor([ROWS[0]])).logits[0, -1].double().detach()
    z[list(likely)] = -torch.inf  # placeholders of media are never sampled
    logp = (z / 0.7).log_softmax(-1)
    first = torch.stack([ids[0] for ids in rollout.ids])
    torch.testing.assert_close(torch.stack([row[0] for row in rollout.logps]).double(), logp[first], atol=1e-4, rtol=1e-4)
    counts, p = torch.bincount(first, minlength=40).double(), logp.exp()
    keep = p * n >= 5
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([p[keep], p[~keep].sum()[None]]) * n
    assert ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum() < 72.1
    few = sampler.sample(model, inputs_of([ROWS[1], ROWS[0]], placeholder_ids=likely), [5, 1999])
    assert few.ids[1].tolist() == rollout.ids[1999].tolist()


@needs_vllm
def test_images_reach_the_engine(tmp_path):
    """The builtin model: images in a query and in turns before it, beside a row without any."""
    name = resolve_model("builtin:tiny-qwen3-vl")
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(name)
    family = find_family(model, processor)
    features = ImageFeatures(model, processor, family)
    conversations = [
        [turn(picture(0, 64, 64), "What is this?")],
        [turn("What is that?")],
        [turn(picture(1, 80, 48), "And this?"), answer("wug"), turn(picture(2, 64, 96), picture(3, 64, 64), "these")],
    ]
    rows = [encode_row(processor, conversation, family, features) for conversation in conversations]
    inputs = ModelInputs(rows, processor.tokenizer.pad_token_id, family.media_by_row, family.placeholder_ids, features)
    sampler, reference = sampler_in(tmp_path, processor=processor), TransformersSampler(8)
    seen = []
    for _ in range(2):
        mine = sampler.sample(model, inputs, None)
        assert_same(mine, reference.sample(model, inputs, None))
        seen.append([ids.tolist() for ids in mine.ids])
        model.model.visual.requires_grad_(False)
        move(model)
    assert seen[0] != seen[1]


@needs_vllm
def test_training_weighs_tokens_by_the_engines_probabilities(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The engine's and the trainer's probabilities agree, so weights are 1; were the engine's lower, at most 2."""
    config = toy_args(tmp_path, sampler="vllm", vllm_cache_gib=0.06, max_steps=3, logging_steps=1)
    trainer = SDFTTrainer(text_model(), config, adapter=ToyAdapter(), train_dataset=toy_rows(8))
    assert isinstance(trainer.sampler, VLLMSampler)
    trainer.train()
    assert (tmp_path / "vllm" / "config.json").exists()
    module, own = trainer.module, trainer.rollouts
    step = {"examples": trainer.queries[:4]}
    rollout: list[Rollout] = []

    def lowered(by: float | None) -> Any:
        def rollouts(groups: Any, inputs: ModelInputs) -> list[Rollout]:
            [drawn] = own(groups, inputs)
            rollout[:] = [drawn]
            logps = drawn.logps
            if by is None:  # those of the trainer's own forward
                logps = [
                    module(torch.cat([row.tokens["input_ids"], ids])[None])
                    .logits[0, len(row) - 1 : -1]
                    .log_softmax(-1)
                    .gather(-1, ids[:, None])
                    .squeeze(-1)
                    .detach()
                    for row, ids in zip(inputs.rows, drawn.ids, strict=True)
                ]
                for mine, theirs in zip(drawn.logps, logps, strict=True):
                    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
                return [Rollout(drawn.ids, logps, drawn.finished)]
            return [Rollout(drawn.ids, [row - by for row in logps], drawn.finished)]

        return rollouts

    losses = []
    for by in (None, 0.0, 0.5, 3.0):
        monkeypatch.setattr(trainer, "rollouts", lowered(by))
        losses.append(float(trainer.compute_loss(trainer.model, step).detach()))
    exact, mine, half, clipped = losses
    assert exact > 0 and abs(mine / exact - 1) < 1e-4
    assert abs(half / exact - torch.tensor(0.5).exp().item()) < 1e-3 and abs(clipped / exact - 2) < 1e-3
    moved = TransformersSampler(6).sample(module, inputs_of(ROWS), None)
    assert_same(trainer.sampler.sample(module, inputs_of(ROWS), None), moved)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm_the_error_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"not installed.*train\.sampler to transformers"):
        SDFTTrainer(toy_model(), toy_args(tmp_path, sampler="vllm"), adapter=ToyAdapter(), train_dataset=toy_rows(2))


def test_images_whose_features_are_not_kept_are_refused():
    row = RowInputs({"input_ids": torch.tensor([5, 6])}, {"pixel_values": torch.zeros(1, 3)})
    with pytest.raises(UserError, match=r"train\.sampler to transformers"):
        _prompt(ModelInputs([row], 0, placeholder_ids=(6,)), row)


@pytest.mark.parametrize("wrong", [{"sampler": "sglang"}, {"vllm_cache_gib": 0.0}])
def test_wrong_settings_are_errors(tmp_path, wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        toy_args(tmp_path, **wrong)
