"""Hidden states of given completions under one view: what both student and teacher are compared on.

The same completion ids are appended to each view's prompt and run once. Only positions that predict a completion token
are returned, and the output layer is not applied: `divergence` does that in chunks.

Shapes: B rows · P prompt · T longest completion · N = Σ T_b scored tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from text_sdft.core.data import Model
from text_sdft.core.divergence import Head
from text_sdft.core.errors import UserError
from text_sdft.core.inputs import ModelInputs
from text_sdft.core.sharding import is_sharded

#: A batch of so many tokens is never split by length: more forwards would cost more than padding.
SMALL_BATCH = 2048
#: Share of a larger batch that must be tokens.
LEAST_FILLED = 0.9
#: Hidden states are multiplied by it where logits are checked, so that caps show in half precision too.
CHECK_FACTOR = 100.0


def completion_hidden_states(model: nn.Module, module: Model, inputs: ModelInputs, completions: Sequence[Tensor]) -> Tensor:
    """Hidden states [N, H] at the positions that predict the completions' tokens, row after row.

    Args:
        model: what to call: the module, or its wrapper (DDP must see the student's forward to reduce its gradients).
        module: the transformers (or peft) module inside.
        inputs: prompts of this view.
        completions: B id tensors [T_b], the same in every view.
    """
    lengths = [prompt + len(c) - 1 for prompt, c in zip(inputs.lengths, completions, strict=True)]
    states: dict[int, Tensor] = {}  # [T_b, H] of each row
    # In shards all processes have to run equally many forwards.
    batches = [list(range(len(lengths)))] if is_sharded(module) else by_length(lengths)
    for i, rows in enumerate(batches):
        # A wrapper exchanges buffers in each forward, and its hooks fire once in the backward: one call, the last, will do.
        called = model if i == len(batches) - 1 else module
        fed = [completions[row][:-1] for row in rows]  # the last token predicts nothing that is scored
        batch = inputs.select(rows).batch(fed, device=module.device, padding_side="right")
        with without_head(module):
            hidden_BLH = called(**batch, use_cache=False).logits
        states |= {row: hidden_BLH[b, len(inputs.rows[row]) - 1 : lengths[row]] for b, row in enumerate(rows)}
    return torch.cat([states[i] for i in range(len(inputs))])


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows, by their tokens, in batches of similar length: at most a tenth is padding, unless all of a batch is small."""
    batches: list[list[int]] = []
    longest = total = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = (len(batches[-1]) + 1) * longest if batches else 0
        if batches and (padded <= SMALL_BATCH or LEAST_FILLED * padded <= total + lengths[i]):
            batches[-1].append(i)
            total += lengths[i]
        else:
            batches.append([i])
            longest = total = lengths[i]
    return batches


def base_model(model: Model) -> Any:
    """The transformers model inside a peft one; any other is its own."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_of(module: Model, temperature: float) -> Head:
    """The output layer as it is now (the teacher's inside ``applied()``). Raises `UserError` if it is not linear."""
    layer = module.get_output_embeddings()
    if isinstance(layer, FSDPModule):  # a plain one, as it was before it was sharded
        layer.unshard()
    elif type(layer) is not nn.Linear:  # quantised and LoRA layers derive from it
        raise UserError(
            f"The output layer is a {type(layer).__name__}; the divergence needs a plain linear one. Leave the output "
            "layer (lm_head) out of LoRA's target_modules and modules_to_save, and do not quantise it."
        )
    softcap = getattr(module.config.get_text_config(), "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, softcap, temperature)


@torch.no_grad()
def check_logits(module: Model, inputs: ModelInputs) -> None:
    """Compare the logits of an evaluating model for one prompt with what `Head` makes of its hidden states.

    Raises `UserError` where it caps, masks or cuts its logits behind the output layer in a way that `Head` does not know.
    """
    batch = {**inputs.batch(device=module.device), "use_cache": False, "logits_to_keep": 1}
    layer, known = module.get_output_embeddings(), getattr(module.get_input_embeddings(), "num_embeddings", None)
    if known is not None and (largest := int(batch["input_ids"].max())) >= known:
        raise UserError(
            f"The tokenizer gives the id {largest}, and the model knows {known}: give the model's own tokenizer."
        )
    with layer.register_forward_pre_hook(lambda _, args: (CHECK_FACTOR * args[0],)):
        theirs_BV = module(**batch).logits[:, -1].float()
        if bool(theirs_BV.isnan().any()):
            raise UserError("The model's logits are no numbers: its weights are damaged, or too large for its dtype.")
        try:
            with without_head(module):
                hidden_BH = module(**batch).logits[:, -1]
            ours_BV = head_of(module, 1.0).logits(hidden_BH).float()
            agree = bool((ours_BV - theirs_BV).abs().max() < 0.1 * theirs_BV.abs().max())
        except (IndexError, RuntimeError, TypeError):  # what stands behind the layer needs a vocabulary, or a cap
            agree = False
    if not agree:
        raise UserError(
            f"{type(base_model(module)).__name__} changes its logits behind the output layer in a way that the divergence "
            "does not know (it knows a factor, and a config's final_logit_softcapping), so that other distributions would "
            "be compared than are sampled from. Choose another model."
        )


def frozen_head(module: Model, temperature: float) -> Head:
    """The output layer as it is now, without gradient, unaffected when a teacher's weights are swapped out again."""
    head = head_of(module, temperature)

    def kept(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if isinstance(module, FSDPModule) else tensor.detach()  # what was gathered is freed

    return replace(head, weight_VH=kept(head.weight_VH), bias_V=None if head.bias_V is None else kept(head.bias_V))


@contextmanager
def without_head(module: Model) -> Iterator[None]:
    """Within this context the module's ``logits`` are its last hidden states.

    The module's own forward runs (wrappers, hooks and scalings included), only its output layer passes its input on;
    soft-capping belongs to the logits and is applied by `Head`.
    """
    layer = module.get_output_embeddings()
    config = module.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    before = layer.__dict__.get("forward")  # set on the instance by accelerate's hooks, say
    layer.forward = lambda hidden: hidden
    if softcap is not None:
        config.final_logit_softcapping = None
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before
        if softcap is not None:
            config.final_logit_softcapping = softcap
