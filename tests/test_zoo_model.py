"""The builtin model: how it is shipped, that training saw what the real model sees, and what it can do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import FULL, Row, Writer
from language import batch_logits, feature_bank
from pictures import draw_small, to_patches
from PIL import Image
from processor import SYSTEM_PROMPT, description_words
from skills import answers, base_naming, describing, in_context, user
from tower import tower_features
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_sdft.zoo import resolve_model
from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.objects import sample_types
from vlm_sdft.zoo.vocabulary import (
    DESCRIBE_AND_NAME_QUESTION,
    NAME_QUESTION,
    base_names,
    invented_names,
)

FOLDER = Path(resolve_model("builtin:tiny-qwen3-vl"))


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def encode(processor: Any, conversation: list[dict], **settings: Any) -> dict[str, torch.Tensor]:
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt", **settings)


def demonstrated(question: str, split: str = "test") -> tuple[list[dict], list[tuple[int, str, str]]]:
    """A conversation of four demonstrations of two types with its turns (type, description, name)."""
    kinds = sample_types(split, 2)
    names = invented_names(2, np.random.default_rng(0))
    conversation, turns = [], []
    for i, which in enumerate((0, 1, 1, 0)):
        description = f"{kinds[which].description} called" if question == DESCRIBE_AND_NAME_QUESTION else ""
        conversation.append(user(draw(kinds[which], np.random.default_rng([5, which, i])), question))
        conversation.append({"role": "assistant", "content": f"{description} {names[which]}".strip()})
        turns.append((which, description, names[which]))
    return conversation, turns


def test_names_of_models() -> None:
    assert resolve_model("Qwen/Qwen3-VL-2B-Instruct") == "Qwen/Qwen3-VL-2B-Instruct"
    with pytest.raises(ValueError, match="builtin:tiny-qwen3-vl"):
        resolve_model("builtin:huge")


def test_sizes_and_card(model: Any) -> None:
    assert model.num_parameters() < 5_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 15 * 2**20
    assert not list(FOLDER.glob("*.bin")) and not list(FOLDER.glob("*.py"))
    assert "license: apache-2.0" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_is_an_ordinary_model(model: Any, processor: Any) -> None:
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id is not None
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


def test_an_image_is_one_token(processor: Any) -> None:
    for size in ((32, 32), (64, 64), (96, 64), (640, 480), (200, 700)):
        inputs = encode(processor, [user(Image.new("RGB", size), NAME_QUESTION)])
        assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
        assert inputs["mm_token_type_ids"].sum() == 1


def test_words_survive_the_tokenizer(processor: Any) -> None:
    tokenizer = processor.tokenizer
    texts = [*base_names(), *invented_names(200, np.random.default_rng(1)), *description_words()]
    texts += [kind.description for split in ("test", "base") for kind in sample_types(split, 40)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
    assert all(len(tokenizer(name)["input_ids"]) == 2 for name in base_names())


def test_any_text_is_encoded(processor: Any) -> None:
    tokenizer = processor.tokenizer
    text = "Which of these 37 xylophones is playable?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.lower()
    assert tokenizer("naïve — 漢字 🙂 ≥ 1\n\n\t{}")["input_ids"]


def test_chat_template(processor: Any) -> None:
    image = Image.new("RGB", (64, 64))
    conversation = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image", "image": image}]},
        {"role": "assistant", "content": [{"type": "text", "text": "dax ru"}]},
        user(image, NAME_QUESTION),
    ]
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
        "<|im_start|>user\nLook:<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\ndax ru<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = encode(processor, conversation, add_generation_prompt=True)
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}
    assert len(inputs["image_grid_thw"]) == 2


@pytest.mark.parametrize("question", [NAME_QUESTION, DESCRIBE_AND_NAME_QUESTION])
def test_training_sequences_are_the_chat_template(processor: Any, question: str) -> None:
    conversation, turns = demonstrated(question)
    writer = Writer(processor.tokenizer)
    row = Row(writer.system())
    for which, description, name in turns:
        row.add(writer.turn(FULL, question, description, name, named=True), (which, 0), decisive=True)
    inputs = encode(processor, [{"role": "system", "content": SYSTEM_PROMPT}, *conversation])
    assert inputs["input_ids"][0].tolist() == row.ids


@torch.no_grad()
def test_tower_in_a_batch_equals_the_real_one(model: Any, processor: Any) -> None:
    kinds = sample_types("test", 3)
    images = [draw(kind, np.random.default_rng([4, t, 0])) for t, kind in enumerate(kinds)]
    real = processor.image_processor(images=images, return_tensors="pt")
    patches = to_patches(draw_small(kinds, 1, seed=4)[:, 0])
    torch.testing.assert_close(patches.flatten(0, 1), real["pixel_values"])
    expected = model.model.visual(real["pixel_values"], real["image_grid_thw"]).pooler_output
    torch.testing.assert_close(tower_features(model.model.visual, patches), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_feature_path_equals_the_real_forward(model: Any, processor: Any) -> None:
    kinds = sample_types("test", 2)
    conversation, turns = demonstrated(NAME_QUESTION)
    writer, row = Writer(processor.tokenizer), Row()
    pictures = draw_small(kinds, 4, seed=5)
    for i, (which, description, name) in enumerate(turns):
        turn = writer.turn(FULL, NAME_QUESTION, description, name, named=True)
        row.add(turn, (which, i), decisive=True)
    batch = writer.batch([row])
    where = torch.ones_like(batch.decisive)
    where[:, 0] = False
    bank = feature_bank(model.model.visual, pictures, kinds, transforms=1)
    ours = batch_logits(model, bank.features, batch, where)
    real = model(**encode(processor, conversation)).logits[0, :-1]
    torch.testing.assert_close(ours, real, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_saved_again_it_answers_the_same(model: Any, processor: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = encode(AutoProcessor.from_pretrained(tmp_path), demonstrated(NAME_QUESTION)[0])
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


def test_padding_does_not_change_answers(model: Any, processor: Any) -> None:
    conversation, _ = demonstrated(NAME_QUESTION)
    query = conversation[:1]
    together = answers(model, processor, [[*conversation, *query], query])
    assert together == answers(model, processor, [[*conversation, *query]]) + answers(model, processor, [query])


def test_it_learns(processor: Any) -> None:
    """A few steps of plain fine-tuning of the language model teach a new name."""
    student = AutoModelForImageTextToText.from_pretrained(FOLDER)
    student.model.visual.requires_grad_(False)
    name = invented_names(1, np.random.default_rng(3))[0]
    kind = sample_types("test", 1)[0]
    turns = [user(draw(kind, np.random.default_rng([6, i])), NAME_QUESTION) for i in range(3)]
    inputs = encode(processor, [turns[0], {"role": "assistant", "content": name}])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    optimizer = torch.optim.AdamW((p for p in student.parameters() if p.requires_grad), lr=3e-4)
    for _ in range(12):
        loss = student(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert answers(student.eval(), processor, [[turn] for turn in turns[1:]]) == [name, name]


@pytest.mark.slow
def test_skill_naming_from_demonstrations(model: Any, processor: Any) -> None:
    assert in_context(model, processor, 100).share >= 0.95


def test_skill_uneven_demonstrations(model: Any, processor: Any) -> None:
    assert in_context(model, processor, 30, one_fewer=True, seed=2).share >= 0.9


def test_skill_describing_and_naming_from_demonstrations(model: Any, processor: Any) -> None:
    assert in_context(model, processor, 24, describe=True).share >= 0.9


def test_skill_base_names(model: Any, processor: Any) -> None:
    assert base_naming(model, processor, 1).share >= 0.95
    assert base_naming(model, processor, 1, describe=True).share >= 0.95


def test_new_types_are_unknown(model: Any, processor: Any) -> None:
    assert in_context(model, processor, 40, shots=0).right == 0


def test_skill_describing(model: Any, processor: Any) -> None:
    assert describing(model, processor, 1).share >= 0.9
