"""The YAML sections that belong to images, and the training settings that suit them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from text_sdft.core import UserError
from vlm_sdft.demos import QUESTION, DemoSet
from vlm_sdft.selection import Selection
from vlm_sdft.zoo import resolve_data


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


@dataclass
class ImageData:
    """Section ``data`` of ``adapter: image``."""

    path: str = field(
        metadata={
            "help": "A folder (train/<type>/*, optional test, unlabelled, retain, old), a .jsonl, or builtin:novel-objects."
        }
    )
    question: str = field(default=QUESTION, metadata={"help": "What is asked about each image."})
    retain_questions: list[str] | None = field(
        default=None, metadata={"help": "What is asked about each retention image; unset: the question."}
    )
    retain: str | None = field(
        default=None, metadata={"help": "A further folder of images the model should go on answering as it does."}
    )
    holdout: float = field(default=0.2, metadata={"help": "Share held out for testing where there is no test/."})
    on_bad_image: Literal["error", "drop"] = field(
        default="error", metadata={"help": "What to do with images that cannot be read."}
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Pixels one image may cost; fewer make shorter prompts. Unset: the processor's limit."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of both views."})
    train_vision: bool = field(
        default=False, metadata={"help": "Train the vision tower and its projection too; else they stay untouched."}
    )
    image_features_gib: float = field(
        default=4.0,
        metadata={
            "help": "Memory of the host (GiB) for vision features, which an untouched tower computes once an image. "
            "0 computes them in every forward."
        },
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "For builtin data: n_types, shots, n_unlabelled, n_test, seed, split."}
    )
    cache: str = field(default="runs/data", metadata={"help": "Where builtin data is drawn, as image files to look at."})


@dataclass
class ImageDemonstrations:
    """Section ``demonstrations`` of ``adapter: image``."""

    selection: Selection = field(
        default="retrieved",
        metadata={
            "help": "retrieved (the most similar labelled images), grouped (one block for queries that lie close to each "
            "other: faster), random or fixed."
        },
    )
    n_types: int = field(default=5, metadata={"help": "Types shown to the teacher with each query."})
    shots: int = field(default=2, metadata={"help": "Images of each type."})
    rung: int = field(
        default=2,
        metadata={
            "help": "What the teacher is shown: 0 nothing, 1 demonstrations without the query's type, 2 demonstrations, "
            "3 also cues of types.yaml in words, 5 the answer alone. A query without that rung is shown rung 2."
        },
    )
    policy: Literal["fixed", "ladder"] = field(
        default="fixed",
        metadata={"help": "fixed (the same rung for all), or ladder: for each labelled query the lowest that helps."},
    )
    context: Literal["teacher", "student", "both"] = field(
        default="teacher",
        metadata={"help": "Who sees the demonstrations; teacher is self-distillation, others are controls."},
    )
    template: str = field(
        default="turns",
        metadata={"help": "turns (earlier chat turns), quoted, or a string with {question}, {demonstrations}."},
    )
    embedder: str = field(
        default="model",
        metadata={"help": "What retrieval compares: model (its own vision features) or open_clip:ARCHITECTURE/PRETRAINED."},
    )


def load_demos(data: ImageData) -> DemoSet:
    """The demo set that the section describes; builtin data is drawn first. Raises `UserError`."""
    try:
        path = resolve_data(data.path, Path(data.cache), **data.options)
    except (ValueError, TypeError) as error:
        raise UserError(f"data.path {data.path}, data.options {data.options}: {error}") from error
    folder_only = {
        "question": data.question,
        "retain_questions": data.retain_questions,
        "retain": data.retain,
        "holdout": data.holdout,
        "on_bad_image": data.on_bad_image,
    }
    return DemoSet.load(path, **folder_only)
