"""`DemoSet`: the images a model learns from and is measured on, checked when they are read, before any training.

Rows by their use: *train* (labelled: a query, and a demonstration for other queries), *unlabelled* (queries whose answer
nobody knows), *retain* (images the model should go on answering as it does), *test* (the new types, held out) and *old*
(what the model knows already: forgetting is measured there).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from text_sdft.answers import normalised
from text_sdft.core import UserError
from text_sdft.core.errors import did_you_mean
from vlm_sdft.demos.checks import OnBadImage, checked_rows
from vlm_sdft.demos.readers import read_dataset, read_folder, read_jsonl
from vlm_sdft.demos.rows import QUESTION, ImageRow, ObjectType
from vlm_sdft.images.loading import Refusal


@dataclass
class DemoSet:
    """Rows of one data set by use, its types by name, and sentences on what was found, held out or dropped."""

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
        answers = {(row.type, normalised(str(row.answer), name=True)) for row in self.labelled}
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
        on_bad_image: OnBadImage = "error",
        refusal: Refusal | None = None,
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
            on_bad_image: an image that cannot be read, or is refused, is an error, or is dropped and reported.
            refusal: why the model does not take an image (`vlm_sdft.images.loading.refusal_by`); None: it takes all.

        Raises:
            UserError: a type is empty, two share an answer, a synonym is another's answer, an image cannot be read, a file
                or key is wrong.
        """
        read = read_folder(Path(path), question, retain_questions, retain, holdout, seed)
        return cls.from_rows(*read, on_bad_image, refusal)

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
        return cls.from_rows(*read_dataset(dataset, image_column, label_column, question, holdout, seed))

    @classmethod
    def from_jsonl(cls, path: str | Path, *, on_bad_image: OnBadImage = "error", refusal: Refusal | None = None) -> DemoSet:
        """Lines {"messages": [user …, assistant], "images": [paths], "split": …}.

        The user turn is the question, the assistant turn the answer (none: an unlabelled query); paths start at the file.
        """
        return cls.from_rows(*read_jsonl(Path(path)), on_bad_image, refusal)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> DemoSet:
        """`from_folder` for a folder, `from_jsonl` for a ``.jsonl`` file, which heeds options on bad images only. Raises
        `UserError`: it is neither, or as those two.
        """
        path = Path(path)
        if path.is_dir() or not path.exists():
            return cls.from_folder(path, **options)
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: give a folder (train/<type>/*) or a .jsonl file with messages and images.")
        if options.get("retain") is not None:
            raise UserError(f'data.retain goes with a folder; in {path} write rows with "split": "retain".')
        return cls.from_jsonl(path, **{name: options[name] for name in ("on_bad_image", "refusal") if name in options})

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[ImageRow],
        types: Mapping[str, ObjectType],
        report: Iterable[str] = (),
        on_bad_image: OnBadImage = "error",
        refusal: Refusal | None = None,
    ) -> DemoSet:
        """Rows read elsewhere, checked: every image opens, nothing of the test side is trained on. Raises `UserError`."""
        notes = list(report)
        by_split: dict[str, list[ImageRow]] = defaultdict(list)
        for row in checked_rows(rows, types, on_bad_image, notes, refusal):
            by_split["labelled" if row.split == "train" else row.split].append(row)
        return cls(**by_split, types=dict(types), report=notes)

    def of_types(self, names: Sequence[str]) -> DemoSet:
        """The demo set without other new types; of the unlabelled images those stay that lie in a folder of a type's name.
        Raises `UserError`: a type that has no labelled images.
        """
        if not names:
            raise UserError("data.types is empty: name the types to use, or leave it out for all.")
        known = {str(row.type) for row in self.labelled}
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"data.types: there is no type '{unknown[0]}'.{did_you_mean(unknown[0], known)}")
        labelled, test = ([row for row in rows if row.type in names] for rows in (self.labelled, self.test))
        unlabelled = [row for row in self.unlabelled if set(names) & set(Path(row.id).parts[1:-1])]
        report = [*self.report, f"Only {len(names)} of {len(known)} new types are used (data.types)."]
        if left := len(self.unlabelled) - len(unlabelled):
            report.append(
                f"Left out with data.types: {left} unlabelled images that lie in no folder of these types' names, such as "
                f"unlabelled/{names[0]}/: nobody knows which of them show these types."
            )
        return replace(self, labelled=labelled, test=test, unlabelled=unlabelled, report=report)
