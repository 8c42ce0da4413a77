"""What a step consumes: groups of rows, each of which learns in one way.

A *method* is a function from a step's queries to groups. Self-distillation is two groups: queries that the student answers
and the teacher reads with demonstrations in context, and retention prompts that the model at the start reads as they are.

Shapes: T tokens of an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from text_sdft.core.config import SDFTConfig
from text_sdft.core.data import Example, TeacherContext
from text_sdft.core.losses import TokenLoss
from text_sdft.core.sampling import draw_seed
from text_sdft.core.teachers import LiveTeacher


@dataclass(frozen=True)
class Answer:
    """A completion that is given: an expert's, or a teacher's.

    Attributes:
        ids: its tokens [T], end token included.
        finished: whether it was ended, and not cut by the length limit.
        seed: of the context in which a teacher gave it.
    """

    ids: Tensor
    finished: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Reader:
    """Who reads the answers of a group, and what it is shown with each row (``contexts`` None: the student's own view)."""

    teacher: LiveTeacher
    contexts: Sequence[TeacherContext] | None = None


@dataclass(frozen=True)
class Group:
    """Rows of a step that learn in one way.

    Attributes:
        seeds: of each row's randomness.
        name: under which its loss is logged (``NAME/loss``).
        answers: what the rows learn from; None: the student answers now.
        reader: who reads the answers; None: nobody, and their likelihood is the loss.
        weight: of each row beside a query's 1.
        loss: of one token, in place of the configured divergence or the likelihood.
        counts: (example, ids [T]) -> whether this answer is learnt from; None: all are.
    """

    examples: Sequence[Example]
    seeds: Sequence[int]
    name: str = "distillation"
    answers: Sequence[Answer] | None = None
    reader: Reader | None = None
    weight: float = 1.0
    loss: TokenLoss | None = None
    counts: Callable[[Example, Tensor], bool] | None = None


@dataclass(frozen=True)
class Step:
    """What a method is given to make groups of.

    Attributes:
        examples: the queries of a micro-batch.
        number, total: of the optimiser step (from 0), and of all.
        teacher: as ``args.teacher_model_kind`` says.
        start: the model as it was at the start.
        retained: rows to be answered as before, to draw from.
        given: (queries, seeds) -> an answer to each that is not the student's, where the method has such answers.
        ask: (teacher, queries, contexts, greedy) -> what this teacher answers now.
        log: (name, values) adds to the means that the next log shows.
        choose: a group whose contexts are drawn -> the group with the contexts that the adapter's policy chooses.
    """

    examples: Sequence[Example]
    number: int
    total: int
    args: SDFTConfig
    adapter: Any
    teacher: LiveTeacher
    start: LiveTeacher
    retained: Sequence[Example]
    given: Callable[[Sequence[Example], Sequence[int]], list[Answer]]
    ask: Callable[..., list[Answer]]
    log: Callable[[str, Sequence[float]], None]
    choose: Callable[[Step, Group], Group] = lambda step, group: group

    def rollouts(self, examples: Sequence[Example] | None = None) -> tuple[list[Example], list[int]]:
        """Rows (default: the queries), each as often as it is answered (``args.num_generations``), and their seeds."""
        examples = self.examples if examples is None else examples
        drawn = [(e, g) for e in examples for g in range(self.args.num_generations)]
        return [e for e, _ in drawn], [draw_seed(self.args.seed, self.number, e.id, g) for e, g in drawn]

    def beside(self, query: Example, use: str) -> tuple[random.Random, int]:
        """A generator, and its seed, for what is drawn beside a query: no split of the batch changes it."""
        seed = draw_seed(self.args.seed, self.number, use, query.id)
        return random.Random(seed), seed


def contexts_of(seeds: Sequence[int]) -> list[TeacherContext]:
    """The contexts that the adapter's settings describe, one a seed."""
    return [TeacherContext(seed) for seed in seeds]
