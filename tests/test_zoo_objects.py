"""Drawn objects and the folders made of them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from text_sdft.core import UserError
from vlm_sdft import DemoSet
from vlm_sdft.config import ImageData, load_demos
from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.few_shot import made_folder
from vlm_sdft.zoo.novel_objects import MARKER, NovelObjects, write_novel_objects
from vlm_sdft.zoo.objects import SPLIT_SIZES, SPLITS, base_types, sample_types, split_attributes
from vlm_sdft.zoo.vocabulary import base_names, invented_names

SMALL = {"n_types": 3, "n_unlabelled": 4, "n_test": 2, "n_retain": 1, "n_old": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_drawing_depends_on_the_seed_alone() -> None:
    kind = sample_types("making", 3)[2]
    first, again, other = (np.asarray(draw(kind, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (first != other).any()
    noisy = np.asarray(draw(kind, np.random.default_rng(1), noise=60.0))
    assert np.abs(noisy.astype(int) - first).mean() > 20


def test_types_are_stable_and_splits_share_no_attributes() -> None:
    assert sample_types("making", 20) == sample_types("making", 30)[:20]
    assert sample_types("making", 5) != sample_types("making", 5, seed=1)
    seen = [attributes for split in SPLITS for attributes in split_attributes(split)]
    assert len(seen) == len(set(seen))
    for split in SPLITS:
        count = SPLIT_SIZES.get(split, 500)
        owned = set(split_attributes(split))
        kinds = sample_types(split, count, seed=3)
        assert len({kind.description for kind in kinds}) == count
        assert all((k.colour, k.shape, (k.pattern, k.pattern_colour), k.legs) in owned for k in kinds)
    with pytest.raises(ValueError, match="making"):
        split_attributes("train")


def test_many_distinct_types() -> None:
    assert len(set(sample_types("making", 4000))) == 4000


def test_descriptions_say_the_attributes() -> None:
    for kind in sample_types("making", 40):
        assert kind.description.startswith("an " if kind.description.split()[1][0] in "aeiou" else "a ")
        assert kind.colour in kind.description and kind.shape in kind.description
        assert ("legs" in kind.description) == (kind.legs > 0)
        assert ("plain" in kind.description) == (kind.pattern == "plain" and not kind.legs)
        assert len(kind.cues) == 4


def test_names_are_new_and_distinct() -> None:
    assert len(set(base_names())) == len(base_types()) == 48
    names = invented_names(134, np.random.default_rng(0))
    assert len(set(names)) == 134
    assert not set(names) & set(base_names())
    assert len({name.split()[0] for name in names[:60]}) == 60


def test_folder_layout(tmp_path: Path) -> None:
    folder = resolve_data("builtin:novel-objects", tmp_path, **SMALL)
    new = list(NovelObjects(**SMALL).new_types())
    for part, count in (("train", 2), ("test", 2)):
        assert sorted(p.name for p in (folder / part).iterdir()) == sorted(n.replace(" ", "-") for n in new)
        assert all(len(list(p.glob("*.png"))) == count for p in (folder / part).iterdir())
    assert len(list((folder / "unlabelled").glob("*.png"))) == 3 * 4
    assert len(list((folder / "retain").glob("*.png"))) == 48
    assert len(list((folder / "old").glob("*/*.png"))) == 48
    types = yaml.safe_load((folder / "types.yaml").read_text())
    assert {types[p.name]["answer"] for p in (folder / "train").iterdir()} == set(new)
    assert {types[p.name]["answer"] for p in (folder / "old").iterdir() if p.is_dir()} == set(base_names())
    assert all(entry["synonyms"] == [] and len(entry["cues"]) == 4 for entry in types.values())
    rows = [json.loads(line) for line in (folder / "old" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    for row in rows:
        assert Image.open(folder / "old" / row["file_name"]).size == (64, 64)
        assert row["prompt"] == "Describe this." and types[row["file_name"].split("/")[0]]["cues"][0] in row["answer"]


def test_a_folder_without_labelled_old_types_can_be_read(tmp_path: Path) -> None:
    demos = DemoSet.from_folder(resolve_data("builtin:novel-objects", tmp_path, **{**SMALL, "n_old": 0}))
    assert not demos.old and len(demos.test) == 6 and demos.retain


def test_folder_is_reproducible_reused_and_rebuilt(tmp_path: Path) -> None:
    first = write_novel_objects(tmp_path / "a", **SMALL)
    made = contents(first)
    assert contents(write_novel_objects(tmp_path / "b", **SMALL)) == made
    stamp = (first / "types.yaml").stat().st_mtime_ns
    assert write_novel_objects(first, **SMALL) == first
    assert (first / "types.yaml").stat().st_mtime_ns == stamp
    for broken in ("picture gone", "cut off"):
        if broken == "picture gone":
            next((first / "unlabelled").glob("*.png")).unlink()
        else:
            marker = json.loads((first / MARKER).read_text())
            (first / MARKER).write_text(json.dumps({**marker, "pictures": None}))
        assert contents(write_novel_objects(first, **SMALL)) == made


def test_pictures_of_different_parts_differ(tmp_path: Path) -> None:
    made = contents(write_novel_objects(tmp_path / "a", **SMALL))
    pictures = [data for name, data in made.items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures)
    other = contents(write_novel_objects(tmp_path / "b", split="validation", **SMALL))
    assert not set(pictures) & {data for name, data in other.items() if name.endswith(".png")}


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_novel_objects(tmp_path, **SMALL)
    write_novel_objects(tmp_path / "data", **SMALL)
    with pytest.raises(ValueError, match="other data"):
        write_novel_objects(tmp_path / "data", **{**SMALL, "seed": 1})


@pytest.mark.parametrize("options", [{"split": "making"}, {"n_types": 0}, {"n_types": 135}, {"shots": 0}, {"noise": -1.0}])
def test_wrong_options_are_refused(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_novel_objects(tmp_path / "data", **options)


def test_names_of_data(tmp_path: Path) -> None:
    assert resolve_data(str(tmp_path), tmp_path) == tmp_path
    with pytest.raises(ValueError, match="builtin:novel-objects"):
        resolve_data("builtin:nothing", tmp_path)
    with pytest.raises(ValueError, match="seed"):
        resolve_data(str(tmp_path), tmp_path, seed=1)


def test_two_runs_may_make_one_folder_at_once(tmp_path: Path) -> None:
    """Each writes beside the folder's place, and the first to finish puts its own there."""
    both = threading.Barrier(2, timeout=60)

    def write(folder: Path) -> dict[str, int]:
        both.wait()  # neither is complete while the other begins
        Image.new("RGB", (8, 8)).save(folder / "x.png")
        both.wait()
        return {"found": 1}

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(made_folder, tmp_path / "cache" / "made", "m.json", {"seed": 1}, write) for _ in range(2)]
    assert {run.result() for run in runs} == {tmp_path / "cache" / "made"}
    assert sorted(p.name for p in (tmp_path / "cache").rglob("*")) == ["m.json", "made", "x.png"], "and nothing beside it"
    assert json.loads((tmp_path / "cache/made/m.json").read_text()) == {"made_by": {"seed": 1}, "found": 1, "pictures": 1}


@pytest.mark.parametrize("cut", [b"", b'{"made_by": {"se', b"[]", b"\xff"])
def test_a_marker_that_was_cut_is_made_again(tmp_path: Path, cut: bytes) -> None:
    made = []
    for _ in range(3):
        made_folder(tmp_path / "made", "m.json", {"seed": 1}, lambda folder: {"n": made.append(folder)})
        (tmp_path / "made/m.json").write_bytes(cut)
    assert len(made) == 3
    made_folder(tmp_path / "made", "m.json", {"seed": 1}, lambda folder: {"n": made.append(folder)})
    made_folder(tmp_path / "made", "m.json", {"seed": 1}, lambda folder: {"n": made.append(folder)})
    assert len(made) == 4, "a whole one is left as it is"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"data\.cache .*cache cannot be written"):
        load_demos(ImageData("builtin:novel-objects", options=SMALL, cache=str(tmp_path / "cache")))
