"""The tables "What you have, and what is done with it" of docs/ are true, each row of them."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.image_files import error, fill, lines, names, said, save
from tests.test_chat_rows import ANSWER, CALL, IMAGE, USER, asked, row, text
from text_sdft import TextAdapter
from text_sdft.columns import KINDS, load_rows
from text_sdft.config import TextData, TextDemonstrations
from text_sdft.core import UserError
from vlm_sdft.demos.sets import DemoSet
from vlm_sdft.images.files import read_image
from vlm_sdft.images.loading import refusal_by

DOCS = Path(__file__).parent.parent / "docs"
TYPES = {"train/dax": 3, "train/wug": 3}
TESTED = {**TYPES, "test/dax": 1}


def documented(page: str) -> list[str]:
    """The first cells of the tables' rows."""
    section = (DOCS / page).read_text(encoding="utf-8").split("### What you have", 1)[1]
    section = re.split(r"^(?:###|`demonstrations)", section, maxsplit=1, flags=re.M)[0]
    return re.findall(r"^\| (.+?) \|.*\n(?!\|---)", section, re.M)  # heads are followed by |---


# ---- images ----


def noted(root: Path, words: str, **options: Any) -> DemoSet:
    demos = DemoSet.load(root, **options)
    said(demos, words)
    return demos


def refused(root: Path, words: str, **options: Any) -> None:
    assert words in error(root, **options)


def bad(make: Callable[[Path], Any], words: str, root: Path) -> None:
    """An image that ``make`` writes is bad: refused, or dropped with a note."""
    fill(root, TESTED)
    make(root / "train/dax/x.png")
    options = {"refusal": refusal_by("builtin:tiny-qwen3-vl")}
    refused(root, words, **options)
    demos = DemoSet.load(root, on_bad_image="drop", **options)
    assert len(demos.labelled) == 6 and "x.png" in said(demos, "Dropped: ")


def jsonl(root: Path, *rows: Any) -> DemoSet:
    fill(root, {"": 8})
    lines(root / "rows.jsonl", *rows)
    return DemoSet.load(root / "rows.jsonl")


def jsonl_refused(root: Path, words: str, *rows: Any) -> None:
    fill(root, {"": 8})
    lines(root / "rows.jsonl", *rows)
    message = error(root / "rows.jsonl")
    assert words in message and "rows.jsonl" in message


def linked(root: Path) -> None:
    fill(root / "set", TESTED)
    (root / "set/train/dax/x.png").symlink_to(save(root / "x.png", 99))
    noted(root / "set", "1 images that are read lie outside")


def not_utf8(root: Path) -> None:
    fill(root, TESTED)
    (root / "train/dax/\udcff.png").write_bytes(b"")
    refused(root, "is not UTF-8")


def any_format(root: Path) -> None:
    fill(root, TESTED)
    for kind in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "avif", "jp2"):
        Image.effect_noise((32, 32), 60).convert("RGB").save(root / f"train/dax/x.{kind}")
    assert len(DemoSet.load(root).labelled) == 6 + 9


def deep(root: Path) -> None:
    fill(root, TESTED)
    Image.fromarray(np.full((16, 16), 4095, np.uint16)).save(root / "train/dax/x.png")
    noted(root, "1 of 12 bits")
    assert np.asarray(read_image(root / "train/dax/x.png")[0]).min() == 255


def moving(root: Path) -> None:
    fill(root, TESTED)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(root / "train/dax/x.gif", save_all=True, append_images=frames[1:])
    noted(root, "Only the first picture is read")


def all_bad(root: Path, drop: bool) -> None:
    fill(root, {**TESTED, "unlabelled": 1, "retain": 1})
    for name in ("train/dax/x.png", "test/dax/x.png", "unlabelled/x.png", "retain/x.png"):
        (root / name).write_bytes(b"nothing")
    if drop:
        assert sum("Dropped" in line for line in DemoSet.load(root, on_bad_image="drop").report) == 4
    else:
        assert error(root).count("cannot be read as an image") == 4


def copied(root: Path) -> None:
    fill(root, TESTED)
    shutil.copy(root / "test/dax/0.png", root / "train/dax/x.png")
    noted(root, "train/dax/x.png is the same image as test/dax/0.png")


def metadata(root: Path, *entries: dict[str, Any] | str) -> Path:
    fill(root, TESTED)
    written = [e if isinstance(e, str) else json.dumps({"file_name": "dax/0.png", **e}) for e in entries]
    (root / "train/metadata.jsonl").write_text("\n".join(written))
    return root


def own_answer(root: Path) -> None:
    [first, *_] = DemoSet.load(metadata(root, {"prompt": " Which? ", "answer": "a dax\n"})).labelled
    assert (first.question, first.answer) == ("Which?", "a dax")


def uses(root: Path) -> None:
    splits = ("train", "test", "unlabelled", "retain", "old")
    demos = jsonl(root, *(row("a", start=i, split=split) for i, split in enumerate(splits)), row("b", start=6))
    assert [names(getattr(demos, use)) for use in ("labelled", *splits[1:])] == [
        ["line 1", "line 6"], ["line 2"], ["line 3"], ["line 4"], ["line 5"]
    ]  # fmt: skip


def outside(root: Path) -> None:
    fill(root, {"pictures": 1})
    rows = {"messages": [USER, ANSWER], "images": ["../pictures/0.png"]}
    lines(root / "rows/rows.jsonl", rows)
    noted(root / "rows/rows.jsonl", "1 images that are read lie outside")


IMAGES: dict[str, Callable[[Path], Any]] = {
    "`train/<type>/*`, `test/<type>/*`": lambda p: len(DemoSet.load(fill(p, TESTED)).labelled) == 6 or pytest.fail(),
    "`<type>/*` alone": lambda p: DemoSet.load(fill(p, {"dax": 2, "wug": 2})).labelled or pytest.fail(),
    "no `test/`, but `val/`, `valid/` or `validation/` with the same types": lambda p: noted(
        fill(p, {**TYPES, "valid/dax": 1}), "is taken as test/"
    ),
    "`val/` beside `test/`": lambda p: noted(fill(p, {**TESTED, "val/dax": 1}), "Not used: the folders val"),
    "neither of them": lambda p: noted(fill(p, TYPES), "were held out of train/"),
    "the folder above the one that holds `train/`": lambda p: refused(
        fill(p / "a", {f"b/{k}": n for k, n in TYPES.items()}).parent, f"{p / 'a/b'} has: give that"
    ),
    "folders below a type's folder": lambda p: noted(fill(p, {**TESTED, "train/dax/red": 1}), "hold further folders"),
    "`test/images/*`, without folders of types": lambda p: refused(fill(p, {**TYPES, "test/images": 1}), "no type folders"),
    "a type's folder without images": lambda p: ((fill(p, TESTED) / "train/zup").mkdir(), refused(p, "zup holds no image")),
    "other folders and images beside `train/`": lambda p: (
        noted(fill(p, {**TESTED, "other": 1, ".": 1}), "Not used: the folders other"),
        noted(p, "Not used: 1 images"),
    ),
    "files without an image's ending": lambda p: (
        (fill(p, TESTED) / "train/dax/a.txt").touch(),
        noted(p, "no ending of an image"),
    ),
    "hidden files and folders (`.name`)": lambda p: (
        len(DemoSet.load(fill(p, {**TESTED, "train/.zup": 1, "train/dax/.x": 1})).labelled) == 6 or pytest.fail()
    ),
    "links that lead out of the folder": linked,
    "a name that is not UTF-8": not_utf8,
    "types that differ in letter case or Unicode form only": lambda p: refused(
        fill(p, {**TYPES, "test/Dax": 1}), "'dax' (in train/) and 'Dax' (in test/)"
    ),
    "`_` and spaces in a type's folder name": lambda p: (
        DemoSet.load(fill(p, {**TESTED, "train/_a__b ": 1})).types["_a__b "].answer == "a b" or pytest.fail()
    ),
    "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000": any_format,
    "another format (EPS, ICO, PSD, …) under the ending of one of these": functools.partial(
        bad, lambda file: Image.new("RGB", (32, 32)).save(file, "ICO"), "no format that is read"
    ),
    "damaged, missing, or refused by the model's processor": functools.partial(
        bad, lambda file: Image.new("RGB", (2000, 3)).save(file), "refused by the model's image processor"
    ),
    "a named pipe, a socket, a device": functools.partial(bad, os.mkfifo, "is a named pipe"),
    "above 100 million pixels, 65,535 on a side, or 512 MiB": functools.partial(
        bad, lambda file: Image.new("1", (70_000, 1)).save(file), "65,535 on a side"
    ),
    "floating-point values, or values beyond 16 bits": functools.partial(
        bad, lambda file: Image.new("F", (16, 16)).save(file, "TIFF"), "floating-point"
    ),
    "bad images, `on_bad_image: error`": functools.partial(all_bad, drop=False),
    "bad images, `on_bad_image: drop`": functools.partial(all_bad, drop=True),
    "10 to 14 bits in a 16-bit file": deep,
    "an animation, a file of several pages": moving,
    "a copy of a test image among those to train on": copied,
    "`file_name`, `prompt`, `answer`": own_answer,
    "any other (`text`, `label`, `caption`, …)": lambda p: noted(metadata(p, {"text": "a"}), "keys (rows) text (1)"),
    "nearly one of the three (`awnser`)": lambda p: refused(metadata(p, {"awnser": "a"}), "Did you mean 'answer'"),
    "an `answer` that is NaN, empty or a list": lambda p: refused(
        metadata(p, '{"file_name": "dax/0.png", "answer": NaN}'), "'answer' must be"
    ),
    "a second entry for an image to train or measure on": lambda p: refused(metadata(p, {}, {}), "has an entry already"),
    "a user turn and an assistant turn": lambda p: jsonl(p, row("What?")).labelled[0].answer == "dax" or pytest.fail(),
    "a user turn alone": lambda p: (
        names(jsonl(p, row("a"), {"messages": [USER], "images": ["1.png"]}).unlabelled) == ["line 2"] or pytest.fail()
    ),
    '`<image>` in the text, or parts `{"type": "image"}`': lambda p: (
        asked(jsonl(p, row("a<image>b"))) == asked(jsonl(p, row([text("a"), IMAGE, text("b")]))) == ["a", "0.png", "b"]
        or pytest.fail()
    ),
    "neither": lambda p: asked(jsonl(p, row("a"))) == ["0.png", "a"] or pytest.fail(),
    "another number of places than `images`": lambda p: jsonl_refused(p, "2 places of images", row("<image><image>")),
    "a system message": lambda p: said(
        jsonl(p, {"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "images": ["0.png"]}), "1 system messages"
    ),
    "earlier turns, tool calls, tool results, `tools`": lambda p: (
        jsonl_refused(p, "'tools'", row("a", tools=[CALL])),
        jsonl_refused(p, "turns of user, tool", {"messages": [USER, {**ANSWER, "role": "tool"}], "images": ["0.png"]}),
    ),
    '`"split"`: `train`, `test`, `unlabelled`, `retain` or `old`': uses,
    "images by `../` or outside of the file's folder": outside,
    "a line of more than 10 million characters, a key that stands twice": lambda p: (
        (fill(p, {"": 1}) / "rows.jsonl").write_text('{"images": [], "images": []}'),
        refused(p / "rows.jsonl", "line 1: 'images' stands twice"),
    ),
}


def test_the_page_on_images_has_a_row_for_each_case():
    assert documented("your-own-images.md") == list(IMAGES)


@pytest.mark.parametrize("name", list(IMAGES))
def test_images(tmp_path, name):
    IMAGES[name](tmp_path)


# ---- text ----

ROW = {"prompt": "two and two", "golden_response": "four"}


def from_rows(root: Path, *rows: Any, test: Any = None) -> Any:
    """The splits of a data section whose file holds these rows."""
    lines(root / "rows.jsonl", *rows)
    lines(root / "test.jsonl", *(test or [{"prompt": "a", "reference": "b"}]))
    data = TextData(str(root / "rows.jsonl"), test=str(root / "test.jsonl"))
    return TextAdapter.from_config(data, TextDemonstrations())[1]


def row_refused(root: Path, words: str, *rows: Any) -> None:
    with pytest.raises(UserError) as caught:
        from_rows(root, *rows)
    assert words in str(caught.value) and "rows.jsonl" in str(caught.value)


def file_refused(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_rows(str(file))
    assert words in str(caught.value) and file.name in str(caught.value)


def read_rows(root: Path) -> None:
    lines(root / "a.jsonl", ROW)
    (root / "b.json").write_text(json.dumps([ROW]))
    assert load_rows(str(root / "a.jsonl")) == load_rows(str(root / "b.json")) == [ROW]


def read_csv(root: Path) -> None:
    (root / "a.csv").write_text("prompt,reference\n007,\n")
    assert load_rows(str(root / "a.csv")) == [{"prompt": "007", "reference": None}]


def read_tables(root: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([ROW])
    table.to_parquet(root / "a.parquet")
    table.save_to_disk(root / "saved")
    assert load_rows(str(root / "a.parquet")) == load_rows(str(root / "saved")) == [ROW]


def in_place_of_a_file(root: Path) -> None:
    (root / "a.jsonl").mkdir()
    os.mkfifo(root / "b.csv")
    for name, kind in (("a.jsonl", "a folder"), ("b.csv", "a named pipe")):
        with pytest.raises(UserError, match=f"{name} is {kind}"):
            load_rows(str(root / name))


def large(root: Path) -> None:
    with (root / "a.jsonl").open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(UserError, match="at most 1,024 MiB"):
        load_rows(str(root / "a.jsonl"))


def blank(root: Path) -> None:
    splits = from_rows(
        root, {**ROW, "privileged_context": " "}, test=[{"prompt": "a", "reference": " "}, ROW | {"reference": "b"}]
    )
    assert splits.train[0].privileged_context is None and "1 of 2 rows" in " ".join(splits.report)


def reported(root: Path, words: str, *rows: Any, test: Any = None) -> None:
    assert words in " ".join(from_rows(root, *rows, test=test).report)


TEXT: dict[str, Callable[[Path], Any]] = {
    "`.jsonl`: an object a line; `.json`: a list of objects": read_rows,
    "`.csv` with a line of column names": read_csv,
    "`.parquet`, a folder that `datasets` saved, a hub's name": read_tables,
    "another ending": lambda p: file_refused(p / "a.txt", b"prompt", f"neither a file ({', '.join(KINDS)})"),
    "a folder, a pipe, a socket or a device in a file's place": in_place_of_a_file,
    "a file above 1 GiB, a row of more than 10 million characters": large,
    "no UTF-8": lambda p: file_refused(p / "a.jsonl", b'{"prompt": "\xff"}', "Save it as UTF-8"),
    "a key or column that stands twice, a number of thousands of digits, half of a character": lambda p: (
        file_refused(p / "a.csv", b"prompt,prompt\na,b", "the column 'prompt' stands twice"),
        file_refused(p / "a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", "more than 4,300 digits"),
        file_refused(p / "a.jsonl", b'{"prompt": "\\ud83d"}', "half of a character"),
    ),
    "`prompt` as a string, or messages that end in a user turn": lambda p: (
        from_rows(p, ROW).train[0].messages
        == from_rows(p, {**ROW, "prompt": [{"role": "user", "content": "two and two"}]}).train[0].messages
        or pytest.fail()
    ),
    "messages of which one has no content": lambda p: row_refused(
        p, "message 1 (assistant) has no content", {**ROW, "prompt": [{"role": "assistant", "content": None}]}
    ),
    "`messages`, `conversations`, `instruction` or `question` without `prompt`": lambda p: row_refused(
        p, "Row 0 has 'messages' and no 'prompt'", {"messages": [USER, ANSWER]}
    ),
    "`tools`": lambda p: row_refused(p, "Row 1 has 'tools'", ROW, {**ROW, "tools": [CALL]}),
    "images": lambda p: row_refused(p, "Use `adapter: image`", {**ROW, "images": ["a.png"]}),
    "a name nearly that of a column (`golden_respones`)": lambda p: row_refused(
        p, "did you mean 'golden_response'", {"prompt": "a", "golden_respones": "b"}
    ),
    "any other column": lambda p: len(from_rows(p, {**ROW, "source": "x"}).train) == 1 or pytest.fail(),
    "a `golden_response` or demonstration that is empty or white space": lambda p: (
        row_refused(p, "'golden_response' is empty", {**ROW, "golden_response": " "}),
        row_refused(p, "a demonstration needs", {**ROW, "demonstrations": [{"prompt": "a", "answer": ""}]}),
    ),
    "a `privileged_context` or `reference` that is empty or white space": blank,
    "training rows with nothing to show the teacher": lambda p: (
        reported(p, "1 of 2 queries", ROW, {"prompt": "a"}),
        row_refused(p, "nothing be learnt", {"prompt": "a"}),
    ),
    "rows to measure without `reference`": lambda p: reported(
        p, "1 of 2 rows", ROW, test=[{"prompt": "a"}, {"prompt": "b", "reference": "c"}]
    ),
    "two rows with one `id`": lambda p: row_refused(p, "Two rows have the id 'a'", {**ROW, "id": "a"}, {**ROW, "id": "a"}),
}


def test_the_page_on_text_has_a_row_for_each_case():
    assert documented("your-own-text.md") == list(TEXT)


@pytest.mark.parametrize("name", list(TEXT))
def test_text(tmp_path, name):
    TEXT[name](tmp_path)
