"""The trainer used as one uses transformers' own: what is given wrongly is refused at once, by its name."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict
from transformers import TrainingArguments

from tests.tiny_text import tiny_text_model
from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft import TextAdapter
from text_sdft.core import SDFTTrainer, UserError


def make(tmp_path, *, model=None, rows=None, adapter=None, **given):
    """A trainer of the toy; names of the trainer's own arguments are those, all others are settings."""
    own = {name: given.pop(name) for name in ("peft_config", "callbacks", "eval_dataset") if name in given}
    return SDFTTrainer(
        toy_model() if model is None else model,
        toy_args(tmp_path / "run", **given),
        adapter=adapter or ToyAdapter(),
        train_dataset=toy_rows() if rows is None else rows,
        **own,
    )


def test_a_model_may_be_given_as_a_path(tmp_path):
    toy_model().save_pretrained(tmp_path / "model")
    make(tmp_path, model=tmp_path / "model").train()


def test_settings_of_another_trainer_are_refused(tmp_path):
    with pytest.raises(UserError, match="args is a TrainingArguments: give an SDFTConfig"):
        SDFTTrainer(toy_model(), TrainingArguments(str(tmp_path)), adapter=ToyAdapter(), train_dataset=toy_rows())


@pytest.mark.parametrize(("adapter", "remedy"), [(TextAdapter, r"TextAdapter\("), ("text", r"adapter_class\('text'\)")])
def test_an_adapter_is_an_object(tmp_path, adapter, remedy):
    with pytest.raises(UserError, match=remedy):
        make(tmp_path, adapter=adapter)


@pytest.mark.parametrize("name", ["score", "decode", "demonstrations", "teacher_messages"])
def test_an_adapter_without_a_method_is_refused_before_training(tmp_path, monkeypatch, name):
    """(`score` and `decode` would be asked for at the first log, `demonstrations` where a prompt is too long.)"""
    monkeypatch.delattr(ToyAdapter, name)
    with pytest.raises(UserError, match=f"ToyAdapter lacks {name}"):
        make(tmp_path)


@pytest.mark.parametrize("where", ["train", "eval", "predict"])
def test_splits_and_files_are_not_rows(tmp_path, where):
    rows = [{"prompt": "Hello?", "privileged_context": "Be kind."}]
    splits = DatasetDict(new=Dataset.from_list(rows))
    for given, complaint in ((splits, "a DatasetDict of new"), ("a.jsonl", "the string 'a.jsonl'")):
        with pytest.raises(UserError, match=f"Rows are given as {complaint}: give"):
            model, tokenizer = tiny_text_model()
            trainer = SDFTTrainer(
                model,
                toy_args(tmp_path),
                adapter=TextAdapter(),
                processing_class=tokenizer,
                train_dataset=given if where == "train" else rows,
                eval_dataset={"new": given} if where == "eval" else None,
            )
            trainer.predict(given)


def test_several_sets_to_measure_may_be_splits(tmp_path):
    splits = DatasetDict(new=Dataset.from_list(toy_rows(3)), old=Dataset.from_list(toy_rows(2)))
    assert {"eval_new_accuracy", "eval_old_accuracy"} <= set(make(tmp_path, eval_dataset=splits).evaluate())
