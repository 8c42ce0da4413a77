"""The one seam between the engine and a modality, and how adapters are found.

The core calls these methods and nothing else, so a new modality or data format is one class. A third party registers its
class in the entry-point group ``vlm_sdft.adapters``; ``adapter: NAME`` in a config then finds it. ``text`` and ``image``
are registered in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.core.data import Conversation, Demonstration, Example, Model, Splits, TeacherContext
from text_sdft.core.errors import UserError, did_you_mean
from text_sdft.core.inputs import ModelInputs

ENTRY_POINT_GROUP = "vlm_sdft.adapters"


@runtime_checkable
class ModalityAdapter(Protocol):
    """Turns rows into examples, examples into the two views, and conversations into model inputs.

    Attributes:
        processing_class: tokenizer or processor; set by `bind`, saved beside the model.

    An adapter may also offer, and experiments then use:

    - ``rungs(example)``: the rungs of the privilege ladder (`RUNGS`) that ``TeacherContext.rung`` may ask for;
    - ``controls(example)``: names of ways to spoil its demonstrations that ``TeacherContext.control`` may ask for;
    - ``relabelled(example, context)``: the example with the answer that its spoiled demonstrations call for, None where
      they call for none;
    - ``rivals(examples, contexts) -> {name: answers}``: cheap methods that see the demonstrations of those contexts or the
      same labelled rows, with ``rivals_left_out() -> {name: why}``;
    - ``variants() -> {option: adapter}``: this adapter with other demonstrations, by the option that sets them;
    - ``release()``: let go of the model, where several adapters take turns with models that do not fit side by side;
    - ``policy``: ``"ladder"`` asks for hints that grow (`text_sdft.methods.hints`);
    - ``scoring_notes()``: sentences on what `score` could not do as it should since they were asked for last;
    - ``example_images(example)``: what to look at in a preview;
    - ``expert_answer(example) -> str | None``: the answer that an expert gave to this very query (of the training data;
      never taken from ``example.reference``), with ``encode_answer(answer) -> ids [T]``, its tokens without any end token:
      what supervised methods train on.
    """

    processing_class: Any

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """The model of that name or folder, loaded with this modality's Auto class.

        Args:
            name: what a user writes in a config.
            kwargs: passed to ``from_pretrained``.

        Raises:
            UserError: there is no such model, or it is of another modality.
        """
        ...

    def frozen_modules(self, model: Model) -> list[str]:
        """Names of submodules that training leaves untouched (a vision tower, say), as in ``named_modules()``."""
        ...

    def bind(self, model: Model, processing_class: Any | None = None) -> None:
        """Get ready for this model; called once, before anything else that needs a tokenizer.

        Args:
            model: the loaded model (unwrapped).
            processing_class: tokenizer or processor; None loads the one that belongs to ``model.name_or_path``.

        Raises:
            UserError: the model cannot take what this adapter feeds it (say, a text model and images).
        """
        ...

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """Examples from dataset rows (mappings) or from ready examples. Raises `UserError` naming a bad row."""
        ...

    def student_messages(self, example: Example) -> Conversation:
        """The student's view; never contains ``example.reference``."""
        ...

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The demonstrations that `teacher_messages` shows under the same context, in their order."""
        ...

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The teacher's view: the same query, with demonstrations or privileged context before it."""
        ...

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """Token ids and media of each conversation, with the generation prompt appended.

        Raises `UserError` naming the file when an image cannot be read; never drops one.
        """
        ...

    def decode(self, ids: Tensor) -> str:
        """Completion ids [T] as text, special tokens left out."""
        ...

    def score(self, example: Example, answer: str) -> float | None:
        """How right an answer is, in [0, 1]; None where the example has no reference."""
        ...


class ConfigurableAdapter(ModalityAdapter, Protocol):
    """An adapter that a config file can name: it also reads its own sections of the YAML.

    The type hints of `from_config`'s arguments are dataclasses; their fields are the section's keys, with their defaults
    and help (``field(metadata={"help": …})``).

    Attributes:
        train_defaults: settings of `SDFTConfig` that suit this modality better than the defaults.
    """

    train_defaults: ClassVar[dict[str, Any]]

    @classmethod
    def from_config(cls, data: Any, demonstrations: Any) -> tuple[ConfigurableAdapter, Splits]:
        """The adapter and its data from the sections ``data`` (with a field ``path``) and ``demonstrations``."""
        ...


def adapter_class(name: str) -> type[ConfigurableAdapter]:
    """The adapter class registered under ``name`` in the entry-point group ``vlm_sdft.adapters``.

    Raises:
        UserError: no such adapter; the message lists the known ones and the nearest.
    """
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        installed = ", ".join(sorted(found)) or "none (pip install -e . again)"
        raise UserError(
            f"No adapter '{name}'.{did_you_mean(name, found)} Installed: {installed}. Others register in the entry-point "
            f"group '{ENTRY_POINT_GROUP}'."
        )
    return found[name].load()


def missing_methods(adapter: Any) -> list[str]:
    """The methods of `ModalityAdapter` that an object does not have."""
    return [name for name in sorted(vars(ModalityAdapter)) if not name.startswith("_") and not hasattr(adapter, name)]
