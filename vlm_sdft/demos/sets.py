"""`DemoSet`: the images a model learns from and is measured on, checked when they are read, before any training.

Rows by their use: *train* (labelled: a query, and a demonstration for other queries), *unlabelled* (queries whose answer
nobody knows), *retain* (images the model should go on answering as it does), *test* (the new types, held out) and *old*
(what the model knows already: forgetting is measured there).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from text_sdft.core import UserError
from text_sdft.core.errors import does_not_exist
from vlm_sdft.demos.answers import normalise
from vlm_sdft.images.files import ImageSource, content_hash, image_name, load_image, perceptual_hash

Split = Literal["train", "test", "unlabelled", "retain", "old"]
QUESTION = "What is this?"
#: Bits of 64 in which two perceptual hashes may differ and the images still be called near-duplicates.
NEAR_BITS = 1


@dataclass(frozen=True)
class ObjectType:
    """A kind of object.

    Attributes:
        name: its folder's name.
        answer: the word that answers the question.
        synonyms: words that are right too.
        cues: short phrases that describe it.
    """

    name: str
    answer: str
    synonyms: tuple[str, ...] = ()
    cues: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageRow:
    """One query about one image, or several.

    Attributes:
        id: stable between runs.
        images: where they come from (paths, bytes, PIL images); read when needed.
        question: the text that goes with them.
        answer: the right answer; None where nobody knows it.
        type: the type's name, for balancing demonstrations; None where unknown.
        split: what the row is used for.
        in_context: a retention row behind demonstrations (see `vlm_sdft.demos.retention`).
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    answer: str | None
    type: str | None
    split: Split
    in_context: bool = False

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Content hash of each image."""
        return tuple(content_hash(image) for image in self.images)

    def copies(self, other: ImageRow) -> bool:
        """Whether one of the two holds every image of the other, byte for byte: one image that many share is not enough."""
        mine, theirs = set(self.hashes), set(other.hashes)
        return mine <= theirs or theirs <= mine


@dataclass
class DemoSet:
    """Rows of one data set, by use.

    Attributes:
        labelled, unlabelled, retain, test, old: rows.
        types: what is known of each type, by name.
        report: plain sentences on what was found, held out or dropped.
    """

    labelled: list[ImageRow] = field(default_factory=list)
    unlabelled: list[ImageRow] = field(default_factory=list)
    retain: list[ImageRow] = field(default_factory=list)
    test: list[ImageRow] = field(default_factory=list)
    old: list[ImageRow] = field(default_factory=list)
    types: dict[str, ObjectType] = field(default_factory=dict)
    report: list[str] = field(default_factory=list)

    @property
    def train(self) -> list[ImageRow]:
        """All that training takes: labelled and unlabelled queries, and retention prompts."""
        return [*self.labelled, *self.unlabelled, *self.retain]

    @cached_property
    def n_labelled_types(self) -> int:
        """Types that can be shown: with one there is nothing to exchange or to leave out."""
        return len({row.type for row in self.labelled})

    @cached_property
    def one_answer_a_type(self) -> bool:
        """Whether the labelled images of a type share its answer, and no other type has it: answers stand for types."""
        answers = {(row.type, normalise(str(row.answer))) for row in self.labelled}
        return len(answers) == len({row.type for row in self.labelled}) == len({answer for _, answer in answers})

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        question: str = QUESTION,
        retain_questions: Sequence[str] | None = None,
        retain: str | Path | None = None,
        holdout: float = 0.2,
        seed: int = 0,
        on_bad_image: Literal["error", "drop"] = "error",
    ) -> DemoSet:
        """A folder in the imagefolder convention.

        ``train/<type>/*``, and where they exist ``test/<type>/*``, ``unlabelled/**``, ``retain/**``, ``old/<type>/*`` and
        ``types.yaml`` ({type: {answer, synonyms, cues}}); a ``metadata.jsonl`` ({"file_name", "prompt", "answer"}) in any
        of them gives an image its own question and answer, in ``old`` as a further row (another skill). A folder of
        ``<type>/*`` alone is training data.

        Args:
            question: what is asked about each image.
            retain_questions: what is asked about each retention image; None asks ``question``.
            retain: a further folder of retention images, any nesting.
            holdout: share of each type's images held out where there are none to test on; above 0 at least one of two.
            seed: of that draw.
            on_bad_image: an image that cannot be read is an error, or is dropped and reported.

        Raises:
            UserError: a type is empty, two share an answer, a synonym is another's answer, an image cannot be read, a file
                or key is wrong.
        """
        from vlm_sdft.demos.readers import read_folder

        _check_exists(Path(path))
        rows, types, report = read_folder(Path(path), question, retain_questions, retain, holdout, seed)
        return cls.from_rows(rows, types, report, on_bad_image)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        image_column: str = "image",
        label_column: str = "label",
        question: str = QUESTION,
        holdout: float = 0.2,
        seed: int = 0,
    ) -> DemoSet:
        """A `datasets.Dataset` or `DatasetDict` with an image column and a label column (ClassLabel or string).

        Splits named train, test, unlabelled, retain and old are used as such. Images stay encoded until they are needed.
        """
        from vlm_sdft.demos.readers import read_dataset

        rows, types, report = read_dataset(dataset, image_column, label_column, question, holdout, seed)
        return cls.from_rows(rows, types, report)

    @classmethod
    def from_jsonl(cls, path: str | Path, *, on_bad_image: Literal["error", "drop"] = "error") -> DemoSet:
        """Lines {"messages": [user …, assistant], "images": [paths], "split": …}.

        The user turn is the question, the assistant turn the answer (none: an unlabelled query); paths start at the file.
        """
        from vlm_sdft.demos.readers import read_jsonl

        _check_exists(Path(path))
        return cls.from_rows(*read_jsonl(Path(path)), on_bad_image)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> DemoSet:
        """`from_folder` for a folder, `from_jsonl` for a ``.jsonl`` file, whose rows need only ``on_bad_image``.

        Raises:
            UserError: it is neither, or as those two.
        """
        path = Path(path)
        if path.is_dir():
            return cls.from_folder(path, **options)
        _check_exists(path)
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: give a folder (train/<type>/*) or a .jsonl file with messages and images.")
        if options.get("retain") is not None:
            raise UserError(f'data.retain goes with a folder; in {path} write rows with "split": "retain".')
        return cls.from_jsonl(path, on_bad_image=options.get("on_bad_image", "error"))

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[ImageRow],
        types: Mapping[str, ObjectType],
        report: Iterable[str] = (),
        on_bad_image: Literal["error", "drop"] = "error",
    ) -> DemoSet:
        """Rows read elsewhere, checked: every image opens, nothing of the test side is trained on.

        Raises:
            UserError: as `from_folder`.
        """
        _check_answers(types)
        notes = list(report)
        rows = _readable(rows, on_bad_image, notes)
        rows = _without_leaks(rows, notes)
        by_split: dict[str, list[ImageRow]] = defaultdict(list)
        for row in rows:
            by_split["labelled" if row.split == "train" else row.split].append(row)
        if not by_split["labelled"]:
            dropped = [sentence for sentence in notes if sentence.startswith(("Dropped", "Not used"))]
            why = "\n".join(["", *dropped[:5], *([f"… and {len(dropped) - 5} more"] if len(dropped) > 5 else [])])
            raise UserError(f"There are no labelled training images: put at least one into train/<type>/.{why}")
        counts = Counter(row.type for row in by_split["labelled"])
        if single := [str(name) for name, count in counts.items() if count == 1]:
            notes.append(
                f"One labelled image only: {', '.join(single)}. As a query it has no demonstration of its type; add one."
            )
        _note_two_answers(by_split["labelled"], notes)
        if unseen := dict.fromkeys(str(row.type) for row in by_split["test"] if row.type not in counts):
            notes.append(f"Tested on, but without a labelled training image: {', '.join(unseen)}. Add some.")
        _note_near_duplicates(by_split["labelled"] + by_split["unlabelled"], by_split["test"], notes)
        return cls(**by_split, types=dict(types), report=notes)


def as_row(row: Any, index: int) -> ImageRow:
    """A row of a data set: an `ImageRow`, or a mapping as `ImageAdapter.examples` takes them.

    Raises:
        UserError: it lacks an image or a prompt; names the row by its index.
    """
    if isinstance(row, ImageRow):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"Row {index} is a {type(row).__name__}; it must be a mapping with 'image' and 'prompt'.")
    images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
    if not images or not isinstance(images, list | tuple):
        raise UserError(f"Row {index} has no 'image', and no list 'images' (it has {', '.join(map(str, row))}).")
    if not row.get("prompt"):
        raise UserError(f"Row {index} has no 'prompt': the question about its image.")
    answer = row.get("answer")
    split = row.get("split") or ("unlabelled" if answer is None else "train")
    if split not in get_args(Split):
        raise UserError(f"Row {index} has the split '{split}'; use {', '.join(get_args(Split))}.")
    return ImageRow(
        id=str(row.get("id", index)),
        images=tuple(images),
        question=row["prompt"],
        answer=answer,
        type=row.get("type"),
        split=cast(Split, split),
    )


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    raise UserError(
        f"{does_not_exist(path)} Give a folder with train/<type>/* or a .jsonl file; data.path may also be hub:OWNER/NAME."
    )


def _check_answers(types: Mapping[str, ObjectType]) -> None:
    seen: dict[str, str] = {}
    for kind in types.values():
        word = normalise(kind.answer)
        if not word:
            raise UserError(f"The type '{kind.name}' has no answer word: give one in types.yaml.")
        if word in seen:
            raise UserError(
                f"The types '{seen[word]}' and '{kind.name}' share the answer '{kind.answer}': no answer could tell them "
                "apart. Give one another answer in types.yaml, or join their folders."
            )
        seen[word] = kind.name
    for kind in types.values():
        for word in kind.synonyms:
            if (other := seen.get(normalise(word), kind.name)) != kind.name:
                raise UserError(
                    f"'{word}' is a synonym of the type '{kind.name}' and the answer of '{other}': the wrong type would be "
                    "scored right. Take it out of the synonyms in types.yaml."
                )


def _readable(rows: Sequence[ImageRow], on_bad_image: str, notes: list[str]) -> list[ImageRow]:
    """The rows whose images open. Every image is decoded once, so that none fails within training."""
    verdicts: dict[str, str | None] = {}
    good, bad = [], []
    for row in rows:
        complaint = None
        for image in row.images:
            is_file = isinstance(image, str | Path)  # others have no name of their own: the row's
            name = image_name(image) if is_file else row.id
            if name not in verdicts or not is_file:
                try:
                    load_image(image)
                    verdicts[name] = None
                except UserError as error:
                    verdicts[name] = str(error) if is_file else f"{row.id}: {error}"
            complaint = complaint or verdicts[name]
        if complaint:
            bad.append(complaint)
        else:
            good.append(row)
    bad = list(dict.fromkeys(bad))
    if bad and on_bad_image == "error":
        more = f"\n… and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError("\n".join(bad[:5]) + more + "\n(data.on_bad_image: drop leaves such images out.)")
    notes += [f"Dropped: {complaint}" for complaint in bad]
    return good


def _without_leaks(rows: Sequence[ImageRow], notes: list[str]) -> list[ImageRow]:
    """The training side loses every row that copies one of the test side."""
    tested: dict[str, list[ImageRow]] = {}
    for row in rows:
        if row.split in ("test", "old"):
            for digest in row.hashes:
                tested.setdefault(digest, []).append(row)
    kept = []
    for row in rows:
        sharing = [other for digest in row.hashes for other in tested.get(digest, ())]
        twin = next((other for other in sharing if row.copies(other)), None)
        if twin is not None and row.split in ("train", "unlabelled", "retain"):
            notes.append(f"Dropped from training: {row.id} is the same image as {twin.id}, on which the model is tested.")
        else:
            kept.append(row)
    return kept


def _note_two_answers(rows: Sequence[ImageRow], notes: list[str]) -> None:
    """Copies of an image under another answer to the same question: the labels contradict each other."""
    first: dict[tuple[tuple[str, ...], str], ImageRow] = {}
    for row in rows:
        twin = first.setdefault((row.hashes, row.question), row)
        if normalise(str(row.answer)) != normalise(str(twin.answer)):
            notes.append(
                f"The same image is labelled under two answers: {twin.id} ('{twin.answer}') and {row.id} ('{row.answer}'). "
                "Take one out."
            )


def _note_near_duplicates(train: Sequence[ImageRow], test: Sequence[ImageRow], notes: list[str]) -> None:
    if not train or not test:
        return
    trained, tested = (np.stack([perceptual_hash(row.images[0]).hash.ravel() for row in side]) for side in (train, test))
    near = [np.flatnonzero((bits != tested).sum(-1) <= NEAR_BITS) for bits in trained]
    pairs = [(i, j) for i, found in enumerate(near) for j in found.tolist()]
    if pairs:
        first = ", ".join(f"{train[i].id} and {test[j].id}" for i, j in pairs[:3])
        notes.append(f"{len(pairs)} pairs of training and test images look nearly the same: {first}. Check for leaks.")
