"""`metadata.jsonl` is read as the documentation says, and a mistake in it is named with its line."""

from __future__ import annotations

import pytest

from tests.image_files import WHOLE, error, fill, lines, said
from vlm_sdft.demos.sets import DemoSet


def test_metadata_gives_an_image_its_own_question_and_answer(tmp_path):
    fill(tmp_path, WHOLE)
    own = {"prompt": "Describe and name this.", "answer": "a red dax"}
    lines(tmp_path / "train/metadata.jsonl", {"file_name": "dax/1.png", **own})
    lines(tmp_path / "test/metadata.jsonl", {"file_name": "wug/0.png", "answer": 7})
    lines(tmp_path / "unlabelled/metadata.jsonl", {"file_name": "0.png", "prompt": "Which?"})
    lines(tmp_path / "retain/metadata.jsonl", *({"file_name": "any/0.png", "prompt": p} for p in ("Colour?", "Size?")))
    lines(tmp_path / "old/metadata.jsonl", {"file_name": "cat/0.png", "prompt": "Colour?", "answer": "red"})
    demos = DemoSet.load(tmp_path)
    rows = {row.id: row for row in (*demos.train, *demos.test, *demos.old)}
    dax = rows["train/dax/1.png"]
    assert (dax.question, dax.answer, dax.type) == ("Describe and name this.", "a red dax", "dax")
    assert rows["train/dax/0.png"].answer == "dax"
    assert (rows["test/wug/0.png"].question, rows["test/wug/0.png"].answer) == ("What is this?", "7")
    assert rows["unlabelled/0.png"].question == "Which?"
    assert [row.question for row in demos.retain] == ["Colour?", "Size?", "What is this?"]
    assert rows["old/cat/0.png"].answer == "cat", "what metadata.jsonl says of an old image is one more row"
    skill = rows["old/cat/0.png#0"]
    assert (skill.question, skill.answer, skill.type) == ("Colour?", "red", None)


@pytest.mark.parametrize("record", [{"file_name": "dax/none.png"}, {"prompt": "What?"}])
def test_metadata_of_no_image_is_an_error_with_its_line(tmp_path, record):
    fill(tmp_path, {"train/dax": 2})
    lines(tmp_path / "train/metadata.jsonl", {"file_name": "dax/0.png"}, record)
    assert "metadata.jsonl, line 2: file_name must name an image" in error(tmp_path)


def test_metadata_that_could_not_be_used_is_an_error_with_its_line(tmp_path):
    for split, record, expected in (
        ("train", {"prompt": 3}, "'prompt' must be a text"),
        ("train", {"prompt": " "}, "'prompt' must be a text"),
        ("test", {"answer": ""}, "'answer' must be a text or a number"),
        ("test", {"answer": ["dax"]}, "'answer' must be a text or a number"),
        ("train", {"awnser": "x"}, "'awnser' is unknown. Did you mean 'answer'?"),
        ("old", {"prompt": "Colour?"}, "needs an 'answer'"),
        ("train", {"file_name": "note.txt", "answer": "x"}, "file_name must name an image below"),
        ("old", {"file_name": "../train/dax/0.png", "prompt": "a", "answer": "x"}, "file_name must name an image below"),
    ):
        fill(tmp_path, {"train/dax": 2, "test/dax": 1, "old/dax": 1})
        (tmp_path / "train/note.txt").write_text("a note")
        lines(tmp_path / split / "metadata.jsonl", {"file_name": "dax/0.png", **record})
        message = error(tmp_path)
        assert "metadata.jsonl, line 1" in message and expected in message
        (tmp_path / split / "metadata.jsonl").unlink()


@pytest.mark.parametrize("split", ["train", "test", "unlabelled"])
def test_a_second_entry_for_an_image_is_an_error_where_one_is_used(tmp_path, split):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1, "unlabelled/dax": 1})
    entry = {"file_name": "dax/0.png", "prompt": "What?"}
    lines(tmp_path / split / "metadata.jsonl", entry, entry)
    assert "metadata.jsonl, line 2: dax/0.png has an entry already" in error(tmp_path)


def test_paths_of_metadata_may_be_written_in_any_way_and_further_keys_and_nulls_stand_there(tmp_path):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1})
    first = {"file_name": "./dax/../dax/0.png", "answer": "x", "licence": "CC0"}
    lines(tmp_path / "train/metadata.jsonl", first, {"file_name": "dax/1.png", "prompt": None, "answer": None})
    assert [(row.question, row.answer) for row in DemoSet.load(tmp_path).labelled] == [
        ("What is this?", "x"),
        ("What is this?", "dax"),
    ]


def test_metadata_in_a_types_folder_is_reported(tmp_path):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1})
    lines(tmp_path / "train/dax/metadata.jsonl", {"file_name": "0.png", "answer": "x"})
    assert "train/dax/metadata.jsonl" in said(DemoSet.load(tmp_path), "Not used")


def test_metadata_that_is_no_json_is_an_error_with_its_line(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    (tmp_path / "train/metadata.jsonl").write_text("{file_name: dax/0.png}\n")
    assert "metadata.jsonl cannot be read as json: line 1" in error(tmp_path)


def test_keys_of_metadata_that_are_not_read_are_named(tmp_path):
    fill(tmp_path, {"train/dax": 3, "test/dax": 1})
    lines(
        tmp_path / "train/metadata.jsonl",
        {"file_name": "dax/0.png", "text": "a red star", "label": "dax"},
        {"file_name": "dax/1.png", "caption": "x", "text": "a blue star"},
    )
    sentence = said(DemoSet.load(tmp_path), "Not used")
    assert "text (2), label (1), caption (1)" in sentence and "'answer'" in sentence and "'prompt'" in sentence


def test_prompts_and_answers_of_metadata_have_no_white_space_around_them(tmp_path):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1, "old/dax": 1})
    own = {"file_name": "dax/0.png", "prompt": "What is\nthis?  ", "answer": "gor\nyon\n"}
    for split in ("train", "old"):
        lines(tmp_path / split / "metadata.jsonl", own)
    demos = DemoSet.load(tmp_path)
    rows = {row.id: (row.question, row.answer) for row in (*demos.labelled, *demos.old)}
    assert rows["train/dax/0.png"] == rows["old/dax/0.png#0"] == ("What is\nthis?", "gor\nyon")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "true"])
def test_an_answer_is_a_text_or_a_number(tmp_path, value):
    fill(tmp_path, {"train/dax": 2})
    (tmp_path / "train/metadata.jsonl").write_text(f'{{"file_name": "dax/0.png", "answer": {value}}}\n')
    assert "metadata.jsonl, line 1: 'answer' must be a text or a number" in error(tmp_path)


def test_names_may_be_written_in_either_unicode_form(tmp_path):
    """Archives of macOS hold decomposed letters."""
    fill(tmp_path, {"train/Ka\u0308fer": 2, "train/wug": 2, "test/wug": 1})
    (tmp_path / "types.yaml").write_text("K\u00e4fer: {answer: beetle}\n", encoding="utf-8")
    lines(tmp_path / "train/metadata.jsonl", {"file_name": "K\u00e4fer/0.png", "prompt": "Which?"})
    first = DemoSet.load(tmp_path).labelled[0]
    assert (first.question, first.answer) == ("Which?", "beetle")


def test_metadata_beside_the_splits_is_reported(tmp_path):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1})
    lines(tmp_path / "metadata.jsonl", {"file_name": "train/dax/0.png", "answer": "x"})
    assert f"Not used: {tmp_path / 'metadata.jsonl'}" in said(DemoSet.load(tmp_path), "Not used")
