"""The words of the core: messages, demonstrations, examples.

A message is the transformers form, ``{"role": …, "content": …}``; its content is a string or a list of parts
``{"type": "text", "text": …}`` and ``{"type": "image", "image": …}``. Nothing here looks inside a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

Message: TypeAlias = dict[str, Any]
Conversation: TypeAlias = list[Message]
Model: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Demonstration:
    """What an expert showed: messages, usually a user turn and the assistant turn that answers it (images allowed)."""

    messages: Sequence[Message]


@dataclass(frozen=True)
class Example:
    """One query, the unit of training and evaluation.

    Attributes:
        id: unique within its dataset and stable between runs; every random draw for this example is keyed by it.
        messages: the query as the student sees it, ending in a user turn.
        demonstrations: demonstrations fixed for this example (an adapter may also retrieve others).
        privileged_context: further text or messages only the teacher sees.
        reference: the right answer. Used to score answers, never trained on, never shown to the student; shown to the
            teacher at rung 5 alone.
        retain: a retention prompt: its teacher is the model as it was at the start, and reads the student's own view.
        meta: what the adapter wants to remember (a type's name, a file's path); the core never reads it.
        prompt_ids: the student's prompt as token ids, for text that no template goes around; None: made of the messages.
    """

    id: str
    messages: Conversation
    demonstrations: Sequence[Demonstration] = ()
    privileged_context: str | Conversation | None = None
    reference: str | None = None
    retain: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] | None = None


#: The privilege ladder: how much the teacher is shown, from nothing to the answer itself. Rung 4 is written by the model as
#: it is before training.
RUNGS = {
    0: "nothing",
    1: "own type missing",
    2: "demonstrations",
    3: "with cues in words",
    4: "with its own rationale",
    5: "the answer alone",
}


@dataclass(frozen=True)
class TeacherContext:
    """How the teacher's context is to be drawn for one example.

    Attributes:
        seed: seeds the draw and the order of demonstrations; the same seed gives the same context.
        max_demonstrations: keep at most this many (set when a prompt would be too long); None keeps all.
        control: spoil the demonstrations in a way that the adapter offers (``adapter.controls(example)``), to find out what
            the teacher's accuracy rests on; None leaves them right.
        rung: how much to show, one of `RUNGS`; None shows what the adapter's settings say. A query without that rung
            (no known answer, say) is shown rung 2.
    """

    seed: int = 0
    max_demonstrations: int | None = None
    control: str | None = None
    rung: int | None = None


@dataclass(frozen=True)
class Splits:
    """The rows of one data set by their use, as an adapter's ``from_config`` reads them.

    Attributes:
        train: queries (reference known or not) and retention prompts.
        evals: what is measured before and after: ``new`` (the task), ``old`` (what the model knew), further ones by name.
        report: plain sentences on what was found, held out or dropped.
    """

    train: Sequence[Any]
    evals: Mapping[str, Sequence[Any]]
    report: Sequence[str] = ()
