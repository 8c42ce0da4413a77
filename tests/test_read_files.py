"""A user's files are read with bounds: what is no regular file, too large or broken is one sentence with the remedy."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.image_files import error, fill, lines
from text_sdft import files, row_files
from text_sdft.columns import load_rows
from text_sdft.core import UserError
from vlm_sdft.demos.sets import DemoSet
from vlm_sdft.images.files import content_hash, load_image


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(str(file))
    assert str(file) in str(caught.value)
    return str(caught.value)


def make(kind: str, file: Path) -> None:
    if kind == "a folder":
        file.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        os.chdir(file.parent)  # a socket's path is short
        server.bind(file.name)


KINDS = ["a folder", "a named pipe", "a device", "a socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_from_regular_files_alone(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        make(kind, tmp_path / name)
        assert f"is {kind}, where a file is needed" in refused(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_images_are_read_from_regular_files_alone(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"train/dax": 2, "train/wug": 2})
    make(kind, tmp_path / "train/dax/x.png")
    for read in (load_image, content_hash):
        with pytest.raises(UserError, match=f"x.png is {kind}"):
            read(tmp_path / "train/dax/x.png")
    assert f"x.png is {kind}" in error(tmp_path)
    assert len(DemoSet.load(tmp_path, on_bad_image="drop", holdout=0).labelled) == 4


@pytest.mark.parametrize("name", ["train/metadata.jsonl", "types.yaml"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_images_is_read_from_regular_files_alone(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"train/dax": 2})
    make(kind, tmp_path / name)
    assert f"{Path(name).name} is {kind}" in error(tmp_path)


def test_retention_prompts_are_read_from_a_text_file(tmp_path):
    from vlm_sdft.config import ImageData, load_demos

    fill(tmp_path / "data", {"train/dax": 2})
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"prompts\.txt is not UTF-8"):
        load_demos(ImageData(str(tmp_path / "data"), retain=str(tmp_path / "prompts.txt")))


def test_files_beyond_the_limit_are_not_read(tmp_path):
    for name in ("rows.jsonl", "rows.csv", "x.png"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10 * 2**30)  # holes, which take no place on the disk
    for name in ("rows.jsonl", "rows.csv"):
        assert "holds 10,240 MiB; at most 1,024 MiB are read" in refused(tmp_path / name)
    with pytest.raises(UserError, match=r"x\.png holds 10,240 MiB; at most 512 MiB are read"):
        load_image(tmp_path / "x.png")
    assert files.MOST_BYTES == 1024 * 2**20


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": "%s"}\n' % ("x" * 99)),
        ("rows.json", '[{"prompt": "a"}, {"prompt": "%s"}]' % ("x" * 99)),
        ("rows.csv", "prompt\n" + "x" * 99),
        ("rows.jsonl", "\0" * 99),
    ],
)
def test_a_row_without_end_is_named(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(row_files, "MOST_CHARACTERS", 50)
    (tmp_path / name).write_text(text)
    message = refused(tmp_path / name)
    assert "has more than" in message and any(place in message for place in ("line 1", "line 2", "row 1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": ' + "[" * 100_000, "line 2: lists or objects stand a thousand deep"),
        ('{"prompt": ' + "1" * 5000 + "}", "line 2: a number has more than 4,300 digits"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: 'prompt' stands twice in one object"),
        ('{"prompt": {"a": 1, "a": 2}}', "line 2: 'a' stands twice in one object"),
        ('{"prompt": "\\ud83d"}', "line 2: half of a character"),
    ],
)
def test_json_that_cannot_be_taken_as_it_stands_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a \\ud83d\\ude00"}\n' + text + "\n")
    assert expected in refused(tmp_path / "rows.jsonl")


def test_a_column_that_stands_twice_is_named(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,reference,prompt\na,b,c\n")
    assert "line 1: the column 'prompt' stands twice" in refused(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("prompt,,\na,,\n")
    assert load_rows(str(tmp_path / "rows.csv")) == [{"prompt": "a", "": None}]


def test_lines_end_where_they_did(tmp_path):
    rows = [{"prompt": "a\u2028b"}, {"prompt": "c\x85d"}]
    (tmp_path / "rows.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    assert load_rows(str(tmp_path / "rows.jsonl")) == rows
    lines(tmp_path / "more.jsonl", *rows)
    assert load_rows(str(tmp_path / "more.jsonl")) == rows


def test_a_types_file_says_a_thing_once_and_is_not_deep(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    for text, expected in (
        ("dax: {answer: a}\ndax: {answer: b}\n", "'dax' stands twice"),
        ("dax: {answer: a, answer: b}\n", "'answer' stands twice"),
        ("dax: " + "[" * 600, "too deep"),
    ):
        (tmp_path / "types.yaml").write_text(text)
        message = error(tmp_path)
        assert "types.yaml" in message and expected in message


@pytest.mark.parametrize(
    "place", ["train/dax/\udcff.png", "train/d\udce9x/0.png", "notes\udcff.txt", "unlabelled/\udcff.png"]
)
def test_a_name_that_is_not_utf8_is_refused_at_the_start(tmp_path, place):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "unlabelled": 1})
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes((tmp_path / "train/dax/0.png").read_bytes())
    message = error(tmp_path)
    assert "is not UTF-8. Rename" in message and message.isprintable()


def test_what_lies_outside_the_data_is_counted_once(tmp_path):
    outside = fill(tmp_path / "elsewhere", {"": 2}, start=50)
    root = fill(tmp_path / "data", {"train/dax": 2, "train/wug": 2})
    (root / "train/dax/linked.png").symlink_to(outside / "0.png")
    demos = DemoSet.load(root)
    [note] = [sentence for sentence in demos.report if "outside" in sentence]
    assert note.startswith(f"1 images that are read lie outside of {root}, such as {root}/train/dax/linked.png")
    rows = [("a", "../elsewhere/0.png"), ("b", str(outside / "1.png")), ("c", "train/dax/0.png")]
    turns = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}] for answer, _ in rows]
    lines(root / "rows.jsonl", *({"messages": m, "images": [i]} for m, (_, i) in zip(turns, rows, strict=True)))
    [note] = [sentence for sentence in DemoSet.load(root / "rows.jsonl").report if "outside" in sentence]
    assert note.startswith("2 images")
