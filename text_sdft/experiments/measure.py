"""What the probe measures of one view: answers and their scores, how probable the right answer is, where answers stand.

Shapes: N tokens of several answers · H hidden size · V vocabulary · T tokens of one answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.progress import track
from scipy import stats
from torch import Tensor

from text_sdft.core import DivergenceSettings, Example, TeacherContext, answer
from text_sdft.core.sampling import draw_seed, evaluating
from text_sdft.core.scoring import completion_hidden_states, head_of
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_view
from text_sdft.methods.answers import answer_ids
from text_sdft.training import SDFTTrainer

Contexts = Sequence[TeacherContext] | None


def answers(
    trainer: SDFTTrainer, examples: Sequence[Example], contexts: Contexts, size: int, label: str, adapter: Any = None
) -> list[str]:
    """Greedy answers in the student's view (contexts None) or the teacher's, ``size`` at once."""
    texts: list[str] = []
    silent = not trainer.is_world_process_zero()
    for batch, shown in track(_batches(examples, contexts, size), f"probe: {label}", transient=True, disable=silent):
        chosen = adapter or trainer.adapter
        texts += answer(trainer.module, chosen, trainer.sampler, batch, trainer.prompt_limit, shown)
    return texts


def score_all(adapter: Any, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """One score an example."""
    return [adapter.score(example, text) or 0.0 for example, text in zip(examples, texts, strict=True)]


@torch.no_grad()
def right_answers(
    trainer: SDFTTrainer, examples: Sequence[Example], contexts: Contexts, size: int
) -> dict[str, float] | None:
    """How a view reads the right answer, teacher-forced, its end token included.

    Returns:
        ``logp_answer`` (mean over examples of the answer's log-probability, nats), ``logp_token`` (mean over all tokens),
        ``entropy`` (mean over those tokens of the next token's distribution, nats), ``tokens`` (of the prompt, mean); None
        where the adapter writes no answers (`encode_answer`).
    """
    module, targets = trainer.module, [_answer_ids(trainer, example) for example in examples]
    if any(ids is None for ids in targets):
        return None
    logps: list[Tensor] = []
    entropies: list[Tensor] = []
    lengths: list[int] = []
    start = 0
    for batch, shown in _batches(examples, contexts, size):
        inputs = encode_view(trainer.adapter, batch, shown, trainer.prompt_limit)
        ids = [target for target in targets[start : start + len(batch)] if target is not None]
        start += len(batch)
        with evaluating(module), gathered(module):
            with trainer.accelerator.autocast():
                hidden_NH = completion_hidden_states(module, module, inputs, ids)
            logp_N, entropy_N = _read(head_of(module, 1.0), hidden_NH, torch.cat(ids).to(hidden_NH.device))
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
    batches = _batches(examples, contexts, size)
    lengths = (encode_view(trainer.adapter, batch, shown, trainer.prompt_limit).lengths for batch, shown in batches)
    return sum(map(sum, lengths)) / len(examples)


def positions(
    adapter: Any, examples: Sequence[Example], contexts: Sequence[TeacherContext], texts: Sequence[str]
) -> dict[str, Any] | None:
    """At which position among its demonstrations the type stands that the teacher names; all alike is expected.

    A type that stands at several positions counts at one of them, drawn apart from their order, so that the counts are
    those of independent draws. Left out: queries whose demonstrations stand in the same order whatever the seed, answers
    that no demonstration gave, and queries with another number of demonstrations than most.

    Returns:
        ``counts`` by position, and ``p`` of a chi-square test against equal counts (None below 5 expected a position);
        None where nothing can be counted.
    """
    found: dict[int, list[int]] = {}
    for example, context, text in zip(examples, contexts, texts, strict=True):
        shown, *others = (
            [plain(d.messages[-1]["content"]) for d in adapter.demonstrations(example, replace(context, seed=seed))]
            for seed in (context.seed, 1, 2, 3)
        )
        places = [i for i, given in enumerate(shown) if given == plain(text)]
        if places and any(order != shown for order in others):
            found.setdefault(len(shown), []).append(random.Random(draw_seed(context.seed, "position")).choice(places))
    if not found:
        return None
    length, places = max(found.items(), key=lambda item: len(item[1]))
    counts = [places.count(i) for i in range(length)]
    p = float(stats.chisquare(counts).pvalue) if len(places) >= 5 * length else None
    return {"counts": counts, "p": p}


def plain(text: Any) -> str:
    """An answer without what does not distinguish answers: case, spaces, marks around it."""
    return " ".join(str(text).casefold().split()).strip(" .!\"'")


def _batches(examples: Sequence[Example], contexts: Contexts, size: int) -> list[tuple[Sequence[Example], Contexts]]:
    starts = range(0, len(examples), size)
    return [(examples[i : i + size], None if contexts is None else contexts[i : i + size]) for i in starts]


def _answer_ids(trainer: SDFTTrainer, example: Example) -> Tensor | None:
    """The reference as the model would write it [T], with the token that ends it; None if the adapter writes none."""
    return answer_ids(trainer.module, trainer.adapter, example, str(example.reference))


def _read(head: Any, hidden_NH: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution [N], in chunks of tokens."""
    logps, entropies = [], []
    for chunk in DivergenceSettings().chunks(len(hidden_NH), len(head.weight_VH), hidden_NH.device.type):
        logp_CV = head.logits(hidden_NH[chunk]).log_softmax(-1)
        logps.append(logp_CV.gather(-1, ids_N[chunk, None]).squeeze(-1).cpu())
        entropies.append(torch.special.entr(logp_CV.exp()).sum(-1).cpu())
    return torch.cat(logps), torch.cat(entropies)
