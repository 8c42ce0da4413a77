"""A run: what its folder holds, that a stopped one goes on as if nothing had been, that its model is what was measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cli_runs import BUILTIN, SETTINGS, STEPS, measured, read, steps, stop_before
from tests.families import family_folder
from tests.image_files import WHOLE, fill
from tests.tiers import further
from text_sdft.core import Example, SDFTConfig
from text_sdft.core.files import append_json_lines
from text_sdft.experiments.folder import rewind
from text_sdft.experiments.settings import content_digest, resumable
from vlm_sdft.cli import main
from vlm_sdft.zoo import resolve_model

LORA = ("--lora.enabled", "true", "--train.learning_rate", "5e-3")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("config")
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "cache": str(folder / "data")}}
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "small.yaml")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    return train(config, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def with_lora(config, tmp_path_factory) -> Path:
    return train(config, tmp_path_factory.mktemp("runs") / "lora", *LORA)


def train(config: str, folder: Path, *options: str) -> Path:
    assert main(["train", config, "--train.output_dir", str(folder), *options]) == 0
    return folder


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()


# ---- what a run leaves ----


def test_everything_is_in_the_runs_folder(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "samples.jsonl", "results.json", "report.html", "model",
        *(f"checkpoint-{step}" for step in (2, 4, 6)),
    }  # fmt: skip
    assert [log["step"] for log in steps(finished)] == list(range(1, STEPS + 1))
    samples = read(finished / "samples.jsonl")
    assert {"before", "after", None} == {sample.get("phase") for sample in samples}
    answers = [sample for sample in samples if sample.get("phase") == "after"]
    assert {(a["set"], a["view"]) for a in answers} == {
        ("new", "student"), ("new", "teacher"), ("old", "student"), ("old skills", "student"),
    }  # fmt: skip
    assert all({"id", "prompt", "answer", "reference", "score"} <= set(a) for a in answers)


def test_results_hold_accuracies_settings_and_versions(finished):
    results = read(finished / "results.json")
    assert set(results) == {
        "before", "after", "drift", "probe", "trained", "rows", "digests", "processes", "seconds", "tokens", "settings",
        "versions",
    }  # fmt: skip
    assert results["drift"]["before"]["kl"] == pytest.approx(0, abs=1e-6) and results["drift"]["after"]["kl"] > 0
    assert results["probe"]["decision"] in ("train", "try first") and results["probe"]["reason"]
    for phase in ("before", "after"):
        assert set(results[phase]) == {"new", "old", "old skills", "teacher"}
        for accuracy in results[phase].values():
            assert set(accuracy) == {"accuracy", "n", "low", "high"}
            assert 0 <= accuracy["low"] <= accuracy["accuracy"] <= accuracy["high"] <= 1
    assert results["before"]["new"]["n"] == 8 and results["before"]["old"]["n"] == 12, "eval.max_examples bounds a set"
    assert results["after"] != results["before"]
    assert results["seconds"] > 0
    assert "all weights of the language model" in results["trained"] and "model.visual" in results["trained"]
    assert {"python", "torch", "transformers", "vlm-sdft"} <= set(results["versions"])


def test_the_config_of_a_run_holds_all_that_was_set(finished):
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert written == read(finished / "results.json")["settings"]
    for name, value in SETTINGS["train"].items():
        assert written["train"][name] == value, name
    for section in ("demonstrations", "eval"):
        assert SETTINGS[section].items() <= written[section].items()
    assert "adam_beta1" not in written["train"], "uncommon settings are listed only where they were changed"


@pytest.mark.slow
def test_the_config_of_a_run_repeats_it(finished, tmp_path):
    again = train(str(finished / "config.yaml"), tmp_path / "again")
    assert measured(again) == measured(finished) and steps(again) == steps(finished)


def test_the_model_card_says_what_was_done_and_measured(finished):
    card = (finished / "model" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and "sdft" in header["tags"]
    assert "builtin:novel-objects" in card and "2601.19897" in card and "learning_rate 0.002" in card
    before, after = measured(finished)
    for name in before:
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        for accuracy in (before[name], after[name]):
            assert f"{accuracy['accuracy']:.3f} ({accuracy['low']:.3f}–{accuracy['high']:.3f}, n = {accuracy['n']})" in row


def test_the_card_of_an_adapter_names_its_base_model(tmp_path):
    base = str(family_folder("qwen3_vl"))
    fill(tmp_path / "data", WHOLE)
    run = tmp_path / "run"
    options = ["--train.max_steps", "1", "--train.use_cpu", "true", "--train.max_completion_length", "2"]
    argv = ["train", "--force", "--model", base, "--data", str(tmp_path / "data"), "--train.output_dir", str(run), *options]
    assert main(argv) == 0
    header = yaml.safe_load((run / "model" / "README.md").read_text().split("---")[1])
    assert header["base_model"] == base and header["library_name"] == "peft"


def test_the_model_loads_with_the_auto_classes_and_its_vision_is_untouched(finished):
    start, end = weights(resolve_model(BUILTIN)), weights(finished / "model")
    assert start.keys() == end.keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed and not [name for name in changed if "visual" in name]
    processor = AutoProcessor.from_pretrained(finished / "model")
    assert processor.tokenizer.chat_template or processor.chat_template


def test_train_vision_trains_the_vision_tower(tmp_path):
    base = str(family_folder("qwen3_vl"))
    fill(tmp_path / "data", WHOLE)
    run = tmp_path / "run"
    argv = ["train", "--force", "--model", base, "--data", str(tmp_path / "data"), "--data.train_vision", "true"]
    argv += [
        "--lora.enabled",
        "false",
        "--train.learning_rate",
        "1e-2",
        "--train.max_steps",
        "2",
        "--train.use_cpu",
        "true",
    ]
    assert main([*argv, "--train.max_completion_length", "4", "--train.output_dir", str(run)]) == 0
    start, end = weights(base), weights(run / "model")
    assert [name for name in start if "visual" in name and not torch.equal(start[name], end[name])]
    assert "all weights of the model" in read(run / "results.json")["trained"]


# ---- eval ----


@pytest.mark.parametrize("kind", ["finished", *further("with_lora")])
def test_eval_measures_what_the_run_measured(kind, request, capsys):
    run = request.getfixturevalue(kind)
    assert (run / "model" / "adapter_config.json").exists() == (kind == "with_lora")
    before, after = measured(run)
    assert before != after
    assert main(["eval", str(run)]) == 0
    assert read(run / "eval.json") == after
    assert "measured now" in capsys.readouterr().out
    assert measured(run) == (before, after), "results.json stays as the run wrote it"


def test_eval_takes_options(finished):
    assert main(["eval", str(finished), "--eval.max_examples", "3", "--eval.teacher", "false"]) == 0
    scores = read(finished / "eval.json")
    assert set(scores) == {"new", "old", "old skills"} and {score["n"] for score in scores.values()} == {3}


# ---- resuming ----

KILLED = """
import os, signal, sys
from text_sdft.training.callbacks import MetricsWriter
from vlm_sdft.cli import main

def on_step_begin(self, args, state, control, **_):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsWriter.on_step_begin = on_step_begin
main(sys.argv[1:])
"""


def check_same(resumed: Path, finished: Path) -> None:
    assert measured(resumed) == measured(finished)
    assert steps(resumed) == steps(finished), "each step is logged once, with the same numbers"
    assert read(resumed / "samples.jsonl") == read(finished / "samples.jsonl")
    ours, theirs = weights(resumed / "model"), weights(finished / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(config, finished, tmp_path):
    run = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", KILLED, "train", config, "--train.output_dir", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )
    assert child.returncode < 0, child.stderr.decode()
    assert len(steps(run)) == 3 and not (run / "model").exists() and "after" not in read(run / "results.json")
    train(config, run, "--resume")
    check_same(run, finished)


def test_an_incomplete_newest_checkpoint_is_passed_over(config, finished, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(5, patch)
        assert main(["train", config, "--train.output_dir", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    (run / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-5", ignore=shutil.ignore_patterns("trainer_state.json"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    train(config, run, "--resume")
    check_same(run, finished)


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_starts_again_without_measuring_twice(
    config, finished, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(1, patch)
        assert main(["train", config, "--train.output_dir", str(run)]) == 2
    train(config, run, "--resume")
    check_same(run, finished)


@pytest.mark.slow
def test_a_stopped_lora_run_goes_on_as_if_nothing_had_been(config, with_lora, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert main(["train", config, "--train.output_dir", str(run), *LORA]) == 2
    train(config, run, *LORA, "--resume")
    assert measured(run) == measured(with_lora) and steps(run) == steps(with_lora)


@pytest.mark.slow
def test_a_run_whose_last_writing_failed_has_its_answers_once(config, finished, tmp_path):
    """(The disk was full after the answers, and before results.json.)"""
    run = shutil.copytree(finished, tmp_path / "run")
    results = {key: value for key, value in read(run / "results.json").items() if key != "after"}
    (run / "results.json").write_text(json.dumps(results))
    train(config, run, "--resume")
    check_same(run, finished)


def test_resuming_a_finished_run_changes_nothing(config, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train(config, run, "--resume")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times
    assert "new types" in capsys.readouterr().out


def test_what_a_finished_run_lacks_is_made_up_for(config, finished, tmp_path, monkeypatch, capsys):
    """(It was killed, or the disk was full, between its results and its report; or the hub could not be reached.)"""
    from huggingface_hub import HfApi

    run = shutil.copytree(finished, tmp_path / finished.name)
    lost = [run / "report.html", run / "model" / "README.md"]
    for file in lost:
        file.unlink()
    pushed = []
    push = ["train", config, "--train.output_dir", str(run), "--resume", "--train.push_to_hub", "true"]
    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_repo", lambda self, name, **_: 1 / 0)
        assert main(push) == 2
        said = capsys.readouterr().err
        assert "could not be pushed" in said and "--resume" in said
    for file in lost:
        assert file.read_bytes() == (finished / file.relative_to(run)).read_bytes()
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: type("Repo", (), {"repo_id": f"me/{name}"})())
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, repo_id, **_: pushed.append(repo_id))
    assert main(push) == 0 and main(push) == 0
    assert pushed == [f"me/{run.name}"] == [read(run / "results.json")["pushed"]]


DAMAGE = [
    ("results.json", lambda text: text.replace('"accuracy"', '"acuracy"', 1), "'before.new.accuracy' is missing"),
    ("metrics.jsonl", lambda text: text.replace('"step": 2', '"step": "two"'), "line 2: 'step' is 'two'"),
    *further(
        ("results.json", lambda text: text[:-30], "is not whole JSON"),
        ("results.json", lambda text: "[]", "the content is no mapping"),
        ("results.json", lambda text: text.replace('"settings"', '"setings"'), "'settings' is missing"),
        ("metrics.jsonl", lambda text: text.replace('"loss": ', '"loss": [', 1), "line 1 is not whole JSON"),
        ("samples.jsonl", lambda text: text.replace('"score"', '"skore"', 1), "line 1: 'score' is missing"),
        ("samples.jsonl", lambda text: "null\n" + text, "line 1: the content is no mapping"),
    ),
]


@pytest.mark.parametrize(("name", "change", "said"), DAMAGE)
def test_an_edited_file_of_a_run_is_named_by_resume_and_report(config, finished, tmp_path, capsys, name, change, said):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-6")  # the report is made again where the run goes on; here it is not there yet
    (run / "report.html").unlink()
    (run / name).write_text(change((run / name).read_text()))
    for argv in (["train", config, "--train.output_dir", str(run), "--resume"], ["report", str(run)]):
        assert main(argv) == 2
        message = capsys.readouterr().err
        assert f"{run / name}" in message and said in message and "start anew" in message


def test_rows_are_the_same_by_what_they_hold(tmp_path):
    data = fill(tmp_path / "data", WHOLE)
    image = next(data.rglob("*.png"))
    rows = [Example("a", [{"role": "user", "content": [{"type": "image", "image": str(image)}]}], reference="dax")]
    digest = content_digest(rows)
    copied = Path(shutil.copy(image, tmp_path / "copied.png"))
    moved = [replace(rows[0], messages=[{"role": "user", "content": [{"type": "image", "image": copied}]}])]
    assert content_digest(moved) == digest, "where an image lies is not what it shows"
    assert content_digest([replace(rows[0], reference="wug")]) != digest
    copied.write_bytes(copied.read_bytes()[:-1] + b"x")
    assert content_digest(moved) != digest


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rate", "1e-3", "train.learning_rate 0.002, not 0.001"),
        ("train.max_steps", "9", "train.max_steps 6, not 9"),
        ("data.question", "What?", "not What?"),
        ("train.adam_beta1", "0.8", "train.adam_beta1 0.9, not 0.8"),
        ("train.gradient_accumulation_steps", "2", "gradient_accumulation_steps 4, not 8"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(finished, config, tmp_path, capsys, stopped, key, value, message):
    run = shutil.copytree(finished, tmp_path / "run")
    if stopped:
        results = read(run / "results.json")
        (run / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != "after"}))
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", config, "--train.output_dir", str(run), "--resume", f"--{key}", value]) == 2
    said = capsys.readouterr().err
    assert message in said and "--train.output_dir" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times


def test_a_run_of_a_version_with_other_settings_had_their_defaults(finished, config, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    results = read(run / "results.json")
    for section, name in (("train", "retain_ratio"), ("demonstrations", "policy"), ("data", "retain_in_context")):
        del results["settings"][section][name]
    del results["settings"]["method"]
    results["settings"]["train"]["confidence"] = "none"  # which later versions lack
    (run / "results.json").write_text(json.dumps(results))
    train(config, run, "--resume")
    options = ["--train.output_dir", str(run), "--resume", "--train.retain_ratio", "0.5"]
    assert main(["train", config, *options]) == 2
    assert "train.retain_ratio 1.0, not 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_with_smaller_micro_batches(config, finished, tmp_path, monkeypatch):
    """(Out of memory, say.) A step sees the same queries: its numbers differ by rounding."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert main(["train", config, "--train.output_dir", str(run)]) == 2
    train(
        config, run, "--resume", "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2",
        "--train.activation_checkpointing", "true", "--train.logging_steps", "1", "--eval.batch_size", "4",
    )  # fmt: skip
    for ours, theirs in zip(steps(run), steps(finished), strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_memory_may_be_saved_from_a_resume_on(tmp_path, name):
    """(transformers has two names for one setting, each of which sets the other.)"""
    first, then = (resumable({"train": SDFTConfig(str(tmp_path), **{name: on}).to_dict()}) for on in (False, True))
    assert first == then


def test_an_answer_with_line_separators_stays_one_record(tmp_path):
    """(U+2028, U+2029 and U+0085 are no ends of lines in JSON.)"""
    measured = {"phase": "before", "set": "new", "view": "student", "score": 0.0}
    records = [{**measured, "id": "a", "answer": "x\u2028y\u2029\u0085z"}, {"step": 1, "id": "b"}]
    append_json_lines(tmp_path / "samples.jsonl", [*records, {"step": 2, "id": "c"}])
    (tmp_path / "checkpoint-2").mkdir()
    rewind(tmp_path, tmp_path / "checkpoint-2")
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text("utf-8").split("\n") if line] == records


def test_a_folder_with_a_run_is_not_written_into(config, finished, capsys):
    assert main(["train", config, "--train.output_dir", str(finished)]) == 2
    message = capsys.readouterr().err
    assert "holds a run already" in message and "--resume" in message


def test_eval_of_a_run_that_has_not_finished_says_so(config, finished, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "config.yaml", run)
    assert main(["eval", str(run)]) == 2
    assert "the run has not finished" in capsys.readouterr().err
