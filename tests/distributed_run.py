"""Runs of tiny models, under however many processes started this; see test_distributed.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import LoraConfig

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import SDFTConfig, scoring
from text_sdft.experiments.run import run_training
from text_sdft.training import SDFTTrainer
from vlm_sdft.cli.parsing import read_experiment


def shard_on_cpu(args: SDFTConfig) -> None:
    """accelerate shards on GPUs only, and is told that these are some; what FSDP and DeepSpeed do is the same over gloo."""
    state: Any = args.distributed_state
    if os.environ.get("ACCELERATE_USE_FSDP"):
        state.distributed_type = DistributedType.MULTI_GPU
    elif os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        state.distributed_type, state._cpu = DistributedType.DEEPSPEED, False
        os.environ["ACCELERATE_USE_CPU"] = "false"


def main(folder: Path, case: dict[str, Any]) -> None:
    """A case's run: of a config where it names one, else of the toy model."""
    torch.set_num_threads(1)
    if "config" in case:
        experiment = read_experiment("train", [*case["config"], "--train.output_dir", str(folder)])
        shard_on_cpu(experiment.args)
        with patch.object(Accelerator, "end_training"):  # which takes the processes apart: more cases follow
            run_training(experiment)
    else:
        train_toy(folder, case)


def train_toy(folder: Path, case: dict[str, Any]) -> None:
    rows = toy_rows(8, retained=3)  # all of them in each step: processes deal the rows out in another order
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 4, **case.get("args", {})}
    args = toy_args(folder, per_device_train_batch_size=case.get("rows", 4), **settings)
    shard_on_cpu(args)
    args.gradient_accumulation_steps = 8 // (args.per_device_train_batch_size * args.world_size)
    trainer = SDFTTrainer(
        toy_model(tied=case["tied"]),
        args,
        adapter=ToyAdapter(),
        method=case.get("method", "sdft"),
        train_dataset=rows,
        eval_dataset=toy_rows(5, seed=1),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if case.get("lora") else None,
    )
    before = trainer.evaluate()["eval_accuracy"]
    with patch.object(scoring, "SMALL_BATCH", 0):  # rows of different lengths: several forwards a step
        trainer.train(resume_from_checkpoint=case.get("resume"))
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(folder / "model"))
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    if trainer.is_world_process_zero():
        result = {"losses": losses, "accuracy": [before, after], "processes": args.world_size}
        result["wrapper"] = type(trainer.model_wrapped).__name__
        (folder / "result.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    for name, case in json.loads(sys.argv[2]).items():
        main(Path(sys.argv[1]) / name, case)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # All is written. When the interpreter winds up, a thread of torch's that still waits for it now and then aborts.
    os._exit(0)
