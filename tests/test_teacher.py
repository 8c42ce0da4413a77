"""A teacher equals its closed form from the first step on, in fp32, and leaves the student as it found it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.toy import toy_model
from text_sdft.core import EMATeacher, FrozenTeacher, LiveTeacher
from text_sdft.core.teachers import make_teacher


def lora_model(dtype):
    model = get_peft_model(toy_model(dtype=dtype), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():  # an adapter that has been trained before: the teacher is a copy of it, not of zero
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model


MODELS = {
    "full-fp32": lambda: toy_model(),
    "full-bf16": lambda: toy_model(dtype=torch.bfloat16),
    "lora-fp32": lambda: lora_model(torch.float32),
    "lora-bf16": lambda: lora_model(torch.bfloat16),
}


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def walk(model, steps, seed=0):
    """Random steps of the student; the fp64 values after each, the start first."""
    g = torch.Generator().manual_seed(seed)
    history = [{n: p.detach().double().clone() for n, p in trainable(model).items()}]
    for _ in range(steps):
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p.dtype))
        history.append({n: p.detach().double().clone() for n, p in trainable(model).items()})
        yield history


@pytest.mark.parametrize("name", MODELS)
def test_ema_equals_its_closed_form_from_the_first_step_on(name):
    for rate in (0.01, 0.3):
        check_closed_form(name, rate)


def check_closed_form(name, rate):
    torch.manual_seed(0)
    model = MODELS[name]()
    teacher = EMATeacher(model, rate)
    for n, history in enumerate(walk(model, 20), start=1):
        teacher.update()
        if n in (1, 5, 20):
            for key, value in teacher.state_dict().items():
                if key == "steps":
                    continue
                expected = (1 - rate) ** n * history[0][key]
                for i in range(1, n + 1):
                    expected = expected + rate * (1 - rate) ** (n - i) * history[i][key]
                assert value.dtype == torch.float32
                torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_is_the_start_and_the_student_comes_back(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    ids = torch.arange(2, 12)[None]
    start = model(ids).logits.detach()
    teacher = FrozenTeacher(model)
    history = list(walk(model, 3))[-1]
    moved = model(ids).logits.detach()
    with teacher.applied():
        assert torch.equal(model(ids).logits, start)
    assert torch.equal(model(ids).logits, moved)
    assert all(torch.equal(p.double(), history[-1][n]) for n, p in trainable(model).items())


def test_live_is_the_student():
    model = toy_model()
    teacher = LiveTeacher(model)
    list(walk(model, 1))
    expected = model(torch.arange(5)[None]).logits
    with teacher.applied():
        assert torch.equal(model(torch.arange(5)[None]).logits, expected)
    assert teacher.state_dict() == {}


def test_the_student_comes_back_after_an_error():
    model = toy_model()
    teacher = FrozenTeacher(model)
    list(walk(model, 1))
    before = {n: p.clone() for n, p in trainable(model).items()}
    with pytest.raises(RuntimeError, match="inside"), teacher.applied():
        raise RuntimeError("inside")
    assert all(torch.equal(p, before[n]) for n, p in trainable(model).items())


def test_only_trainable_tensors_are_copied():
    model = lora_model(torch.float32)
    assert set(FrozenTeacher(model).state_dict()) == set(trainable(model))
    assert len(trainable(model)) < len(list(model.parameters())) / 1.5


def test_version_changes_exactly_when_the_weights_do():
    model = toy_model()
    versions = {kind: [] for kind in ("base", "ema", "live")}
    for kind, seen in versions.items():
        teacher = make_teacher(kind, model, 0.1, 2)
        for _ in range(4):
            seen.append(teacher.version)
            teacher.update()
    assert versions == {"base": [0, 0, 0, 0], "ema": [0, 0, 1, 1], "live": [0, 1, 2, 3]}


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="other tensors"):
        FrozenTeacher(toy_model()).load_state_dict({"x": torch.zeros(1)})
