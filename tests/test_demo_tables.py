"""Demo sets from JSONL files and from `datasets`: what is read, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.image_files import error, fill, lines, names, said, save
from text_sdft.core import UserError
from vlm_sdft.config import ImageData, load_demos
from vlm_sdft.demos.sets import DemoSet

# ---- JSONL ----


def chat(question: str | list[Any], answer: str | None, image: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"<image>{question}" if isinstance(question, str) else question}]
    turns += [{"role": "assistant", "content": answer}] if answer else []
    return {"messages": turns, "images": [image], **more}


def test_jsonl_rows_are_read_with_their_own_questions(tmp_path):
    fill(tmp_path, {"images": 7})
    parts = [{"type": "image"}, {"type": "text", "text": "Name it."}]
    lines(
        tmp_path / "rows.jsonl",
        chat("What is it?", "dax", "images/0.png"),
        chat("What is it?", "A dax.", "images/1.png"),
        {"messages": [{"role": "user", "content": parts}], "images": ["images/2.png"]},
        chat("What is it?", "dax", "images/3.png", split="test"),
        chat("Colour?", "red", "images/4.png", split="old"),
        chat("Go on?", None, "images/5.png", split="retain"),
    )
    demos = DemoSet.load(tmp_path / "rows.jsonl")
    assert [(row.id, row.question, row.answer) for row in demos.labelled] == [
        ("line 1", "What is it?", "dax"),
        ("line 2", "What is it?", "A dax."),
    ]
    assert len(demos.types) == 1, "answers that are the same when compared are one type"
    assert [(row.question, row.answer) for row in demos.unlabelled] == [("Name it.", None)]
    assert names(demos.test) == ["line 4"] and names(demos.retain) == ["line 6"]
    assert [(row.answer, row.type) for row in demos.old] == [("red", None)]


def test_a_mistake_in_a_jsonl_names_its_line(tmp_path):
    for record, expected in (
        ({"images": ["images/0.png"]}, 'needs "messages"'),
        ({"messages": [{"role": "user", "content": "x"}]}, '"images"'),
        ({"messages": [{"role": "user"}], "images": ["images/0.png"]}, "role and content"),
        ({"messages": ["x"], "images": ["images/0.png"]}, "role and content"),
        (chat("x", "y", "images/0.png", split="tset"), "split 'tset'"),
        (chat("x", None, "images/0.png", split="test"), "an assistant turn to test on"),
        (["x"], "is a list; a row is an object"),
        (chat(["x"], "y", "images/0.png"), "role and content"),
        (chat([{"text": "x"}], "y", "images/0.png"), "role and content"),
        (chat([{"type": "text"}], "y", "images/0.png"), "role and content"),
        (chat("x", " ", "images/0.png"), "the answer is empty"),
        (chat("x", "y", "images/0.png") | {"images": [{"path": "images/0.png"}]}, '"images" (paths)'),
    ):
        fill(tmp_path, {"images": 2})
        lines(tmp_path / "rows.jsonl", chat("x", "dax", "images/1.png"), record)
        message = error(tmp_path / "rows.jsonl")
        assert "line 2" in message and expected in message


def test_a_missing_image_of_a_jsonl_is_named_or_dropped_as_asked(tmp_path):
    fill(tmp_path, {"images": 2})
    lines(tmp_path / "rows.jsonl", chat("x", "dax", "images/0.png"), chat("x", "dax", "images/none.png"))
    assert "none.png does not exist" in error(tmp_path / "rows.jsonl")
    demos = load_demos(ImageData(str(tmp_path / "rows.jsonl"), on_bad_image="drop"))
    assert names(demos.labelled) == ["line 1"] and "none.png" in said(demos, "Dropped")


def test_a_retention_folder_beside_a_jsonl_is_refused_rather_than_forgotten(tmp_path):
    fill(tmp_path, {"images": 1})
    lines(tmp_path / "rows.jsonl", chat("x", "dax", "images/0.png"))
    assert '"split": "retain"' in error(tmp_path / "rows.jsonl", retain=tmp_path / "images")


def test_a_jsonl_may_begin_with_a_mark_and_leave_the_split_empty(tmp_path):
    """Windows editors write the mark; exports of tables write null."""
    fill(tmp_path, {"images": 1})
    row = json.dumps(chat("x", "dax", "images/0.png", split=None))
    (tmp_path / "rows.jsonl").write_text(f"{row}\n", encoding="utf-8-sig")
    assert names(DemoSet.load(tmp_path / "rows.jsonl").labelled) == ["line 1"]


def test_system_messages_of_a_jsonl_are_not_dropped_in_silence(tmp_path):
    fill(tmp_path, {"images": 1})
    row = chat("x", "dax", "images/0.png")
    row["messages"].insert(0, {"role": "system", "content": "Answer in French."})
    lines(tmp_path / "rows.jsonl", row)
    assert "data.system_prompt" in said(DemoSet.load(tmp_path / "rows.jsonl"), "1 system messages")


# ---- datasets ----


def table(root: Path, labels: list[Any], start: int, feature: Any = None) -> datasets.Dataset:
    files = [str(save(root / f"{start + i}.png", start + i)) for i in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": feature or datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)


def test_a_dataset_with_class_labels(tmp_path):
    kinds = datasets.ClassLabel(names=["dax_ru", "wug"])
    demos = DemoSet.from_dataset(table(tmp_path, [0, 0, 1, 1, 1], 0, kinds), question="Name it.")
    assert {name: kind.answer for name, kind in demos.types.items()} == {"dax_ru": "dax ru", "wug": "wug"}
    assert len(demos.labelled) == 3 and len(demos.test) == 2
    said(demos, "There is no test/")
    assert {row.question for row in demos.labelled} == {"Name it."}


def test_a_dataset_dict_with_strings_and_its_splits(tmp_path):
    parts = {
        "train": table(tmp_path, ["dax", "dax", "wug", "wug"], 0),
        "test": table(tmp_path, ["dax", "wug"], 10),
        "unlabelled": table(tmp_path, ["", ""], 20).remove_columns("label"),
        "retain": table(tmp_path, ["", ""], 30),
        "old": table(tmp_path, ["cat"], 40),
        "validation": table(tmp_path, ["dax"], 50),
    }
    demos = DemoSet.from_dataset(datasets.DatasetDict(parts))
    assert names(demos.labelled) == [f"train/{i}" for i in range(4)]
    assert [len(rows) for rows in (demos.test, demos.unlabelled, demos.retain, demos.old)] == [2, 2, 2, 1]
    assert {row.answer for row in (*demos.unlabelled, *demos.retain)} == {None}
    said(demos, "'validation' is not used")
    images = [row.images[0] for row in (*demos.train, *demos.test)]
    assert all(isinstance(image, dict) for image in images), "images stay encoded until they are needed"


def test_the_validation_split_of_a_dataset_is_tested_on_where_there_is_no_test(tmp_path):
    parts = {"train": table(tmp_path, ["dax", "dax"], 0), "validation": table(tmp_path, ["dax"], 50)}
    demos = DemoSet.from_dataset(datasets.DatasetDict(parts))
    assert names(demos.test) == ["validation/0"] and len(demos.labelled) == 2
    said(demos, "'validation' is taken as 'test'")


def test_a_mistake_in_a_dataset_is_named(tmp_path):
    rows = table(tmp_path, ["dax", "dax"], 0)
    with pytest.raises(UserError, match=r"no column 'label' \(it has image, kind\)"):
        DemoSet.from_dataset(rows.rename_column("label", "kind"))
    with pytest.raises(UserError, match="'list' is no data set"):
        DemoSet.from_dataset([{"image": "a.png", "label": "dax"}])
    with pytest.raises(UserError, match="'label' holds no images"):
        DemoSet.from_dataset(datasets.Dataset.from_dict({"label": [1, 2]}), image_column="label")
    with pytest.raises(UserError, match="'train' must be there"):
        DemoSet.from_dataset(datasets.DatasetDict({"test": rows}))
    kinds = datasets.ClassLabel(names=["dax"])
    with pytest.raises(UserError, match=r"train/1 has no label"):
        DemoSet.from_dataset(table(tmp_path, [0, -1], 0, kinds))


def test_a_damaged_image_of_a_dataset_is_named_by_its_row(tmp_path):
    good = save(tmp_path / "0.png", 0).read_bytes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    images = [{"path": None, "bytes": data} for data in (good, good[:60], b"nothing")]
    with pytest.raises(UserError, match=r"train/1: .*\n.*train/2: "):
        DemoSet.from_dataset(
            datasets.Dataset.from_dict({"image": images, "label": ["dax"] * 3}, features=features), holdout=0
        )


def test_jsonl_with_any_unicode_and_its_mistakes(tmp_path):
    save(tmp_path / "a.png", 1)
    good = {
        "messages": [{"role": "user", "content": "What\u2028is this?"}, {"role": "assistant", "content": "dax"}],
        "images": ["a.png"],
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good, ensure_ascii=False) + "\n", encoding="utf-8")
    assert DemoSet.from_jsonl(file).labelled[0].question == "What\u2028is this?"
    lines(file, {**good, "messages": [{"role": "user", "content": None}]})
    assert "line 1: each message needs" in error(file)
    file.write_bytes(b'{"messages": "\xff"}')
    assert "Save it as UTF-8" in error(file)
