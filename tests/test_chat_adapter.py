"""What adapters share: a modality gives its rows, and everything else has a default."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from tests.families import build_family
from tests.kinds import demo_set
from tests.tiny_text import tiny_text_model
from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft import ChatAdapter, Example, SDFTTrainer, TeacherContext, UserError, answered
from text_sdft.core.adapter import with_defaults
from vlm_sdft.adapter import ImageAdapter


class Sums(ChatAdapter):
    """Rows {"a", "b"}; the teacher is shown two other sums."""

    def example(self, row: Any, number: int) -> Example:
        shown = [answered(f"{a} + 1?", str(a + 1)) for a in (3, 4)]
        query = [{"role": "user", "content": f"{row['a']} + {row['b']}?"}]
        return Example(f"row {number}", query, shown, reference=str(row["a"] + row["b"]))


def test_rows_are_all_that_a_modality_must_give():
    adapter = Sums(system_prompt="Add.").bind(*tiny_text_model())
    [query] = adapter.examples([{"a": 1, "b": 2}])
    student = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2?"}]
    assert adapter.student_messages(query) == student and adapter.rungs(query) == (0, 2, 5)

    def teacher(**context: Any) -> list[str]:
        return [turn["content"] for turn in adapter.teacher_messages(query, TeacherContext(**context))]

    assert teacher() == ["Add.", "3 + 1?", "4", "4 + 1?", "5", "1 + 2?"]
    assert teacher(max_demonstrations=1) == ["Add.", "4 + 1?", "5", "1 + 2?"] and teacher(rung=0) == ["Add.", "1 + 2?"]
    assert len(teacher(rung=5)) == 2 and "\n3\n" in teacher(rung=5)[-1]
    ids_L = adapter.encode([student]).rows[0].tokens["input_ids"]
    assert adapter.processing_class.decode(ids_L).endswith("user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n")
    assert adapter.decode(adapter.encode_answer(" 3")) == "3"
    assert adapter.score(query, "<think>4?</think> 3 ") == 1.0 and adapter.score(query, "4") == 0.0
    with pytest.raises(UserError, match="Row 1 is a str"):
        adapter.examples([{"a": 1, "b": 2}, "3"])
    with pytest.raises(UserError, match="id 'row 0'"):
        adapter.examples([query, query])


def test_an_adapter_that_offers_nothing_more_has_the_defaults():
    """(With them every experiment may ask, and none has to look whether it may.)"""
    adapter = with_defaults(ToyAdapter())
    [example] = adapter.examples(toy_rows(1))
    assert isinstance(adapter, ToyAdapter) and adapter.policy == "fixed"
    assert adapter.rungs(example) == adapter.controls(example) == ()
    assert adapter.rivals([example], [TeacherContext()]) == adapter.variants() == adapter.rivals_left_out() == {}
    assert (
        adapter.relabelled(example, TeacherContext())
        is adapter.expert_answer(example)
        is adapter.encode_answer("5")
        is None
    )
    assert adapter.example_images(example) == adapter.scoring_notes() == []


def test_bind_gives_the_adapter_that_reads(tmp_path):
    with pytest.raises(RuntimeError, match=r"Sums is bound to no model: bind\(model\) returns one"):
        Sums().encode([[{"role": "user", "content": "1 + 1?"}]])

    class Forgets(ToyAdapter):
        def bind(self, model: Any, processing_class: Any = None) -> Any:
            pass

    with pytest.raises(UserError, match=r"Forgets\.bind returns None"):
        SDFTTrainer(toy_model(), toy_args(tmp_path), adapter=Forgets(), train_dataset=toy_rows())


def test_trainers_that_share_an_adapter_read_each_with_its_own_model_and_let_go_of_it(tmp_path):
    """Nothing has to be made in an order or given back: what a model's tower computed goes with its trainer."""
    shared, rows = ImageAdapter(demo_set(), n_types=2, shots=1), demo_set().train

    def trainer(name: str, noise: float) -> SDFTTrainer:
        model, processor = build_family("qwen3_vl")
        with torch.no_grad():
            for parameter in model.model.visual.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        return SDFTTrainer(model, toy_args(tmp_path / name), adapter=shared, train_dataset=rows, processing_class=processor)

    def embedded(made: SDFTTrainer) -> torch.Tensor:
        return made.adapter.embed([row.images[0] for row in rows])  # type: ignore[attr-defined]

    first = trainer("first", 0.0)
    before = embedded(first)
    second = trainer("second", 0.5)
    assert not torch.equal(embedded(second), before) and torch.equal(embedded(first), before)
    again: Any = first.adapter
    again._embedder = None  # what was kept is not asked
    assert torch.equal(embedded(first), before)
    alive: Any = second.adapter
    gone = [weakref.ref(part) for part in (second.module, alive, alive._features)]
    del second, alive
    gc.collect()
    assert [part() for part in gone] == [None] * 3 and shared.processing_class is None
