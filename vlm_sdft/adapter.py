"""The image adapter: rows of a demo set → the student's and the teacher's view, with images.

Demonstrations are chosen for each query among the set's labelled images; a demonstration is a user turn (image and
question) and an assistant turn (the answer).

Shapes: R rows · D embedding width · T completion tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.answers import is_right
from text_sdft.core.chat import ChatAdapter
from text_sdft.core.data import RUNGS, Conversation, Demonstration, Example, Model, Splits, TeacherContext
from text_sdft.core.errors import UserError
from text_sdft.core.inputs import ModelInputs
from text_sdft.core.sampling import draw_seed
from text_sdft.core.sharding import has_shards
from text_sdft.core.templates import render
from vlm_sdft.config import ImageData, ImageDemonstrations, load_demos, vlm
from vlm_sdft.demos.controls import BLANK, CONTROLS, SHUFFLED, moved_answers, spoiled, with_cues
from vlm_sdft.demos.episodes import Episodes
from vlm_sdft.demos.examples import demonstration, examples_of, images_of
from vlm_sdft.demos.rationales import RATIONALE_QUESTION, Key, with_rationales, write_rationales
from vlm_sdft.demos.retention import pictured
from vlm_sdft.demos.rivals import rival_answers
from vlm_sdft.demos.selection import DemonstrationSelector, Selection
from vlm_sdft.demos.sets import DemoSet, ImageRow
from vlm_sdft.images.embedding import Embed, ImageEmbedder, mean_embedding
from vlm_sdft.images.encoding import RowEncoder, check_by_forward
from vlm_sdft.images.families import FAMILIES, Family, bound_images, find_family, vision_modules
from vlm_sdft.images.features import ImageFeatures
from vlm_sdft.images.loading import load_processor, load_vlm
from vlm_sdft.zoo import limits


class ImageAdapter(ChatAdapter):
    """`ChatAdapter` for images, whose demonstrations are chosen among the labelled images of a demo set.

    Args:
        demos: the demo set; None: the adapter only reads queries, and has nothing to demonstrate with.
        selection, n_types, shots: how demonstrations are chosen: see `DemonstrationSelector`.
        rung: how much the teacher is shown (`text_sdft.core.RUNGS`), where a query has that rung; 5: of training rows.
        policy: ``"fixed"``, or ``"ladder"`` for hints that grow (`text_sdft.methods.hints`).
        template: ``"turns"`` or a quoted template (see `text_sdft.core.templates`).
        rationale_question: what the model is asked about each labelled image, for rung 4 (`vlm_sdft.demos.rationales`).
        embedder: what retrieval compares: see `ImageEmbedder`.
        max_pixels: pixels that one image may cost; None: the processor's own limit.
        system_prompt: the first message of both views.
        train_vision: train the vision tower and its projection too.
        image_features_gib: memory of the host for vision features, which are computed once for as long as the tower's
            weights stay; 0 computes them in every forward.

    Raises:
        UserError: an unknown template or selection, or no labelled images to demonstrate with.
    """

    def __init__(
        self,
        demos: DemoSet | None = None,
        *,
        selection: Selection = "retrieved",
        n_types: int = 5,
        shots: int = 2,
        rung: int = 2,
        policy: Literal["fixed", "ladder"] = "fixed",
        template: str = "turns",
        rationale_question: str = RATIONALE_QUESTION,
        embedder: str = "model",
        max_pixels: int | None = None,
        system_prompt: str | None = None,
        train_vision: bool = False,
        image_features_gib: float = 4.0,
    ) -> None:
        super().__init__(template=template, system_prompt=system_prompt)
        if rung not in RUNGS:
            known = ", ".join(f"{number} ({name})" for number, name in RUNGS.items())
            raise UserError(f"demonstrations.rung is {rung}; use {known}.")
        if demos is not None and not demos.labelled:
            raise UserError("There are no labelled images to demonstrate with: put some into train/<type>/.")
        self.demos = DemoSet() if demos is None else demos
        self.policy, self.rung = policy, rung
        self._train_vision, self._image_features_gib = train_vision, image_features_gib
        self._selector = DemonstrationSelector(self.demos.labelled, None, selection=selection, n_types=n_types, shots=shots)
        self._embedder_name, self._max_pixels, self._rationale_question = embedder, max_pixels, rationale_question
        self._family: Family | None = None  # it and what follows belong to the model that `bind` was given
        self._model: PreTrainedModel
        self._features: ImageFeatures
        self._encode_row: RowEncoder
        self._embedder: ImageEmbedder | None = None
        self._episodes: Episodes | None = None
        self._rationales: dict[Key, str] | None = None

    train_defaults: ClassVar[dict[str, Any]] = vlm()

    @classmethod
    def from_config(
        cls, data: ImageData, demonstrations: ImageDemonstrations, model: str | None = None
    ) -> tuple[ImageAdapter, Splits]:
        """The adapter and its data from the YAML sections. Rows of ``old`` without a type are ``old skills``.

        Args:
            model: whose image processor is asked which images it refuses.
        """
        demos = load_demos(data, model)
        shared = ("max_pixels", "system_prompt", "train_vision", "image_features_gib")
        adapter = cls(demos, **asdict(demonstrations), **{name: getattr(data, name) for name in shared})
        evals = {
            "new": demos.test,
            "old": [row for row in demos.old if row.type is not None],
            "old skills": [row for row in demos.old if row.type is None],
        }
        said = limits(model or "", dict.fromkeys(str(row.answer) for row in demos.labelled))
        return adapter, Splits(demos.train, evals, [*demos.report, *said])

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """See `load_vlm`."""
        self._trust = {key: value for key, value in kwargs.items() if key == "trust_remote_code"}
        return load_vlm(name, **kwargs)

    def frozen_modules(self, model: Model) -> list[str]:
        """The vision tower and what projects its features, unless ``train_vision`` is set."""
        return [] if self._train_vision else vision_modules(model)

    def bind(self, model: Model, processing_class: Any | None = None) -> ImageAdapter:
        """A copy for this model: finds its family, checks its processor, and bounds its images. Raises `UserError`: the
        model takes no images, or its processor cannot be loaded or loses images.
        """
        # peft hides the signatures that the checks read; its layers sit in the base model too.
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        processor = load_processor(base, **self._trust) if processing_class is None else processing_class
        family = find_family(base, processor)
        if family.name not in FAMILIES:
            check_by_forward(base, processor, family)
        if self._max_pixels is not None:
            bound_images(family, processor, base, self._max_pixels)
        bound = super().bind(model, processor)
        bound._family, bound._model, bound._encode_row = family, base, RowEncoder(processor, family)
        bound._features = ImageFeatures(base, processor, family, int(self._image_features_gib * 2**30), self._train_vision)
        bound._selector = copy.copy(self._selector)
        bound._embedder = bound._selector.embeddings_RD = bound._episodes = bound._rationales = None
        return bound

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """Examples from `ImageRow`s, ready examples, or mappings with ``image`` or ``images`` and ``prompt``.

        A mapping may also have ``answer``, ``type``, ``id`` and ``split`` (default: "train" with an answer, else
        "unlabelled").

        Raises:
            UserError: a row lacks an image or a prompt, or two rows share an id.
        """
        return examples_of(rows, self.system_prompt)

    def usage(self) -> dict[str, Any]:
        """See `ChatAdapter`; and what bounds an image."""
        return {**super().usage(), "max_pixels": self._max_pixels}

    def student_messages(self, example: Example) -> Conversation:
        """The query alone; a retention row in context after demonstrations that hang on its id only."""
        shown = self._kept_in_context(example) if example.retain else []
        return render(example.messages, shown, None, str(self.template))

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """What the teacher is shown before the query; before a retention row its own episode."""
        return self._kept_in_context(example) if example.retain else super().demonstrations(example, context)

    def chosen_demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The example's own, else the selected ones, with what the rung adds, spoiled as the control says."""
        rung, limit = self.rung_of(example, context), context.max_demonstrations
        shown = list(example.demonstrations[:limit]) or self._selected(example, context.seed, limit, rung == 1)
        if rung in (3, 4):
            shown = with_cues(shown, {kind.answer: kind.cues for kind in self.demos.types.values()})
        if rung == 4:
            shown = with_rationales(shown, self._all_rationales())
        return spoiled(shown, context.control, context.seed)

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """See `vlm_sdft.images.encoding`; every conversation becomes one unpadded row."""
        family, features = self._bound(), self._reused
        rows = [self._encode_row(conversation, features) for conversation in conversations]
        return ModelInputs(rows, self.pad_token_id, family.media_by_row, family.placeholder_ids, features)

    def expert_answer(self, example: Example) -> str | None:
        """The label of a labelled training image, or of a retention image that has one; None for all other rows."""
        row = example.meta.get("row")
        return row.answer if row is not None and row.split in ("train", "retain") else None

    def score(self, example: Example, answer: str) -> float | None:
        """1 for the right answer or a synonym of its type, else 0; None without a reference."""
        if example.reference is None:
            return None
        kind = self.demos.types.get(self._type_of(example) or "")
        return float(is_right(answer, example.reference, kind.synonyms if kind is not None else ()))

    def example_images(self, example: Example) -> list[Any]:
        """The images of the query, as they were given."""
        return images_of(example.messages)

    def nearest_labelled(self, query: Example, count: int) -> list[tuple[Any, str]]:
        """See `ExperimentAdapter`; similar is what retrieval finds similar."""
        rows = self.demos.labelled
        similarity_R = self._embed_rows(rows) @ mean_embedding(self.example_images(query), self.embed)
        nearest = similarity_R.topk(min(count, len(rows))).indices.tolist()
        return [(rows[i].images[0], str(rows[i].answer)) for i in nearest]

    def embed(self, sources: Sequence[Any]) -> Tensor:
        """L2-normalised embeddings [R, D] of R images, as retrieval compares them; each is computed once."""
        if self._embedder is None:
            self._bound()
            self._embedder = ImageEmbedder(self._embedder_name, self._features, self._model.device)
        return self._embedder(sources)

    def rung_of(self, example: Example, context: TeacherContext) -> int:
        """The rung that a query is shown: the one asked for, or else configured, where it has it; else 2."""
        row, rung = example.meta.get("row"), context.rung
        if rung is None:  # a test image's answer is to be found out: it is shown to a teacher that is asked for it alone
            rung = 2 if self.rung == 5 and row is not None and row.split != "train" else self.rung
        return rung if rung in self.rungs(example) else 2

    def rungs(self, example: Example) -> tuple[int, ...]:
        """Rungs that this query has: 1, 3 and 4 need chosen demonstrations, 1 and 3 types, 5 a known answer."""
        if example.retain:
            return ()
        chosen = not example.demonstrations and example.meta.get("row") is not None
        typed = chosen and self.demos.one_answer_a_type and self._type_of(example) is not None
        cued = chosen and any(kind.cues for kind in self.demos.types.values())
        known = example.reference is not None
        return (0, *(1,) * (typed and self.demos.n_labelled_types > 1), 2, *(3,) * cued, *(4,) * chosen, *(5,) * known)

    def controls(self, example: Example) -> tuple[str, ...]:
        """See `vlm_sdft.demos.controls`. Labels are shuffled between types: not where a row brings its own demonstrations
        or answers. None where one of several types is shown: its name is to be copied, as selection looked at the query."""
        own = example.demonstrations
        shown = any(images_of(d.messages) for d in own) if own else example.meta.get("row") is not None
        if example.retain or not shown:
            return ()
        if not own and self.demos.n_labelled_types > self._selector.n_types == 1:
            return ()
        shuffled = not own and self.demos.one_answer_a_type and self.demos.n_labelled_types > 1
        return CONTROLS if shuffled else (BLANK,)

    def relabelled(self, example: Example, context: TeacherContext) -> Example | None:
        """The query with the answer of its type under *shuffled labels*; None where its type is not shown."""
        if context.control != SHUFFLED:
            return None
        moved = moved_answers(self.demonstrations(example, replace(context, control=None)), context.seed)
        answer = moved.get(str(example.reference))
        return None if answer is None else replace(example, reference=answer, meta={})

    def rivals(self, examples: Sequence[Example], contexts: Sequence[TeacherContext]) -> dict[str, list[str]]:
        """Answers of `vlm_sdft.demos.rivals` by the model's own vision features, and by an open_clip embedder's."""
        shown = [self.demonstrations(e, context) for e, context in zip(examples, contexts, strict=True)]
        queries = [self.example_images(example) for example in examples]
        embeds: dict[str, Embed] = {"model": ImageEmbedder("model", self._features)}
        if self._embedder_name != "model":
            embeds[self._embedder_name] = self.embed
        found = [rival_answers(queries, shown, self.demos.labelled, embed, name) for name, embed in embeds.items()]
        return {rival: answers for given in found for rival, answers in given.items()}

    def rivals_left_out(self) -> dict[str, str]:
        """Rivals that cannot run, and why."""
        if self._embedder_name != "model":
            return {}
        why = "it needs open_clip weights (demonstrations.embedder: open_clip:ARCHITECTURE/PRETRAINED)."
        return dict.fromkeys(("zero-shot by name", "Tip-Adapter with names"), why)

    def variants(self) -> dict[str, ImageAdapter]:
        """This adapter, bound to the same model, with other numbers of demonstrations and other selections."""
        others = {}
        for option, selector in self._selector.variants().items():
            others[option] = copy.copy(self)
            others[option]._selector = selector
        return others

    @property
    def _reused(self) -> ImageFeatures | None:
        """What holds the features of the images that rows name; None: rows carry pixels.

        A trained tower whose weights lie in shards runs as a part of the model's forward only, as FSDP wants it.
        """
        reuses = self._bound().reuses_features and self._image_features_gib > 0
        return self._features if reuses and not (self._train_vision and has_shards(self._model)) else None

    def _bound(self) -> Family:
        if self._family is None:
            raise RuntimeError("This ImageAdapter is bound to no model: bind(model) returns one that is.")
        return self._family

    def _type_of(self, example: Example) -> str | None:
        """The name of an example's type: its row's, or the one whose answer is its reference."""
        row = example.meta.get("row")
        if row is not None and row.type is not None:
            return row.type
        return next((name for name, kind in self.demos.types.items() if kind.answer == example.reference), None)

    def _selected(self, example: Example, seed: int, limit: int | None, without_type: bool) -> list[Demonstration]:
        """Labelled images chosen for a query, its own type's left out at rung 1."""
        row = example.meta.get("row")
        if row is None or limit == 0:
            return []
        # Only a training row's label may steer what is shown: the labels of all others are what is to be found out.
        own_type = self._type_of(example)
        include, exclude = own_type if row.split == "train" else None, own_type if without_type else None
        query = row if row.split == "train" else replace(row, type=None, answer=None)
        query_D = None
        if self._selector.selection in ("retrieved", "grouped"):
            if self._selector.embeddings_RD is None:
                if self._train_vision:  # all by the tower of the start, also where a resumed run asks for some later
                    self._embed_rows([*self._selector.rows, *self.demos.train, *self.demos.test])
                self._selector.embeddings_RD = self._embed_rows(self._selector.rows)
            query_D = self._embed_rows([row])[0]
        chosen = self._selector.select(query, query_D, seed, limit, include_type=include, exclude_type=exclude)
        return [demonstration(shown) for shown in chosen]

    def _all_rationales(self) -> dict[Key, str]:
        """The rationales of all labelled images, written at once: by the weights of the first time."""
        if self._rationales is None:
            shown = [demonstration(row) for row in self.demos.labelled]
            asked = (self._rationale_question, self.system_prompt, str(self.template))
            self._rationales = write_rationales(self, self._model, shown, *asked)
        return self._rationales

    def _kept_in_context(self, example: Example) -> list[Demonstration]:
        """What stands before a retention row's query in both views: nothing, or an episode (`vlm_sdft.demos.episodes`)."""
        row = example.meta.get("row")
        if row is None or not row.in_context:
            return []
        if self._episodes is None:
            rows, answers = pictured(self.demos), [str(row.answer) for row in self.demos.labelled]
            self._episodes = Episodes(rows, self._embed_rows(rows), answers, self._selector.shots)
        drawn = self._episodes.draw(row, self._embed_rows([row])[0], draw_seed(example.id))
        return [demonstration(replace(shown, question=row.question, answer=name)) for shown, name in drawn]

    def _embed_rows(self, rows: Sequence[ImageRow]) -> Tensor:
        """Embeddings [R, D] of rows: the mean over a row's images, normalised."""
        self.embed([image for row in rows for image in row.images])  # all at once; then from its cache
        return torch.stack([mean_embedding(row.images, self.embed) for row in rows])
