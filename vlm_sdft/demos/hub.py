"""Image classification data sets of the hub as folders of new types (docs/your-own-images.md has the layout).

Classes are split as CoOp and CoCoOp split them (arXiv 2203.05557, "base to new"): in the order of their labels the first
half, rounded up, is *base*, taken as what the model knows already (``retain/``, ``old/``); the types to be taught are
drawn from the second half, *new*. Images are copied as they are encoded. ``hub.json`` says how a folder was made, and which
class each type is.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from vlm_sdft.images.files import FORMATS, SUFFIXES, encoded_bytes
from vlm_sdft.zoo.few_shot import SPLITS, FewShot, known_options, made_folder
from vlm_sdft.zoo.vocabulary import invented_names

MARKER = "hub.json"
FORMAT = 2


@dataclass(frozen=True)
class HubTypes(FewShot):
    """Types of a data set; old types are its base classes.

    Attributes:
        names: "own", or "invented": answers that no model can know, for the new types only.
        config: of the data set, where it has several.
        revision: a branch, tag or commit of the data set.
        train_split: where all images come from but those of ``test/`` and ``old/``.
        test_split: where these come from; None: "test", else "validation", or what remains of a data set's only split.
    """

    names: str = "own"
    image_column: str = "image"
    label_column: str = "label"
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names not in ("own", "invented"):
            raise ValueError(f'names is {self.names!r}; use "own" or "invented".')

    def classes(self, count: int) -> tuple[list[int], list[int]]:
        """The new types in their order, and all base classes, as places in the order of ``count`` classes. Raises
        `ValueError`: the split has fewer new classes than types are asked for.
        """
        n_base = math.ceil(count / 2)
        mixed = n_base + np.random.default_rng(20_260_103).permutation(count - n_base)  # once for all seeds
        pool = np.array_split(mixed, len(SPLITS))[SPLITS.index(self.split)]
        if self.first + self.n_types > len(pool):
            raise ValueError(
                f"n_types is {self.n_types} and first is {self.first}; of {count} classes {count - n_base} are new, and "
                f"the split {self.split!r} has {len(pool)} of them. Lower n_types."
            )
        order = np.random.default_rng([2028, SPLITS.index(self.split), self.seed]).permutation(pool)
        return order[self.first :][: self.n_types].tolist(), list(range(n_base))


def write_hub_types(name: str, cache_dir: Path, **options: Any) -> Path:
    """A folder of new types from a data set. A complete folder of the same options is left as it is.

    Args:
        name: a data set of the hub, or a local folder that `datasets` can load.
        cache_dir: folders are kept there, one for each data set and set of options.
        options: fields of `HubTypes`.

    Raises:
        ValueError: the data set cannot be loaded, or does not have what the options ask for; an option is unknown.
    """
    spec = HubTypes(**known_options(HubTypes, options))
    made_by = {"format": FORMAT, "data": name, **asdict(spec)}
    key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:8]
    folder = Path(cache_dir) / f"{_file_name(Path(name).name)}-{spec.split}-{spec.seed}-{key}"
    return made_folder(folder, MARKER, made_by, lambda beside: _write(beside, name, spec))


def _write(folder: Path, name: str, spec: HubTypes) -> dict[str, Any]:
    source = _Source(name, spec)
    new, base = spec.classes(len(source.classes))
    answers = {kind: source.classes[kind].replace("_", " ") for kind in [*new, *(base if spec.n_old else [])]}
    if spec.names == "invented":
        rng = np.random.default_rng([2029, SPLITS.index(spec.split), spec.seed])
        answers |= dict(zip(new, invented_names(spec.first + spec.n_types, rng)[spec.first :], strict=True))
    folders = _folder_names(answers)
    files = {
        **_labelled_files("train", source.next_rows("train", new, "shots"), folders),
        **_mixed_files("unlabelled", source.next_rows("train", new, "n_unlabelled"), spec.seed),
        **_labelled_files("test", source.next_rows("test", new, "n_test"), folders),
        **_mixed_files("retain", source.next_rows("train", base, "n_retain"), spec.seed),
        **_labelled_files("old", source.next_rows("test", base, "n_old"), folders),
    }
    for file, row in files.items():
        data = source.image(row)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{file}{_file_ending(data)}").write_bytes(data)
    types = {folders[kind]: {"answer": answer} for kind, answer in answers.items()}
    (folder / "types.yaml").write_text(yaml.safe_dump(types, sort_keys=False, allow_unicode=True), "utf-8")
    return {
        "splits": source.splits,
        "new": {answers[kind]: source.classes[kind] for kind in new},
        "base": [source.classes[kind] for kind in base],
    }


Row = tuple[str, int]


class _Source:
    """A data set's classes in the order of their labels, and its images by class.

    Attributes:
        classes: names of the classes that have training images.
        splits: the data set's splits that serve as "train" and "test"; may be one and the same.
    """

    def __init__(self, name: str, spec: HubTypes) -> None:
        import datasets

        self.spec, parts = spec, _load(name, spec)
        self.splits = {"train": spec.train_split, "test": _test_split(parts, spec)}
        used = {split: parts[split] for split in self.splits.values()}
        features = used[spec.train_split].features
        for option in ("image_column", "label_column"):
            if (column := getattr(spec, option)) not in features:
                raise ValueError(f"The data set has no column {column!r}: set {option} to one of {', '.join(features)}.")
        if not isinstance(features[spec.image_column], datasets.Image):
            raise ValueError(f"The column {spec.image_column!r} holds no images: set image_column to another.")
        labels = {split: _checked_labels(split, part, spec) for split, part in used.items()}
        values = sorted(set(labels[spec.train_split]))
        label = features[spec.label_column]
        self.classes = [label.int2str(v) if isinstance(label, datasets.ClassLabel) else str(v) for v in values]
        self._images = {
            split: part.select_columns([spec.image_column]).cast_column(spec.image_column, datasets.Image(decode=False))
            for split, part in used.items()
        }
        places = {value: place for place, value in enumerate(values)}
        self._kinds = {split: np.array([places.get(v, -1) for v in given]) for split, given in labels.items()}
        self._used: Counter[tuple[str, int]] = Counter()

    def next_rows(self, use: str, kinds: Iterable[int], option: str) -> dict[int, list[Row]]:
        """As many images of each class as the option says, none of which was given before."""
        split, given = self.splits[use], {}
        for kind in kinds:
            rows, start = np.flatnonzero(self._kinds[split] == kind), self._used[split, kind]
            self._used[split, kind] = end = start + getattr(self.spec, option)
            if end > len(rows):
                raise ValueError(
                    f"The class {self.classes[kind]!r} has {len(rows)} images in the split {split!r}; {end} are needed. "
                    f"Lower {option}."
                )
            order = np.random.default_rng([2030, self.spec.seed, list(self._kinds).index(split), kind]).permutation(rows)
            given[kind] = [(split, int(row)) for row in order[start:end]]
        return given

    def image(self, row: Row) -> bytes:
        """An image as it is encoded."""
        split, number = row
        return encoded_bytes(self._images[split][number][self.spec.image_column])


def _load(name: str, spec: HubTypes) -> Mapping[str, Any]:
    import datasets

    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)
        if (Path(name) / "state.json").is_file():
            return {spec.train_split: datasets.load_from_disk(name)}
        return datasets.load_dataset(name, spec.config, revision=spec.revision)
    except Exception as error:
        raise ValueError(
            f"{name!r} could not be loaded ({error}). Give a data set of the hub as OWNER/NAME, or a local folder as "
            "./FOLDER; the options config and revision choose among what it has."
        ) from error


def _test_split(parts: Mapping[str, Any], spec: HubTypes) -> str:
    """The split of the test images, after a look at both."""
    usual = [split for split in ("test", "validation") if split in parts and split != spec.train_split]
    default = next(iter(usual), spec.train_split if len(parts) == 1 else None)
    chosen = {"train_split": spec.train_split, "test_split": spec.test_split or default}
    for option, split in chosen.items():
        if split not in parts:
            what = f"no split {split!r}" if split else 'neither a split "test" nor "validation"'
            raise ValueError(f"The data set has {what}: set {option} to one of {', '.join(parts)}.")
    return str(chosen["test_split"])


def _checked_labels(split: str, part: Any, spec: HubTypes) -> list[Any]:
    labels = list(part.select_columns([spec.label_column])[spec.label_column])
    if missing := sum(label is None or label == -1 for label in labels):  # -1: how the hub hides a label
        raise ValueError(
            f"{missing} of {len(labels)} images of the split {split!r} have no label (-1): set test_split or train_split "
            "to a split that is labelled, or label_column to another column."
        )
    return labels


def _labelled_files(part: str, rows: Mapping[int, Iterable[Row]], folders: Mapping[int, str]) -> dict[str, Row]:
    return {f"{part}/{folders[kind]}/{i:03}": row for kind, given in rows.items() for i, row in enumerate(given)}


def _mixed_files(part: str, rows: Mapping[int, Iterable[Row]], seed: int) -> dict[str, Row]:
    """Under running numbers in random order, so that no name tells a class."""
    mixed = [row for given in rows.values() for row in given]
    order = np.random.default_rng([2031, seed]).permutation(len(mixed))
    return {f"{part}/{number:05}": mixed[which] for number, which in enumerate(order)}


def _folder_names(answers: Mapping[int, str]) -> dict[int, str]:
    """A folder's name for each class, all different."""
    folders: dict[int, str] = {}
    for kind, answer in answers.items():
        name = _file_name(answer)
        taken = {other.casefold() for other in folders.values()}
        folders[kind] = f"{name}-{kind}" if name.casefold() in taken else name
    return folders


def _file_name(text: str) -> str:
    """What of a name is safe in any file system."""
    return re.sub(r"\W+", "-", text).strip("-")[:80] or "x"


def _file_ending(data: bytes) -> str:
    """A file's ending by what it holds. What is no image is named by the check of all images, as in any other folder."""
    try:
        ending = f".{Image.open(io.BytesIO(data), formats=FORMATS).format}".lower()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ".jpg"
    return ending if ending in SUFFIXES else ".jpg"
