"""The text adapter: rows with a prompt and privileged context or demonstrations, for any causal language model.

Shapes: L tokens of a conversation · T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from text_sdft.answers import normalised, without_reasoning
from text_sdft.columns import load_rows, to_examples, with_text
from text_sdft.core import (
    Conversation,
    Demonstration,
    Example,
    Model,
    ModelInputs,
    RowInputs,
    Splits,
    TeacherContext,
    UserError,
)
from text_sdft.core.errors import first_line
from text_sdft.templates import check_template, render, shows_demonstrations


@dataclass
class TextData:
    """Section ``data`` of ``adapter: text``."""

    path: str = field(metadata={"help": "Training rows: a .jsonl, .json, .parquet or .csv file, or a data set NAME:SPLIT."})
    test: str | None = field(default=None, metadata={"help": "Rows with 'reference': what is to be learnt, measured."})
    old: str | None = field(default=None, metadata={"help": "Rows with 'reference' that the model solves already."})
    retain: str | None = field(
        default=None, metadata={"help": "Prompts the model should go on answering as it does (retention prompts)."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of both views."})


@dataclass
class TextDemonstrations:
    """Section ``demonstrations`` of ``adapter: text``."""

    teacher_prompt_template: str | None = field(
        default=None,
        metadata={"help": "turns, paper, quoted, context, or a string with {question}. Unset: what suits the columns."},
    )
    enable_thinking: bool | None = field(
        default=None, metadata={"help": "Passed to the chat template, to both views alike; unset: the model's default."}
    )


class TextAdapter:
    """`ModalityAdapter` for text (see `text_sdft.core.adapter` for the methods, `text_sdft.columns` for the columns).

    Args:
        teacher_prompt_template: how the teacher's prompt is made (`text_sdft.templates`). None chooses by row: "paper" for
            ``golden_response``, "context" for a ``privileged_context`` string, "turns" for all else.
        system_prompt: first message of both views, for rows without one.
        enable_thinking: passed to the chat template of both views where it is set.
        scorer: (example, answer) -> score in [0, 1]; None compares with the reference, white space, case and thoughts
            (up to </think>) aside.

    Raises:
        UserError: the template is unknown.
    """

    train_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        *,
        teacher_prompt_template: str | None = None,
        system_prompt: str | None = None,
        enable_thinking: bool | None = None,
        scorer: Callable[[Example, str], float] | None = None,
    ) -> None:
        if teacher_prompt_template is not None:
            check_template(teacher_prompt_template)
        self.processing_class: Any = None
        self._template, self._system_prompt, self._scorer = teacher_prompt_template, system_prompt, scorer
        self._trust: dict[str, Any] = {}  # the model's own code was trusted: so is its tokenizer's
        self._chat_options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}

    @classmethod
    def from_config(cls, data: TextData, demonstrations: TextDemonstrations) -> tuple[TextAdapter, Splits]:
        """The adapter and its rows from the YAML sections.

        Raises:
            UserError: a file or a row cannot be used, or no row to measure has a reference.
        """
        adapter = cls(
            teacher_prompt_template=demonstrations.teacher_prompt_template,
            system_prompt=data.system_prompt,
            enable_thinking=demonstrations.enable_thinking,
        )
        train = load_rows(data.path)
        retained = [
            {**row, "id": f"retain {i}", "retain": True}
            for i, row in enumerate(load_rows(data.retain) if data.retain else [])
        ]
        evals = {name: load_rows(path) for name, path in (("new", data.test), ("old", data.old)) if path}
        counts = ", ".join(f"{len(rows)} rows to measure '{name}'" for name, rows in evals.items())
        report = [
            f"Found {len(train)} training rows, {len(retained)} retention prompts" + (f", {counts}." if counts else ".")
        ]
        queries = _checked(adapter, data.path, train)
        report += _shown_nothing(data.path, queries)
        _checked(adapter, str(data.retain), retained)
        for name, file in (("new", data.test), ("old", data.old)):
            if file:
                measured = _checked(adapter, file, evals[name])
                report += [*not_scored(file, measured), *(trained_on(name, measured, queries) if name == "new" else [])]
        return adapter, Splits([*train, *retained], evals, report)

    def load_model(self, name: str, **kwargs: Any) -> PreTrainedModel:
        """The causal language model of that name or folder. Raises `UserError`."""
        self._trust = {key: value for key, value in kwargs.items() if key == "trust_remote_code"}
        try:
            return AutoModelForCausalLM.from_pretrained(name, **kwargs)
        except (OSError, ValueError) as error:
            raise UserError(
                f"'{name}' could not be loaded as a causal language model. Give a folder or a hub name of one; a "
                f"vision-language model goes with `adapter: image`. ({first_line(error)})"
            ) from error

    def frozen_modules(self, model: Model) -> list[str]:
        """None: every weight may be trained."""
        return []

    def bind(self, model: Model, processing_class: Any | None = None) -> None:
        """Load the tokenizer that belongs to the model, unless one is given. Raises `UserError` if there is none."""
        if processing_class is None:
            name = model.config.name_or_path
            try:
                processing_class = AutoTokenizer.from_pretrained(name, **self._trust)
            except (OSError, ValueError) as error:
                raise UserError(f"No tokenizer could be loaded from '{name}': {error} Pass processing_class.") from error
        self.processing_class = processing_class

    def examples(self, rows: Iterable[Any]) -> list[Example]:
        """See `text_sdft.columns`."""
        return to_examples(rows, self._system_prompt)

    def student_messages(self, example: Example) -> Conversation:
        """The query alone."""
        return list(example.messages)

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        """The row's own, in their order, the last ones where not all fit; none beside a whole teacher prompt."""
        rung = self._rung_of(example, context)
        if rung == 5:
            return [Demonstration([example.messages[-1], {"role": "assistant", "content": _known_answer(example)}])]
        hidden = example.retain or rung == 0 or example.meta.get("teacher_messages")
        kept = [] if hidden else list(example.demonstrations)
        limit = context.max_demonstrations
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def teacher_messages(self, example: Example, context: TeacherContext) -> Conversation:
        """The query with its demonstrations and privileged context, or the row's own teacher prompt."""
        rung = self._rung_of(example, context)
        if example.retain or rung == 0:
            return self.student_messages(example)
        shown = self.demonstrations(example, context)
        if rung == 5:
            own = self._template is not None and shows_demonstrations(self._template)
            return render(example.messages, shown, None, str(self._template) if own else "paper")
        if example.meta.get("teacher_messages"):
            return list(example.meta["teacher_messages"])
        query, template = example.messages, self._template
        if template is None and (golden := example.meta.get("golden")):
            # The paper's template calls all that it quotes answers to this question: others stand before it as turns.
            others, shown = shown[:-golden], shown[-golden:]
            query, template = render(query, others), "paper"
        elif template is None:
            quoted = isinstance(example.privileged_context, str) and not shown
            template = "context" if quoted else "turns"
        return render(query, shown, example.privileged_context, template)

    def rungs(self, example: Example) -> tuple[int, ...]:
        """Nothing, the row's own context, and, where an expert's answer is known, that answer alone."""
        if example.retain:
            return ()
        return (0, 2, 5) if _known_answer(example) is not None else (0, 2)

    def encode(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """Ids [L] of each conversation through the chat template, generation prompt appended.

        A tokenizer without a chat template (a base model's) reads the turns' texts joined by blank lines.

        Raises:
            UserError: a message holds other parts than texts, or the chat template refuses the conversation.
        """
        tokenizer = self.processing_class
        if tokenizer is None:
            raise RuntimeError("TextAdapter.bind(model) has not been called")
        rows = []
        for conversation in conversations:
            turns = [with_text(message) for message in conversation]
            if tokenizer.chat_template:
                try:
                    ids = tokenizer.apply_chat_template(
                        turns, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
                        **self._chat_options,
                    )["input_ids"][0]  # fmt: skip
                except TemplateError as error:
                    raise UserError(
                        f"The model's chat template refuses turns of {', '.join(turn['role'] for turn in turns)}: {error}. "
                        "Give rows (and system_prompt) only turns that it takes."
                    ) from error
            else:
                if not all(isinstance(turn["content"], str) for turn in turns):
                    raise UserError("A tokenizer without a chat template takes texts only: give each message a content.")
                text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
                ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
            rows.append(RowInputs({"input_ids": ids}))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return ModelInputs(rows, pad or 0)

    def decode(self, ids: Tensor) -> str:
        """Completion ids [T] as text, special tokens left out, stripped."""
        return self.processing_class.decode(ids, skip_special_tokens=True).strip()

    def expert_answer(self, example: Example) -> str | None:
        """The answer of the first demonstration that answers this very query (``golden_response``), if there is one."""
        query = [message for message in example.messages if message["role"] != "system"]
        for shown in example.demonstrations:
            *asked, answer = [message for message in shown.messages if message["role"] != "system"]
            if asked in (query, query[-1:]) and answer["role"] == "assistant" and isinstance(answer["content"], str):
                return answer["content"]
        return None

    def encode_answer(self, answer: str) -> Tensor:
        """Ids [T] of an answer, as the student would write it after its prompt; no end token."""
        return self.processing_class(answer, add_special_tokens=False, return_tensors="pt")["input_ids"][0]

    def score(self, example: Example, answer: str) -> float | None:
        """The scorer's number, or 1 where the answer is the reference (white space, case and thoughts aside), else 0."""
        if example.reference is None:
            return None
        if self._scorer is not None:
            return float(self._scorer(example, answer))
        return float(normalised(without_reasoning(answer)) == normalised(example.reference))

    def _rung_of(self, example: Example, context: TeacherContext) -> int:
        return context.rung if context.rung in self.rungs(example) else 2  # type: ignore[return-value]


def _checked(adapter: TextAdapter, file: str, rows: Iterable[Any]) -> list[Example]:
    """The file's rows as examples. Raises `UserError` naming file and row."""
    try:
        return adapter.examples(rows)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _shown_nothing(file: str, examples: Sequence[Example]) -> list[str]:
    """A sentence where queries have nothing to show the teacher. Raises `UserError` where none has anything."""
    queries = [e for e in examples if not e.retain]
    bare = [e for e in queries if not (e.demonstrations or e.privileged_context or e.meta.get("teacher_messages"))]
    columns = "golden_response, privileged_context, demonstrations, teacher_prompt"
    if not bare:
        return []
    if len(bare) == len(queries):
        raise UserError(
            f"{file}: no query has {columns}: the teacher would see what the student sees, and nothing be learnt. "
            "The expert's answers (in TRL's files: completion) go into golden_response."
        )
    return [f"{len(bare)} of {len(queries)} queries of {file} have none of {columns}: from these nothing is learnt."]


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
    if not both:
        return []
    return [f"{both} of {len(measured)} rows of '{name}' have a prompt that is trained on: they measure memory alone."]


def _known_answer(example: Example) -> str | None:
    """An expert's answer to this very prompt: the row's own, else the reference."""
    if example.meta.get("golden") and example.demonstrations:
        return str(example.demonstrations[-1].messages[-1]["content"])
    return example.reference
