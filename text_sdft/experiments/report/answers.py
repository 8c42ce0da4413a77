"""Single answers: which were confused with which, and a gallery of queries with what was answered to them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from text_sdft.experiments.answers import bare_answer
from text_sdft.experiments.folder import Record

#: Types in the confusion matrix, and in the gallery.
MATRIX_TYPES, GALLERY_TYPES = 25, 12
SHOWN_OF_TYPE, SHOWN_OF_TEXTS, SHOWN_FORGOTTEN = 2, 12, 6
LONGEST_TEXT = 2000
OTHER = "another answer"


def confusion(answers: Sequence[Record]) -> dict[str, Any] | None:
    """Types against answers on the set ``new`` after training; None where references are no types (hardly any repeats).

    An answer that was scored right counts as its type's own, whatever its words; one that is no type is `OTHER`.
    """
    rows = [a for a in answers if (a["phase"], a["set"], a["view"]) == ("after", "new", "student")]
    types = list(dict.fromkeys(str(a["reference"]) for a in rows))
    if not 2 <= len(types) <= min(MATRIX_TYPES, len(rows) // 2):
        return None
    known = {bare_answer(name): name for name in types}
    counts = Counter(
        (str(a["reference"]), str(a["reference"]) if a["score"] == 1 else known.get(bare_answer(a["answer"]), OTHER))
        for a in rows
    )
    columns = [*types, OTHER]
    return {
        "columns": columns,
        "rows": [
            {
                "type": name,
                "total": sum(counts[name, column] for column in columns),
                "cells": [{"count": counts[name, column], "right": column == name} for column in columns],
            }
            for name in types
        ],
    }


def gallery(answers: Sequence[Record]) -> list[dict[str, Any]]:
    """Queries of the set ``new`` with their answers, by type: the types with most wrong answers first, and of each a wrong
    and a right one; then what was forgotten. Where references are no types, all stand in one group."""
    queries = _queries(answers)
    new = [query for query in queries if query["set"] == "new"]
    by_type: dict[str, list[Record]] = {query["reference"]: [] for query in new}
    are_types = len(by_type) < len(new)
    for query in new:
        by_type[query["reference"]].append(query)
    if new and not are_types:
        by_type = {"Queries": new}
    limit = SHOWN_OF_TYPE if are_types else SHOWN_OF_TEXTS
    order = sorted(by_type.items(), key=lambda item: -sum(query["score"] < 1 for query in item[1]))
    groups = [
        {
            "title": name,
            "right": sum(query["score"] == 1 for query in members),
            "of": len(members),
            "queries": _wrong_and_right(members, limit),
        }
        for name, members in order[:GALLERY_TYPES]
    ]
    forgotten = [q for q in queries if q["set"] != "new" and q["score"] < 1 and q["before"] and q["before"]["score"] == 1]
    if forgotten:
        title, shown = "Forgotten: right before training, wrong after", forgotten[:SHOWN_FORGOTTEN]
        groups.append({"title": title, "right": None, "of": len(forgotten), "queries": shown})
    return groups


def _queries(answers: Sequence[Record]) -> list[Record]:
    """The student's last answers, each with its answer before and the teacher's at the start."""
    found = {(a["phase"], a["set"], a["view"], a["id"]): a for a in answers}
    last = "after" if any(a["phase"] == "after" for a in answers) else "before"
    return [
        {
            **a,
            "reference": str(a["reference"]),
            "before": found.get(("before", a["set"], "student", a["id"])) if last == "after" else None,
            "teacher": found.get(("before", a["set"], "teacher", a["id"])),
        }
        for a in answers
        if a["phase"] == last and a["view"] == "student"
    ]


def _wrong_and_right(members: Sequence[Record], limit: int) -> list[Record]:
    wrong = [query for query in members if query["score"] < 1]
    right = [query for query in members if query["score"] == 1]
    half = max(limit // 2, limit - len(right))
    return [*wrong[:half], *right[: limit - len(wrong[:half])]]


def cut(text: str) -> str:
    """A text of at most `LONGEST_TEXT` characters, with a mark where it goes on."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def pictures(record: Record, pixels: int) -> list[dict[str, Any]]:
    """The images of a query or demonstration by name, as `_thumbnail`; none where it has none."""
    return [{"name": Path(name).name or "image", "source": _thumbnail(name, pixels)} for name in record.get("images", ())]


@lru_cache(maxsize=1024)
def _thumbnail(name: str, pixels: int) -> str | None:
    """A data URI of the image file, at most so many pixels wide and high; None where it is no longer there."""
    from PIL import Image, ImageOps

    if not Path(name).is_file():
        return None
    try:
        with Image.open(name) as opened:
            opened.draft("RGB", (2 * pixels, 2 * pixels))
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:  # on white, as the model is shown it
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
