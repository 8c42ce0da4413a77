"""How far a model has moved on general prompts: two measures of forgetting that need no labels of the new task.

The starting model's greedy answers to the prompts of prior skills are read again by the model as it is now. *KL* is how far
the next token's distribution has moved, KL(start‖now), exact over the vocabulary; *perplexity* is that of the prompts'
references, where the adapter writes answers. Nothing is generated later, so that all methods are read on one text.

Shapes: N tokens of several answers · H hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from text_sdft.core import DivergenceSettings, Example
from text_sdft.core.divergence import Head, divergence
from text_sdft.core.sampling import evaluating
from text_sdft.core.scoring import completion_hidden_states, frozen_head, head_of
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_student
from text_sdft.experiments.answers import completions, slices
from text_sdft.experiments.measure import right_answer_reading
from text_sdft.experiments.scores import of_prior_skills, sample, with_reference
from text_sdft.training import SDFTTrainer

#: The starting model's hidden states on so many examples stay in memory for the whole run.
MOST = 300


@dataclass(frozen=True)
class StartReading:
    """How the starting model answered prompts of prior skills, and how it read its answers.

    A batch holds examples, the start's answers to them (id tensors [T_b]) and its hidden states [N, H] at the answers'
    tokens, on the CPU; ``head`` is its output layer.
    """

    batches: list[tuple[list[Example], list[Tensor], Tensor]]
    head: Head


def start_reading(trainer: SDFTTrainer, sets: dict[str, list[Example]], batch_size: int) -> StartReading | None:
    """To be called with the starting model and all sets by name; of prior skills `MOST` examples are taken at most.

    None where no prior skill is measured. References are only used for the perplexity.
    """
    examples = sample([example for rows in of_prior_skills(sets).values() for example in rows], MOST)
    if not examples:
        return None
    answered = list(completions(trainer, examples, None, batch_size, "answers of the start"))
    batches = [
        (examples[rows], answered[rows], _states(trainer, examples[rows], answered[rows]).cpu())
        for rows in slices(len(examples), batch_size)
    ]
    with gathered(trainer.module):
        head = frozen_head(trainer.module, 1.0)
    bias_V = None if head.bias_V is None else head.bias_V.clone()  # training changes both in place
    return StartReading(batches, replace(head, weight_VH=head.weight_VH.clone(), bias_V=bias_V))


@torch.no_grad()
def drift(trainer: SDFTTrainer, start: StartReading) -> dict[str, float]:
    """How far the trainer's model is from its start: ``kl`` in nats a token, mean over all answers' tokens, and
    ``perplexity`` of the references' tokens, left out where the adapter writes no answers.
    """
    tokens: list[Tensor] = []
    for examples, ids, before_NH in start.batches:
        after_NH = _states(trainer, examples, ids)
        ids_N = torch.cat(ids).to(after_NH.device)
        before_NH, weight_N = before_NH.to(after_NH.device), torch.zeros(len(ids_N), device=after_NH.device)
        with gathered(trainer.module):
            now = head_of(trainer.module, 1.0)
            tokens.append(divergence(after_NH, before_NH, now, start.head, DivergenceSettings(), ids_N, weight_N)[1])
    found = {"kl": float(torch.cat(tokens).mean())}
    known = with_reference(example for examples, _, _ in start.batches for example in examples)
    read = right_answer_reading(trainer, known, None, len(start.batches[0][0])) if known else None
    return found if read is None else {**found, "perplexity": math.exp(-read["logp_token"])}


@torch.no_grad()
def _states(trainer: SDFTTrainer, examples: Sequence[Example], ids: Sequence[Tensor]) -> Tensor:
    """Hidden states [N, H] of the module in the student's view, in the precision of training before training too."""
    inputs = encode_student(trainer.adapter, examples, trainer.prompt_limit)
    with gathered(trainer.module), trainer.accelerator.autocast(), evaluating(trainer.module):
        return completion_hidden_states(trainer.module, trainer.module, inputs, ids).float()
