"""Methods that learn from given answers by their likelihood.

Shapes: C tokens of a chunk · V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from text_sdft.core.groups import Group, Reader, Step
from text_sdft.core.losses import likelihood
from text_sdft.methods.distillation import retention


def given_answers(step: Step) -> Group:
    """The queries with the answers that are given to them: their likelihood is the loss."""
    queries, seeds = step.rollouts()
    return Group(queries, seeds, answers=step.given(queries, seeds))


def sft(step: Step) -> list[Group]:
    """Given answers, and retention prompts beside them."""
    return [given_answers(step), *retention(step)]


def dft(step: Step) -> list[Group]:
    """As `sft`, each token weighed by its probability."""
    return [replace(given_answers(step), loss=dynamic), *retention(step)]


def dynamic(student_CV: Tensor, reader_CV: Tensor | None, ids_C: Tensor) -> Tensor:
    """Negative log-likelihood times the token's own probability, a constant for the gradient (DFT, arXiv 2508.05629)."""
    loss_C = likelihood(student_CV, reader_CV, ids_C)
    return (-loss_C.detach()).exp() * loss_C


def replay(step: Step) -> list[Group]:
    """Given answers, those to one old row beside each query too."""
    old = [replace(step.beside(query, "beside")[0].choice(step.retained), retain=False) for query in step.examples]
    queries, seeds = step.rollouts([*step.examples, *old])
    return [Group(queries, seeds, answers=step.given(queries, seeds))]


def reinvoke(step: Step) -> list[Group]:
    """Given answers for the first half of the steps; then on-policy distillation from the start, on retention prompts."""
    if step.number < step.total // 2:
        return [given_answers(step)]
    drawn = [step.beside(query, "beside")[0].choice(step.retained) for query in step.examples]
    return [Group(*step.rollouts(drawn), "retain", reader=Reader(step.start))]
