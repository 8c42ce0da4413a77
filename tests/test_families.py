"""Every family: rows kept apart and joined late give what the plain model gives.

Shapes: B rows · P longest prompt · T tokens of a completion · L tokens of a conversation · V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families import build_family
from tests.family_rows import (
    answer,
    assert_close,
    conversations,
    encoded,
    loaded,
    log_probs,
    picture,
    reference,
    turn,
)
from text_sdft.core import ModelInputs, RowInputs, TransformersSampler, UserError
from text_sdft.core.scoring import completion_hidden_states, head_of
from vlm_sdft.images import families
from vlm_sdft.images.encoding import check_by_forward, encode_row
from vlm_sdft.images.families import bound_images, find_family


def test_batched_completions_score_as_whole_conversations(family_name: str):
    model, _, _ = loaded(family_name)
    completions, wanted = reference(family_name)
    assert_close(log_probs(model, encoded(family_name, conversations()), completions), wanted, 1e-4)


def test_order_padding_and_split_change_nothing(family_name: str):
    model, _, _ = loaded(family_name)
    completions, _ = reference(family_name)
    inputs = encoded(family_name, conversations())
    base = log_probs(model, inputs, completions)
    order = [2, 0, 1]
    assert_close(log_probs(model, inputs.select(order), [completions[i] for i in order]), [base[i] for i in order], 1e-5)
    for i in range(3):
        assert_close(log_probs(model, inputs.select([i]), [completions[i]]), [base[i]], 1e-5)
    longer = encoded(family_name, [*conversations(), [*conversations()[2], answer("on"), turn("and " * 30)]])
    assert_close(log_probs(model, longer, [*completions, completions[0]])[:3], base, 1e-5)


def test_scores_depend_on_a_demonstration_image(family_name: str):
    model, _, _ = loaded(family_name)
    completions, wanted = reference(family_name)
    changed = log_probs(model, encoded(family_name, conversations(first_demonstration=9)), completions)
    assert (changed[2] - wanted[2]).abs().max() > 1e-2
    assert_close(changed[:2], wanted[:2], 1e-4)


def test_generate_in_a_batch_and_forward_after_it(family_name: str):
    model, processor, _ = loaded(family_name)
    completions, wanted = reference(family_name)
    inputs = encoded(family_name, conversations())
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": processor.tokenizer.pad_token_id}
    settings |= {"eos_token_id": None}
    with torch.no_grad():
        batch = model.generate(**inputs.batch(), **settings)[:, -6:]
        assert_close(log_probs(model, inputs, completions), wanted, 1e-4)
        single = [model.generate(**inputs.select([i]).batch(), **settings)[0, -6:] for i in range(3)]
    assert batch.tolist() == torch.stack(single).tolist()
    assert_close(log_probs(model, inputs, completions), wanted, 1e-4)


def test_the_core_scores_and_samples(family_name: str):
    model, _, _ = loaded(family_name)
    completions, wanted = reference(family_name)
    inputs = encoded(family_name, conversations())
    head = head_of(model, temperature=1.0)
    with torch.no_grad():
        hidden_NH = completion_hidden_states(model, model, inputs, completions)
        scores_NV = (hidden_NH @ head.weight_VH.T).log_softmax(-1)
    assert_close([scores_NV], [torch.cat(wanted)], 1e-4)
    sampler = TransformersSampler(max_completion_length=5)
    batch = sampler.sample(model, inputs, seeds=[1, 2, 3])
    for i in range(3):
        assert batch.ids[i].tolist() == sampler.sample(model, inputs.select([i]), seeds=[i + 1]).ids[0].tolist()


def test_text_rows_alone_need_no_images(family_name: str):
    """Also after a batch with images, whose positions some models remember."""
    model, _, _ = loaded(family_name)
    inputs = encoded(family_name, [[turn("Hi.")], [turn("A longer question than that.")], *conversations()[1:]])
    completions = [*reference(family_name)[0], torch.tensor([65])]
    together = log_probs(model, inputs, completions)
    assert_close(log_probs(model, inputs.select([0, 1]), completions[:2]), together[:2], 1e-5)
    assert_close(log_probs(model, inputs.select([0]), completions[:1]), together[:1], 1e-5)


class Dropping:
    """A processor that loses the last image of a conversation."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any:
        *rest, last = conversation
        first_image = next(i for i, part in enumerate(last["content"]) if part["type"] == "image")
        parts = [part for i, part in enumerate(last["content"]) if i != first_image]
        return self._processor.apply_chat_template([*rest, {**last, "content": parts}], **kwargs)


def test_a_dropped_image_is_an_error(family_name: str):
    _, processor, family = loaded(family_name)
    for conversation in conversations()[1:]:
        with pytest.raises(UserError, match="images, but after encoding"):
            encode_row(Dropping(processor), conversation, family)
    with pytest.raises(UserError, match="refused a conversation"):
        encode_row(processor, [turn(picture(0), f"What is {processor.image_token}?")], family)


def test_a_template_that_loses_images_or_texts_is_refused(family_name: str):
    model, processor = build_family(family_name)
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(UserError, match="loses"):
        find_family(model, processor)


def test_max_pixels_bounds_an_image(family_name: str):
    model, processor = build_family(family_name)
    family = find_family(model, processor)
    conversation = [turn(picture(0, 16, 48), "What?")]
    before = len(encode_row(processor, conversation, family))
    bound_images(family, processor, model, 256)
    row = encode_row(processor, conversation, family)
    assert len(row) < before or family_name == "gemma3"
    with torch.no_grad():
        model(**ModelInputs([row], 0, family.media_by_row).batch())
    bound_images(family, processor, model, 10**7)
    assert len(encode_row(processor, conversation, family)) == len(row), "a processor's own limit is never raised"
    with pytest.raises(UserError, match="max_pixels"):
        bound_images(family, processor, model, 0)


def test_images_between_texts_are_kept_in_place_or_refused(family_name: str):
    _, processor, family = loaded(family_name)
    conversation = [turn("Examples:", picture(0), "dax\n\n", picture(1), "What?")]
    if family_name == "llava_onevision":
        with pytest.raises(UserError, match="template: turns"):
            encode_row(processor, conversation, family)
    else:
        ids = encode_row(processor, conversation, family).tokens["input_ids"].tolist()
        prompt = processor.tokenizer.decode(ids)
        token = processor.tokenizer.decode([processor.image_token_ids[0]])
        assert prompt.index("Examples:") < prompt.index(token) < prompt.index("dax") < prompt.rindex(token)


def test_bad_images_and_models_are_refused():
    model, processor, family = loaded("qwen3_vl")
    with pytest.raises(UserError, match="has no 'image'"):
        encode_row(processor, [{"role": "user", "content": [{"type": "image"}]}], family)
    with pytest.raises(UserError, match=r"nowhere\.png"):
        encode_row(processor, [turn("x"), {"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}], family)
    with pytest.raises(UserError, match="no image processor"):
        find_family(model, processor.tokenizer)
    text_model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(UserError, match="adapter: text"):
        find_family(text_model, processor.tokenizer)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "internvl", "llava_onevision"])
def test_unknown_family_that_packs_its_media_works(name: str, monkeypatch: pytest.MonkeyPatch):
    model, processor = build_family(name)
    monkeypatch.delitem(families.FAMILIES, name)
    family = find_family(model, processor)
    check_by_forward(model, processor, family)
    completions, wanted = reference(name)
    rows = [encode_row(processor, conversation, family) for conversation in conversations()]
    inputs = ModelInputs(rows, processor.tokenizer.pad_token_id, family.media_by_row)
    assert_close(log_probs(model, inputs, completions), wanted, 1e-4)
    with pytest.raises(UserError, match="images, but after encoding"):
        encode_row(Dropping(processor), conversations()[1], family)
    with pytest.raises(UserError, match="max_pixels is not known"):
        bound_images(family, processor, model, 100)


def test_unknown_family_that_packs_otherwise_is_refused():
    model, processor, family = loaded("qwen3_vl")
    with pytest.raises(UserError, match="a way of their own"):
        check_by_forward(model, processor, replace(family, media_by_row=frozenset({"pixel_values"})))


def test_media_that_the_model_does_not_take_are_refused():
    _, processor, family = loaded("qwen3_vl")
    narrow = families.Family("other", accepts=family.accepts - {"image_grid_thw"})
    with pytest.raises(UserError, match="image_grid_thw"):
        encode_row(processor, conversations()[1], narrow)


def test_rows_without_extra_token_types_join_rows_with_them():
    """A row made by hand (ids only) may stand beside encoded ones: its types are text."""
    inputs = encoded("qwen3_vl", conversations()[1:2])
    bare = RowInputs({"input_ids": torch.tensor([5, 6])})
    assert ModelInputs([*inputs.rows, bare], 0).batch()["mm_token_type_ids"][1].sum() == 0
