"""Completions sampled from the student, each row from its own seeded stream.

A row's randomness depends on its seed alone. So micro-batches, several processes and a resumed run sample the same
completions, and no generator state has to be saved.

Shapes: B rows · T completion tokens · V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from text_sdft.core.adapter import ModalityAdapter
from text_sdft.core.data import Example, Model, TeacherContext
from text_sdft.core.inputs import ModelInputs
from text_sdft.core.scoring import base_model
from text_sdft.core.sharding import gathered
from text_sdft.core.views import encode_view


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch, row by row.

    Attributes:
        ids: B id tensors [T_b], the end-of-sequence token included where it was sampled.
        logps: B tensors [T_b]: the log-probability with which the sampler drew each token.
        finished: whether the row ended by itself (and was not cut by the length limit).
    """

    ids: list[Tensor]
    logps: list[Tensor]
    finished: list[bool]

    def select(self, rows: slice) -> Rollout:
        """Some of its rows."""
        return Rollout(self.ids[rows], self.logps[rows], self.finished[rows])

    @staticmethod
    def joined(parts: Sequence[Rollout]) -> Rollout:
        """The rows of several, one after the other."""
        return Rollout(*([row for part in parts for row in getattr(part, name)] for name in ("ids", "logps", "finished")))


class Sampler(Protocol):
    """Makes completions. `TransformersSampler` and `VLLMSampler` stand behind the same call."""

    def sample(self, model: Model, inputs: ModelInputs, seeds: Sequence[int] | None) -> Rollout:
        """One completion a row; ``seeds`` one a row, or None to take the most probable token each time."""


@dataclass(frozen=True)
class TransformersSampler:
    """Samples with ``model.generate``.

    Attributes:
        max_completion_length: tokens at most.
        temperature, top_p: as usual; 1.0 samples from the model's own distribution.
        autocast: opened around a whole batch, so that mixed precision casts the weights once and not for every token.
        prefilled: opened around ``generate(model, inputs)``; may read prompts in a cheaper way.
    """

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    prefilled: Callable[[Model, ModelInputs], AbstractContextManager[None]] = lambda model, inputs: nullcontext()

    @torch.no_grad()
    def sample(self, model: Model, inputs: ModelInputs, seeds: Sequence[int] | None) -> Rollout:
        batch = inputs.batch(device=model.device)
        batch.pop("position_ids", None)  # generate counts positions itself, from the mask
        start = batch["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if inputs.placeholder_ids:
            processors.append(SuppressTokensLogitsProcessor(inputs.placeholder_ids, device=str(model.device)))
        uniform_BT = None
        if seeds is not None:
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_p < 1.0:
                processors.append(TopPLogitsWarper(self.top_p))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # [0, 1), row b from its seed alone
            rows = [torch.rand(self.max_completion_length, generator=g, dtype=torch.float64) for g in generators]
            uniform_BT = torch.stack(rows)
        processors.append(choice := _Choice(uniform_BT, start))
        eos = eos_ids(model)
        config = GenerationConfig(
            max_new_tokens=self.max_completion_length,
            do_sample=False,  # `_Choice` has drawn the token before the argmax sees the scores
            eos_token_id=sorted(eos) or None,
            pad_token_id=inputs.pad_token_id,
        )
        with self.autocast(), evaluating(model), _generation_config(model, config), self.prefilled(model, inputs):
            ids_BL = model.generate(**batch, logits_processor=processors)  # type: ignore[operator]
        completions_BT = ids_BL[:, start:].cpu()
        logps_BT = torch.stack(choice.logps, dim=1).cpu()
        lengths = [next((t + 1 for t, i in enumerate(row.tolist()) if i in eos), 0) for row in completions_BT]
        ends = [length or completions_BT.shape[1] for length in lengths]
        return Rollout(
            ids=[row[:end] for row, end in zip(completions_BT, ends, strict=True)],
            logps=[row[:end] for row, end in zip(logps_BT, ends, strict=True)],
            finished=[length > 0 for length in lengths],
        )


def draw_seed(*key: Any) -> int:
    """A 63-bit seed that depends on every part of the key (a run's seed, a step, an example's id, …) and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within this context; the mode of before after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Choice(LogitsProcessor):
    """Draws each row's token by inverting the distribution function at that row's own uniform number.

    Leaves one finite score a row, so that the argmax of greedy decoding returns the drawn token.
    """

    def __init__(self, uniform_BT: Tensor | None, start: int) -> None:
        self.uniform_BT, self.start = uniform_BT, start
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logp_BV = scores.float().log_softmax(-1)
        if self.uniform_BT is None:
            ids_B1 = logp_BV.argmax(-1, keepdim=True)
        else:
            # fp64: an fp32 running sum over a large vocabulary loses rare tokens. (Apple's GPUs have no fp64.)
            dtype = torch.float32 if scores.device.type == "mps" else torch.float64
            cdf_BV = logp_BV.to(dtype).exp().cumsum(-1)
            u_B1 = self.uniform_BT[:, input_ids.shape[1] - self.start, None].to(cdf_BV)
            ids_B1 = torch.searchsorted(cdf_BV, u_B1 * cdf_BV[:, -1:], right=True).clamp(max=cdf_BV.shape[-1] - 1)
        self.logps.append(logp_BV.gather(-1, ids_B1).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, ids_B1, 0.0)  # type: ignore[return-value]


def eos_ids(model: Model) -> set[int]:
    """The tokens that end a completion; none where the model names none."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = model.config.get_text_config().eos_token_id if eos is None else eos
    return set() if eos is None else set(eos) if isinstance(eos, list) else {eos}


@contextmanager
def _generation_config(model: Model, config: GenerationConfig) -> Iterator[None]:
    """Only the given settings: a hub model's own (repetition penalty, top_k, …) would make sampling off-policy.

    peft generates with the model inside, and copies the outer settings onto it only for some task types.
    """
    owners = [model, base_model(model)]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = config
    try:
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


def answer(
    model: Model,
    adapter: ModalityAdapter,
    sampler: Sampler,
    examples: Sequence[Example],
    limit: int,
    contexts: Sequence[TeacherContext] | None = None,
) -> list[str]:
    """The most probable answer to each example, as text, to prompts of at most ``limit`` tokens (see `encode_view`)."""
    with gathered(model):
        inputs = encode_view(adapter, examples, contexts, limit)
        return [adapter.decode(ids) for ids in sampler.sample(model, inputs, seeds=None).ids]
