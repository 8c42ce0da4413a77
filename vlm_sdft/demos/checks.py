"""Rows checked before any training: every image opens, and nothing of the test side is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from text_sdft.answers import normalised
from text_sdft.core import UserError
from vlm_sdft.demos.rows import ImageRow, ObjectType
from vlm_sdft.images.files import image_name, load_image, perceptual_hash

OnBadImage = Literal["error", "drop"]
#: Bits of 64 in which two perceptual hashes may differ and the images still be called near-duplicates.
NEAR_DUPLICATE_BITS = 1


def checked_rows(
    rows: Sequence[ImageRow], types: Mapping[str, ObjectType], on_bad_image: OnBadImage, notes: list[str]
) -> list[ImageRow]:
    """The rows that can be used.

    Args:
        types: what is known of each type, by name.
        on_bad_image: an image that cannot be read is an error, or is dropped and noted.
        notes: sentences on what was read so far; those on what is dropped here, and on what looks odd, are added.

    Raises:
        UserError: two types share an answer, a synonym is another's answer, an image cannot be read, or no labelled row is
            left.
    """
    _check_answers(types)
    rows = _without_leaks(_readable(rows, on_bad_image, notes), notes)
    labelled, tested = ([row for row in rows if row.split == split] for split in ("train", "test"))
    if not labelled:
        dropped = [sentence for sentence in notes if sentence.startswith(("Dropped", "Not used"))]
        why = "\n".join(["", *dropped[:5], *([f"… and {len(dropped) - 5} more"] if len(dropped) > 5 else [])])
        raise UserError(f"There are no labelled training images: put at least one into train/<type>/.{why}")
    counts = Counter(row.type for row in labelled)
    if single := [str(name) for name, count in counts.items() if count == 1]:
        notes.append(
            f"One labelled image only: {', '.join(single)}. As a query it has no demonstration of its type; add one."
        )
    _note_two_answers(labelled, notes)
    if unseen := dict.fromkeys(str(row.type) for row in tested if row.type not in counts):
        notes.append(f"Tested on, but without a labelled training image: {', '.join(unseen)}. Add some.")
    _note_near_duplicates([*labelled, *(row for row in rows if row.split == "unlabelled")], tested, notes)
    return rows


def _check_answers(types: Mapping[str, ObjectType]) -> None:
    seen: dict[str, str] = {}
    for kind in types.values():
        word = normalised(kind.answer, name=True)
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
            if (other := seen.get(normalised(word, name=True), kind.name)) != kind.name:
                raise UserError(
                    f"'{word}' is a synonym of the type '{kind.name}' and the answer of '{other}': the wrong type would be "
                    "scored right. Take it out of the synonyms in types.yaml."
                )


def _readable(rows: Sequence[ImageRow], on_bad_image: OnBadImage, notes: list[str]) -> list[ImageRow]:
    """The rows whose images open. Every image is decoded once, so that none fails within training."""
    verdicts: dict[str, str | None] = {}
    good, bad = [], []
    for row in rows:
        complaints: list[str] = []
        for image in row.images:
            is_file = isinstance(image, str | Path)  # others have no name of their own: the row's
            name = image_name(image) if is_file else row.id
            if name not in verdicts or not is_file:
                try:
                    load_image(image)
                    verdicts[name] = None
                except UserError as error:
                    verdicts[name] = str(error) if is_file else f"{row.id}: {error}"
            complaints += filter(None, [verdicts[name]])
        (bad.append(complaints[0]) if complaints else good.append(row))
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
        if normalised(str(row.answer), name=True) != normalised(str(twin.answer), name=True):
            notes.append(
                f"The same image is labelled under two answers: {twin.id} ('{twin.answer}') and {row.id} ('{row.answer}'). "
                "Take one out."
            )


def _note_near_duplicates(train: Sequence[ImageRow], test: Sequence[ImageRow], notes: list[str]) -> None:
    if not train or not test:
        return
    trained, tested = (np.stack([perceptual_hash(row.images[0]).hash.ravel() for row in side]) for side in (train, test))
    near = [np.flatnonzero((bits != tested).sum(-1) <= NEAR_DUPLICATE_BITS) for bits in trained]
    pairs = [(i, j) for i, found in enumerate(near) for j in found.tolist()]
    if pairs:
        first = ", ".join(f"{train[i].id} and {test[j].id}" for i, j in pairs[:3])
        notes.append(f"{len(pairs)} pairs of training and test images look nearly the same: {first}. Check for leaks.")
