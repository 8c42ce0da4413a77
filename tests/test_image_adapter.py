"""The image adapter: which view shows what, and how demonstrations are found.

Shapes: R images or rows · D embedding width.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families import build_family, family_folder
from tests.kinds import NAMES, QUESTION, adapter, answers, demo_set, example, images, picture, qwen, texts
from tests.toy import toy_args
from text_sdft.core import ModalityAdapter, TeacherContext, UserError
from text_sdft.training import SDFTTrainer
from vlm_sdft.adapter import ImageAdapter
from vlm_sdft.images.embedding import ImageEmbedder
from vlm_sdft.images.families import find_family
from vlm_sdft.images.features import ImageFeatures


def test_it_is_a_modality_adapter():
    assert isinstance(adapter(), ModalityAdapter)


def test_demonstrations_stand_in_the_teachers_view_only():
    made = adapter()
    query = example(made, "train", 4)
    student, teacher = made.student_messages(query), made.teacher_messages(query, TeacherContext())
    assert len(student) == 1 and images(student) == list(query.meta["row"].images)
    assert len(images(teacher)) == 7 and teacher[-1] == student[-1]
    assert all(image is not query.meta["row"].images[0] for image in images(teacher)[:-1])
    assert query.reference in answers(teacher)
    assert query.reference not in " ".join(texts(student))


@pytest.mark.parametrize("split", ["test", "unlabelled"])
def test_a_label_that_is_to_be_found_out_is_not_used(split: str, monkeypatch: pytest.MonkeyPatch):
    made = adapter(selection="random")
    query = example(made, split)
    seen: list[Any] = []
    selector = made._selector
    monkeypatch.setattr(
        selector, "select", lambda row, *a, include_type=None, **k: seen.append((row.type, row.answer, include_type)) or []
    )
    made.teacher_messages(query, TeacherContext())
    made.teacher_messages(example(made, "train", 4), TeacherContext())
    assert seen == [(None, None, None), ("wug", "wug", "wug")]


def test_a_training_querys_own_type_is_among_its_demonstrations():
    made = adapter(selection="random", n_types=2, shots=1)
    for index in range(0, 18, 3):
        query = example(made, "train", index)
        for seed in range(3):
            assert query.reference in answers(made.teacher_messages(query, TeacherContext(seed)))


def test_retention_rows_are_bare_and_old_rows_only_for_the_student():
    made = adapter()
    retained, old = example(made, "retain"), example(made, "old")
    assert retained.retain and not old.retain
    assert made.teacher_messages(retained, TeacherContext()) == made.student_messages(retained) == retained.messages
    assert len(images(made.student_messages(old))) == 1
    assert len(images(made.teacher_messages(old, TeacherContext()))) == 7


def test_the_same_seed_gives_the_same_context_and_limits_hold():
    made = adapter(selection="random")
    query = example(made, "train")
    view = functools.partial(made.teacher_messages, query)
    assert view(TeacherContext(1)) == view(TeacherContext(1))
    assert any(view(TeacherContext(1)) != view(TeacherContext(seed)) for seed in range(2, 6))
    assert len(images(view(TeacherContext(1, max_demonstrations=2)))) == 3
    assert view(TeacherContext(1, max_demonstrations=0)) == made.student_messages(query)


def test_retrieved_demonstrations_resemble_the_query():
    made = adapter(n_types=1, shots=2)
    found = [answers(made.teacher_messages(example(made, "test", i), TeacherContext()))[0] for i in range(len(NAMES))]
    assert sum(a == b for a, b in zip(found, NAMES, strict=True)) >= 4


@pytest.mark.parametrize("template", ["turns", "quoted"])
def test_both_views_can_be_encoded(template: str):
    made = adapter(template=template, system_prompt="Name the object.")
    query = example(made, "unlabelled")
    views = [made.student_messages(query), made.teacher_messages(query, TeacherContext())]
    assert all(view[0]["content"] == "Name the object." for view in views)
    inputs = made.encode(views)
    assert [len(r.media["image_grid_thw"]) for r in inputs.rows] == [1, 7]
    tail = len(made.encode([query.messages[1:]]).rows[0]) if template == "turns" else len(QUESTION)
    ids = [r.tokens["input_ids"][-tail:].tolist() for r in inputs.rows]
    assert ids[0] == ids[1]
    with torch.no_grad():
        assert torch.isfinite(qwen()[0](**inputs.batch()).logits).all()


def test_decode_and_score():
    made = adapter()
    tokenizer = made.processing_class.tokenizer
    ids = torch.tensor([*tokenizer.encode(" dax"), tokenizer.eos_token_id])
    query = example(made, "test")
    assert made.decode(ids) == "dax"
    assert made.score(query, "dax") == made.score(query, "a dax thing") == 1.0
    assert made.score(query, "a wug thing") == 0.0
    assert made.score(example(made, "old"), "cat") == 1.0
    assert made.score(example(made, "unlabelled"), "dax") is None
    assert made.example_images(query) == list(query.meta["row"].images)


def test_rows_from_mappings_and_their_mistakes():
    made = adapter()
    image = picture(0, 80)
    ready = made.examples(
        [{"image": image, "prompt": "What?", "answer": "dax"}, {"id": "b", "images": [image, image], "prompt": "Which?"}]
    )
    assert [e.id for e in ready] == ["0", "b"]
    assert [e.meta["row"].split for e in ready] == ["train", "unlabelled"]
    assert "dax" in answers(made.teacher_messages(ready[0], TeacherContext()))
    assert len(images(ready[1].messages)) == 2
    assert made.examples(ready) == ready
    for bad, message in (
        ([{"prompt": "What?"}], "Row 0 has no 'image'"),
        ([{"image": image}], "Row 0 has no 'prompt'"),
        ([{"images": "a.png", "prompt": "x"}], "no list 'images'"),
        ([{"image": image, "prompt": "x", "split": "tset"}], "split 'tset'"),
        (["text"], "Row 0 is a str"),
        ([{"image": image, "prompt": "x", "id": "a"}] * 2, "Two rows have the id 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            made.examples(bad)


def test_the_vision_part_of_every_family_is_found(family_name: str):
    model, _ = build_family(family_name)
    frozen = ImageAdapter(demo_set()).frozen_modules(model)
    rest = [n for n, _ in model.named_parameters() if not any(n.startswith(f"{part}.") for part in frozen)]
    assert all("text_model" in n or "language_model" in n or n in ("lm_head.weight", "model.image_newline") for n in rest)
    assert len(rest) < len(list(model.parameters()))


def test_every_family_trains(trained_family: str, tmp_path: Path):
    model, processor = build_family(trained_family)
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer = SDFTTrainer(
        model,
        toy_args(tmp_path, learning_rate=1e-3),
        adapter=ImageAdapter(demo_set(), n_types=2, shots=1),
        train_dataset=demo_set().train,
        processing_class=processor,
    )
    assert trainer.train().training_loss > 0
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and not any(n.startswith(part) for n in changed for part in trainer.adapter.frozen_modules(model))
    placeholder_ids = find_family(model, processor).placeholder_ids
    assert processor.image_token_ids[0] in placeholder_ids


def test_settings_and_models_are_checked():
    with pytest.raises(UserError, match="selection 'best'"):
        ImageAdapter(demo_set(), selection="best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown placeholder"):
        ImageAdapter(demo_set(), template="{question}{oops}")
    text_model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(UserError, match="adapter: text"):
        ImageAdapter(demo_set()).bind(text_model, qwen()[1])
    with pytest.raises(UserError, match="No processor could be loaded"):
        ImageAdapter(demo_set()).bind(text_model)


def test_a_saved_model_brings_its_processor():
    model, _ = qwen()
    made = ImageAdapter(demo_set(), max_pixels=64)
    made = made.bind(made.load_model(str(family_folder("qwen3_vl"))))
    assert made.processing_class.image_processor.size["longest_edge"] == 64
    inputs = made.encode([example(made, "test").messages])
    assert inputs.rows[0].media["image_grid_thw"].prod() == 4
    assert model.config.model_type == "qwen3_vl"


def test_model_embeddings_of_every_family(family_name: str):
    model, processor = build_family(family_name)
    sources = [picture(kind, 0) for kind in range(5)]
    sources += [picture(5, 0).resize((48, 16)), picture(6, 0).resize((16, 40))]
    embed = ImageEmbedder("model", ImageFeatures(model, processor, find_family(model, processor)))
    embeddings_RD = embed(sources)
    torch.testing.assert_close(embeddings_RD.norm(dim=-1), torch.ones(7))
    assert (embeddings_RD @ embeddings_RD.T).fill_diagonal_(0).max() < 0.99999
    other = ImageEmbedder("model", ImageFeatures(model, processor, find_family(model, processor)))
    torch.testing.assert_close(other(sources[::-1]).flip(0), embeddings_RD, atol=1e-5, rtol=0)
    assert torch.equal(embed([sources[3], sources[3]]), embeddings_RD[[3, 3]])


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("clip")
    (folder / "ViT-small-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "ViT-small-for-tests"


def test_open_clip_embeddings(small_clip: str, tmp_path: Path):
    import open_clip

    sources = [picture(kind, 0) for kind in range(4)]
    embeddings_RD = ImageEmbedder(f"open_clip:{small_clip}/")(sources)
    assert embeddings_RD.shape == (4, 16)
    torch.testing.assert_close(embeddings_RD.norm(dim=-1), torch.ones(4))
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(small_clip).state_dict(), path)
    first, second = (ImageEmbedder(f"open_clip:{small_clip}/{path}") for _ in range(2))
    torch.testing.assert_close(first(sources), second(sources[::-1]).flip(0), atol=1e-5, rtol=0)
    made = adapter(embedder=f"open_clip:{small_clip}/{path}")
    assert len(images(made.teacher_messages(example(made, "test"), TeacherContext()))) == 7


def test_embedders_that_do_not_exist_are_refused(small_clip: str):
    for embedder, message in (
        ("clip", "Unknown embedder"),
        ("open_clip:ViT-nowhere/x", "knows no model 'ViT-nowhere'"),
        (f"open_clip:{small_clip}/no-such-tag", "could not load"),
    ):
        with pytest.raises(UserError, match=message):
            ImageEmbedder(embedder)
