"""A toy adapter with experts' answers, and one step of any method on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import Example, ModelInputs
from text_sdft.core.sampling import Rollout
from text_sdft.training import SDFTTrainer


class ExpertToy(ToyAdapter):
    """Rows may have the expert's answer: "answer": ids."""

    def examples(self, rows: Any) -> list[Example]:
        rows = list(rows)
        if all(isinstance(row, Example) for row in rows):
            return rows
        made = super().examples(rows)
        return [Example(**{**vars(e), "meta": {"answer": row.get("answer")}}) for e, row in zip(made, rows, strict=True)]

    def expert_answer(self, example: Example) -> str | None:
        ids = example.meta["answer"]
        return None if ids is None else " ".join(map(str, ids))

    def encode_answer(self, answer: str) -> Tensor:
        return torch.tensor([int(part) for part in answer.split()])

    def encode(self, conversations: Any) -> ModelInputs:
        """Assistant turns are words; none is ended here, so the model's own end token is taken."""

        def ids(message: Any) -> Any:
            content = message["content"]
            return {**message, "content": self.encode_answer(content).tolist()} if isinstance(content, str) else message

        return super().encode([[ids(message) for message in conversation] for conversation in conversations])


def rows(labelled: int = 4, unlabelled: int = 0, retained: int = 0, old: bool = False) -> list[dict[str, Any]]:
    """Toy rows; the reference ("5") is not what the expert answered."""
    made = toy_rows(labelled + unlabelled, retained)
    for i, row in enumerate(made):
        if i < labelled or (old and row.get("retain")):
            row["answer"] = [7 + i, 9, 11 + i][: 2 + i % 2]
    return made


def trainer_of(method: str, tmp_path: Any, data: Any, model: Any = None, **settings: Any) -> SDFTTrainer:
    settings.setdefault("distillation_is_clip", None)
    model = model if model is not None else toy_model(dtype=torch.float64)
    return SDFTTrainer(model, toy_args(tmp_path, **settings), adapter=ExpertToy(), method=method, train_dataset=data)


def step_of(trainer: SDFTTrainer, examples: list[Example] | None = None) -> tuple[Tensor, Rollout, list[Example]]:
    """One step's loss, with the completions it learns from, and their examples."""
    queries = examples or trainer.queries
    loss, rollout = trainer.compute_loss(trainer.model, {"examples": queries}, return_outputs=True)
    return loss, rollout, [row for group in trainer.method.groups(trainer.step(queries)) for row in group.examples]


def log_probabilities(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """[T, V] at the completion's tokens, by one plain forward pass."""
    logits = model(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def prompt_of(example: Example, trainer: SDFTTrainer, context: Any = None) -> list[int]:
    view = (
        trainer.adapter.student_messages(example) if context is None else trainer.adapter.teacher_messages(example, context)
    )
    return [token for message in view for token in message["content"]]


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
