"""Shared prefixes: read once, and everything as if every prompt had been read whole.

Shapes: N scored tokens · H hidden size.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from tests.family_rows import answer, loaded, picture, turn
from tests.toy import EOS, ToyAdapter, sliding, toy_args, toy_model, toy_rows
from text_sdft.core import EMATeacher, ModelInputs, RowInputs
from text_sdft.core.scoring import completion_hidden_states
from text_sdft.fast import continuation
from text_sdft.fast import prefix as prefix_module
from text_sdft.fast.prefix import PrefixStore, shared_prefixes
from text_sdft.training import SDFTTrainer
from vlm_sdft.images.encoding import encode_row
from vlm_sdft.images.features import ImageFeatures

GIB = 2**30


def ids(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(2, 40) for _ in range(n)]


def inputs_of(rows: list[list[int]]) -> ModelInputs:
    return ModelInputs([RowInputs({"input_ids": torch.tensor(row)}) for row in rows], 0)


def completions_of(rng: random.Random, n: int) -> list[torch.Tensor]:
    return [torch.tensor([*ids(rng, rng.randrange(0, 6)), EOS]) for _ in range(n)]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_hidden_states_are_those_of_whole_prompts(kind: str):
    """Several groups, prompts that share nothing, completions of all lengths; windows shorter than the prefix."""
    model = toy_model() if kind == "llama" else sliding(kind)
    for seed in range(3):
        check_hidden_states(model, random.Random(seed))


def check_hidden_states(model: Any, rng: random.Random) -> None:
    first, second = ids(rng, 90), ids(rng, 70)
    rows = [[*first, *ids(rng, n)] for n in (1, 7, 3)] + [[*second, *ids(rng, n)] for n in (4, 9)] + [ids(rng, 80)]
    rng.shuffle(rows)
    inputs, completions = inputs_of(rows), completions_of(rng, 6)
    store = PrefixStore(GIB)
    with torch.no_grad():
        plain_NH = completion_hidden_states(model, model, inputs, completions)
        shared_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
        saved, asked = store.take_counts()
        again_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
    torch.testing.assert_close(shared_NH, plain_NH, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again_NH, plain_NH, atol=1e-5, rtol=1e-5)
    assert asked == sum(map(len, rows)) and saved == 2 * 90 + 70
    assert store.take_counts()[0] == 3 * 90 + 2 * 70  # the second time not even once


def as_prompts(rows: list[list[int]]) -> list[bytes]:
    return [torch.tensor(row).numpy().tobytes() for row in rows]


def test_as_few_tokens_as_can_be_are_read(monkeypatch: pytest.MonkeyPatch):
    """Against all ways in which rows can go on from prefixes that two of them have in common."""
    for seed in range(200):
        check_tokens_read(monkeypatch, seed)


def check_tokens_read(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    forward = rng.choice([0, 1, 3])
    monkeypatch.setattr(prefix_module, "MIN_PREFIX", 1)
    monkeypatch.setattr(prefix_module, "FORWARD_COST", forward)
    rows = [[rng.randrange(1, 3) for _ in range(rng.randrange(2, 8))] for _ in range(rng.randrange(2, 6))]
    common = {
        tuple(a[:n]) for a, b in itertools.combinations(rows, 2) for n in range(1, min(len(a), len(b))) if a[:n] == b[:n]
    }
    kept = set(rng.sample(sorted(common), rng.randrange(len(common) + 1)))

    def saved(prefixes: list[tuple[int, ...]]) -> int:
        return sum(map(len, prefixes)) - sum(len(p) + forward for p in {*prefixes} - kept if p)

    choices = [[(), *(p for p in common if len(p) < len(row) and tuple(row[: len(p)]) == p)] for row in rows]
    best = max(saved(list(chosen)) for chosen in itertools.product(*choices))
    found: dict[int, tuple[int, ...]] = {}
    for prefix, members in shared_prefixes(as_prompts(rows), set(as_prompts([list(p) for p in kept]))):
        tokens = tuple(torch.frombuffer(bytearray(prefix), dtype=torch.int64).tolist()) if prefix else ()
        found |= dict.fromkeys(members, tokens)
    assert saved([found[i] for i in range(len(rows))]) == best, seed


def test_a_short_kept_prefix_hides_no_longer_one():
    """A system message is kept first; rows that go on with common demonstrations still come to share those."""
    model, rng = toy_model(), random.Random(0)
    system, demonstrations = ids(rng, 30), ids(rng, 200)
    store = PrefixStore(GIB)
    unlike = [[*system, *ids(rng, 50)] for _ in range(8)]
    alike = [[*system, *demonstrations, *ids(rng, 5)] for _ in range(4)]
    with torch.no_grad():
        for rows in (unlike, alike, alike):
            inputs, completions = inputs_of(rows), completions_of(rng, len(rows))
            states_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
            plain_NH = completion_hidden_states(model, model, inputs, completions)
            torch.testing.assert_close(states_NH, plain_NH, atol=1e-5, rtol=1e-5)
            saved, _ = store.take_counts()
    assert saved == 4 * 230


def shared_conversations() -> list[Any]:
    demonstrations = [
        turn(picture(0, 20, 30), "What is this one?"), answer("dax"), turn(picture(1, 33, 16), "And this?"), answer("wug")
    ]  # fmt: skip
    queries = [turn(picture(5, 18, 27), "What is this?"), turn("Tell me now!"), turn(picture(6, 40, 27), "Name it.")]
    other = [turn(picture(0, 20, 30), "What is this one?"), answer("dax"), turn(picture(9, 33, 16), "And this?")]
    return [*([*demonstrations, query] for query in queries), [*other, answer("zup"), turn("And?")]]


def test_images_of_every_family(family_name: str):
    """Demonstration images in the prefix, a query's image behind it; with other images only what is equal is shared."""
    model, processor, family = loaded(family_name)
    features = ImageFeatures(model, processor, family) if family.reuses_features else None
    rows = [encode_row(processor, row, family, features) for row in shared_conversations()]
    pad = processor.tokenizer.pad_token_id
    inputs = ModelInputs(rows, pad, family.media_by_row, family.placeholder_ids, features)
    texts = ("yes", "a wug it is", "zup it", "on")
    completions = [torch.tensor(processor.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    store = PrefixStore(GIB)
    with torch.no_grad():
        plain_NH = completion_hidden_states(model, model, inputs, completions)
        shared_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
    torch.testing.assert_close(shared_NH, plain_NH, atol=1e-4, rtol=1e-4)
    saved, asked = store.take_counts()
    if features is None:
        assert saved == 0
    else:
        assert saved > 0.3 * asked and all(store._trusted.values())


def test_a_moved_teacher_is_read_again():
    model, rng = toy_model(), random.Random(0)
    teacher = EMATeacher(model, rate=0.5)
    prefix = ids(rng, 80)
    inputs, completions = inputs_of([[*prefix, 3], [*prefix, 4]]), completions_of(rng, 2)
    store = PrefixStore(GIB)
    for _ in range(3):
        with torch.no_grad(), teacher.applied():
            shared_NH = store.completion_hidden_states(model, inputs, completions, "teacher", teacher.version)
            plain_NH = completion_hidden_states(model, model, inputs, completions)
        torch.testing.assert_close(shared_NH, plain_NH, atol=1e-5, rtol=1e-5)
        assert store.take_counts()[0] == 80  # one of two rows: nothing of an older version was used
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        teacher.update()
    assert len(store._stored) == 1


def test_memory_is_bounded_and_zero_shares_nothing():
    model, rng = toy_model(), random.Random(0)
    one = 2 * 2 * 80 * 2 * 8 * 4  # keys and values, layers, tokens, heads, width, bytes
    store, off = PrefixStore(2 * one), PrefixStore(0)
    for _ in range(5):
        prefix = ids(rng, 80)
        inputs, completions = inputs_of([[*prefix, 3], [*prefix, 4]]), completions_of(rng, 2)
        with torch.no_grad():
            a_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
            b_NH = off.completion_hidden_states(model, inputs, completions, "teacher", 0)
        torch.testing.assert_close(a_NH, b_NH, atol=1e-5, rtol=1e-5)
        assert store._bytes <= 2 * one and len(store._stored) <= 2
    assert off.take_counts()[0] == 0


def test_a_model_that_cannot_continue_is_read_whole(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A cache that does not give back what went in is noticed at its first use, and never used again."""
    model, rng = toy_model(), random.Random(0)
    own = continuation._positions
    monkeypatch.setattr(continuation, "_positions", lambda module, whole: own(module, whole) + 7)
    prefix = ids(rng, 80)
    inputs, completions = inputs_of([[*prefix, 3], [*prefix, 4]]), completions_of(rng, 2)
    store = PrefixStore(GIB)
    with torch.no_grad():
        plain_NH = completion_hidden_states(model, model, inputs, completions)
        shared_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
    assert torch.equal(shared_NH, plain_NH) and store.take_counts()[0] == 0


def test_a_checkpoint_holds_no_prefix_of_weights_that_have_moved_since():
    """The teacher moves before a checkpoint is written: the run itself drops such prefixes, and so must a resumed one."""
    model, rng = toy_model(), random.Random(0)
    prefix, store = ids(rng, 80), PrefixStore(GIB)
    inputs, completions = inputs_of([[*prefix, 3], [*prefix, 4]]), completions_of(rng, 2)
    with torch.no_grad():
        store.completion_hidden_states(model, inputs, completions, "teacher", 0)
        store.completion_hidden_states(model, inputs, completions, "start", 0)
    assert {name.partition(".")[0] for name in store.state_dict({"teacher": 0, "start": 0})} == {"teacher", "start"}
    assert {name.partition(".")[0] for name in store.state_dict({"teacher": 1, "start": 0})} == {"start"}


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_training_is_the_same_with_and_without(tmp_path, kind: str):
    """Same losses and weights after several steps, retention prompts and several completions a query included."""
    context = [ids(random.Random(0), 80)]
    rows = [row if row.get("retain") else {**row, "context": context} for row in toy_rows(count=8, retained=3)]
    results = []
    for gib in (0.0, 1.0):
        config = toy_args(
            tmp_path / f"{gib}", max_steps=4, num_generations=2, teacher_model_kind=kind, teacher_prefix_gib=gib,
            logging_steps=1,
        )  # fmt: skip
        trainer = SDFTTrainer(toy_model(), config, adapter=ToyAdapter(), train_dataset=rows)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        results.append((trainer.module.state_dict(), logs))
    (plain, plain_logs), (shared_weights, shared_logs) = results
    for name in plain:
        torch.testing.assert_close(shared_weights[name], plain[name], atol=2e-5, rtol=1e-4)
    for a, b in itertools.zip_longest(plain_logs, shared_logs):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert a["teacher/reused_tokens"] == 0
    assert shared_logs[-1]["teacher/reused_tokens"] > 0.5


@pytest.mark.parametrize("half", [True, False])
def test_rounding_is_measured_by_the_precision_of_the_forward(monkeypatch: pytest.MonkeyPatch, half: bool):
    """A difference of 1 % is rounding under bf16 autocast, whose states are fp32 all the same, and an error without it."""
    model, rng = toy_model(), random.Random(0)
    own = prefix_module.continued_hidden_states
    monkeypatch.setattr(prefix_module, "continued_hidden_states", lambda *args: [1.01 * states for states in own(*args)])
    prefix = ids(rng, 80)
    inputs, completions = inputs_of([[*prefix, 3], [*prefix, 4]]), completions_of(rng, 2)
    store = PrefixStore(GIB)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        states_NH = store.completion_hidden_states(model, inputs, completions, "teacher", 0)
    assert states_NH.dtype == torch.float32 and store.take_counts()[0] == (80 if half else 0)


def test_prefixes_are_shared_while_training_in_bf16(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """accelerate wraps the forward alone; the store must see all the same that states are computed in half precision."""
    monkeypatch.setitem(prefix_module.TOLERANCE, torch.float32, 0.0)  # so small a model rounds little
    rows = [{**row, "context": [ids(random.Random(0), 80)]} for row in toy_rows(count=4, retained=0)]
    config = toy_args(tmp_path, bf16=True, teacher_model_kind="base", max_steps=3)
    trainer = SDFTTrainer(toy_model(), config, adapter=ToyAdapter(), train_dataset=rows)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["teacher/reused_tokens"] > 0.5
