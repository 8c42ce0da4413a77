"""Rows of image data: a query about one image, or several, and what is known of its type."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from vlm_sdft.images.files import ImageSource, content_hash

Split = Literal["train", "test", "unlabelled", "retain", "old"]
#: A text behind the row's images, or the texts before, between and after them.
Question: TypeAlias = str | tuple[str, ...]
QUESTION = "What is this?"


@dataclass(frozen=True)
class ObjectType:
    """A kind of object: its folder's name, the answer, further right answers, and phrases that describe it."""

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
        question: the text behind the images; where they stand within it, the texts around them, one more than images.
        answer: the right answer; None where nobody knows it.
        type: the type's name, for balancing demonstrations; None where unknown.
        split: what the row is used for.
        in_context: a retention row behind demonstrations (see `vlm_sdft.demos.retention`).
    """

    id: str
    images: tuple[ImageSource, ...]
    question: Question
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
