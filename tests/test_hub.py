"""Data sets of the hub become folders of new types, tried with local data sets, which `datasets` loads the same way."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from tests.image_files import picture
from text_sdft.core import UserError
from vlm_sdft.cli import main
from vlm_sdft.cli.init import run_name
from vlm_sdft.cli.sequences import read_sequence
from vlm_sdft.config import ImageData, data_folder, load_demos
from vlm_sdft.demos.hub import MARKER, HubTypes, write_hub_types

ROOT = Path(__file__).parent.parent
CLASSES = ["zebra_fish", "Owl", "7", "c/../d", "apple pie", "yak", "Überbär", "x.y", "newt", "ant", "bee"]  # in no order
N_BASE = 6
#: Classes of the configs' data sets, by their cards.
N_CLASSES = {"hub:timm/oxford-iiit-pet": 37, "hub:tanganke/dtd": 47, "hub:timm/mini-imagenet": 100}
SMALL: dict[str, Any] = {"n_types": 2, "n_unlabelled": 3, "n_test": 2, "n_retain": 2, "n_old": 1}
MODEL = ["--model", "builtin:tiny-qwen3-vl"]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def image_bytes(seed: int) -> bytes:
    """PNG or JPEG."""
    file = io.BytesIO()
    picture(seed).save(file, format=("PNG", "JPEG")[seed % 2])
    return file.getvalue()


def parts(**counts: int) -> dict[str, dict[str, list]]:
    """Columns of each split: so many images of each class, none like another."""
    made: dict[str, dict[str, list]] = {}
    for s, (split, count) in enumerate(counts.items()):
        rows = [(c, image_bytes(10_000 * s + 100 * c + i)) for i in range(count) for c in range(len(CLASSES))]
        made[split] = {
            "image": [{"bytes": data, "path": None} for _, data in rows],
            "label": [c for c, _ in rows],
            "width": [[16]] * len(rows),
        }
    return made


def save(folder: Path, columns: dict[str, dict[str, list]], label: Any = None, names: dict[str, str] | None = None) -> str:
    """A data set as it lies on the hub: Parquet files by split. Returns ``hub:`` and its folder."""
    label = label or datasets.ClassLabel(names=CLASSES)
    features = datasets.Features(
        {"image": datasets.Image(), "label": label, "width": datasets.List(datasets.Value("int64"))}
    )
    for split, given in columns.items():
        part = datasets.Dataset.from_dict(given, features=features).rename_columns(names or {})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return f"hub:{folder}"


@pytest.fixture(scope="module")
def columns():
    return parts(train=9, test=4)


@pytest.fixture(scope="module")
def origin(columns):
    """The split and class that each image's bytes come from."""
    return {
        cell["bytes"]: (split, CLASSES[c])
        for split, given in columns.items()
        for cell, c in zip(given["image"], given["label"], strict=True)
    }


@pytest.fixture(scope="module")
def name(tmp_path_factory, columns):
    return save(tmp_path_factory.mktemp("hub"), columns)


def images(folder: Path, part: str = "") -> dict[str, bytes]:
    found = (folder / part).rglob("*")
    return {f.relative_to(folder / part).as_posix(): f.read_bytes() for f in found if f.suffix in (".png", ".jpeg")}


def marker(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))


def said(name: str, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_demos(ImageData(name, options={**SMALL, **options}, cache=str(tmp_path / "cache")))
    assert not list(tmp_path.glob("cache/*")), "nothing is left of a folder that could not be made"
    return str(caught.value)


# ---- what a folder holds ----


def test_every_image_lies_where_it_should_as_it_was(name, origin, tmp_path):
    folder = data_folder(name, tmp_path, **SMALL)
    found = {part: {path: origin[data] for path, data in images(folder, part).items()} for part in SMALL_PARTS}
    assert sum(map(len, found.values())) == len(images(folder)), "all are the data set's, byte for byte"
    hashes = [hashlib.sha256(data).hexdigest() for data in images(folder).values()]
    assert len(set(hashes)) == len(hashes) == 2 * (2 + 3 + 2) + 6 * (2 + 1)

    base, new = CLASSES[:N_BASE], list(marker(folder)["new"].values())
    assert len(new) == 2 and set(new) <= set(CLASSES[N_BASE:]) and marker(folder)["base"] == base
    for part, (split, classes, option) in SMALL_PARTS.items():
        taken = {"new": new, "base": base}[classes]
        count = {"shots": 2, **SMALL}[option]
        assert Counter(found[part].values()) == {(split, kind): count for kind in taken}, part

    types = yaml.safe_load((folder / "types.yaml").read_text(encoding="utf-8"))
    for part in ("train", "test", "old"):
        for path, (_, kind) in found[part].items():
            assert types[path.split("/")[0]]["answer"] == kind.replace("_", " ")
    for part in ("unlabelled", "retain"):
        kinds = [kind for _, (_, kind) in sorted(found[part].items())]
        assert all("/" not in path for path in found[part]) and kinds != sorted(kinds, key=CLASSES.index), "mixed"


#: Part of a folder -> the data set's split, its classes, the option that counts.
SMALL_PARTS = {
    "train": ("train", "new", "shots"),
    "unlabelled": ("train", "new", "n_unlabelled"),
    "test": ("test", "new", "n_test"),
    "retain": ("train", "base", "n_retain"),
    "old": ("test", "base", "n_old"),
}


def test_the_folder_is_read_as_any_other(name, tmp_path):
    demos = load_demos(ImageData(name, options=SMALL, cache=str(tmp_path)))
    sizes = [len(rows) for rows in (demos.labelled, demos.unlabelled, demos.test, demos.retain, demos.old)]
    assert sizes == [4, 6, 4, 12, 6] and not any("Not used" in line or "Dropped" in line for line in demos.report)
    assert {row.answer for row in demos.old} == {kind.replace("_", " ") for kind in CLASSES[:N_BASE]}


def test_classes_are_halved_as_coop_does():
    for n_classes in [2, 3, 10, 37, 47, 100]:
        chosen, base = HubTypes(n_types=1).classes(n_classes)
        assert base == list(range(math.ceil(n_classes / 2))) and base[-1] < chosen[0] < n_classes


def test_types_for_choosing_settings_are_no_test_types():
    """Over seeds all new classes are drawn, each in one split."""
    drawn = {
        split: {kind for seed in range(30) for kind in HubTypes(n_types=2, split=split, seed=seed).classes(37)[0]}
        for split in ("test", "validation")
    }
    assert drawn["test"] | drawn["validation"] == set(range(19, 37)) and not drawn["test"] & drawn["validation"]
    assert len(drawn["test"]) == 9


def test_seeds_reproduce_and_differ(name, tmp_path):
    first = data_folder(name, tmp_path / "a", **SMALL)
    assert images(data_folder(name, tmp_path / "b", **SMALL)) == images(first)
    others = [data_folder(name, tmp_path / "a", **SMALL, seed=seed) for seed in range(1, 5)]
    assert all(images(other) != images(first) for other in others)
    assert len({tuple(marker(folder)["new"]) for folder in (first, *others)}) > 1
    validation = data_folder(name, tmp_path / "a", **SMALL, split="validation")
    assert not set(marker(validation)["new"]) & set(marker(first)["new"])


def test_invented_names_stand_for_new_types_only(name, origin, tmp_path):
    own, folder = data_folder(name, tmp_path, **SMALL), data_folder(name, tmp_path, **SMALL, names="invented")
    meaning = marker(folder)["new"]
    assert list(meaning.values()) == list(marker(own)["new"].values()) and not set(meaning) & set(CLASSES)
    types = yaml.safe_load((folder / "types.yaml").read_text(encoding="utf-8"))
    for part in ("train", "test"):
        for path, data in images(folder, part).items():
            assert meaning[types[path.split("/")[0]]["answer"]] == origin[data][1]
    assert images(folder, "old") == images(own, "old") and images(folder, "unlabelled") == images(own, "unlabelled")
    paths = " ".join(f.relative_to(folder).as_posix() for f in folder.rglob("*"))  # the folder's own name ends in a hash
    assert not any(kind in paths for kind in meaning.values())
    further = data_folder(name, tmp_path, **SMALL, names="invented", seed=1)
    assert set(marker(further)["new"]) != set(meaning)


def test_an_incomplete_folder_is_made_anew_and_a_complete_one_kept(name, tmp_path):
    folder = data_folder(name, tmp_path, **SMALL)
    made = images(folder)
    (folder / MARKER).unlink()
    shutil.rmtree(folder / "train")
    (folder / "unlabelled" / "99999.png").write_bytes(image_bytes(0))
    assert data_folder(name, tmp_path, **SMALL) == folder and images(folder) == made
    stamp = (folder / MARKER).stat().st_mtime_ns
    assert data_folder(name, tmp_path, **SMALL) == folder and (folder / MARKER).stat().st_mtime_ns == stamp


# ---- data sets of other shapes ----


def test_types_of_tasks_are_split_without_changing_an_image(name, tmp_path):
    options = {**SMALL, "names": "invented"}
    whole = data_folder(name, tmp_path, **options)
    section = ImageData(name, options=options, cache=str(tmp_path))
    tasks = [data_folder(name, tmp_path, **part["options"]) for part in section.split(2)]
    assert [list(marker(task)["new"].items()) for task in tasks] == [[item] for item in marker(whole)["new"].items()]
    for part in ("train", "test"):
        assert images(tasks[0], part) | images(tasks[1], part) == images(whole, part)
    assert images(tasks[0], "old") == images(tasks[1], "old") == images(whole, "old")
    assert len(ImageData("hub:any/name").split(5)) == 5, "five types, unless the options say otherwise"


@pytest.mark.parametrize("splits", [{"train": 12}, {"everything": 12}])
def test_a_single_split_gives_disjoint_images(splits, tmp_path):
    [split] = splits
    folder = data_folder(save(tmp_path / "one", parts(**splits)), tmp_path / "cache", **SMALL, train_split=split)
    assert len(set(images(folder).values())) == len(images(folder)) == 2 * (2 + 3 + 2) + 6 * (2 + 1)
    assert marker(folder)["splits"] == {"train": split, "test": split}


def test_validation_images_serve_where_there_is_no_test(tmp_path):
    columns = parts(train=5, validation=3)
    folder = data_folder(save(tmp_path / "v", columns), tmp_path / "cache", **SMALL)
    held_out = {cell["bytes"] for cell in columns["validation"]["image"]}
    for part, (split, _, _) in SMALL_PARTS.items():
        assert all((data in held_out) == (split == "test") for data in images(folder, part).values())


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_labels_may_be_numbers_or_words(kind, columns, tmp_path):
    """In the order of the labels: numbers by value, words by the alphabet."""
    order = list(range(len(CLASSES))) if kind == "int64" else sorted(CLASSES)
    given = {
        s: {**part, "label": [c if kind == "int64" else CLASSES[c] for c in part["label"]]} for s, part in columns.items()
    }
    renamed = {"label": "kind", "image": "photo"}
    name = save(tmp_path / kind, given, datasets.Value(kind), renamed)
    folder = data_folder(name, tmp_path / "cache", **SMALL, image_column="photo", label_column="kind")
    assert marker(folder)["base"] == [str(label) for label in order[:N_BASE]]


def test_image_folders_and_saved_data_sets_are_taken(columns, origin, tmp_path):
    for split, given in columns.items():
        for i, (cell, c) in enumerate(zip(given["image"], given["label"], strict=True)):
            file = tmp_path / "files" / split / f"class {c:02}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cell["bytes"])
    folder = data_folder(f"hub:{tmp_path / 'files'}", tmp_path / "cache", **SMALL)
    assert marker(folder)["base"] == [f"class {c:02}" for c in range(N_BASE)]
    assert all(data in origin for data in images(folder).values())
    saved = datasets.load_dataset(str(tmp_path / "files"))
    saved.save_to_disk(tmp_path / "saved")
    assert images(data_folder(f"hub:{tmp_path / 'saved'}", tmp_path / "cache", **SMALL)) == images(folder)
    saved["train"].save_to_disk(tmp_path / "one split")
    alone = data_folder(f"hub:{tmp_path / 'one split'}", tmp_path / "cache", **SMALL)
    assert images(alone) and all(origin[data][0] == "train" for data in images(alone).values())


def test_names_that_give_the_same_folder_are_kept_apart(tmp_path):
    names = ["C", "C++", "c", "C#", *(f"k{i}" for i in range(7))]
    folder = data_folder(save(tmp_path / "c", parts(train=9, test=4), datasets.ClassLabel(names=names)), tmp_path, **SMALL)
    types = yaml.safe_load((folder / "types.yaml").read_text(encoding="utf-8"))
    assert {"C", "C++", "c", "C#"} <= {entry["answer"] for entry in types.values()}
    assert len({path.split("/")[0].casefold() for path in images(folder, "old")}) == N_BASE


def test_a_damaged_image_is_named_by_the_check_of_all_images(columns, tmp_path):
    broken = {**columns, "train": {**columns["train"], "image": [{"bytes": b"none", "path": None}] * 99}}
    name = save(tmp_path / "broken", broken)
    with pytest.raises(UserError, match=r"train.*cannot be read as an image"):
        load_demos(ImageData(name, options=SMALL, cache=str(tmp_path)))


# ---- mistakes ----


def test_options_that_cannot_be_are_refused(name, tmp_path):
    assert 'split is \'train\'; use "test" or "validation"' in said(name, tmp_path, split="train")
    assert 'use "own" or "invented"' in said(name, tmp_path, names="other")
    assert "shots is 0; it must be at least 1" in said(name, tmp_path, shots=0)
    assert "n_old is -1; it must be at least 0" in said(name, tmp_path, n_old=-1)
    assert "Unknown option 'shot'. Did you mean 'shots'?" in said(name, tmp_path, shot=1)
    assert "Unknown option 'qqq'. Known: n_types" in said(name, tmp_path, qqq=1)


def test_more_than_there_is_is_refused(name, tmp_path):
    message = said(name, tmp_path, n_types=4)
    assert "of 11 classes 5 are new" in message and "'test' has 3 of them. Lower n_types" in message
    assert "first is 2" in said(name, tmp_path, first=2)
    assert "9 images in the split 'train'; 12 are needed. Lower n_unlabelled" in said(name, tmp_path, n_unlabelled=10)
    assert "4 images in the split 'test'; 5 are needed. Lower n_test" in said(name, tmp_path, n_test=5)
    assert "'zebra_fish' has 4 images in the split 'test'; 5 are needed. Lower n_old" in said(name, tmp_path, n_old=5)
    assert "10 are needed. Lower n_retain" in said(name, tmp_path, n_retain=10)


def test_columns_and_splits_that_are_not_there_are_named(name, columns, tmp_path):
    expected = "has no column 'img': set image_column to one of image, label, width"
    assert expected in said(name, tmp_path, image_column="img")
    assert "has no column 'class': set label_column to one of" in said(name, tmp_path, label_column="class")
    assert "'width' holds no images: set image_column" in said(name, tmp_path, image_column="width")
    assert "no split 'all': set train_split to one of train, test" in said(name, tmp_path, train_split="all")
    assert "no split 'val': set test_split to one of train, test" in said(name, tmp_path, test_split="val")
    odd = save(tmp_path / "odd", {"train": columns["train"], "held": columns["test"]})
    shutil.move(tmp_path / "odd" / "data", tmp_path / "odd" / "files")
    (tmp_path / "odd" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: files/train-*}\n"
        "  - {split: held, path: files/held-*}\n---\n"
    )
    assert 'neither a split "test" nor "validation": set test_split to one of train, held' in said(odd, tmp_path)
    assert data_folder(odd, tmp_path, **SMALL, test_split="held").is_dir()


@pytest.mark.parametrize("hidden", [-1, None])
def test_hidden_labels_are_refused(hidden, columns, tmp_path):
    given = {**columns, "test": {**columns["test"], "label": [hidden] * 3 + columns["test"]["label"][3:]}}
    message = said(save(tmp_path / "hidden", given), tmp_path)
    assert "3 of 44 images of the split 'test' have no label (-1): set test_split" in message
    assert data_folder(f"hub:{tmp_path / 'hidden'}", tmp_path, **{**SMALL, "n_test": 1}, test_split="train").is_dir()


def test_a_data_set_that_cannot_be_loaded_says_what_to_give(tmp_path, name):
    for gone in ("hub:no-one/nothing-of-this-name", f"hub:{tmp_path / 'gone'}"):
        message = said(gone, tmp_path)
        assert "could not be loaded" in message and "OWNER/NAME, or a local folder as ./FOLDER" in message
    assert "could not be loaded" in said(name, tmp_path, config="other")


# ---- runs, configs ----


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(name, tmp_path, capsys):
    """With the builtin model and a local data set in place of the hub's."""
    text = (ROOT / "docs" / "your-own-images.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    vlm-sdft (.*configs/unseen/.*)$", text, re.M)
    assert [line.split()[0] for line in lines] == ["probe", "train"]
    options = ["--data", name, "--data.options", json.dumps(SMALL), "--data.cache", str(tmp_path / "data"), *MODEL]
    run = {"output_dir": tmp_path / "run", "bf16": "false", "use_cpu": "true", "disable_tqdm": "true", "max_steps": 1}
    options += [str(word) for key, value in run.items() for word in (f"--train.{key}", value)]
    for line in lines:
        command, config, *rest = line.split()
        force = ["--force"] if command == "train" else []  # the model does not know these pictures
        assert main([command, str(ROOT / config), *rest, *options, *force]) in (0, 3)
    assert (tmp_path / "run" / "probe.json").exists() and name in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["after"]
    assert "new types" in capsys.readouterr().out


def test_a_sequence_of_tasks(name, tmp_path):
    settings = {"tasks": 2, "data": {"path": name, "options": SMALL, "cache": str(tmp_path)}, "model": MODEL[1]}
    (tmp_path / "sequence.yaml").write_text(yaml.safe_dump({**settings, "adapter": "image"}))
    tasks = read_sequence(tmp_path / "sequence.yaml", ["--train.output_dir", str(tmp_path / "run")], joint=False).tasks
    types = [{row.type for row in task.adapter.demos.labelled} for task in tasks]
    assert [len(kinds) for kinds in types] == [1, 1] and types[0] != types[1]
    assert all(task.adapter.demos.unlabelled for task in tasks)


def test_a_run_is_called_after_its_data_set():
    assert run_name("hub:timm/oxford-iiit-pet") == "oxford-iiit-pet" and run_name("hub:mine") == "mine"


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "unseen").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_of_a_hub_data_set_is_read(file, columns, tmp_path, capsys):
    """Its options are known and suit its data set's classes; it is read with a local data set in place of the hub's."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    path, options = settings["data"]["path"], settings["data"]["options"]
    assert path.startswith("hub:") and path.count("/") == 1 and settings["model"] == "Qwen/Qwen3-VL-8B-Instruct"
    assert len(HubTypes(**options).classes(N_CLASSES[path])[0]) == options["n_types"]
    settings["data"]["path"] = save(tmp_path / "local", columns)
    settings["data"]["options"] = {**options, **SMALL, "n_old": min(options.get("n_old", 1), 1)}
    settings["data"]["cache"] = str(tmp_path / "cache")
    settings["model"] = MODEL[1]
    settings["train"] |= {"bf16": False, "output_dir": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["preview", str(tmp_path / "config.yaml")]) == 0
    assert "tokens)" in capsys.readouterr().out


def test_there_are_such_configs():
    assert len(list((ROOT / "configs" / "unseen").glob("*.yaml"))) >= 3


def test_writing_without_the_prefix_is_the_same(name, tmp_path):
    assert write_hub_types(name.removeprefix("hub:"), tmp_path, **SMALL) == data_folder(name, tmp_path, **SMALL)
