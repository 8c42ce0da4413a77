"""Sequences of tasks: the numbers mean what the literature says, each task starts where the last one ended, and nothing
that is finished is done twice."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.tiny_text import save_tiny_text_model
from text_sdft.core import TeacherContext, UserError
from text_sdft.experiments import sequence
from text_sdft.training.callbacks import MetricsWriter
from vlm_sdft.cli import main
from vlm_sdft.cli.sequences import read_sequence
from vlm_sdft.config import ImageData, load_demos
from vlm_sdft.zoo import resolve_data

SMALL = {"n_unlabelled": 2, "n_test": 4, "n_retain": 1, "n_old": 1}
SETTINGS: dict[str, Any] = {
    "model": "builtin:tiny-qwen3-vl",
    "data": {"path": "builtin:novel-objects", "options": {**SMALL, "n_types": 4}},
    "demonstrations": {"n_types": 2},
    "eval": {"max_examples": 8, "teacher": False},
    "train": {
        "use_cpu": True, "disable_tqdm": True, "max_completion_length": 6, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "learning_rate": 2e-3, "max_steps": 3, "save_steps": 1, "logging_steps": 1,
    },
    "tasks": 2,
    "retain_earlier": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def config(data) -> Path:
    return write(data / "sequence.yaml", {**SETTINGS, "data": {**SETTINGS["data"], "cache": str(data)}})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A sequence that nothing stopped, with a run on all tasks at once."""
    return learn(config, tmp_path_factory.mktemp("finished"), "--joint")


def write(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(settings))
    return file


def learn(config: Path, folder: Path, *options: str) -> Path:
    assert main(["sequence", str(config), "--train.output_dir", str(folder / "run"), *options]) == 0
    return folder / "run"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()


def stop_in_the_second_task(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C when so many of its steps are done."""

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step and "task-2" in args.output_dir:
            raise KeyboardInterrupt

    patch.setattr(MetricsWriter, "on_step_begin", on_step_begin)


# ---- the numbers ----

AFTER = [[0.9, 0.1, 0.0], [0.8, 0.95, 0.2], [0.6, 0.9, 0.97]]


def test_the_summary_is_what_one_computes_by_hand():
    found = sequence.summary(AFTER, before=[0.0, 0.05, 0.1], joint=[0.9, 1.0, 0.8])
    assert found == {
        "mean_final": pytest.approx((0.6 + 0.9 + 0.97) / 3),
        "backward_transfer": pytest.approx(((0.6 - 0.9) + (0.9 - 0.95)) / 2),
        "forgetting": pytest.approx(((0.9 - 0.6) + (0.95 - 0.9)) / 2),
        "forward_transfer": pytest.approx(((0.1 - 0.05) + (0.2 - 0.1)) / 2),
        "joint": pytest.approx(0.9),
        "share_of_joint": pytest.approx((0.6 + 0.9 + 0.97) / 3 / 0.9),
    }


def test_forgetting_counts_from_a_tasks_best_and_backward_transfer_from_its_own_end():
    after = [[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [0.7, 0.8, 0.4]]
    found = sequence.summary(after, before=[0.0, 0.0, 0.0])
    assert found["backward_transfer"] == pytest.approx((0.2 + 0.2) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.7) + (0.6 - 0.8)) / 2)


# ---- a sequence ----


def test_every_task_is_measured_after_every_task(finished):
    found = read(finished / "sequence.json")
    assert found["tasks"] == ["task-1", "task-2"] and found["method"] == "sdft" and found["retain_earlier"] == 2
    assert found["n"] == {"new": [8, 8], "old": {"old": 8, "old skills": 8}}
    rows = [found["before"], *found["after"], found["joint"]]
    assert len(rows) == 4 and all(len(row["new"]) == 2 and set(row["old"]) == {"old", "old skills"} for row in rows)
    assert found["after"][1] != found["before"], "training changes what is measured"
    new = [row["new"] for row in found["after"]]
    assert found["summary"] == sequence.summary(new, found["before"]["new"], found["joint"]["new"])


def test_its_numbers_are_those_of_the_tasks_own_runs(finished):
    found = read(finished / "sequence.json")
    for k in range(2):
        results = read(finished / f"task-{k + 1}" / "results.json")
        assert results["after"]["new"]["accuracy"] == found["after"][k]["new"][k]
        assert results["after"]["old"]["accuracy"] == found["after"][k]["old"]["old"]
    first, second = (read(finished / f"task-{k}" / "results.json") for k in (1, 2))
    assert first["before"]["old"]["accuracy"] == found["before"]["old"]["old"]
    assert second["before"]["old"] == first["after"]["old"], "the second task starts from the first one's model"


@pytest.mark.slow
def test_a_model_is_let_go_before_the_next_one_is_loaded(config, tmp_path, monkeypatch):
    """Two models of 8 B side by side would not fit."""
    alive: list[weakref.ref] = []
    own = sequence.trained_model

    def loaded(*args):
        assert not [model for model in alive if model() is not None]
        model = own(*args)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sequence, "trained_model", loaded)
    learn(config, tmp_path)
    assert len(alive) == 2


@pytest.mark.slow
def test_a_lora_adapter_is_handed_on(config, data, tmp_path):
    """(A second task that learns nothing leaves it as it is.)"""
    part = {"options": {**SMALL, "n_types": 2}}
    tasks = [{"data": part}, {"data": part, "train": {"learning_rate": 0.0}}]
    still = write(data / "still.yaml", {**yaml.safe_load(config.read_text()), "tasks": tasks})
    run = learn(still, tmp_path, "--train.max_steps", "2", "--lora.enabled", "true")
    one, two = (load_file(run / f"task-{k}" / "model" / "adapter_model.safetensors") for k in (1, 2))
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_B" in name)
    assert all(torch.equal(one[name], two[name]) for name in one)
    found = read(run / "sequence.json")
    assert found["after"][0] == found["after"][1]


@pytest.mark.slow
def test_a_stopped_sequence_goes_on_where_it_was(config, finished, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        stop_in_the_second_task(patch, step=2)
        assert main(["sequence", str(config), "--train.output_dir", str(tmp_path / "run")]) == 2
    run = tmp_path / "run"
    assert "after" not in read(run / "task-2" / "results.json") and (run / "task-2" / "checkpoint-2").is_dir()
    done = {path: path.stat().st_mtime_ns for path in (run / "task-1").rglob("*")}
    assert main(["sequence", str(config), "--train.output_dir", str(run)]) == 2
    assert "--resume continues it" in capsys.readouterr().err
    learn(config, tmp_path, "--resume")
    assert {path: path.stat().st_mtime_ns for path in (run / "task-1").rglob("*")} == done
    mine, theirs = read(run / "sequence.json"), read(finished / "sequence.json")
    assert all(mine[key] == theirs[key] for key in ("before", "after", "n")) and mine["joint"] is None
    ours, others = weights(run / "task-2" / "model"), weights(finished / "task-2" / "model")
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_a_finished_sequence_is_not_run_again(config, finished, capsys):
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "sequence.json"}
    before = read(finished / "sequence.json")
    assert main(["sequence", str(config), "--train.output_dir", str(finished), "--resume", "--joint"]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times and read(finished / "sequence.json") == before
    assert "backward transfer" in capsys.readouterr().out
    argv = ["sequence", str(config), "--train.output_dir", str(finished), "--resume", "--train.learning_rate", "1e-5"]
    assert main(argv) == 2 and "other tasks or settings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sequence_of_a_version_with_other_settings_had_their_defaults(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    found = read(run / "sequence.json")
    for settings in found["settings"]:
        del settings["train"]["retain_ratio"]
        settings["train"]["confidence"] = "none"  # which later versions lack
    (run / "sequence.json").write_text(json.dumps(found))
    learn(config, tmp_path, "--resume")


def test_replay_brings_back_the_labelled_images_of_earlier_tasks(config, tmp_path):
    tasks = read_sequence(config, ["--method", "replay", "--train.output_dir", str(tmp_path)], joint=False).tasks
    assert sequence._with_earlier(tasks[0], [], 0).method == "sft"
    second = sequence._with_earlier(tasks[1], tasks[:1], 0)
    old = [example for example in second.splits.train if example.retain]
    first = {row.id: row.answer for row in tasks[0].adapter.demos.labelled}
    assert {e.id.removeprefix("task-1/"): e.reference for e in old} == first and len(old) == 4
    assert {row.type for row in tasks[0].adapter.demos.labelled}.isdisjoint(
        row.type for row in tasks[1].adapter.demos.labelled
    )


def test_queries_of_earlier_tasks_come_back_without_their_answers(config, tmp_path):
    options = ["--train.output_dir", str(tmp_path), "--retain_earlier"]
    tasks, _, _, count = read_sequence(config, [*options, "3"], joint=False)
    assert count == 3 and sequence._with_earlier(tasks[0], [], count).splits.train == tasks[0].adapter.examples(
        tasks[0].splits.train
    )
    second = sequence._with_earlier(tasks[1], tasks[:1], count)
    first = {f"task-1/{row.id}": row for row in tasks[0].adapter.demos.train}
    back = [example for example in second.splits.train if example.id in first]
    assert len(back) == 3 and all(example.retain and example.reference is None for example in back)
    assert all(first[example.id].split != "retain" for example in back), "queries, not its retention prompts"
    asked = {example.id: example for example in tasks[0].adapter.examples(tasks[0].adapter.demos.train)}
    for example in back:
        context = TeacherContext(0)
        assert tasks[1].adapter.student_messages(example) == asked[example.id.removeprefix("task-1/")].messages
        assert tasks[1].adapter.teacher_messages(example, context) == example.messages, "the teacher is shown no more"
        assert tasks[1].adapter.expert_answer(example) is None
    own = [example.id for example in second.splits.train if example.id not in first]
    assert own == [row.id for row in tasks[1].adapter.demos.train]
    assert [e.id for e in sequence._with_earlier(tasks[1], tasks[:1], count).splits.train if e.id in first] == [
        e.id for e in back
    ]
    all_of_them = sequence._with_earlier(tasks[1], tasks[:1], 10_000).splits.train
    assert sum(e.id in first for e in all_of_them) == sum(row.split != "retain" for row in first.values())


@pytest.mark.parametrize("given", ["-1", "few", "true", "1.5"])
def test_how_many_queries_come_back_is_a_number(config, tmp_path, capsys, given):
    assert main(["sequence", str(config), "--train.output_dir", str(tmp_path / "run"), f"--retain_earlier={given}"]) == 2
    assert "retain_earlier is" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_sequence_with_other_earlier_queries_is_another_one(config, finished, capsys):
    argv = ["sequence", str(config), "--train.output_dir", str(finished), "--resume", "--retain_earlier", "5"]
    assert main(argv) == 2 and "other tasks or settings" in capsys.readouterr().err


@pytest.mark.slow
def test_another_method_runs_the_same_sequence(config, finished, tmp_path):
    run = learn(config, tmp_path, "--method", "replay", "--train.max_steps", "2")
    found = read(run / "sequence.json")
    assert found["method"] == "replay" and found["before"] == read(finished / "sequence.json")["before"]
    assert found["after"][0] != found["before"]
    one, two = weights(run / "task-1" / "model"), weights(run / "task-2" / "model")
    assert not all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_tasks_of_text_from_files(tmp_path):
    model = save_tiny_text_model(tmp_path / "llama")
    for k, colour in enumerate(("red", "blue"), start=1):
        shown = [{"prompt": "Colour of a dax?", "answer": colour}]
        rows = [{"prompt": f"Colour of dax {i}?", "demonstrations": shown, "reference": colour} for i in range(2)]
        (tmp_path / f"{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"path": str(tmp_path / f"{k}.jsonl"), "test": str(tmp_path / f"{k}.jsonl")}
        write(tmp_path / f"{k}.yaml", {"data": data})
    train = {"max_steps": 1, "use_cpu": True, "max_completion_length": 4, "disable_tqdm": True}
    common = {"model": model, "adapter": "text", "lora": {"enabled": False}, "train": train}
    config = write(tmp_path / "sequence.yaml", {**common, "tasks": ["1.yaml", "2.yaml"], "joint": "1.yaml"})
    run = learn(config, tmp_path, "--joint")
    found = read(run / "sequence.json")
    assert found["n"] == {"new": [2, 2], "old": {}} and found["joint"] is not None
    assert [settings["data"]["path"] for settings in found["settings"]] == [str(tmp_path / f"{k}.jsonl") for k in (1, 2)]
    assert read_sequence(config, ["--train.output_dir", str(run)], True).joint.args.max_steps == 2, (
        "the tasks' steps together"
    )


@pytest.mark.slow
def test_the_config_that_comes_along_is_read(tmp_path):
    file = Path(__file__).parent.parent / "configs" / "sequences" / "novel-objects.yaml"
    few = {**SMALL, "n_types": 25, "n_test": 1, "n_unlabelled": 1, "n_old": 1, "n_retain": 0}
    options = ["--data.cache", str(tmp_path), "--data.options", json.dumps(few)]
    tasks, folder, joint, retain_earlier = read_sequence(file, options, joint=True)
    types = [{row.type for row in task.adapter.demos.labelled} for task in tasks]
    assert [len(names) for names in types] == [5] * 5 and len(set.union(*types)) == 25 and retain_earlier == 100
    assert joint.args.max_steps == sum(task.args.max_steps for task in tasks) and folder == Path("runs/sequence")
    assert {row.type for row in joint.adapter.demos.labelled} == set.union(*types)


# ---- splitting data ----


def test_builtin_types_are_split_without_changing_a_picture(data):
    whole = resolve_data("builtin:novel-objects", data, **SMALL, n_types=4)
    section = ImageData("builtin:novel-objects", options={**SMALL, "n_types": 4}, cache=str(data))
    parts = [resolve_data("builtin:novel-objects", data, **part["options"]) for part in section.split(2)]
    for folder in ("train", "test"):
        names = [[p.name for p in sorted((part / folder).iterdir())] for part in parts]
        assert sorted(names[0] + names[1]) == sorted(p.name for p in (whole / folder).iterdir()) and len(names[0]) == 2
        for part in parts:
            for file in (part / folder).rglob("*.png"):
                assert file.read_bytes() == (whole / file.relative_to(part)).read_bytes()
    drawn = [{file.read_bytes() for file in (folder / "unlabelled").iterdir()} for folder in (whole, *parts)]
    assert drawn[0] == drawn[1] | drawn[2] and not drawn[1] & drawn[2]


def test_a_folders_types_are_split(data, tmp_path):
    folder = shutil.copytree(resolve_data("builtin:novel-objects", data, **SMALL, n_types=4), tmp_path / "mine")
    names = sorted(p.name for p in (folder / "train").iterdir())
    (folder / "unlabelled" / names[0]).mkdir()
    for file in list((folder / "unlabelled").glob("*.png"))[:3]:
        file.rename(folder / "unlabelled" / names[0] / file.name)
    parts = ImageData(str(folder)).split(3)
    assert [part["types"] for part in parts] == [names[:1], names[1:2], names[2:]]
    demos = load_demos(ImageData(str(folder), **parts[0]))
    assert {row.type for row in [*demos.labelled, *demos.test]} == {names[0]} and len(demos.unlabelled) == 3
    assert len(demos.old) == 96 and any("5 unlabelled images that lie in no folder" in line for line in demos.report)
    with pytest.raises(UserError, match=f"no type '{names[0]}x'.*mean '{names[0]}'"):
        load_demos(ImageData(str(folder), types=[names[0] + "x"]))
    with pytest.raises(UserError, match="4 types"):
        ImageData(str(folder)).split(5)


# ---- what cannot work ----


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        (None, "neither a list nor a number"),
        (9, "has 4 types"),
        ([{}], "at least two tasks"),
        ([3, 4], "a task is the name of an experiment's file"),
        (["gone.yaml", "gone.yaml"], "no config file .*gone.yaml"),
        ([{"train": {"learning_rat": 1}}, {}], "Did you mean 'train.learning_rate'"),
    ],
)
def test_bad_tasks_are_errors_before_any_training(config, data, tmp_path, capsys, tasks, complaint):
    bad = write(data / "bad.yaml", {**yaml.safe_load(config.read_text()), "tasks": tasks})
    assert main(["sequence", str(bad), "--train.output_dir", str(tmp_path / "run")]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_joint_training_on_a_list_of_tasks_needs_its_data(config, data, tmp_path, capsys):
    listed = write(data / "listed.yaml", {**yaml.safe_load(config.read_text()), "tasks": [{}, {}]})
    assert main(["sequence", str(listed), "--train.output_dir", str(tmp_path / "run"), "--joint"]) == 2
    assert "--joint needs `joint`" in capsys.readouterr().err
