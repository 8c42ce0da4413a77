"""What the probe measures of one view beside its answers: how probable the right answer is, where answers stand.

Shapes: N tokens of several answers · H hidden size · V vocabulary · T tokens of one answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from text_sdft.core import DivergenceSettings, Example, TeacherContext
from text_sdft.core.sampling import draw_seed, evaluating
from text_sdft.core.scoring import completion_hidden_states, head_of
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_view
from text_sdft.experiments.answers import Contexts, bare_answer, slices
from text_sdft.methods.answers import answer_ids
from text_sdft.training import SDFTTrainer


@torch.no_grad()
def right_answer_reading(
    trainer: SDFTTrainer, examples: Sequence[Example], contexts: Contexts, size: int
) -> dict[str, float] | None:
    """How a view reads the right answer, teacher-forced, its end token included; None where the adapter writes no answers.

    Returns:
        ``logp_answer`` (mean over examples of the answer's log-probability, nats), ``logp_token`` (mean over all tokens),
        ``entropy`` (mean over those tokens of the next token's distribution, nats), ``tokens`` (of the prompt, mean).
    """
    adapter = trainer.adapter
    logps: list[Tensor] = []
    entropies: list[Tensor] = []
    lengths: list[int] = []
    for rows in slices(len(examples), size):
        given = [answer_ids(trainer.module, adapter, example, str(example.reference)) for example in examples[rows]]
        ids = [ids_T for ids_T in given if ids_T is not None]
        if len(ids) < len(given):
            return None
        inputs = encode_view(adapter, examples[rows], contexts and contexts[rows], trainer.prompt_limit)
        with evaluating(trainer.module), gathered(trainer.module):
            with trainer.accelerator.autocast():
                hidden_NH = completion_hidden_states(trainer.module, trainer.module, inputs, ids)
            head = head_of(trainer.module, 1.0)
            logp_N, entropy_N = _logps_and_entropies(head, hidden_NH, torch.cat(ids).to(hidden_NH.device))
        logps += logp_N.split([len(row) for row in ids])
        entropies.append(entropy_N)
        lengths += inputs.lengths
    return {
        "logp_answer": float(torch.stack([row.sum() for row in logps]).mean()),
        "logp_token": float(torch.cat(logps).mean()),
        "entropy": float(torch.cat(entropies).mean()),
        "tokens": sum(lengths) / len(lengths),
    }


def mean_tokens(trainer: SDFTTrainer, examples: Sequence[Example], contexts: Contexts, size: int) -> float:
    """Mean length of the prompts, encoded ``size`` at once: ten images each of a hundred queries fill a memory."""
    total = 0
    for rows in slices(len(examples), size):
        inputs = encode_view(trainer.adapter, examples[rows], contexts and contexts[rows], trainer.prompt_limit)
        total += sum(inputs.lengths)
    return total / len(examples)


def answer_positions(
    adapter: Any, examples: Sequence[Example], contexts: Sequence[TeacherContext], texts: Sequence[str]
) -> dict[str, Any] | None:
    """At which position among its demonstrations the answer stands that the teacher gives; all alike is expected.

    An answer that stands at several positions counts at one of them, drawn apart from their order, so that the counts are
    those of independent draws. Left out: queries whose demonstrations stand in the same order whatever the seed, answers
    that no demonstration gave, and queries with another number of demonstrations than most.

    Returns:
        ``counts`` by position, and ``p`` of a chi-square test against equal counts (None below 5 expected a position);
        None where nothing can be counted.
    """
    found: dict[int, list[int]] = {}
    for example, context, text in zip(examples, contexts, texts, strict=True):
        shown, *others = (
            [bare_answer(d.messages[-1]["content"]) for d in adapter.demonstrations(example, replace(context, seed=seed))]
            for seed in (context.seed, 1, 2, 3)
        )
        places = [i for i, given in enumerate(shown) if given == bare_answer(text)]
        if places and any(order != shown for order in others):
            found.setdefault(len(shown), []).append(random.Random(draw_seed(context.seed, "position")).choice(places))
    if not found:
        return None
    length, places = max(found.items(), key=lambda item: len(item[1]))
    counts = [places.count(i) for i in range(length)]
    p = float(stats.chisquare(counts).pvalue) if len(places) >= 5 * length else None
    return {"counts": counts, "p": p}


def _logps_and_entropies(head: Any, hidden_NH: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution [N], in chunks of tokens."""
    logps, entropies = [], []
    for chunk in DivergenceSettings().chunks(len(hidden_NH), len(head.weight_VH), hidden_NH.device.type):
        logp_CV = head.logits(hidden_NH[chunk]).log_softmax(-1)
        logps.append(logp_CV.gather(-1, ids_N[chunk, None]).squeeze(-1).cpu())
        entropies.append(torch.special.entr(logp_CV.exp()).sum(-1).cpu())
    return torch.cat(logps), torch.cat(entropies)
