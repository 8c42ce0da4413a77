"""The text adapter: rows with a prompt and privileged context or demonstrations, for any causal language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from text_sdft.columns import file_examples, to_example, to_examples
from text_sdft.config import TextData, TextDemonstrations
from text_sdft.core.chat import ChatAdapter
from text_sdft.core.data import Conversation, Demonstration, Example, Splits, TeacherContext
from text_sdft.core.errors import UserError
from text_sdft.core.templates import render

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Builtin models of text: name -> folder in this package.
BUILTIN_MODELS = {"builtin:tiny-qwen3": "tiny-qwen3"}


class TextAdapter(ChatAdapter):
    """`ChatAdapter` for rows of text (see `text_sdft.columns` for the columns).

    Args:
        teacher_prompt_template: how the teacher's prompt is made (`text_sdft.core.templates`). None chooses by row: "paper"
            for ``golden_response``, "context" for a ``privileged_context`` string, "turns" for all else.
        system_prompt: first message of both views, for rows without one.
        enable_thinking: passed to the chat template of both views where it is set.
        scorer: (example, answer) -> score in [0, 1]; None compares with the reference, white space, case and thoughts
            (up to </think>) aside.

    Raises:
        UserError: the template is unknown.
    """

    #: The column with the right answer.
    answer: ClassVar[str] = "reference"
    other_models = "a vision-language model goes with `adapter: image`"

    def __init__(
        self,
        *,
        teacher_prompt_template: str | None = None,
        system_prompt: str | None = None,
        enable_thinking: bool | None = None,
        scorer: Callable[[Example, str], float] | None = None,
    ) -> None:
        options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        super().__init__(template=teacher_prompt_template, system_prompt=system_prompt, **options)
        self._scorer = scorer

    @classmethod
    def from_config(cls, data: TextData, demonstrations: TextDemonstrations) -> tuple[Self, Splits]:
        """The adapter and its rows from the YAML sections. Raises `UserError`: a file or row cannot be used, no row has
        anything to show the teacher, or no measured one a reference.
        """
        adapter = cls(system_prompt=data.system_prompt, **asdict(demonstrations))
        return adapter, adapter.splits(data)

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """The causal language model of that name or folder, or a builtin one. Raises `UserError`."""
        if name.startswith("builtin:") and name not in BUILTIN_MODELS:
            known = ", ".join(BUILTIN_MODELS)
            raise UserError(f"'{name}' is no builtin model of text: there is {known}. {self.other_models.capitalize()}.")
        folder = BUILTIN_MODELS.get(name)
        return super().load_model(str(Path(__file__).parent / folder) if folder else name, **kwargs)

    def splits(self, data: TextData) -> Splits:
        """The rows of the section ``data`` as examples. Raises `UserError` as `from_config`."""
        train, validation, told = self.training_rows(data)
        evals = {}
        for name, file in data.tests().items():
            evals[name] = file_examples(file, self.examples)
            told += not_scored(file, evals[name], self.answer)
        if data.old:
            evals["old"] = file_examples(data.old, lambda rows: to_examples(rows, self.system_prompt))
            told += not_scored(data.old, evals["old"])
        if validation:
            evals["validation"] = validation
        retained = self.retention_prompts(data.retain)
        counts = [f"{len(rows)} rows to measure '{name}'" for name, rows in evals.items()]
        found = ", ".join([f"Found {len(train)} training rows", f"{len(retained)} retention prompts", *counts])
        known = [line for name, rows in evals.items() if name != "old" for line in trained_on(name, rows, train)]
        return Splits([*train, *retained], evals, [f"{found}.", *told, *known])

    def training_rows(self, data: TextData) -> tuple[list[Example], list[Example], list[str]]:
        """The training rows, those of them that are held out to choose settings by, and sentences on them."""
        train = file_examples(data.path, self.examples)
        return train, [], shown_nothing(data.path, train)

    def retention_prompts(self, file: str | None) -> list[Example]:
        """The rows of a file with ``prompt``, as retention prompts. Raises `UserError` naming file and row."""

        def read(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
            kept = [{**row, "id": f"retain {i}", "retain": True} for i, row in enumerate(rows)]
            return to_examples(kept, self.system_prompt)

        return file_examples(file, read) if file else []

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """See `text_sdft.columns`."""
        return to_example(row, number, self.system_prompt)

    def known_answer(self, example: Example) -> str | None:
        """An expert's answer to this very prompt: the row's own, else the reference."""
        if example.meta.get("golden") and example.demonstrations:
            return str(example.demonstrations[-1].messages[-1]["content"])
        return example.reference

    def chosen_demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The row's own, in their order, the last ones where not all fit; none beside a whole teacher prompt."""
        return [] if example.meta.get("teacher_messages") else super().chosen_demonstrations(example, context)

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The query with its demonstrations and privileged context, or the row's own teacher prompt."""
        if not example.retain and self.rung_of(example, context) == 2:
            if whole := example.meta.get("teacher_messages"):
                return list(whole)
            if self.template is None and (golden := example.meta.get("golden")):
                # The paper's template calls all that it quotes answers to this question: others stand before it as turns.
                shown = self.demonstrations(example, context)
                query = render(example.messages, shown[:-golden])
                return render(query, shown[-golden:], example.privileged_context, "paper")
        return super().teacher_messages(example, context)

    def score(self, example: Example, answer: str) -> float | None:
        """The scorer's number, where the adapter has one; else as `ChatAdapter`."""
        if self._scorer is None or example.reference is None:
            return super().score(example, answer)
        return float(self._scorer(example, answer))


def shown_nothing(file: str, examples: Sequence[Example]) -> list[str]:
    """A sentence where queries have nothing to show the teacher. Raises `UserError` where none has anything."""
    queries = [e for e in examples if not e.retain]
    bare = [e for e in queries if not (e.demonstrations or e.privileged_context or e.meta.get("teacher_messages"))]
    columns = "golden_response, privileged_context, demonstrations, teacher_prompt"
    if bare and len(bare) == len(queries):
        raise UserError(
            f"{file}: no query has {columns}: the teacher would see what the student sees, and nothing be learnt. "
            "The expert's answers (in TRL's files: completion) go into golden_response."
        )
    told = f"{len(bare)} of {len(queries)} queries of {file} have none of {columns}: from these nothing is learnt."
    return [told] if bare else []


def not_scored(file: str, examples: Sequence[Example], column: str = "reference") -> list[str]:
    """A sentence where rows have no reference to score answers by. Raises `UserError` where none has one."""
    bare = sum(example.reference is None for example in examples)
    if bare == len(examples):
        raise UserError(f"{file}: no row has a '{column}', by which answers are scored. Give it, or leave the file out.")
    return [f"{bare} of {len(examples)} rows of {file} have no '{column}' and are not scored."] if bare else []


def trained_on(name: str, measured: Sequence[Example], trained: Sequence[Example]) -> list[str]:
    """A sentence where rows of the set ``name`` ask what is asked in training."""
    asked = {repr(example.messages) for example in trained if not example.retain}
    both = sum(repr(example.messages) in asked for example in measured)
    told = f"{both} of {len(measured)} rows of '{name}' have a prompt that is trained on: they measure memory alone."
    return [told] if both else []
