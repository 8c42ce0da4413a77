"""Sampling follows the model's distribution, and a row's completion depends on its seed alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconMambaConfig, MiniMaxConfig, Qwen3_5TextConfig

from tests.family_rows import answer, loaded, picture, turn
from tests.toy import EOS, SHAPE, ToyAdapter, sliding, toy_model
from text_sdft.core import ModelInputs, RowInputs, TransformersSampler
from text_sdft.core.sampling import draw_seed
from text_sdft.fast.prefill import common_tokens_read_once
from vlm_sdft.images.encoding import encode_row
from vlm_sdft.images.features import ImageFeatures


def inputs(*rows):
    return ModelInputs([RowInputs({"input_ids": torch.tensor(row)}) for row in rows], pad_token_id=0)


ROWS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12], [13, 14]]


def test_a_row_is_the_same_in_any_batch():
    model, sampler = toy_model(), TransformersSampler(8)
    seeds = [draw_seed("x", i) for i in range(4)]
    together = sampler.sample(model, inputs(*ROWS), seeds)
    for i in (2, 0):
        alone = sampler.sample(model, inputs(ROWS[i]), [seeds[i]])
        assert torch.equal(alone.ids[0], together.ids[i])
        torch.testing.assert_close(alone.logps[0], together.logps[i], rtol=0, atol=1e-5)
    reverse = sampler.sample(model, inputs(*ROWS[::-1]), seeds[::-1])
    assert all(torch.equal(a, b) for a, b in zip(reverse.ids[::-1], together.ids, strict=True))


def test_global_randomness_does_not_matter():
    model, sampler = toy_model(), TransformersSampler(8)
    torch.manual_seed(1)
    first = sampler.sample(model, inputs(ROWS[0]), [7])
    torch.manual_seed(2)
    assert torch.equal(sampler.sample(model, inputs(ROWS[0]), [7]).ids[0], first.ids[0])
    other = [sampler.sample(model, inputs(ROWS[0]), [s]).ids[0].tolist() for s in range(5)]
    assert len({tuple(o) for o in other}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_models_probabilities(temperature):
    """4,000 first tokens: chi-square below its 99.9 % quantile for 39 degrees of freedom (72.1)."""
    model, n = toy_model(), 4000
    sampler = TransformersSampler(1, temperature)
    ids = sampler.sample(model, inputs(*[ROWS[0]] * n), list(range(n))).ids
    counts = torch.bincount(torch.cat(ids), minlength=40).double()
    p = (model(torch.tensor([ROWS[0]])).logits[0, -1].double() / temperature).softmax(-1).detach()
    keep = p * n >= 5
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([p[keep], p[~keep].sum()[None]]) * n
    assert ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum() < 72.1


def test_sampler_logps_are_the_models():
    model = toy_model()
    rollout = TransformersSampler(6).sample(model, inputs(*ROWS), [1, 2, 3, 4])
    for row, ids, logps in zip(ROWS, rollout.ids, rollout.logps, strict=True):
        z = model(torch.tensor([row + ids.tolist()])).logits[0, len(row) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(logps, z.gather(-1, ids[:, None]).squeeze(-1).detach(), rtol=0, atol=1e-5)


def test_top_p_leaves_out_the_rest():
    model = toy_model()
    p = model(torch.tensor([ROWS[0]])).logits[0, -1].softmax(-1)
    order = p.sort(descending=True)
    nucleus = set(order.indices[: int((order.values.cumsum(0) < 0.3).sum()) + 1].tolist())
    ids = TransformersSampler(1, top_p=0.3).sample(model, inputs(*[ROWS[0]] * 200), list(range(200))).ids
    assert {int(i) for i in ids} <= nucleus


def test_greedy_equals_generate_and_the_end_token_is_kept():
    model = toy_model()
    rollout = TransformersSampler(12).sample(model, inputs(*ROWS), None)
    for row, ids, finished in zip(ROWS, rollout.ids, rollout.finished, strict=True):
        plain = model.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)[0, len(row) :]
        assert torch.equal(ids, plain)
        assert finished == (ids[-1].item() == EOS)


def test_a_models_own_sampling_settings_do_not_bend_the_distribution():
    """Hub models ship repetition penalties and top_k in their generation config: on-policy means without them."""
    model = toy_model()
    before = TransformersSampler(6).sample(model, inputs(*ROWS), [1, 2, 3, 4]).ids
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 1
    after = TransformersSampler(6).sample(model, inputs(*ROWS), [1, 2, 3, 4]).ids
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.generation_config.repetition_penalty == 5.0


def test_toy_adapter_is_an_adapter():
    from text_sdft.core import ModalityAdapter

    assert isinstance(ToyAdapter(), ModalityAdapter)


def test_placeholders_of_media_are_never_sampled():
    """A sampled image placeholder would make the model look for an image that is not there."""
    model = toy_model()
    p = model(torch.tensor([ROWS[0]])).logits[0, -1].softmax(-1)
    likely = tuple(p.topk(2).indices.tolist())
    prompts = ModelInputs([RowInputs({"input_ids": torch.tensor(ROWS[0])})] * 200, 0, placeholder_ids=likely)
    for seeds in (list(range(200)), None):
        ids = TransformersSampler(1).sample(model, prompts, seeds).ids
        assert not {int(i) for i in ids} & set(likely)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_a_peft_model_samples_with_our_settings_and_keeps_its_own(task_type):
    """peft hands generation to the model inside: both must have our settings during it, and neither after it."""
    model = toy_model()
    expected = TransformersSampler(5).sample(model, inputs(*ROWS), [1, 2, 3, 4])
    own = model.generation_config
    own.repetition_penalty = 1.7
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type=task_type))
    sampled = TransformersSampler(5).sample(wrapped, inputs(*ROWS), [1, 2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(expected.ids, sampled.ids, strict=True))
    assert model.generation_config is own and wrapped.generation_config is own


@pytest.mark.parametrize("seeded", [False, True])
def test_equal_prompts_are_read_once_and_change_nothing(family_name: str, seeded: bool):
    """Three completions of a query with images, two of one without, one of another: as if each had been sampled alone."""
    model, processor, family = loaded(family_name)
    features = ImageFeatures(model, processor, family) if family.reuses_features else None
    first, second = [turn(picture(5, 18, 27), "What is this?")], [turn("Hello there, you.")]
    third = [turn(picture(6, 18, 27), "What is this?"), answer("dax"), turn(picture(5, 20, 30), "And this?")]
    rows = [encode_row(processor, row, family, features) for row in (first, second, first, third, second, first)]
    pad = processor.tokenizer.pad_token_id
    prompts = ModelInputs(rows, pad, family.media_by_row, family.placeholder_ids, features)
    seeds = [draw_seed(i) for i in range(6)] if seeded else None
    read: list[int] = []
    layer = model.get_output_embeddings()
    with layer.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[0])):
        together = TransformersSampler(6, prefilled=common_tokens_read_once).sample(model, prompts, seeds)
    assert read[0] == (3 if features else 6) and set(read[1:]) == {6}
    for i in range(6):
        alone = TransformersSampler(6).sample(model, prompts.select([i]), seeds and [seeds[i]])
        assert together.ids[i].tolist() == alone.ids[0].tolist()
        torch.testing.assert_close(together.logps[i], alone.logps[0], rtol=0, atol=1e-4)


def text_model(kind: str) -> Any:
    if kind != "lora":
        return toy_model() if kind == "llama" else sliding(kind)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(toy_model(), config)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "lora"])
def test_equal_prompts_of_text_models_are_read_once(kind: str):
    """Windows shorter than the prompt, and an adapter."""
    model = text_model(kind)
    rng = random.Random(0)
    long, short = ([rng.randrange(2, 40) for _ in range(n)] for n in (50, 9))
    rows, seeds = [long, short, long, long, short], list(range(5))
    read: list[int] = []
    with model.get_output_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0].shape[0])):
        together = TransformersSampler(8, prefilled=common_tokens_read_once).sample(model, inputs(*rows), seeds)
    assert read[0] == 2 and set(read[1:]) == {5}
    for i, row in enumerate(rows):
        alone = TransformersSampler(8).sample(model, inputs(row), [seeds[i]])
        assert together.ids[i].tolist() == alone.ids[0].tolist()
        torch.testing.assert_close(together.logps[i], alone.logps[0], rtol=0, atol=1e-5)


RECURRENT = {
    Qwen3_5TextConfig: {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    FalconMambaConfig: {"state_size": 8},
    MiniMaxConfig: {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
}  # fmt: skip


@pytest.mark.parametrize("config_class", RECURRENT)
def test_equal_prompts_of_models_that_keep_a_state(config_class: Any):
    """(MiniMax makes a cache of its own while it reads the prompts.)"""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**SHAPE, **RECURRENT[config_class])).eval()
    rows = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [3, 4, 5, 6, 7]]
    together = TransformersSampler(6, prefilled=common_tokens_read_once).sample(model, inputs(*rows), [1, 2, 3])
    for i, row in enumerate(rows):
        alone = TransformersSampler(6).sample(model, inputs(row), [i + 1])
        assert together.ids[i].tolist() == alone.ids[0].tolist()
        torch.testing.assert_close(together.logps[i], alone.logps[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "lora"])
@pytest.mark.parametrize("seeded", [False, True])
def test_what_all_prompts_begin_with_is_read_once(kind: str, seeded: bool):
    """A system message before prompts of unlike lengths, one of them twice; windows keep less than it, and read it all."""
    model = text_model(kind)
    rng = random.Random(0)
    system = [rng.randrange(2, 40) for _ in range(50)]
    own = [[rng.randrange(2, 40) for _ in range(n)] for n in (9, 1, 30, 4)]
    rows = [[*system, *rest] for rest in (*own, own[1])]
    seeds = [draw_seed(i) for i in range(5)] if seeded else None
    read: list[tuple[int, ...]] = []
    embeddings = model.get_input_embeddings()
    with embeddings.register_forward_pre_hook(lambda module, args: read.append(tuple(args[0].shape))):
        together = TransformersSampler(8, prefilled=common_tokens_read_once).sample(model, inputs(*rows), seeds)
    assert read[:2] == ([(1, 50), (4, 30)] if kind in ("llama", "lora") else [(4, 80), (5, 1)])
    for i, row in enumerate(rows):
        alone = TransformersSampler(8).sample(model, inputs(row), seeds and [seeds[i]])
        assert together.ids[i].tolist() == alone.ids[0].tolist()
        torch.testing.assert_close(together.logps[i], alone.logps[0], rtol=0, atol=1e-5)
