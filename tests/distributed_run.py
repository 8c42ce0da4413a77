"""Two optimiser steps of the toy model, under however many processes started this; see test_distributed.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import scoring
from text_sdft.experiments.method_trainer import MethodTrainer


def main(folder: Path, tied: bool, method: str) -> None:
    torch.set_num_threads(1)
    rows = toy_rows(8, retained=3)  # all of them in each step: processes deal the rows out in another order
    args = toy_args(folder, per_device_train_batch_size=4, max_steps=2, optim="sgd", max_grad_norm=0.0)
    args.gradient_accumulation_steps = 8 // (4 * args.world_size)
    trainer = MethodTrainer(
        toy_model(tied=tied),
        args,
        adapter=ToyAdapter(),
        method=method,
        train_dataset=rows,
        eval_dataset=toy_rows(5, seed=1),
    )
    with patch.object(scoring, "SMALL", 0):  # rows of different lengths: several forwards a step
        trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    if trainer.is_world_process_zero():
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        weights = {n: p.detach().double().sum().item() for n, p in trainer.model.named_parameters()}
        result = {"losses": losses, "weights": weights, "accuracy": accuracy, "processes": args.world_size}
        (folder / "result.json").write_text(json.dumps(result))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "tied", sys.argv[3])
