"""A data set is read as the documentation says, and a mistake in it is named before anything is trained."""

from __future__ import annotations

import shutil

import pytest
import yaml
from PIL import Image

from tests.image_files import WHOLE, error, fill, lines, names, said, save
from text_sdft.core import UserError
from vlm_sdft.demos.sets import DemoSet

# ---- folders ----


def test_every_folder_has_its_use(tmp_path):
    demos = DemoSet.load(fill(tmp_path, WHOLE), question="Name it.")
    assert names(demos.labelled) == [*(f"train/dax/{i}.png" for i in range(3)), *(f"train/wug/{i}.png" for i in range(2))]
    assert names(demos.test) == ["test/dax/0.png", "test/wug/0.png"]
    assert names(demos.unlabelled) == ["unlabelled/0.png", "unlabelled/1.png"]
    assert names(demos.retain) == ["retain/any/0.png#0", "retain/any/1.png#0"]
    assert names(demos.old) == ["old/cat/0.png", "old/cat/1.png"]
    assert [row.answer for row in demos.labelled] == ["dax"] * 3 + ["wug"] * 2
    assert {row.answer for row in (*demos.unlabelled, *demos.retain)} == {None}
    assert {row.question for row in (*demos.train, *demos.test, *demos.old)} == {"Name it."}
    assert demos.train == [*demos.labelled, *demos.unlabelled, *demos.retain], "nothing of test or old is trained on"
    said(demos, "Found 5 labelled images of new types, 2 unlabelled images, 2 retention prompts, 2 test images")


def test_a_folder_of_types_alone_is_training_data(tmp_path):
    demos = DemoSet.load(fill(tmp_path, {"dax": 3, "wug": 3}))
    assert set(demos.types) == {"dax", "wug"}
    assert len(demos.labelled) == 4 and len(demos.test) == 2


def test_test_images_without_train_are_no_types(tmp_path):
    message = error(fill(tmp_path, {"training/dax": 2, "test/dax": 2}))
    assert "test/" in message and "no train/" in message


def test_images_of_no_type_are_reported(tmp_path):
    fill(tmp_path, {"train": 2, "train/dax": 3, "test/dax": 1})
    assert "2 images" in said(DemoSet.load(tmp_path), "no type's folder")


def test_types_yaml_gives_answers_synonyms_and_cues(tmp_path):
    fill(tmp_path, {"train/dax_ru": 2, "train/wug": 2, "train/7": 2, "test/wug": 1})
    given = {"wug": {"answer": "a Wug", "synonyms": ["wugg", 12], "cues": ["red", "four legs"]}, 7: {"synonyms": "seven"}}
    (tmp_path / "types.yaml").write_text(yaml.safe_dump(given))
    types = DemoSet.load(tmp_path).types
    assert types["dax_ru"].answer == "dax ru", "a folder's underscores are spaces in its answer"
    assert (types["wug"].answer, types["wug"].synonyms, types["wug"].cues) == (
        "a Wug",
        ("wugg", "12"),
        ("red", "four legs"),
    )
    assert types["7"].synonyms == ("seven",), "one word may stand without a list, and a name may be a number"


def test_a_mistake_in_types_yaml_names_the_nearest(tmp_path):
    for given, expected in (
        ({"dax": {"synonym": ["x"]}}, "'synonym' of 'dax' is unknown. Did you mean 'synonyms'?"),
        ({"daxx": {"answer": "x"}}, "there is no type 'daxx'. Did you mean 'dax'?"),
        ({"dax": "answer"}, "'dax' needs a mapping"),
        (["dax"], "needs a mapping"),
    ):
        fill(tmp_path, {"train/dax": 2})
        (tmp_path / "types.yaml").write_text(yaml.safe_dump(given))
        message = error(tmp_path)
        assert expected in message and "types.yaml" in message


def test_types_yaml_is_read_as_it_is_written(tmp_path):
    """YAML would make false of a bare no, and 7 of 007."""
    fill(tmp_path, {"train/dax": 2, "train/007": 2, "train/off": 2, "test/dax": 1})
    (tmp_path / "types.yaml").write_text("dax: {answer: no, synonyms: [yes, 1.10]}\n007: {answer: 0x1A}\noff: {cues: on}\n")
    types = DemoSet.load(tmp_path).types
    assert (types["dax"].answer, types["dax"].synonyms) == ("no", ("yes", "1.10"))
    assert types["007"].answer == "0x1A" and types["off"].cues == ("on",)


def test_types_yaml_holds_texts(tmp_path):
    for given, expected in (
        ("dax: {answer: }", "'answer' of 'dax' is empty"),
        ("dax: {answer: [a, b]}", "'answer' of 'dax' must be a text"),
        ("dax: {synonyms: {a: b}}", "'synonyms' of 'dax' must be a text or a list of texts"),
        ("dax: {cues: [[red]]}", "'cues' of 'dax' must be a text or a list of texts"),
        ("dax: {synonyms: [a, '']}", "one of the 'synonyms' of 'dax' is empty"),
    ):
        fill(tmp_path, {"train/dax": 2})
        (tmp_path / "types.yaml").write_text(given)
        message = error(tmp_path)
        assert expected in message and "types.yaml" in message


def test_types_yaml_that_is_no_yaml_is_named(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    (tmp_path / "types.yaml").write_text("dax: [")
    assert "types.yaml is not valid YAML" in error(tmp_path)


def test_retention_questions_are_asked_about_each_image_of_both_folders(tmp_path):
    root = fill(tmp_path / "data", {"train/dax": 2, "test/dax": 1, "retain": 1})
    extra = fill(tmp_path / "general" / "retain", {"": 1, "deep/er": 1}, start=50)
    demos = DemoSet.load(root, retain_questions=["What?", "Why?"], retain=extra)
    assert [row.question for row in demos.retain] == ["What?", "Why?"] * 3
    assert len({row.id for row in demos.retain}) == 6, "folders of the same name do not mix up their images"


def test_a_missing_retention_folder_is_named(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    assert "data.retain: the folder" in error(tmp_path, retain=tmp_path / "none")


def test_without_test_images_some_are_held_out_and_it_is_said(tmp_path):
    fill(tmp_path, {"train/dax": 10, "train/wug": 2, "train/zup": 1})
    demos = DemoSet.load(tmp_path)
    assert [sum(row.type == name for row in demos.test) for name in ("dax", "wug", "zup")] == [2, 1, 0]
    assert {row.type for row in demos.labelled} == {"dax", "wug", "zup"}, "a type keeps at least one image"
    assert "3 images of 2 types were held out" in said(demos, "There is no test/")
    assert len(DemoSet.load(tmp_path, holdout=0.5).test) == 6
    assert all(DemoSet.load(tmp_path, holdout=0.99).labelled)
    nothing = DemoSet.load(tmp_path, holdout=0.0)
    assert nothing.test == [] and "nothing is measured" in said(nothing, "There is no test/")


def test_a_test_folder_without_images_of_types_is_no_test(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "test": 1})
    demos = DemoSet.load(tmp_path)
    assert len(demos.test) == 2 and "2 images of 2 types were held out" in said(demos, "There is no test/")
    assert "1 images of" in said(demos, "lie in no type's folder")


def test_where_no_image_can_be_spared_it_is_said(tmp_path):
    fill(tmp_path, {"train/dax": 1, "train/wug": 1})
    assert "nothing is measured" in said(DemoSet.load(tmp_path), "There is no test/")


def test_images_beside_the_types_folders_are_named_where_there_are_no_others(tmp_path):
    fill(tmp_path, {".": 2})
    assert "2 images of" in error(tmp_path) and "lie in no type's folder" in error(tmp_path)


def test_the_draw_is_the_same_every_time_and_does_not_hang_on_other_types(tmp_path):
    fill(tmp_path, {"train/dax": 10, "train/wug": 10})
    first = names(DemoSet.load(tmp_path).test)
    assert names(DemoSet.load(tmp_path).test) == first
    assert names(DemoSet.from_folder(tmp_path, seed=1).test) != first
    fill(tmp_path, {"train/zup": 5}, start=100)
    assert [name for name in names(DemoSet.load(tmp_path).test) if "zup" not in name] == first


def test_names_may_hold_any_letters_and_spaces(tmp_path):
    fill(tmp_path, {"train/Äpfel grün": 2, "train/犬 いぬ": 2, "test/犬 いぬ": 1})
    demos = DemoSet.load(tmp_path)
    assert {kind.answer for kind in demos.types.values()} == {"Äpfel grün", "犬 いぬ"}
    assert names(demos.test) == ["test/犬 いぬ/0.png"]


def test_hidden_and_other_files_are_ignored(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/.cache": 1, "train/dax/.thumbs": 1, "test/dax": 1, "unlabelled/.x": 1})
    save(tmp_path / "train/dax/.hidden.png", 99)
    for name in ("Thumbs.db", "notes.txt", "manual.pdf", "._0.png"):
        (tmp_path / "train/dax" / name).write_bytes(b"no image")
    demos = DemoSet.load(tmp_path)
    assert names(demos.train) == ["train/dax/0.png", "train/dax/1.png"] and set(demos.types) == {"dax"}


def test_ids_do_not_hang_on_where_the_folder_is(tmp_path, monkeypatch):
    there = DemoSet.load(fill(tmp_path / "a", WHOLE))
    monkeypatch.chdir(fill(tmp_path / "b", WHOLE))
    here = DemoSet.load(".")
    assert names(here.train) == names(there.train) and names(here.test) == names(there.test)


# ---- what cannot be trained on ----


def test_an_empty_type_is_an_error(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    (tmp_path / "train/wug").mkdir()
    assert "train/wug holds no image" in error(tmp_path).replace("\\", "/")


def test_damaged_images_are_named_or_dropped_as_asked(tmp_path):
    fill(tmp_path, WHOLE)
    cut = (tmp_path / "train/dax/2.png").read_bytes()[:60]
    (tmp_path / "train/dax/2.png").write_bytes(cut)
    (tmp_path / "unlabelled/1.png").write_bytes(b"nothing")
    message = error(tmp_path)
    assert "2.png cannot be read" in message and "1.png cannot be read" in message
    assert "data.on_bad_image: drop" in message
    demos = DemoSet.load(tmp_path, on_bad_image="drop")
    assert len(demos.labelled) == 4 and names(demos.unlabelled) == ["unlabelled/0.png"]
    assert sum(sentence.startswith("Dropped: ") for sentence in demos.report) == 2


def test_many_damaged_images_are_counted(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/wug": 8})
    for file in (tmp_path / "train/wug").iterdir():
        file.write_bytes(b"")
    assert "… and 3 more" in error(tmp_path)


@pytest.mark.parametrize("twin", ["the dax", "Dax"])
def test_two_types_with_one_answer_are_an_error(tmp_path, twin):
    fill(tmp_path, {"train/dax": 2, f"train/{twin}": 2})
    message = error(tmp_path)
    assert "'dax'" in message and f"'{twin}'" in message and "types.yaml" in message
    (tmp_path / "types.yaml").write_text(yaml.safe_dump({"dax": {"answer": "daxling"}}))
    DemoSet.load(tmp_path)


def test_a_synonym_that_is_another_types_answer_is_an_error(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "old/cat": 1})
    for synonyms, right in ((["Wug."], False), (["a cat"], False), (["the dax", "daxling"], True)):
        (tmp_path / "types.yaml").write_text(yaml.safe_dump({"dax": {"synonyms": synonyms}}))
        if right:
            assert DemoSet.load(tmp_path).types["dax"].synonyms == tuple(synonyms)
            continue
        message = error(tmp_path)
        assert f"'{synonyms[0]}' is a synonym of the type 'dax'" in message and "types.yaml" in message


def test_an_image_that_is_tested_on_is_taken_out_of_training_and_both_names_are_said(tmp_path):
    fill(tmp_path, WHOLE)
    copies = {
        "unlabelled/copy.png": "test/dax/0.png",
        "train/dax/copy.png": "test/wug/0.png",
        "retain/copy.png": "old/cat/0.png",
    }
    for copy, original in copies.items():
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    demos = DemoSet.load(tmp_path)
    assert not [name for name in names(demos.train) if "copy" in name]
    assert len(demos.test) == 2 and len(demos.old) == 2
    for copy, original in copies.items():
        assert original in said(demos, copy)


def test_a_tested_image_of_the_further_retention_folder_is_taken_out_too(tmp_path):
    root = fill(tmp_path / "data", WHOLE)
    demos = DemoSet.load(root, retain=root / "test")
    assert len(demos.retain) == 2 and sum("Dropped from training" in sentence for sentence in demos.report) == 2


def test_rows_that_share_one_of_their_pictures_with_a_test_row_are_no_copies(tmp_path):
    """Only a row that holds all of a test row's pictures, or none but such, is taken out."""
    names = ["chart.png", *(f"{i}.png" for i in range(5))]
    for seed, name in enumerate(names):
        save(tmp_path / name, seed)
    splits = ["train"] * 3 + ["test"]
    rows = [["chart.png", f"{i}.png"] for i in range(4)]
    file = tmp_path / "rows.jsonl"
    lines(file, *(row_of(images, split) for images, split in zip(rows, splits, strict=True)))
    assert len(DemoSet.load(file).labelled) == 3
    copied = [row_of(["chart.png"], "train"), row_of(["3.png", "chart.png"], "train"), row_of(["4.png"], "train")]
    lines(file, *copied, row_of(rows[3], "test"))
    demos = DemoSet.load(file)
    assert len(demos.labelled) == 1 and sum("is the same image as" in sentence for sentence in demos.report) == 2


def row_of(images: list[str], split: str) -> dict:
    messages = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": f"a {images[-1]}"}]
    return {"messages": messages, "images": images, "split": split}


def test_near_duplicates_are_reported(tmp_path):
    fill(tmp_path, WHOLE)
    assert not [sentence for sentence in DemoSet.load(tmp_path).report if "nearly the same" in sentence]
    Image.open(tmp_path / "test/dax/0.png").resize((32, 32)).save(tmp_path / "unlabelled/again.jpg", quality=95)
    sentence = said(DemoSet.load(tmp_path), "nearly the same")
    assert "unlabelled/again.jpg and test/dax/0.png" in sentence


def test_a_missing_path_names_the_nearest(tmp_path):
    fill(tmp_path / "my_objects", {"train/dax": 2})
    for read in (DemoSet.load, DemoSet.from_folder):
        with pytest.raises(UserError, match=r"does not exist\. Did you mean .*my_objects"):
            read(tmp_path / "my_object")
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UserError, match=r"does not exist\. Did you mean .*rows\.jsonl"):
        DemoSet.from_jsonl(tmp_path / "row.jsonl")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "rows.csv").touch()
    assert "give a folder (train/<type>/*) or a .jsonl" in error(tmp_path / "rows.csv")


def test_a_type_with_one_image_is_reported(tmp_path):
    demos = DemoSet.load(fill(tmp_path, {"train/dax": 2, "train/wug": 1, "test/dax": 1}))
    assert "wug" in said(demos, "One labelled image only")


def test_a_type_that_is_only_tested_on_is_reported(tmp_path):
    demos = DemoSet.load(fill(tmp_path, {"train/dax": 2, "test/dax": 1, "test/wug": 1}))
    assert "wug" in said(demos, "without a labelled training image")


def test_no_labelled_images_are_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    assert "There are no labelled training images" in error(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "There are no labelled training images" in error(empty)


def test_linked_folders_are_read_and_each_once(tmp_path):
    root = fill(tmp_path / "set", {"train/dax": 2, "test/dax": 1})
    elsewhere = fill(tmp_path / "elsewhere", {"more": 3}, start=50)
    (root / "unlabelled").mkdir()
    (root / "unlabelled" / "linked").symlink_to(elsewhere / "more", target_is_directory=True)
    (elsewhere / "more" / "loop").symlink_to(elsewhere, target_is_directory=True)
    assert len(DemoSet.from_folder(root).unlabelled) == 3


def test_files_without_an_images_ending_are_reported(tmp_path):
    root = fill(tmp_path / "set", {"train/dax": 2, "test/dax": 1})
    (root / "train" / "dax" / "notes").write_bytes(b"x")
    assert "such as notes" in said(DemoSet.from_folder(root), "no ending of an image")


# ---- what would silently not be used ----


@pytest.mark.parametrize("name", ["unlabeled", "Test", "Retain"])
def test_a_folder_that_is_nearly_one_of_the_known_is_an_error(tmp_path, name):
    fill(tmp_path, {"train/dax": 2, name: 1})
    message = error(tmp_path)
    assert f"{name}/" in message and "rename" in message.casefold()


def test_a_capital_letter_makes_no_type_of_train(tmp_path):
    fill(tmp_path, {"Train/dax": 2, "Train/wug": 2})
    assert "'train'" in error(tmp_path)


def test_types_may_be_called_nearly_like_a_known_folder(tmp_path):
    fill(tmp_path, {"trains": 2, "tests": 2})
    assert set(DemoSet.load(tmp_path).types) == {"trains", "tests"}


def test_what_lies_beside_train_and_is_not_used_is_reported(tmp_path):
    fill(tmp_path, {"train/dax": 2, "test/dax": 1, "val/dax": 1, ".": 3, ".git": 1})
    report = DemoSet.load(tmp_path).report
    assert [sentence for sentence in report if sentence.startswith("Not used")] == [
        f"Not used: the folders val of {tmp_path}, which are none of train, test, unlabelled, retain, old.",
        f"Not used: 3 images of {tmp_path} that lie in none of its folders.",
    ]


def test_another_name_for_types_yaml_is_an_error(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    (tmp_path / "types.yml").write_text("dax: {answer: x}")
    assert "types.yml" in error(tmp_path)


def test_a_retention_folder_without_images_is_an_error(tmp_path):
    root = fill(tmp_path / "data", {"train/dax": 2})
    (tmp_path / "general").mkdir()
    assert "data.retain" in (message := error(root, retain=tmp_path / "general")) and "no image" in message


def test_what_was_dropped_is_said_where_nothing_is_left(tmp_path):
    fill(tmp_path, {"train/dax": 2})
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    message = error(tmp_path)
    assert "no labelled training images" in message and "train/dax/0.png is the same image as test/dax/0.png" in message


@pytest.mark.parametrize("share", [-0.1, 1.0, 20])
def test_a_share_to_hold_out_is_one(tmp_path, share):
    fill(tmp_path, {"train/dax": 4})
    assert "holdout" in error(tmp_path, holdout=share)


def test_one_image_under_two_answers_is_reported(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "test/wug": 1})
    shutil.copy(tmp_path / "train/dax/0.png", tmp_path / "train/wug/x.png")
    shutil.copy(tmp_path / "train/dax/1.png", tmp_path / "train/dax/x.png")
    sentence = said(DemoSet.load(tmp_path), "under two answers")
    assert "train/dax/0.png ('dax') and train/wug/x.png ('wug')" in sentence and "dax/1" not in sentence


# ---- folders that are not as they seem ----


def test_a_folder_above_the_data_names_the_one_to_give(tmp_path):
    for deeper in ("pets", "download/pets"):
        root = tmp_path / deeper.replace("/", "-")
        fill(root / deeper, {"train/dax": 2, "test/dax": 1})
        assert f"{root} has no train/, but {root / deeper} has: give that folder" in error(root)


def test_folders_below_a_types_folder_are_said_to_be_joined(tmp_path):
    fill(tmp_path, {"train/red/dax": 2, "train/red/wug": 2, "train/blue/zup": 2, "train/cat/images": 2})
    note = said(DemoSet.load(tmp_path), "hold further folders")
    assert note.startswith(f"2 type folders of {tmp_path / 'train'}") and "blue (zup)" in note and "cat" not in note


def test_images_without_folders_of_types_are_no_type(tmp_path):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "test/images": 3})
    assert f"{tmp_path / 'test'} has no type folders: 'images' would be a type" in error(tmp_path)
    other = fill(tmp_path / "other", {"images": 3})
    assert f"{other} has no type folders" in error(other)
    deep = fill(tmp_path / "deep", {"train/train": 3, "train/test": 3})
    assert f"{deep / 'train'} has no type folders" in error(deep)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_validation_images_are_tested_on_where_there_is_no_test(tmp_path, name):
    fill(tmp_path, {"train/dax": 2, "train/wug": 2, f"{name}/dax": 1, f"{name}/wug": 1})
    demos = DemoSet.load(tmp_path)
    assert names(demos.test) == [f"{name}/dax/0.png", f"{name}/wug/0.png"] and len(demos.labelled) == 4
    assert said(demos, "is taken as test/").startswith(f"{tmp_path / name} is")
    fill(tmp_path, {"test/dax": 1}, start=50)
    demos = DemoSet.load(tmp_path)
    assert names(demos.test) == ["test/dax/0.png"] and name in said(demos, "Not used: the folders")


def test_validation_images_of_no_type_are_left_out_and_named(tmp_path):
    fill(tmp_path, {"train/dax": 3, "train/wug": 3, "val/images": 2})
    demos = DemoSet.load(tmp_path)
    assert "the folders val of" in said(demos, "Not used") and "held out" in said(demos, "There is no test/")
    (tmp_path / "train").rename(tmp_path / "training")
    assert "val/ but no train/" in error(tmp_path)


# ---- names ----


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("K\u00e4fer", "Ka\u0308fer", "Unicode form"),
        ("Cat", "cat", "letter case"),
        ("STRASSE", "stra\u00dfe", "letter case"),
    ],
)
def test_types_that_differ_in_form_only_are_named_with_their_places(tmp_path, first, second, how):
    fill(tmp_path, {f"train/{first}": 2, "train/wug": 2, f"test/{second}": 1})
    message = error(tmp_path)
    assert f"'{first}' (in train/) and '{second}' (in test/) differ in {how}" in message and "one name" in message


def test_answers_have_no_white_space_around_them(tmp_path):
    fill(tmp_path, {"train/__dax": 2, "train/wug__ru_": 2, "train/b": 2, "test/b": 1})
    (tmp_path / "types.yaml").write_text('b: {answer: " a b \\n", synonyms: [" c "], cues: ["d "]}\n')
    types = DemoSet.load(tmp_path, question=" What? ").types
    assert {kind.answer for kind in types.values()} == {"dax", "wug ru", "a b"}
    assert (types["b"].synonyms, types["b"].cues) == (("c",), ("d",))
    assert {row.question for row in DemoSet.load(tmp_path, question=" What? ").labelled} == {"What?"}


def test_notes_stay_short_however_many_names_there_are(tmp_path):
    fill(tmp_path, {f"train/{'x' * 200}{i}": 1 for i in range(12)})
    note = said(DemoSet.load(tmp_path), "One labelled image only")
    assert len(note) < 500 and "and 7 more" in note


def test_pictures_that_are_not_shown_as_they_stand_are_counted(tmp_path):
    import numpy as np

    fill(tmp_path, {"train/dax": 2, "train/wug": 2, "test/dax": 1})
    for i in range(2):
        Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16 + i).save(tmp_path / f"train/dax/deep{i}.png")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "train/wug/moving.gif", save_all=True, append_images=frames[1:])
    demos = DemoSet.load(tmp_path)
    assert "1 animations" in said(demos, "Only the first picture") and "moving.gif" in said(demos, "Only the first picture")
    assert "2 images in 16-bit files" in (note := said(demos, "16-bit")) and "2 of 12 bits" in note


def test_images_that_a_model_refuses_are_named_at_once_or_dropped_in_all_sets(tmp_path):
    from vlm_sdft.adapter import ImageAdapter
    from vlm_sdft.config import ImageData, ImageDemonstrations

    fill(tmp_path, WHOLE)
    (tmp_path / "retain/any/1.png").write_bytes(b"nothing")
    thin = {"train/dax/thin.png": (2000, 3), "test/dax/thin.png": (3, 2000), "unlabelled/thin.png": (900, 4)}
    thin |= {"retain/thin.png": (901, 4), "old/cat/thin.png": (902, 4)}
    for place, size in thin.items():
        Image.effect_noise(size, 50).save(tmp_path / place)

    def load(on_bad_image):
        section = ImageData(str(tmp_path), on_bad_image=on_bad_image)
        return ImageAdapter.from_config(section, ImageDemonstrations(), "builtin:tiny-qwen3-vl")

    with pytest.raises(UserError) as caught:
        load("error")
    message = str(caught.value)
    assert message.count("thin.png") + message.count("any/1.png") == 5 and "and 1 more" in message
    assert "thin.png (3 × 2000) is refused by the model's image processor" in message
    adapter, splits = load("drop")
    kept = [*adapter.demos.train, *adapter.demos.test, *adapter.demos.old]
    assert len(kept) == 5 + 2 + 1 + 2 + 2 and not [row for row in kept if "thin" in row.id]
    assert sum(line.startswith("Dropped: ") for line in splits.report) == 6
