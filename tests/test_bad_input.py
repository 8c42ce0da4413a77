"""Data with which a run would mean less than it seems: said, or refused, before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from text_sdft.core import TeacherContext
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.cli import main
from vlm_sdft.zoo import resolve_data

BUILTIN = "builtin:tiny-qwen3-vl"
OPTIONS = ["--model", BUILTIN, "--force", "--eval.max_examples", "2", "--train.max_steps", "1", "--train.use_cpu", "true"]
OPTIONS += ["--train.disable_tqdm", "true", "--train.max_completion_length", "4", "--train.save_strategy", "no"]


@pytest.fixture
def folder(tmp_path) -> Path:
    made = resolve_data("builtin:novel-objects", tmp_path, n_types=3, n_unlabelled=1, n_test=2, n_retain=1, n_old=1)
    return Path(shutil.copytree(made, tmp_path / "data"))


def train(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code, and what the trainer said of the prompts before training."""
    with CaptureLogger(logging.get_logger(SDFTTrainer.__module__)) as log:
        code = main(["train", "--data", str(folder), "--train.output_dir", str(folder.parent / "run"), *OPTIONS, *options])
    return code, log.out


@pytest.mark.slow
def test_demonstrations_beyond_the_context_are_left_out_and_counted(folder):
    adapter = ImageAdapter(DemoSet.from_folder(folder))
    adapter = adapter.bind(adapter.load_model(BUILTIN))
    queries = adapter.examples([row for row in adapter.demos.train if row.split != "retain"])
    limit = 40
    expected = 0
    for query in queries:
        shown = len(adapter.demonstrations(query, TeacherContext()))
        fitting = [
            n
            for n in range(shown + 1)
            if adapter.encode([adapter.teacher_messages(query, TeacherContext(max_demonstrations=n))]).lengths[0] <= limit
        ]
        expected += shown - max(fitting)
    code, said = train(folder, "--train.max_prompt_length", str(limit))
    assert code == 0 and expected > len(queries)
    assert f"Teacher prompts exceed {limit} tokens: {expected} demonstrations left out over {len(queries)} queries" in said


def test_a_context_without_place_for_one_demonstration_is_an_error(folder, capsys):
    assert train(folder, "--train.max_prompt_length", "12")[0] == 2
    assert "cannot be shortened to the limit of 12" in capsys.readouterr().err
    assert not (folder.parent / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_type_with_one_image_trains_without_demonstrations_of_its_own(folder, capsys):
    kept, removed = sorted((folder / "train").glob("*/*"))[:2]
    removed.unlink()
    name = kept.parent.name
    assert train(folder)[0] == 0
    assert f"One labelled image only: {name}." in capsys.readouterr().out
    adapter = ImageAdapter(DemoSet.from_folder(folder), selection="fixed")
    (query,) = [e for e in adapter.examples(adapter.demos.labelled) if e.meta["row"].type == name]
    answers = {d.messages[-1]["content"] for d in adapter.demonstrations(query, TeacherContext())}
    assert len(answers) == 2 and query.reference not in answers


def test_test_images_among_the_unlabelled_are_dropped_and_named(folder, capsys):
    tested = sorted((folder / "test").glob("*/*"))[0]
    shutil.copy(tested, folder / "unlabelled" / "another-name.png")
    assert train(folder)[0] == 0
    printed = capsys.readouterr().out
    assert (
        f"Dropped from training: unlabelled/another-name.png is the same image as {tested.relative_to(folder)}" in printed
    )
