"""The parts of the build that tests can reach in seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from card import card
from checkpoints import load_state, one_cycle, save_state
from episodes import FULL, LAYOUTS, Source, Writer, episodes, single_questions
from pictures import draw_small, transform
from processor import new_tokenizer
from skills import Score
from torch import nn
from tower import attribute_targets, contrastive_loss

from vlm_sdft.zoo.objects import base_types, sample_types
from vlm_sdft.zoo.vocabulary import DESCRIBE_AND_NAME_QUESTION, NAME_QUESTION, base_names


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(new_tokenizer())


@pytest.fixture
def source() -> Source:
    return Source([kind.description for kind in sample_types("making", 12)], None, pictures=3)


@pytest.mark.parametrize("stage", range(len(LAYOUTS)))
def test_names_are_predicted_from_their_second_turn_on(writer: Writer, source: Source, stage: int) -> None:
    batch = episodes(writer, source, np.random.default_rng(1), rows=6, turns=8, ways=(2, 4), stage=stage)
    assert len(batch.images) == 6 * 8
    for ids, weights, decisive in zip(batch.ids, batch.weights, batch.decisive, strict=True):
        for position in decisive.nonzero().flatten().tolist():
            name = ids[position : position + 2].tolist()
            assert (weights[position : position + 2] == 1).all()
            earlier = ids[:position].tolist()
            assert any(earlier[i : i + 2] == name for i in range(position - 1))
        names = sum(1 for i in range(len(ids)) if weights[i] > 0)
        assert names == int(decisive.sum()) * (2 if stage == 0 else 3)


def test_layouts_grow_to_the_full_turn(writer: Writer) -> None:
    lengths = [len(writer.turn(stage, NAME_QUESTION, "", "dax ru", True)[0]) for stage in range(len(LAYOUTS))]
    assert lengths == sorted(lengths) and len(LAYOUTS) - 1 == FULL


def test_descriptions_weigh_less_than_names(writer: Writer, source: Source) -> None:
    batch = episodes(writer, source, np.random.default_rng(1), 4, 8, (2, 3), describe=True)
    called = writer.encode("called")[0]
    assert batch.weights.unique().tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert (batch.weights[batch.ids == called] == batch.weights[batch.weights < 1].max()).all()


def test_single_questions_need_names(writer: Writer, source: Source) -> None:
    with pytest.raises(ValueError, match="no names"):
        single_questions(writer, source, np.random.default_rng(0), 2, NAME_QUESTION)
    base = Source([kind.description for kind in base_types()], base_names(), pictures=3)
    batch = single_questions(writer, base, np.random.default_rng(0), 4, DESCRIBE_AND_NAME_QUESTION)
    assert batch.decisive.sum() == 4 and (batch.weights[:, 0] == 0).all()


def test_checkpoint_goes_on_where_it_stood(tmp_path: Path) -> None:
    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    straight, optimizer = fresh()
    steps(straight, optimizer, 5)
    module, optimizer = fresh()
    assert load_state(tmp_path / "state.safetensors", module, optimizer) is None
    steps(module, optimizer, 3)
    save_state(tmp_path / "state.safetensors", module, optimizer, {"step": 3})
    resumed, optimizer = fresh()
    assert load_state(tmp_path / "state.safetensors", resumed, optimizer) == {"step": 3}
    steps(resumed, optimizer, 2)
    assert torch.equal(straight.weight, resumed.weight)


def test_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 100, warmup=10) for step in range(100)]
    assert max(rates) == rates[9] == 1 and rates[0] == 0.1 and 0 < rates[-1] < 0.02


def test_contrastive_loss_prefers_types_apart() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert contrastive_loss(apart, labels) < contrastive_loss(apart[[0, 2, 1, 3]], labels)


def test_attributes_are_indices() -> None:
    targets = attribute_targets(sample_types("making", 50))
    assert targets.shape == (50, 4) and (targets.amax(0) < torch.tensor([8, 6, 7, 4])).all()


def test_pictures_are_kept_and_turned(tmp_path: Path) -> None:
    kinds = sample_types("making", 2)
    drawn = draw_small(kinds, 2, seed=1, cache=tmp_path / "p.safetensors")
    assert drawn.shape == (2, 2, 3, 32, 32) and drawn.dtype == torch.uint8
    assert torch.equal(drawn, draw_small(kinds, 2, seed=9, cache=tmp_path / "p.safetensors"))
    ways = {transform(drawn, way).numpy().tobytes() for way in range(8)}
    assert len(ways) == 8 and torch.equal(transform(drawn, 0), drawn)


def test_card_shows_scores_with_intervals() -> None:
    text = card({"5-way 2-shot": Score(98, 100)}, 4_000_000, 0, "1 step")
    assert "| 5-way 2-shot | 98.0 % (93.0 to 99.4, n = 100) |" in text and "4.00 million" in text
