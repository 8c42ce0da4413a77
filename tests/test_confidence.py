"""A completion counts as far as its teacher is sure of it: the numbers, and that `none` changes nothing.

Shapes: N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from tests.expert_toy import gradients, log_probabilities, prompt_of, rows, step_of, trainer_of
from tests.toy import toy_model
from text_sdft.core import DivergenceSettings, Head, SDFTConfig, TeacherContext
from text_sdft.core.confidence import agreement, certainty
from text_sdft.core.sampling import draw_seed

N, H, V = 11, 6, 30


def readings() -> tuple[torch.Tensor, torch.Tensor, Head]:
    g = torch.Generator().manual_seed(0)
    first_NH, second_NH, weight_VH = (torch.randn(n, H, generator=g, dtype=torch.float64) for n in (N, N, V))
    return first_NH, second_NH, Head(weight_VH, temperature=0.7)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_certainty_and_agreement_are_scipys(chunk):
    first_NH, second_NH, head = readings()
    p, q = (head.logits(states).softmax(-1).numpy() for states in (first_NH, second_NH))
    settings = DivergenceSettings(alpha=0.0, topk=3, importance_clip=2.0, chunk_size=chunk)  # of the loss: not theirs
    found = certainty(first_NH, head, settings), agreement(first_NH, second_NH, head, settings)
    torch.testing.assert_close(found[0], torch.from_numpy(entropy(p, axis=-1)).neg().exp())
    torch.testing.assert_close(found[1], torch.from_numpy(1 - jensenshannon(p, q, axis=-1, base=2) ** 2))


def test_certain_teachers_weigh_one_and_two_alike_tokens_a_half():
    head = Head(torch.eye(4, dtype=torch.float64))
    one, two, other = (torch.tensor([row], dtype=torch.float64) for row in ([90, 0, 0, 0], [90, 90, 0, 0], [0, 0, 0, 90]))
    values = [float(certainty(states, head, DivergenceSettings())) for states in (one, two)]
    assert values == pytest.approx([1, 0.5])
    assert float(agreement(one, one, head, DivergenceSettings())) == pytest.approx(1)
    assert float(agreement(one, other, head, DivergenceSettings())) == pytest.approx(0)


@pytest.mark.parametrize("how", ["entropy", "agreement"])
def test_the_steps_loss_weighs_each_query_by_its_least_sure_token(tmp_path, how):
    data = rows(4, retained=3)
    data[0]["context"] = [[5, 6, 7], [9, 9, 30], [17, 3, 2]]
    settings: dict[str, Any] = {"retain_weight": 0.5, "num_loss_tokens_to_skip": 1, "max_completion_length": 6}
    trainer = trainer_of("sdft", tmp_path, data, confidence=how, **settings)
    start = toy_model(dtype=torch.float64)
    with torch.no_grad():  # the student has left the start, its teacher
        for p in trainer.module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    trainer.teacher = trainer.start_teacher
    loss, rollout, examples = step_of(trainer)
    expected, used = torch.zeros((), dtype=torch.float64), []
    for example, ids in zip(examples, rollout.ids, strict=True):
        p = log_probabilities(trainer.module, prompt_of(example, trainer), ids.tolist())
        if example.retain:
            q, weight = log_probabilities(start, prompt_of(example, trainer), ids.tolist()), 0.5
        else:
            seed = draw_seed(trainer.args.seed, 0, example.id, 0)
            contexts = [TeacherContext(seed), TeacherContext(draw_seed(seed, "again"))]
            q, r = (log_probabilities(start, prompt_of(example, trainer, c), ids.tolist()) for c in contexts)
            if how == "entropy":
                sure = [math.exp(-h) for h in entropy(q.exp().detach().numpy(), axis=-1)]
            else:
                distances = jensenshannon(q.exp().detach().numpy(), r.exp().detach().numpy(), axis=-1, base=2)
                sure = [1 - d**2 for d in distances.tolist()]
            weight = min([*sure[1:], 1.0])
            used.append(weight)
        q = q.detach()
        kl = (q.exp() * (q - p)).sum(-1)[1:]
        expected = expected + weight * (kl.mean() if len(kl) else 0.0) / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    ours = gradients(trainer.module)
    expected.backward()
    for name, gradient in gradients(trainer.module).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-8)
    assert min(used) < 0.9
    assert trainer.metrics.take(trainer.accelerator, trainer.args.device)["teacher/confidence"] == pytest.approx(
        sum(used) / 4, abs=1e-5
    )


def test_none_changes_nothing(tmp_path):
    """Not a bit, against what weights of 1 give: one demonstration has one order, so both readings agree."""
    data = rows(4, retained=3)
    for row in data:
        row["context"] = row.get("context", [])[:1]
    none, agreed = (trainer_of("sdft", tmp_path, data, confidence=how) for how in ("none", "agreement"))
    assert torch.equal(step_of(none)[0], step_of(agreed)[0])
    logs = [trainer.metrics.take(trainer.accelerator, trainer.args.device) for trainer in (none, agreed)]
    assert "teacher/confidence" not in logs[0] and logs[1]["teacher/confidence"] == 1.0
    assert SDFTConfig().confidence == "none"


def test_a_mistyped_confidence_is_named():
    with pytest.raises(ValueError, match="confidence 'margin': use none, entropy, agreement"):
        SDFTConfig(confidence="margin")
