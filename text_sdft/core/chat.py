"""`ChatAdapter`: all that adapters of chat models share, so that a new modality says only what is its own.

Shapes: L tokens of a conversation · T tokens of a completion.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedModel

from text_sdft.core.adapter import ExperimentAdapter, with_unique_ids
from text_sdft.core.data import Conversation, Demonstration, Example, Message, Model, TeacherContext
from text_sdft.core.errors import UserError, first_line
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.templates import check_template, render, shows_demonstrations

#: What may stand around a short answer.
MARKS = " \t\n\r\"'`´‘’“”«».,;:!?()[]{}*_"


class ChatAdapter(ExperimentAdapter):
    """A `ModalityAdapter` but for `example`. A modality overrides what else is its own.

    The student's view is the query. The teacher is shown the row's demonstrations and privileged context before it (or what
    `chosen_demonstrations` finds), at rung 0 nothing, at rung 5 the known answer. Texts go through the chat template of a
    causal language model (`encode_row`), and an answer is right where it is the reference (`score`).

    Args:
        template: how the teacher's prompt is made (`text_sdft.core.templates`). None chooses by what is shown: "context"
            for a ``privileged_context`` string alone, "paper" for the known answer, "turns" for all else.
        system_prompt: first message of both views, for rows without one.
        chat_options: given to the chat template, for both views alike.

    Raises `UserError` where the template is unknown.
    """

    train_defaults: ClassVar[dict[str, Any]] = {}
    #: What to do with a model that is no causal language model.
    other_models: ClassVar[str] = "a model of another modality goes with another `adapter`"

    def __init__(self, *, template: str | None = None, system_prompt: str | None = None, **chat_options: Any) -> None:
        if template is not None:
            check_template(template)
        self.template, self.system_prompt, self.chat_options = template, system_prompt, chat_options
        self.processing_class: Any = None
        self._trust: dict[str, Any] = {"trust_remote_code": False}  # where the model's own code was trusted: True

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """The causal language model of that name or folder. Raises `UserError`."""
        from transformers import AutoModelForCausalLM

        self._trust = {key: value for key, value in kwargs.items() if key == "trust_remote_code"}
        try:
            return AutoModelForCausalLM.from_pretrained(name, **kwargs)
        except (OSError, ValueError) as error:
            raise UserError(
                f"'{name}' could not be loaded as a causal language model. Give a folder or a hub name of one; "
                f"{self.other_models}. ({first_line(error)})"
            ) from error

    def frozen_modules(self, model: Model) -> list[str]:
        """None: every weight may be trained."""
        return []

    def bind(self, model: Model, processing_class: Any | None = None) -> Self:
        """A copy with the tokenizer that belongs to the model, unless one is given. Raises `UserError` if there is none."""
        from transformers import AutoTokenizer

        if processing_class is None:
            name = model.config.name_or_path
            try:
                processing_class = AutoTokenizer.from_pretrained(name, **self._trust)
            except Exception as error:  # a damaged tokenizer.json raises many kinds
                raise UserError(
                    f"No tokenizer could be loaded from '{name}': {first_line(error)} Pass processing_class, or save the "
                    "model's tokenizer beside it."
                ) from error
        bound = copy.copy(self)
        bound.processing_class = processing_class
        return bound

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or the processor's. Raises `RuntimeError` before there is a model."""
        if self.processing_class is None:
            raise RuntimeError(f"This {type(self).__name__} is bound to no model: bind(model) returns one that is.")
        return tokenizer_of(self.processing_class)

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """Examples from mappings (see `example`); ready ones stay as they are. Raises `UserError` naming a bad row."""
        made = []
        for number, row in enumerate(rows):
            if isinstance(row, Mapping):
                example = self.example(row, number)
                row = replace(example, messages=with_system(example.messages, self.system_prompt))
            elif not isinstance(row, Example):
                raise UserError(f"Row {number} is a {type(row).__name__}; it must be a mapping of columns to values.")
            made.append(row)
        return with_unique_ids(made)

    def example(self, row: Mapping[str, Any], number: int) -> Example:
        """One row as an example, without the adapter's system prompt; ``number`` is for its id where it brings none.

        Raises `UserError` naming row, column and remedy where it cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} takes ready examples only: it has no `example(row, number)`")

    def usage(self) -> dict[str, Any]:
        """The system prompt and the options of the chat template."""
        return {"system_prompt": self.system_prompt, **self.chat_options}

    def student_messages(self, example: Example) -> Conversation:
        """The query alone."""
        return list(example.messages)

    def rungs(self, example: Example) -> tuple[int, ...]:
        """Nothing, what there is to show, and the answer alone where it is known."""
        if example.retain:
            return ()
        return (0, 2) if self.known_answer(example) is None else (0, 2, 5)

    def rung_of(self, example: Example, context: TeacherContext) -> int:
        """The rung that is asked for, where the example has it, else 2."""
        return context.rung if context.rung is not None and context.rung in self.rungs(example) else 2

    def known_answer(self, example: Example) -> str | None:
        """What the teacher is shown at rung 5: the right answer, where it is known."""
        return example.reference

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """What the teacher is shown before the query; a retention prompt's teacher nothing."""
        rung = self.rung_of(example, context)
        if example.retain or rung == 0:
            return []
        if rung == 5:  # the answer alone, as the paper shows it: the very same query, answered
            return [answered(example.messages[-1], str(self.known_answer(example)))]
        return self.chosen_demonstrations(example, context)

    def chosen_demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """What a query is shown at rungs that show demonstrations: the row's own, under a limit those nearest to it."""
        kept, limit = list(example.demonstrations), context.max_demonstrations
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The query with its demonstrations and privileged context, under the template."""
        if example.retain:
            return self.student_messages(example)
        rung, shown = self.rung_of(example, context), self.demonstrations(example, context)
        privileged = None if rung in (0, 5) else example.privileged_context
        template = self.template
        if rung == 5 and (template is None or not shows_demonstrations(template)):
            template = "paper"
        elif template is None:
            template = "context" if isinstance(privileged, str) and not shown else "turns"
        return render(example.messages, shown, privileged, template)

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """See `encode_row`; every conversation becomes one unpadded row."""
        return ModelInputs([self.encode_row(conversation) for conversation in conversations], self.pad_token_id)

    def encode_row(self, conversation: Conversation) -> RowInputs:
        """Ids [L] of one conversation through the chat template, generation prompt appended.

        A tokenizer without a chat template (a base model's) reads the turns' texts joined by blank lines. A modality with
        media overrides this: their tensors go into ``RowInputs.media``.

        Raises `UserError` where a message holds other parts than texts, or the chat template refuses the conversation.
        """
        from jinja2 import TemplateError

        tokenizer, turns = self.tokenizer, [with_text(message) for message in conversation]
        if not tokenizer.chat_template:
            if not all(isinstance(turn["content"], str) for turn in turns):
                raise UserError("A tokenizer without a chat template takes texts only: give each message a content.")
            text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
            return RowInputs({"input_ids": tokenizer(text, return_tensors="pt")["input_ids"][0]})
        form = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
        try:
            encoded = tokenizer.apply_chat_template(turns, **form, **self.chat_options)
        except TemplateError as error:
            raise UserError(
                f"The model's chat template refuses turns of {', '.join(turn['role'] for turn in turns)}: {error}. "
                "Give rows (and system_prompt) only turns that it takes."
            ) from error
        return RowInputs({"input_ids": encoded["input_ids"][0]})

    @property
    def pad_token_id(self) -> int:
        """The id that fills padding, which is masked."""
        tokenizer = self.tokenizer
        return (tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id) or 0

    def decode(self, ids: Tensor) -> str:
        """Completion ids [T] as text, special tokens left out, stripped."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def expert_answer(self, example: Example) -> str | None:
        """The answer of the first demonstration that answers this very query, if there is one."""
        query = [message for message in example.messages if message["role"] != "system"]
        for shown in example.demonstrations:
            *asked, answer = [message for message in shown.messages if message["role"] != "system"]
            if asked in (query, query[-1:]) and answer["role"] == "assistant" and isinstance(answer["content"], str):
                return answer["content"]
        return None

    def encode_answer(self, answer: str) -> Tensor:
        """Ids [T] of an answer, as the student would write it after its prompt; no end token."""
        return self.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"][0]

    def score(self, example: Example, answer: str) -> float | None:
        """1 where the answer is the reference (white space, case and thoughts aside), else 0; None without a reference."""
        if example.reference is None:
            return None
        return float(normalised(without_reasoning(answer)) == normalised(example.reference))


def tokenizer_of(processing_class: Any) -> Any:
    """A processor's tokenizer; a tokenizer is its own."""
    return getattr(processing_class, "tokenizer", processing_class)


def answered(question: Message | str, answer: str) -> Demonstration:
    """A question (a user's turn, or its text) and an expert's answer to it."""
    turn = {"role": "user", "content": question} if isinstance(question, str) else question
    return Demonstration([turn, {"role": "assistant", "content": answer}])


def with_system(messages: Conversation, system_prompt: str | None) -> Conversation:
    """The messages after the system prompt, where there is one and they have none of their own."""
    if not system_prompt or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def with_text(message: Message, where: str = "A prompt", remedy: str = "Use an adapter for images.") -> Message:
    """The message with its content in one text where that is a list of parts: a template would print it as Python does.

    Raises `UserError` where a part is no text; says ``where``, and of an image the ``remedy``.
    """
    if not isinstance(message.get("content"), list):
        return message
    texts = []
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            raise UserError(f"{where} has an image, which an adapter for texts would drop. {remedy}")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UserError(
                f'{where} has a message whose content is neither text nor a list of {{"type": "text", "text": …}}.'
            )
        texts.append(part["text"])
    return {**message, "content": "".join(texts)}


def without_reasoning(answer: str) -> str:
    """What an answer says once its thoughts have ended with </think>; nothing where it was cut within them.

    Chat templates of some models open the thoughts themselves, so that <think> need not stand in the answer.
    """
    return re.sub(r"<think>.*", "", answer.rpartition("</think>")[2], flags=re.DOTALL).strip()


def normalised(text: str, marks: str = "", *, name: bool = False) -> str:
    """The form in which answers are compared: lower case, single spaces, no white space around it.

    Args:
        marks: characters that do not count at either end.
        name: as a name or another short answer: Unicode NFKC, `MARKS` do not count, and neither does a leading article (a,
            an, the). So "A dog." is "dog".
    """
    if not name:
        return " ".join(text.casefold().split()).strip(marks)
    bare = normalised(unicodedata.normalize("NFKC", text), MARKS)
    return re.sub(r"^(?:a|an|the)\s+(?=\S)", "", bare)
