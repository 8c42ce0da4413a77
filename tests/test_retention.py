"""Retention prompts: where they come from, and what stands in those that are asked in context."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.image_files import fill
from tests.kinds import NAMES, adapter, answers, demo_set, images, qwen
from tests.toy import toy_args
from text_sdft.core import TeacherContext, UserError
from text_sdft.training import SDFTTrainer
from vlm_sdft.adapter import ImageAdapter
from vlm_sdft.config import ImageData, load_demos
from vlm_sdft.demos.episodes import Episodes
from vlm_sdft.demos.retention import CROP_AREA, retain_in_context, retain_made
from vlm_sdft.demos.sets import DemoSet, ImageRow
from vlm_sdft.images.files import content_hash, load_image


def in_context(share: float = 0.75) -> tuple[ImageAdapter, list[Any]]:
    demos = retain_in_context(demo_set(), share)
    made = ImageAdapter(demos, n_types=3, shots=2).bind(*qwen())
    return made, [e for e in made.examples(demos.train) if e.retain and e.meta["row"].in_context]


# ---- in context ----


def test_the_share_is_of_all_retention_prompts():
    plain = len(demo_set().retain)
    for share, expected in ((0.0, 0), (0.5, plain), (0.75, 3 * plain)):
        rows = retain_in_context(demo_set(), share).retain
        assert sum(row.in_context for row in rows) == expected and len(rows) == plain + expected
    alone = retain_in_context(replace(demo_set(), retain=[]), 0.1)
    queries = {row.hashes for row in (*demo_set().labelled, *demo_set().unlabelled)}
    uses = Counter(row.hashes for row in alone.retain)
    assert set(uses) == queries and set(uses.values()) == {4}, "each image as often as any other"
    assert len({row.id for row in alone.retain}) == len(alone.retain)


def test_images_that_are_alike_have_a_name_that_says_nothing():
    made, examples = in_context(0.95)
    kinds = {content_hash(row.images[0]): row.answer for row in demo_set().labelled}
    names: dict[str, set[str]] = {}
    for example in examples:
        view = made.student_messages(example)
        assert view == made.teacher_messages(example, TeacherContext(1)) == made.student_messages(example)
        *shown, query = map(content_hash, images(view))
        given = answers(view)
        assert len(shown) == len(set(shown)) == 10 and query not in shown
        assert sorted(Counter(given).values()) == [2] * 5 and set(given) <= set(NAMES)
        for image, name in zip(shown, given, strict=True):
            if image in kinds:
                names.setdefault(str(kinds[image]), set()).add(name)
        if query in kinds:  # pictures of one kind differ in noise alone
            own = {name for image, name in zip(shown, given, strict=True) if kinds.get(image) == kinds[query]}
            assert len(own) == 1
        assert example.reference is None and made.expert_answer(example) is None
    assert all(len(found) >= 3 for found in names.values()), "every kind under several names"


def test_an_episode_of_few_images_and_names():
    rows = [row for row in demo_set().labelled if row.answer in ("dax", "wug")]
    vectors_RD = torch.eye(len(rows))
    for answers_, n_names in ((["dax ru", "bli ket"], 4), (["dax", "a wug"], 2)):
        seen = set()
        for seed in range(40):
            shown = Episodes(rows, vectors_RD, answers_, shots=1).draw(rows[0], vectors_RD[0], seed)
            assert rows[0].id not in {row.id for row, _ in shown} and len(shown) == len({n for _, n in shown})
            seen |= {name for _, name in shown}
        assert len(seen) == n_names and len(shown) == min(n_names, 4)


def test_other_prompts_are_what_they_were():
    made, _ = in_context()
    for row in demo_set().train:
        [example] = made.examples([row])
        assert made.student_messages(example) == example.messages == adapter().student_messages(example)


def test_the_start_reads_the_same_prompt(tmp_path):
    """A student that has not moved loses nothing on it, and its gradient is zero."""
    made, examples = in_context()
    model, processor = qwen()
    args = toy_args(tmp_path, max_completion_length=4, retain_ratio=1.0)
    queries = [e for e in made.examples(demo_set().train) if not e.retain][:2]
    trainer = SDFTTrainer(model, args, adapter=made, train_dataset=[*queries, *examples], processing_class=processor)
    trainer.compute_loss(trainer.model, {"examples": queries})
    losses = {sample["id"]: sample["loss"] for sample in trainer.metrics.samples}
    kept = [loss for name, loss in losses.items() if name.startswith("in context")]
    assert kept and max(kept) < 1e-6 < min(loss for name, loss in losses.items() if not name.startswith("in context"))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(UserError, match=r"data\.retain_in_context"):
        retain_in_context(demo_set(), share)


def test_one_type_has_no_name_to_exchange():
    one = DemoSet(labelled=[row for row in demo_set().labelled if row.answer == "dax"])
    with pytest.raises(UserError, match="at least 2 types"):
        retain_in_context(one, 0.5)


# ---- sources ----


def load(tmp_path, **settings: Any) -> DemoSet:
    return load_demos(ImageData(str(fill(tmp_path / "data", {"train/dax": 3, "test/dax": 1, "unlabelled": 2})), **settings))


def test_crops_are_parts_of_the_users_training_images(tmp_path):
    demos = load(tmp_path, retain="crops", retain_questions=["What?", "Where?"])
    assert len(demos.retain) == 2 * 2 * 5 and any("20 retention prompts: crops" in note for note in demos.report)
    assert Counter(row.question for row in demos.retain) == {"What?": 10, "Where?": 10}
    again = load(tmp_path, retain="crops", retain_questions=["What?", "Where?"])
    assert [row.images for row in again.retain] == [row.images for row in demos.retain]


def test_both_settings_go_together(tmp_path):
    root = fill(tmp_path / "data", {"train/dax": 2, "train/wug": 2, "test/dax": 1, "retain": 3})
    demos = load_demos(ImageData(str(root), retain="crops", retain_in_context=0.5))
    kinds = Counter(row.id.partition("/")[0].partition(" ")[0] for row in demos.retain)
    assert kinds == {"retain": 3, "data.retain": 8, "in": 11}
    dax = load_demos(ImageData(str(root), retain="crops", types=["dax"]))
    assert len(dax.retain) == 3 + 4, "crops of the chosen types alone"


def test_a_crop_shows_no_more_than_its_share(tmp_path):
    """Every pixel of a picture has a grey value of its own: those in a crop tell which part it is."""
    ramp = np.linspace(0, 255, 100).astype(np.uint8)
    for axis in (0, 1):
        picture = np.repeat(np.expand_dims(ramp, axis), 100, axis)
        demos = DemoSet(labelled=[ImageRow("x", (Image.fromarray(picture),), "?", "a", "a", "train")])
        spans = []
        for row in retain_made(demos, "crops", ["?"]).retain:
            crop = load_image(row.images[0])
            assert crop.size == (100, 100)
            grey = np.asarray(crop)[..., 0].astype(float)
            spans.append((grey.max() - grey.min()) / 255)
        assert all(0.8 * CROP_AREA[0] ** 0.5 < span < 1.2 * CROP_AREA[1] ** 0.5 for span in spans)


@pytest.mark.slow
def test_drawn_pictures_are_of_no_type_of_the_builtin_data(tmp_path):
    rows = load(tmp_path, retain="drawn").retain
    sizes = {Image.open(io.BytesIO(row.images[0])).size for row in rows}  # type: ignore[arg-type]
    assert len(rows) == len({row.images for row in rows}) == 250 and sizes == {(256, 256)}


def test_prompts_without_images_are_encoded_and_kept(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Who are you?\n\n  Count to three. \n")
    demos = load(tmp_path, retain=str(file))
    assert [(row.images, row.question) for row in demos.retain] == [((), "Who are you?"), ((), "Count to three.")]
    made = ImageAdapter(demos, n_types=1).bind(*qwen())
    mixed = made.encode([made.student_messages(e) for e in made.examples(demos.train)][-4:])
    batch = mixed.batch()
    with torch.no_grad():
        assert qwen()[0](**batch).logits.isfinite().all()


@pytest.mark.parametrize(("content", "words"), [(b" \n", "holds no prompt"), (b"\xff\xfe\x00", "not UTF-8 text")])
def test_a_file_without_prompts_is_named(tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(tmp_path, retain=str(file))


def test_a_mistyped_source_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the folder crop does not exist.*crops and drawn"):
        load(tmp_path, retain="crop")
