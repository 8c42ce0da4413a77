"""The one seam between the engine and a modality, and how adapters are found.

The core calls the methods of `ModalityAdapter` and nothing else; what chat models have in common is in
`text_sdft.core.chat.ChatAdapter`. A third party registers its class in the entry-point group ``vlm_sdft.adapters``;
``adapter: NAME`` in a config then finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from types import MethodType
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.core.data import Conversation, Demonstration, Example, Model, Splits, TeacherContext
from text_sdft.core.errors import UserError, did_you_mean
from text_sdft.core.inputs import ModelInputs

ENTRY_POINT_GROUP = "vlm_sdft.adapters"


@runtime_checkable
class ModalityAdapter(Protocol):
    """Turns rows into examples, examples into the two views, and conversations into model inputs.

    What experiments may ask of it beyond training, all of it optional, is `ExperimentAdapter`.
    """

    #: Tokenizer or processor of the model that it is bound to; saved beside that model.
    processing_class: Any

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """The model of that name or folder, loaded with this modality's Auto class.

        ``kwargs`` are ``from_pretrained``'s. Raises `UserError` where there is none, or it is of another modality.
        """

    def frozen_modules(self, model: Model) -> list[str]:
        """Names of submodules that training leaves untouched (a vision tower, say), as in ``named_modules()``."""

    def bind(self, model: Model, processing_class: Any | None = None) -> ModalityAdapter:
        """An adapter with the same settings and data that reads for this model; this one stays as it is.

        Each trainer binds one of its own: what was computed with a model goes when its trainer goes. (An adapter that keeps
        nothing of a model may return itself.)

        ``model`` is unwrapped. Without a ``processing_class`` (tokenizer or processor) the one that belongs to
        ``model.name_or_path`` is loaded. Raises `UserError` where the model cannot take what this adapter feeds it (say, a
        text model and images).
        """

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """Examples from dataset rows (mappings) or from ready examples. Raises `UserError` naming a bad row."""

    def student_messages(self, example: Example) -> Conversation:
        """The student's view; never contains ``example.reference``."""

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The demonstrations that `teacher_messages` shows under the same context, in their order."""

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The teacher's view: the same query, with demonstrations or privileged context before it."""

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """Token ids and media of each conversation, with the generation prompt appended.

        Raises `UserError` naming the file when an image cannot be read; never drops one.
        """

    def decode(self, ids: Tensor) -> str:
        """Completion ids [T] as text, special tokens left out."""

    def score(self, example: Example, answer: str) -> float | None:
        """How right an answer is, in [0, 1]; None where the example has no reference."""


class ExperimentAdapter(ModalityAdapter, Protocol):
    """What experiments and methods may ask of an adapter beyond training. The bodies are the defaults: there is none.

    `ChatAdapter` inherits them; `with_defaults` gives them to any other adapter that leaves some out.
    """

    #: "ladder" asks for hints that grow: each labelled query is shown the lowest rung that helps.
    policy: Literal["fixed", "ladder"] = "fixed"

    def rungs(self, example: Example) -> tuple[int, ...]:
        """The rungs of the privilege ladder (`RUNGS`) that ``TeacherContext.rung`` may ask for."""
        return ()

    def controls(self, example: Example) -> tuple[str, ...]:
        """Names of ways to spoil the example's demonstrations that ``TeacherContext.control`` may ask for."""
        return ()

    def relabelled(self, example: Example, context: TeacherContext) -> Example | None:
        """The example with the answer that its spoiled demonstrations call for; None where they call for none."""
        return None

    def variants(self) -> Mapping[str, ModalityAdapter]:
        """This adapter with other demonstrations, by the option that sets them."""
        return {}

    def rivals(self, examples: Sequence[Example], contexts: Sequence[TeacherContext]) -> dict[str, list[str]]:
        """Answers of cheap methods that see the demonstrations of these contexts, or the same labelled rows, by name."""
        return {}

    def rivals_left_out(self) -> dict[str, str]:
        """Why, by the names of rivals that cannot run."""
        return {}

    def expert_answer(self, example: Example) -> str | None:
        """An expert's answer to this very query, which supervised methods train on; None where nobody gave one.

        Of the training data; never taken from ``example.reference``, by which answers are measured.
        """
        return None

    def encode_answer(self, answer: str) -> Tensor | None:
        """Ids [T] of an answer as the model would write it, without any end token; None: this adapter writes none."""
        return None

    def usage(self) -> dict[str, Any]:
        """The arguments of this adapter's class that the student's view hangs on: with them a saved model is asked again.

        They are written beside the model as JSON.
        """
        return {}

    def nearest_labelled(self, query: Example, count: int) -> list[tuple[Any, str]]:
        """The labelled images most like a query's, the most similar first, each with its answer."""
        return []

    def example_images(self, example: Example) -> list[Any]:
        """What to look at in a preview: paths or PIL images."""
        return []

    def scoring_notes(self) -> list[str]:
        """Sentences on what `score` could not do as it should since they were asked for last."""
        return []


class ConfigurableAdapter(ExperimentAdapter, Protocol):
    """An adapter that a config file can name. The type hints of `from_config`'s arguments are dataclasses; their fields
    are the keys of its sections of the YAML, with their defaults and help (`text_sdft.core.settings.setting`).
    """

    #: Settings of `SDFTConfig` that suit this modality better than the defaults.
    train_defaults: ClassVar[dict[str, Any]]

    @classmethod
    def from_config(cls, data: Any, demonstrations: Any) -> tuple[ConfigurableAdapter, Splits]:
        """The adapter and its data from the sections ``data`` (with a field ``path``) and ``demonstrations``."""


def adapter_class(name: str) -> type[ConfigurableAdapter]:
    """The adapter class registered under ``name``. Raises `UserError` with the known ones where there is none."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        installed = ", ".join(sorted(found)) or "none (pip install -e . again)"
        raise UserError(
            f"No adapter '{name}'.{did_you_mean(name, found)} Installed: {installed}. Others register in the entry-point "
            f"group '{ENTRY_POINT_GROUP}'."
        )
    return found[name].load()


def missing_methods(adapter: Any, protocol: type = ModalityAdapter) -> list[str]:
    """The methods of a protocol that an object does not have."""
    return sorted(name for name in vars(protocol) if not name.startswith("_") and not hasattr(adapter, name))


def with_defaults(adapter: ModalityAdapter) -> ExperimentAdapter:
    """The adapter, given the defaults of what it leaves out of `ExperimentAdapter`."""
    defaults = {name: getattr(ExperimentAdapter, name) for name in missing_methods(adapter, ExperimentAdapter)}
    vars(adapter).update({name: MethodType(d, adapter) if callable(d) else d for name, d in defaults.items()})
    return cast(ExperimentAdapter, adapter)


def bound_adapter(adapter: ModalityAdapter, model: Model, processing_class: Any | None = None) -> ExperimentAdapter:
    """The adapter that reads for this model, `with_defaults`. Raises `UserError` as ``bind``, or where that is None."""
    bound = adapter.bind(model, processing_class)
    if bound is None:
        raise UserError(f"{type(adapter).__name__}.bind returns None: return the adapter that reads for the model.")
    return with_defaults(bound)


def with_unique_ids(examples: list[Example]) -> list[Example]:
    """The examples. Raises `UserError` where two have one id, by which draws are keyed and answers are kept."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"Two rows have the id '{example.id}': ids must be unique, or left out.")
        seen.add(example.id)
    return examples
