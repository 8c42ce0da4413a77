"""A trainer's model put where FSDP or DeepSpeed wants it, before anything is measured with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, StateDictType, register_fsdp_forward_method
from transformers import Trainer

from text_sdft.core.data import Model
from text_sdft.core.errors import UserError


def shard(trainer: Trainer, frozen: list[str]) -> None:
    """Put the trainer's model into shards (in place), with its optimizer: what is measured before training needs it.

    Args:
        frozen: modules that stay whole on every process: they are not trained, and an image may be encoded at any time.

    Raises:
        UserError: a setting of FSDP cannot work here.
    """
    accelerator, model = trainer.accelerator, cast(Model, trainer.model)
    plugin = accelerator.state.fsdp_plugin
    loaded = f"set fsdp_cpu_ram_efficient_loading to false: every process loads {', '.join(frozen)}, which stays whole"
    for bad, complaint in (
        (plugin.fsdp_version != 2, "set fsdp_version to 2: FSDP 1 keeps several weights in one flat tensor"),
        (plugin.activation_checkpointing, "set train.activation_checkpointing, and not fsdp_activation_checkpointing"),
        (frozen and plugin.cpu_ram_efficient_loading, loaded),
    ):
        if bad:
            raise UserError(f"FSDP: {complaint}. configs/accelerate/fsdp2.yaml has what works.")
    plugin.ignored_modules = [part.to(accelerator.device) for name, part in model.named_modules() if name in frozen]
    model, trainer.optimizer = accelerator.prepare(model, trainer.create_optimizer())
    trainer.model = trainer.model_wrapped = model
    register_fsdp_forward_method(model, "generate")
    # What is returned is a view of the hidden states; nobody changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # The first module that runs would become the root; here that may be a layer of the vision tower.
    cast(FSDPModule, model)._get_fsdp_state()._lazy_init()


def place_for_zero(trainer: Trainer) -> None:
    """Put the trainer's model on its device, which DeepSpeed would do when training begins.

    ZeRO-1 and ZeRO-2 leave every process its whole weights; raises `UserError` of ZeRO-3.
    """
    if trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        raise UserError(
            "DeepSpeed: ZeRO-3 replaces the weights that the teacher's copies stand for. Use FSDP, which shards as much "
            "(accelerate launch --config_file configs/accelerate/fsdp2.yaml …), or zero_stage: 2."
        )
    cast(nn.Module, trainer.model).to(trainer.args.device)


@contextmanager
def whole_state_dict(accelerator: Accelerator) -> Iterator[None]:
    """Within this context a model's state dict has whole tensors, whatever FSDP is told for checkpoints."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    before = plugin.state_dict_type
    plugin.state_dict_type = StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = before
