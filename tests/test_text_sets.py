"""Sets of text rows: what is said of them before training, where they teach or measure less than a user may think."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import datasets
import pytest

from tests.task_rows import ADAPTERS, ROWS, medical_test
from tests.tiny_text import tiny_text_model
from tests.toy import toy_args
from text_sdft import SDFTTrainer, TextAdapter, UserError
from text_sdft.columns import load_rows
from text_sdft.config import MedicalData, TaskData, TaskDemonstrations, TextData, TextDemonstrations

ROW = {"prompt": "What is 2 + 2?", "golden_response": "Four.", "reference": "four"}
PLAIN = {"prompt": "Who?", "completion": "Bob."}  # TRL's columns


def written(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


# ---- nothing to learn from ----


def test_rows_that_show_the_teacher_nothing_are_refused_before_training(tmp_path):
    data = TextData(written(tmp_path / "train.jsonl", [PLAIN, {**PLAIN, "prompt": "Where?"}]))
    with pytest.raises(UserError, match=r"train\.jsonl: no query has .*golden_response.*completion"):
        TextAdapter.from_config(data, TextDemonstrations())


@pytest.mark.parametrize(("row", "told"), [(PLAIN, True), ({**PLAIN, "privileged_context": "Bob did it."}, False)])
def test_a_teacher_that_sees_no_more_than_the_student_is_told(tmp_path, caplog, row, told):
    model, tokenizer = tiny_text_model()
    trainer = SDFTTrainer(
        model, toy_args(tmp_path), adapter=TextAdapter(), train_dataset=[row] * 2, processing_class=tokenizer
    )
    with caplog.at_level(logging.WARNING):
        trainer.check_prompts()
    assert ("the teacher reads only what the student reads" in caplog.text) is told


# ---- rows of other sets ----


def test_rows_to_measure_that_are_trained_on_are_counted(tmp_path):
    train = written(tmp_path / "train.jsonl", [ROW, {**ROW, "prompt": "And 3 + 3?"}])
    test = written(tmp_path / "test.jsonl", [ROW, {**ROW, "prompt": "And 4 + 4?"}])
    _, splits = TextAdapter.from_config(TextData(train, test), TextDemonstrations())
    assert any(sentence.startswith("1 of 2 rows of 'new' have a prompt that is trained on") for sentence in splits.report)
    _, splits = TextAdapter.from_config(
        TextData(train, written(tmp_path / "o.jsonl", [{**ROW, "prompt": "?"}])), TextDemonstrations()
    )
    assert not any("trained on" in sentence for sentence in splits.report)


@pytest.mark.parametrize("task", ADAPTERS)
def test_rows_of_a_task_that_are_trained_on_are_counted(tmp_path, task):
    rows = [{**row, "answer": "x"} if task == "medical" else row for row in ROWS[task]("")]
    train, test = written(tmp_path / "train.jsonl", rows), written(tmp_path / "test.jsonl", rows[:2])
    section = MedicalData if task == "medical" else TaskData
    adapter = ADAPTERS[task]()
    report = adapter.splits(section(train, test, holdout=0.0)).report
    assert any(sentence.startswith("2 of 2 rows of 'new' have a prompt that is trained on") for sentence in report)


def test_rows_of_a_task_that_are_not_scored_are_counted(tmp_path):
    train = written(tmp_path / "train.jsonl", ROWS["medical"](""))
    bare = {key: value for key, value in medical_test()[0].items() if key != "Ground-True Answer"} | {"Response": "Rest."}
    demonstrations = TaskDemonstrations()
    medical = ADAPTERS["medical"]
    test = written(tmp_path / "test.jsonl", [bare, *medical_test()[1:]])
    _, splits = medical.from_config(MedicalData(train, test), demonstrations)
    assert any(sentence.startswith("1 of 4 rows") and "not scored" in sentence for sentence in splits.report)
    with pytest.raises(UserError, match=r"test\.jsonl: no row has a 'Ground-True Answer'"):
        medical.from_config(MedicalData(train, written(tmp_path / "test.jsonl", [bare])), demonstrations)
    old = written(tmp_path / "old.jsonl", [{"prompt": "Capital of Peru?", "answer": "Lima"}])
    with pytest.raises(UserError, match=r"old\.jsonl: no row has a 'reference'"):
        medical.from_config(MedicalData(train, old=old), demonstrations)


@pytest.fixture
def dataset(tmp_path):
    parts = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    return datasets.DatasetDict(parts), tmp_path / "set"


@pytest.mark.parametrize("saved", [True, False])
def test_a_data_sets_other_splits_go_by_name(dataset, saved):
    """As a hub's, whose "train" is not to be measured on."""
    parts, folder = dataset
    if saved:
        parts.save_to_disk(str(folder))
    else:
        for name, part in parts.items():
            part.to_parquet(folder / f"{name}.parquet")
    assert load_rows(str(folder)) == load_rows(f"{folder}:train") == [{"prompt": "train"}]
    assert load_rows(f"{folder}:test") == [{"prompt": "test"}]
    with pytest.raises(UserError, match=r"set:dev' is neither a file .* nor a data set"):
        load_rows(f"{folder}:dev")


# ---- rows out of pandas ----


def test_missing_values_of_pandas_are_absent():
    nan = float("nan")
    example = TextAdapter().examples([{"prompt": "?", "reference": nan, "golden_response": nan, "retain": nan, "id": nan}])[
        0
    ]
    assert (example.reference, example.demonstrations, example.retain, example.id) == (None, [], False, "row 0")
