"""Rows checked before any training: every image opens, and nothing of the test side is trained on."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from text_sdft.answers import normalised
from text_sdft.core import UserError
from text_sdft.core.errors import listed
from vlm_sdft.demos.rows import ImageRow, ObjectType, Question
from vlm_sdft.images.files import image_name, perceptual_hash, read_image
from vlm_sdft.images.loading import Refusal

OnBadImage = Literal["error", "drop"]
#: Bits of 64 in which two perceptual hashes may differ and the images still be called near-duplicates.
NEAR_DUPLICATE_BITS = 1


def checked_rows(
    rows: Sequence[ImageRow],
    types: Mapping[str, ObjectType],
    on_bad_image: OnBadImage,
    notes: list[str],
    refusal: Refusal | None = None,
) -> list[ImageRow]:
    """The rows that can be used.

    Args:
        types: what is known of each type, by name.
        on_bad_image: an image that cannot be read, or is refused, is an error, or is dropped and noted.
        refusal: why the model does not take an image.
        notes: sentences on what was read so far; those on what is dropped here, and on what looks odd, are added.

    Raises:
        UserError: two types share an answer, a synonym is another's answer, an image cannot be read, or no labelled row is
            left.
    """
    _check_answers(types, rows)
    rows = _without_leaks(_readable(rows, on_bad_image, notes, refusal), notes)
    labelled, tested = ([row for row in rows if row.split == split] for split in ("train", "test"))
    if not labelled:
        dropped = [sentence for sentence in notes if sentence.startswith(("Dropped", "Not used"))]
        why = "\n".join(["", *dropped[:5], *([f"… and {len(dropped) - 5} more"] if len(dropped) > 5 else [])])
        raise UserError(f"There are no labelled training images: put at least one into train/<type>/.{why}")
    counts = Counter(row.type for row in labelled)
    if single := [str(name) for name, count in counts.items() if count == 1]:
        notes.append(f"One labelled image only: {listed(single)}. As a query it has no demonstration of its type; add one.")
    _note_two_answers(labelled, notes)
    if unseen := dict.fromkeys(str(row.type) for row in tested if row.type not in counts):
        notes.append(f"Tested on, but without a labelled training image: {listed(unseen)}. Add some.")
    _note_near_duplicates([*labelled, *(row for row in rows if row.split == "unlabelled")], tested, notes)
    return rows


def _check_answers(types: Mapping[str, ObjectType], rows: Sequence[ImageRow]) -> None:
    seen: dict[str, str] = {}
    for kind in types.values():
        word = normalised(kind.answer, name=True)
        if not word:
            raise UserError(f"The type '{kind.name}' has no answer word: give one in types.yaml.")
        if word in seen:
            raise UserError(_one_answer(seen[word], kind.name, kind.answer, rows))
        seen[word] = kind.name
    for kind in types.values():
        for word in kind.synonyms:
            if (other := seen.get(normalised(word, name=True), kind.name)) != kind.name:
                raise UserError(
                    f"'{word}' is a synonym of the type '{kind.name}' and the answer of '{other}': the wrong type would be "
                    "scored right. Take it out of the synonyms in types.yaml."
                )


def _one_answer(first: str, second: str, answer: str, rows: Sequence[ImageRow]) -> str:
    """That two types share an answer, and why."""
    forms = [unicodedata.normalize("NFC", name) for name in (first, second)]
    if forms[0] != forms[1] and forms[0].casefold() != forms[1].casefold():
        return (
            f"The types '{listed([first])}' and '{listed([second])}' share the answer '{listed([answer])}': no answer "
            "could tell them apart. Give one another answer in types.yaml, or join their folders."
        )
    lies = [", ".join(dict.fromkeys(f"{row.split}/" for row in rows if row.type == name)) for name in (first, second)]
    how = "Unicode form (composed or decomposed letters)" if forms[0] == forms[1] else "letter case"
    return (
        f"The types '{first}' (in {lies[0]}) and '{second}' (in {lies[1]}) differ in {how} only: to the model they are one "
        "answer. Give their folders one name, or one of them another answer in types.yaml."
    )


def _readable(
    rows: Sequence[ImageRow], on_bad_image: OnBadImage, notes: list[str], refusal: Refusal | None
) -> list[ImageRow]:
    """The rows whose images open and are not refused. Every image is decoded once, so that none fails within training."""
    verdicts: dict[str, str] = {}  # a complaint, or nothing
    changes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for place, image in enumerate(row.images):
            if (key := _key(row, place)) not in verdicts:
                is_file = isinstance(image, str | Path)  # others have no name of their own: the row's
                name = image_name(image) if is_file else row.id
                try:
                    opened, changed = read_image(image)
                    why = refusal(opened) if refusal is not None else None
                    verdicts[key] = f"{name} {why}. Replace it, or leave it out." if why else ""
                    for change in changed:
                        changes[change].append(name)
                except UserError as error:
                    verdicts[key] = str(error) if is_file else f"{row.id}: {error}"
    notes += _change_notes(changes)
    complaints = [next(filter(None, (verdicts[_key(row, i)] for i in range(len(row.images)))), "") for row in rows]
    bad = list(dict.fromkeys(filter(None, complaints)))
    if bad and on_bad_image == "error":
        more = f"\n… and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError("\n".join(bad[:5]) + more + "\n(data.on_bad_image: drop leaves such images out.)")
    notes += [f"Dropped: {complaint}" for complaint in bad]
    return [row for row, complaint in zip(rows, complaints, strict=True) if not complaint]


def _key(row: ImageRow, place: int) -> str:
    image = row.images[place]
    return image_name(image) if isinstance(image, str | Path) else f"{id(row)}\0{place}"


def _change_notes(changes: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences on images that are not shown as they stand in their files (see `read_image`)."""
    notes = []
    if frames := changes.get("first frame"):
        notes.append(
            f"Only the first picture is read of {len(frames)} animations or files of several, such as {frames[0]}."
        )
    deep = {change: names for change, names in sorted(changes.items()) if change.endswith("bits")}
    if set(deep) - {"8 bits", "16 bits"}:
        counts = ", ".join(f"{len(names)} of {bits}, such as {names[0]}" for bits, names in deep.items())
        notes.append(
            f"{sum(map(len, deep.values()))} images in 16-bit files are made 8-bit ones, each by the fewest bits that hold "
            f"its brightest value: {counts}."
        )
    return notes


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
    first: dict[tuple[tuple[str, ...], Question], ImageRow] = {}
    for row in rows:
        twin = first.setdefault((row.hashes, row.question), row)
        if normalised(str(row.answer), name=True) != normalised(str(twin.answer), name=True):
            notes.append(
                f"The same image is labelled under two answers: {twin.id} ('{listed([twin.answer])}') and {row.id} "
                f"('{listed([row.answer])}'). Take one out."
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
