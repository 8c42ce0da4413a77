"""Rows and types read from a folder, a `datasets` dataset or a JSONL file; `DemoSet` checks them."""

from __future__ import annotations

import difflib
import math
import os
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml

from text_sdft.answers import normalised
from text_sdft.core import UserError
from text_sdft.core.errors import did_you_mean, does_not_exist, first_line, listed
from text_sdft.files import check_name, file_text
from text_sdft.row_files import placed_rows
from vlm_sdft.demos.chat_rows import question_and_answer
from vlm_sdft.demos.rows import ImageRow, ObjectType, Split
from vlm_sdft.images.files import SUFFIXES

Read = tuple[list[ImageRow], dict[str, ObjectType], list[str]]

TYPE_KEYS = ("answer", "synonyms", "cues")
METADATA_FILE = "metadata.jsonl"
METADATA_KEYS = ("file_name", "prompt", "answer")
SPLITS: tuple[Split, ...] = get_args(Split)
#: Folders that serve as ``test/`` where there is none.
VALIDATION = ("val", "valid", "validation")
#: Folders that tell no type where there are no others.
NO_TYPES = {"image", "images", "img", "imgs", "train", "test", *VALIDATION}
Metadata = dict[Path, list[dict[str, str]]]
#: Splits whose images lie in a folder for each type.
LABELLED: tuple[Split, ...] = ("train", "test", "old")


def read_folder(
    path: Path, question: str, retain_questions: Sequence[str] | None, retain: str | Path | None, holdout: float, seed: int
) -> Read:
    """See `DemoSet.from_folder`."""
    _check_exists(path)
    question = question.strip()
    _all_files(path)  # whose names are checked
    folders, report = _split_folders(path)
    metadata = {split: _read_metadata(folder, split, report) for split, folder in folders.items()}
    typed = [(split, kind, file) for split in LABELLED for kind in _subfolders(folders[split]) for file in _of_type(kind)]
    types = _read_types(path / "types.yaml", dict.fromkeys(kind.name for _, kind, _ in typed))
    rows = []

    def add(file: Path, own: Mapping[str, Any], answer: str | None, kind: str | None, split: Split, end: str = "") -> None:
        name = f"{file.relative_to(path).as_posix()}{end}"
        rows.append(ImageRow(name, (file,), own.get("prompt", question), answer, kind, split))

    for split, kind, file in typed:
        own = metadata[split][file][0] if split != "old" and file in metadata[split] else {}
        add(file, own, own.get("answer", types[kind.name].answer), kind.name, split)
    report += [] if folders["train"] == path else _unused_beside_splits(path, folders)
    for split in LABELLED:
        report += _joined_below(folders[split])
        loose = [file for file in image_files(folders[split]) if file.parent == folders[split]]
        if loose and not (split == "old" and metadata["old"]):
            report.append(f"Not used: {len(loose)} images of {folders[split]} lie in no type's folder.")
    if not any(row.split == "test" for row in rows):
        rows = _with_held_out(rows, holdout, seed, report)
    for file, entries in metadata["old"].items():
        for i, own in enumerate(entries):
            add(file, own, own["answer"], None, "old", f"#{i}")
    for file in image_files(folders["unlabelled"]):
        add(file, metadata["unlabelled"].get(file, [{}])[0], None, None, "unlabelled")
    retained = [(file.relative_to(path).as_posix(), file) for file in image_files(folders["retain"])]
    if retain is not None:
        retained += [(f"data.retain/{file.relative_to(retain).as_posix()}", file) for file in _further_images(Path(retain))]
    for key, file in retained:
        prompts = [own["prompt"] for own in metadata["retain"].get(file, []) if "prompt" in own]
        for i, asked in enumerate(prompts or retain_questions or [question]):
            rows.append(ImageRow(f"{key}#{i}", (file,), asked, None, None, "retain"))
    unused = [sentence for folder in folders.values() for sentence in _unused_in_split(folder)]
    images = dict.fromkeys(Path(str(row.images[0])) for row in rows if not row.id.startswith("data.retain/"))
    return rows, types, [_count_sentence(rows), *report, *unused, *_outside(path, list(images))]


def _check_exists(path: Path) -> None:
    check_name(path)
    if not path.exists():
        raise UserError(
            f"{does_not_exist(path)} Give a folder with train/<type>/* or a .jsonl file; data.path may also be "
            "hub:OWNER/NAME."
        )


def _check_names(path: Path, flat: bool) -> None:
    """Raise `UserError` where a name is meant to be a known one: what lies there would not be used, or become a type.

    Beside ``train/`` none of them can be a type's.
    """
    known = ("types.yaml", *SPLITS)
    for file in sorted(path.iterdir()):
        near = difflib.get_close_matches(file.name.casefold(), known, n=1, cutoff=0.94 if flat else 0.9)
        if near and file.name not in known:
            shown = f"{file}/" if file.is_dir() else file
            raise UserError(f"{shown} is not read: the name is '{near[0]}'. Rename it, or move it elsewhere.")


def _split_folders(path: Path) -> tuple[dict[Split, Path | None], list[str]]:
    """Where each split lies, and a sentence where another folder serves as ``test/``; a folder without ``train/`` is one
    itself. Raises `UserError` where the types' folders lie elsewhere.
    """
    folders: dict[Split, Path | None] = {split: path / split if (path / split).is_dir() else None for split in SPLITS}
    below = _subfolders(path)
    found = [*(split for split, folder in folders.items() if folder), *(f.name for f in below if _is_validation(f))]
    if found and folders["train"] is None:
        raise UserError(f"{path} has {found[0]}/ but no train/: put the labelled images into train/<type>/.")
    for depth in ("*", "*/*", "*/*/*") if not found else ():
        if deeper := sorted(path.glob(f"{depth}/train/")):
            raise UserError(f"{path} has no train/, but {deeper[0].parent} has: give that folder.")
    _check_names(path, flat=not found)
    folders = folders if found else {**folders, "train": path}
    types = {folder.name for folder in _subfolders(folders["train"])}
    for split in LABELLED:
        names = {folder.name for folder in _subfolders(folders[split])}
        if names and {name.casefold() for name in names} <= NO_TYPES:
            raise UserError(
                f"{folders[split]} has no type folders: '{min(names)}' would be a type. Put its images into folders named "
                "after their types, or move them elsewhere."
            )
    for folder in below:
        shared = types & {kind.name for kind in _subfolders(folder)}
        if _is_validation(folder) and not _subfolders(folders["test"]) and shared:
            return {**folders, "test": folder}, [f"{folder} is taken as test/, as there is none."]
    return folders, []


def _is_validation(folder: Path) -> bool:
    return folder.name.casefold() in VALIDATION


def _joined_below(folder: Path | None) -> list[str]:
    """A sentence on type folders whose own folders hold images: these may be the types."""
    joined = {}
    for kind in _subfolders(folder):
        inner = {file.relative_to(kind).parent.as_posix() for file in image_files(kind)} - {"."}
        if {name.casefold() for name in inner} - NO_TYPES:
            joined[kind.name] = listed(sorted(inner))
    found = listed(f"{name} ({inner})" for name, inner in joined.items())
    told = (
        f"{len(joined)} type folders of {folder} hold further folders, whose images are all taken as that type: {found}. "
        f"If those are the types, move them up into {folder}."
    )
    return [told] if joined else []


def _outside(root: Path, files: Sequence[Path]) -> list[str]:
    """A sentence on files that are read and do not lie below the root, but where links or ``..`` lead."""
    inside = os.path.join(os.path.realpath(root), "")
    found = [file for file in files if not os.path.realpath(file).startswith(inside)]
    told = (
        f"{len(found)} images that are read lie outside of {root}, such as {next(iter(found), '')}. Reports show them too."
    )
    return [told] if found else []


def _unused_beside_splits(path: Path, folders: Mapping[Split, Path | None]) -> list[str]:
    """What lies beside ``train/`` and is not read, as sentences."""
    others = [folder for folder in _subfolders(path) if folder not in folders.values()]
    loose = [f for f in path.iterdir() if f.is_file() and f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    unread = listed(folder.name for folder in others)
    sentence = f"Not used: the folders {unread} of {path}, which are none of {', '.join(SPLITS)}."
    images = f"Not used: {len(loose)} images of {path} that lie in none of its folders."
    metadata = (
        f"Not used: {path / METADATA_FILE}. It belongs into {path / 'train'} or another split, with file_name from there."
    )
    is_there = os.path.lexists(path / METADATA_FILE)
    return [told for told, found in ((sentence, others), (images, loose), (metadata, is_there)) if found]


def _unused_in_split(folder: Path | None) -> list[str]:
    """What lies in a split and is neither an image nor read with them, as sentences."""
    files = _all_files(folder)
    misplaced = [file for file in files if file.name == METADATA_FILE and file.parent != folder]
    others = [f for f in files if f.suffix.lower() not in SUFFIXES and f.name not in (METADATA_FILE, "types.yaml")]
    found = [f"Not used: {file}. It belongs into {folder}, with file_name from there." for file in misplaced]
    if others:
        found.append(f"Not used: {len(others)} files of {folder} have no ending of an image, such as {others[0].name}.")
    return found


def _of_type(folder: Path) -> list[Path]:
    """The images of a type's folder. Raises `UserError` where there is none."""
    if not (files := image_files(folder)):
        raise UserError(f"The type folder {folder} holds no image (.png, .jpg, .webp, …): add some, or remove it.")
    return files


def _further_images(folder: Path) -> list[Path]:
    """The images of ``data.retain``. Raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(
            f"data.retain: the folder {folder} does not exist. It may also be a .txt file with a prompt in each line, "
            "or one of the words crops and drawn."
        )
    if not (found := image_files(folder)):
        raise UserError(f"data.retain: the folder {folder} holds no image. Put some there, or leave data.retain out.")
    return found


def read_dataset(dataset: Any, image_column: str, label_column: str, question: str, holdout: float, seed: int) -> Read:
    """See `DemoSet.from_dataset`."""
    import datasets

    parts = dataset if isinstance(dataset, Mapping) else {"train": dataset}
    unknown = [name for name in parts if name not in (*SPLITS, *VALIDATION)]
    if unknown or "train" not in parts:
        raise UserError(f"Splits {sorted(parts)}: 'train' must be there; others may be {', '.join(SPLITS[1:])}.")
    types: dict[str, ObjectType] = {}
    rows: list[ImageRow] = []
    report: list[str] = []
    for name, part in parts.items():
        split = name
        if name in VALIDATION:
            split = "test"
            if any(other in parts for other in ("test", *VALIDATION[: VALIDATION.index(name)])):
                report.append(f"The split '{name}' is not used; pass it as 'test' to measure on it.")
                continue
            report.append(f"The split '{name}' is taken as 'test', as there is none.")
        if not hasattr(part, "column_names"):
            raise UserError(f"A '{type(part).__name__}' is no data set: give a datasets.Dataset, or a DatasetDict of them.")
        labelled = split in LABELLED
        for column in (image_column, label_column)[: 2 if labelled else 1]:
            if column not in part.column_names:
                raise UserError(f"The split '{name}' has no column '{column}' (it has {', '.join(part.column_names)}).")
        try:
            part = part.cast_column(image_column, datasets.Image(decode=False))
        except Exception as error:
            raise UserError(f"The column '{image_column}' holds no images ({first_line(error)}).") from error
        feature = part.features.get(label_column)
        for i, record in enumerate(part):
            kind = None
            if labelled:
                label = record[label_column]
                if label is None or label == -1 or label != label:  # as a hub data set and pandas hide labels
                    raise UserError(f"{name}/{i} has no label ({label}): leave it out, or use the split 'unlabelled'.")
                word = feature.int2str(label) if isinstance(feature, datasets.ClassLabel) else str(label)
                kind = types.setdefault(word, ObjectType(word, spelled(word)))
            answer, word = (kind.answer, kind.name) if kind is not None else (None, None)
            rows.append(ImageRow(f"{name}/{i}", (record[image_column],), question, answer, word, split))  # type: ignore[arg-type]
    if not any(row.split == "test" for row in rows):
        rows = _with_held_out(rows, holdout, seed, report)
    return rows, types, [_count_sentence(rows), *report]


def read_jsonl(path: Path) -> Read:
    """See `DemoSet.from_jsonl`."""
    _check_exists(path)
    rows: list[ImageRow] = []
    types: dict[str, ObjectType] = {}
    n_system = 0
    for place, record in placed_rows(path):
        where = f"{path}, {place}"
        question, answer, n = question_and_answer(record, where)
        n_system += n
        split: Any = record.get("split") or "train"
        if split not in SPLITS:
            raise UserError(f"{where}: split '{listed([split])}': use one of {', '.join(SPLITS)}.")
        if answer is None and split in ("test", "old"):
            raise UserError(f"{where}: needs an assistant turn to test on.")
        if split == "train" and answer is None:
            split = "unlabelled"
        sources = tuple(path.parent / name for name in record["images"])
        typed = normalised(answer, name=True) if answer is not None and split in ("train", "test") else None
        if typed is not None and typed not in types:
            types[typed] = ObjectType(typed, str(answer))
        rows.append(ImageRow(place, sources, question, answer, typed, split))
    report = [f"Not used: {n_system} system messages of {path}. data.system_prompt gives one to all rows."] * bool(n_system)
    images = [Path(str(image)) for row in rows for image in row.images]
    return rows, types, [_count_sentence(rows), *report, *_outside(path.parent, images)]


def _with_held_out(rows: Sequence[ImageRow], share: float, seed: int, report: list[str]) -> list[ImageRow]:
    if not 0 <= share < 1:
        raise UserError(f"The share to hold out for testing (holdout) is {share}: use 0 (none) or more, and less than 1.")
    if share == 0:
        report.append("There is no test/<type>/* and holdout is 0: nothing is measured on the new types.")
        return list(rows)
    by_type: dict[str | None, list[ImageRow]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            by_type[row.type].append(row)
    held: dict[str, str | None] = {}
    for name, members in by_type.items():
        count = min(max(1, round(share * len(members))), len(members) - 1)
        drawn = random.Random(f"{seed}/{name}").sample(sorted(row.id for row in members), count)
        held |= dict.fromkeys(drawn, name)
    kinds = len(set(held.values()))
    report.append(
        f"There is no test/<type>/*: {len(held)} images of {kinds} types were held out of train/ to test on."
        if held
        else "There is no test/<type>/*, and no type has an image to spare: nothing is measured on the new types."
    )
    return [replace(row, split="test") if row.id in held else row for row in rows]


class _Texts(yaml.BaseLoader):
    """Texts as they are written (usual YAML reads `no` as false and `007` as 7); a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.BaseLoader`."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"'{twice}' stands twice. Leave one of them out.")
        return super().construct_mapping(node, deep)


def _read_types(file: Path, names: Mapping[str, None]) -> dict[str, ObjectType]:
    try:
        given = yaml.load(file_text(file, 2**20), _Texts) or {} if os.path.lexists(file) else {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: lists or mappings stand too deep in each other. Make it flat.") from error
    if not isinstance(given, dict):
        raise UserError(f"{file}: needs a mapping of type names to {{answer, synonyms, cues}}.")
    forms = {_composed(name): name for name in names}
    given = {forms.get(_composed(str(name)), name): entry for name, entry in given.items()}
    for name, entry in given.items():
        if name not in names:
            raise UserError(f"{file}: there is no type '{name}'.{did_you_mean(name, names)} Types are the folders' names.")
        if not isinstance(entry, dict):
            raise UserError(f"{file}: '{name}' needs a mapping with some of {', '.join(TYPE_KEYS)}.")
        if unknown := next((str(key) for key in entry if key not in TYPE_KEYS), None):
            raise UserError(
                f"{file}: '{unknown}' of '{name}' is unknown.{did_you_mean(unknown, TYPE_KEYS)} Known: {TYPE_KEYS}."
            )
    types = {}
    for name in names:
        entry = given.get(name, {})
        answer = entry.get("answer", spelled(name))
        if not isinstance(answer, str):
            raise UserError(f"{file}: 'answer' of '{name}' must be a text; further right answers are its synonyms.")
        answer = answer.strip()
        if not answer and "answer" in entry:
            raise UserError(f"{file}: 'answer' of '{name}' is empty: give the word, or leave the line out.")
        synonyms, cues = (_word_list(file, name, key, entry.get(key, "")) for key in ("synonyms", "cues"))
        types[name] = ObjectType(name, answer, synonyms, cues)
    return types


def _word_list(file: Path, name: str, key: str, given: Any) -> tuple[str, ...]:
    """A list in ``types.yaml``, or one text without a list, or nothing."""
    words = given if isinstance(given, list) else [given] if given else []
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{file}: '{key}' of '{name}' must be a text or a list of texts.")
    if not all(word.strip() for word in words):
        raise UserError(f"{file}: one of the '{key}' of '{name}' is empty: take it out.")
    return tuple(word.strip() for word in words)


def _read_metadata(folder: Path | None, split: Split, report: list[str]) -> Metadata:
    """Entries of ``metadata.jsonl`` by image file; what is null in one is left out of it. What is not used is reported."""
    entries: Metadata = defaultdict(list)
    if folder is None or not os.path.lexists(folder / METADATA_FILE):
        return entries
    images, others = {_composed(str(file)): file for file in image_files(folder)}, Counter[str]()
    for place, record in placed_rows(folder / METADATA_FILE):
        where = f"{folder / METADATA_FILE}, {place}"
        entry = {key: value for key, value in record.items() if value is not None}
        name = str(entry.get("file_name", ""))
        file = images.get(_composed(str(folder / os.path.normpath(name))))
        if file is None:
            raise UserError(f"{where}: file_name must name an image below {folder}.")
        for key in entry:
            if key not in METADATA_KEYS and (hint := did_you_mean(key, METADATA_KEYS)):
                raise UserError(f"{where}: '{key}' is unknown.{hint}")
        others.update(key for key in entry if key not in METADATA_KEYS)
        prompt, answer = entry.get("prompt", "-"), entry.get("answer", "-")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: 'prompt' must be a text; leave it out for the usual question.")
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < math.inf
        if not is_number and (not isinstance(answer, str) or not answer.strip()):
            raise UserError(f"{where}: 'answer' must be a text or a number; leave it out for the usual answer.")
        if split == "old" and "answer" not in entry:
            raise UserError(f"{where}: an entry of old/ needs an 'answer', by which the model's is scored.")
        if entries[file] and split not in ("old", "retain"):
            raise UserError(f"{where}: {name} has an entry already, and one is used. Leave one of them out.")
        entries[file].append({key: str(entry[key]).strip() for key in ("prompt", "answer") if key in entry})
    if others:
        keys = listed(f"{key} ({count})" for key, count in others.items())
        report.append(
            f"Not used: of {folder / METADATA_FILE} the keys (rows) {keys}. The right answer stands in 'answer', and the "
            "question in 'prompt'."
        )
    return entries


def _composed(name: str) -> str:
    """A name in one Unicode form: file systems and archives change it."""
    return unicodedata.normalize("NFC", name)


def _subfolders(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_files(folder: Path | None) -> list[Path]:
    """Image files below a folder, hidden ones left out, in a stable order."""
    return [file for file in _all_files(folder) if file.suffix.lower() in SUFFIXES]


def _all_files(folder: Path | None) -> list[Path]:
    """All files below a folder but hidden ones, in a stable order; linked folders are followed, each once."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, subfolders, names in os.walk(folder, followlinks=True) if folder is not None else ():
        real = os.path.realpath(here)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        for name in (*subfolders, *names):
            check_name(Path(here, name))
        if real not in seen:
            found += [Path(here, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def _count_sentence(rows: Sequence[ImageRow]) -> str:
    """How many rows there are of each use."""
    words: dict[str, str] = {
        "train": "labelled images of new types",
        "unlabelled": "unlabelled images",
        "retain": "retention prompts",
        "test": "test images",
        "old": "rows of what the model knows already",
    }
    counts = {split: sum(row.split == split for row in rows) for split in words}
    kinds = len({row.type for row in rows if row.split == "train"})
    found = ", ".join(f"{count} {words[split]}" for split, count in counts.items() if count)
    return f"Found {found} ({kinds} new types)."


def spelled(name: str) -> str:
    """The answer that a folder's or a label's name gives."""
    return " ".join(name.replace("_", " ").split())
