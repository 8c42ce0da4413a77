"""The YAML sections that belong to images, and the training settings that suit them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from text_sdft.core import UserError
from text_sdft.core.settings import setting
from vlm_sdft.demos.hub import HubTypes, write_hub_types
from vlm_sdft.demos.rationales import RATIONALE_QUESTION
from vlm_sdft.demos.retention import is_made, retain_in_context, retain_made
from vlm_sdft.demos.selection import Selection
from vlm_sdft.demos.sets import QUESTION, DemoSet
from vlm_sdft.images.loading import refusal_by
from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.few_shot import FewShot
from vlm_sdft.zoo.novel_objects import NovelObjects


def vlm() -> dict[str, Any]:
    """Settings for short answers about images: ``SDFTConfig("runs/x", **vlm())``.

    The teacher is the model at the start, so that what it sees in its context alone makes it better than the student. With
    LoRA add `lora()`: its learning rate is higher.
    """
    return {
        "max_completion_length": 16,
        "teacher_model_kind": "base",
        "num_train_epochs": 10,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
    }


#: Beginnings of ``data.path`` that name data to be made first, and its options.
MADE_BY: dict[str, type[FewShot]] = {"hub:": HubTypes, "builtin:": NovelObjects}


@dataclass
class ImageData:
    """Section ``data`` of ``adapter: image``."""

    path: str = setting(
        help="A folder (train/<type>/*, optional test, unlabelled, retain, old), a .jsonl, builtin:novel-objects, "
        "or hub:OWNER/NAME (an image classification data set: half of its classes new, half known)."
    )
    question: str = setting(QUESTION, "What is asked about each image.")
    retain_questions: list[str] | None = setting(None, "What is asked about each retention image; unset: the question.")
    retain: str | None = setting(
        None,
        "More that the model should go on answering as it does: a folder of images, a .txt file of prompts "
        "without images, crops (parts of your own images) or drawn (pictures drawn by this program).",
    )
    retain_in_context: float = setting(
        0.0, "Share of retention prompts that begin with demonstrations (random names): keeps in-context learning."
    )
    holdout: float = setting(0.2, "Share held out for testing where there is no test/.")
    on_bad_image: Literal["error", "drop"] = setting(
        "error", "What to do with images that cannot be read or that the model's processor refuses."
    )
    max_pixels: int | None = setting(
        None, "Pixels one image may cost; fewer make shorter prompts. Unset: the processor's limit."
    )
    system_prompt: str | None = setting(None, "System message of both views.")
    train_vision: bool = setting(False, "Train the vision tower and its projection too; else they stay untouched.")
    image_features_gib: float = setting(
        4.0,
        "Memory of the host (GiB) for vision features, which are computed once an image for as long as the "
        "tower's weights stay. 0 computes them in every forward.",
    )
    types: list[str] | None = setting(
        None, "Only these of the new types (folders' names) are taught and tested; unset: all."
    )
    options: dict[str, Any] = setting(
        dict,
        "For builtin and hub data: n_types, first, shots, n_unlabelled, n_test, n_retain, n_old, seed, split; "
        "for hub data also names (own, invented), image_column, label_column, config, revision and others.",
    )
    cache: str = setting("runs/data", "Where builtin and hub data is written, as image files to look at.")

    def split(self, count: int) -> list[dict[str, Any]]:
        """What differs in this section between so many tasks: each gets its share of the new types, in their order. Raises
        `UserError`: there are fewer types than tasks.
        """
        made = next((kind for prefix, kind in MADE_BY.items() if self.path.startswith(prefix)), None)
        names = [] if made else list(dict.fromkeys(str(row.type) for row in load_demos(self).labelled if row.type))
        total = int(self.options.get("n_types", made.n_types)) if made else len(names)
        if not 1 <= count <= total:
            raise UserError(f"tasks: {count}: {self.path} has {total} types, and every task needs one.")
        bounds = [total * k // count for k in range(count + 1)]
        parts = list(itertools.pairwise(bounds))
        if not made:
            return [{"types": names[start:end]} for start, end in parts]
        begin = int(self.options.get("first", 0))
        return [{"options": {**self.options, "first": begin + start, "n_types": end - start}} for start, end in parts]


@dataclass
class ImageDemonstrations:
    """Section ``demonstrations`` of ``adapter: image``."""

    selection: Selection = setting(
        "retrieved",
        "retrieved (the most similar labelled images), grouped (one block for queries that lie close to each "
        "other: faster), random or fixed.",
    )
    n_types: int = setting(5, "Types shown to the teacher with each query.", most=1_000)
    shots: int = setting(2, "Images of each type.", most=1_000)
    rung: int = setting(
        2,
        "What the teacher is shown: 0 nothing, 1 demonstrations without the query's type, 2 demonstrations, "
        "3 also cues of types.yaml in words, 4 also a rationale that the model wrote itself, 5 the answer alone. A "
        "query without that rung is shown rung 2, and so is a test image where the answer would be shown.",
    )
    policy: Literal["fixed", "ladder"] = setting(
        "fixed", "fixed (the same rung for all), or ladder: for each labelled query the lowest that helps."
    )
    template: str = setting("turns", "turns (earlier chat turns), quoted, or a string with {question}, {demonstrations}.")
    rationale_question: str = setting(
        RATIONALE_QUESTION, "What the model is asked about each labelled image and its answer, for rung 4."
    )
    embedder: str = setting(
        "model", "What retrieval compares: model (its own vision features) or open_clip:ARCHITECTURE/PRETRAINED."
    )


def data_folder(name: str, cache_dir: Path, **options: Any) -> Path:
    """The folder of data of the hub (see `write_hub_types`), or as `vlm_sdft.zoo.resolve_data`. Raises `ValueError`."""
    if name.startswith("hub:"):
        return write_hub_types(name.removeprefix("hub:"), cache_dir, **options)
    return resolve_data(name, cache_dir, **options)


def load_demos(data: ImageData, model: str | None = None) -> DemoSet:
    """The demo set that the section describes, for the model of that name or folder; builtin and hub data is written first.
    Raises `UserError`.
    """
    try:
        path = data_folder(data.path, Path(data.cache), **data.options)
    except (ValueError, TypeError) as error:
        raise UserError(f"data.path {data.path}, data.options {data.options}: {error}") from error
    except OSError as error:
        raise UserError(
            f"data.cache {data.cache} cannot be written ({error}). Name a folder that can, with space."
        ) from error
    made = data.retain is not None and is_made(data.retain)
    names = ("question", "retain_questions", "holdout", "on_bad_image")
    options = {name: getattr(data, name) for name in names}
    refusal = None if model is None else refusal_by(model)
    demos = DemoSet.load(path, retain=None if made else data.retain, refusal=refusal, **options)
    demos = demos if data.types is None else demos.of_types(data.types)
    if made:
        demos = retain_made(demos, str(data.retain), data.retain_questions or [data.question])
    return retain_in_context(demos, data.retain_in_context)
