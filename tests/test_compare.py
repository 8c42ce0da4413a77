"""`vlm-sdft compare`: equal budgets, rates chosen off the test rows, a stopped comparison that ends in the same table."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from tests.tiny_text import save_tiny_text_model, tiny_text_model
from text_sdft import TextAdapter
from text_sdft.core import Example, UserError
from text_sdft.core.sampling import TransformersSampler
from text_sdft.experiments.compare import split_sets
from text_sdft.experiments.compare_cells import Comparison, selection_score
from text_sdft.experiments.compare_table import write_tables
from text_sdft.training import SDFTTrainer
from vlm_sdft.cli import main

OPTIONS = ("--methods", "icl,sft/no_retain,cpt,sdft", "--seeds", "2", "--lr_sweep", "[1e-3,1e-2]")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    """A tiny model; answers of one letter to learn; as prior skills, what it answers to other prompts already."""
    folder = tmp_path_factory.mktemp("config")
    model, tokenizer = tiny_text_model()
    adapter = TextAdapter().bind(model, tokenizer)
    train = [{"prompt": f"{a}{b}?", "golden_response": a} for a, b in itertools.product("xy", "12345")]
    train += [{"prompt": f"{a}9?", "demonstrations": [{"prompt": "z?", "answer": "z"}]} for a in "xy"]
    test = [{"prompt": f"{a}{b}?", "reference": a} for a, b in itertools.product("xy", "678")]
    old = [{"prompt": f"old {i}?"} for i in range(9)]
    sampler = TransformersSampler(4)
    for row in old:
        inputs = adapter.encode([[{"role": "user", "content": row["prompt"]}]])
        row["reference"] = adapter.decode(sampler.sample(model, inputs, None).ids[0])
    retain = [{"prompt": f"keep {i}?"} for i in range(4)]
    for name, rows in (("train", train), ("test", test), ("old", old), ("retain", retain)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"path": "train", "test": "test", "old": "old", "retain": "retain"}
    settings = {
        "model": save_tiny_text_model(folder / "model"),
        "adapter": "text",
        "data": {key: str(folder / f"{name}.jsonl") for key, name in files.items()},
        "lora": {"enabled": False},
        "train": {
            "use_cpu": True,
            "disable_tqdm": True,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 4,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "config.yaml")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A comparison that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["compare", config, *OPTIONS, "--train.output_dir", str(folder)]) == 0
    return folder


def table(folder: Path) -> dict[str, Any]:
    """All that was found, without the seconds."""
    results = json.loads((folder / "compare.json").read_text())
    for row in results["methods"].values():
        row.pop("seconds")
    return results


def cells(folder: Path, part: str, method: str = "*") -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / "cells").glob(f"{method}/{part}-*.json"))]


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


# ---- the table ----


def test_the_table_says_what_was_compared(finished):
    results = table(finished)
    assert list(results["methods"]) == ["base", "icl", "sft/no_retain", "sdft"]
    assert results["methods"]["base"]["prior"]["over_seeds"]["mean"] == 1.0
    assert results["methods"]["sft/no_retain"]["new"]["change"] > 0.2, "six steps teach something"
    assert "privileged_context" in results["skipped"]["cpt"] and results["failed"] == {}
    text = (finished / "compare.md").read_text()
    assert "| sft/no_retain | " in text and "**cpt** was left out" in text and "FLOPs ≈" in text
    assert "new: 2 and 4; old: 3 and 6" in text
    assert (finished / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_every_number_follows_from_the_cells(finished):
    results = table(finished)
    for name, row in results["methods"].items():
        tests = cells(finished, "test", name.replace("/", "+"))
        new = [mean(cell["test"]["new"]) for cell in tests]
        assert row["new"]["over_seeds"]["mean"] == pytest.approx(np.mean(new))
        if len(new) > 1 and new[0] != new[1]:
            low, high = stats.t.interval(0.95, 1, loc=np.mean(new), scale=stats.sem(new))
            assert (row["new"]["over_seeds"]["low"], row["new"]["over_seeds"]["high"]) == pytest.approx((low, high))
        assert row["kl"] == pytest.approx(mean({i: cell["drift"]["kl"] for i, cell in enumerate(tests)}))
    moved = {name: row["kl"] for name, row in results["methods"].items()}
    assert moved["base"] == pytest.approx(0, abs=1e-6) and moved["sdft"] > 1e-4 and moved["sft/no_retain"] > 1e-4
    mine, theirs = cells(finished, "test", "sft+no_retain"), cells(finished, "test", "sdft")
    pairs = [
        (np.mean([cell["test"]["old"][i] for cell in mine]), np.mean([cell["test"]["old"][i] for cell in theirs]))
        for i in mine[0]["test"]["old"]
    ]
    paired = results["methods"]["sft/no_retain"]["prior"]["paired"]
    assert (paired["better"], paired["worse"]) == (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))


@pytest.mark.parametrize(("methods", "reference"), [(["sdft", "sdft/frozen"], "sdft"), (["sdft/frozen"], "sdft/frozen")])
def test_others_are_tested_against_sdft_or_its_variant(finished, tmp_path, methods, reference):
    tests = {"sft": cells(finished, "test", "sft+no_retain"), **dict.fromkeys(methods, cells(finished, "test", "sdft"))}
    comparison = Comparison(table(finished)["plan"], chosen=dict.fromkeys(tests, 0.001), tests=tests)
    results = write_tables(comparison, SimpleNamespace(model="m", settings={"data": {"path": "d"}}), tmp_path)
    assert results["reference"] == reference and results["methods"]["sft"]["new"]["paired"] is not None
    assert results["methods"][reference]["new"]["paired"] is None
    assert f"sign-flip test against {reference} " in (tmp_path / "compare.md").read_text()


def test_a_table_without_sdft_names_no_method_to_test_against(finished, tmp_path):
    tests = {"sft": cells(finished, "test", "sft+no_retain"), "base": cells(finished, "test", "base")}
    comparison = Comparison(table(finished)["plan"], chosen=dict.fromkeys(tests, 0.001), tests=tests)
    write_tables(comparison, SimpleNamespace(model="m", settings={"data": {"path": "d"}}), tmp_path)
    text = (tmp_path / "compare.md").read_text()
    assert "against None" not in text and "*p*: only where sdft was run" in text


def test_rates_are_chosen_on_validation_rows_and_tests_run_at_the_chosen_one_only(finished):
    for name in ("sft+no_retain", "sdft"):
        sweep = {cell["learning_rate"]: cell["validation"] for cell in cells(finished, "validation", name)}
        assert list(sweep) == [0.001, 0.01]
        scores = {rate: selection_score({k: mean(v) for k, v in sets.items()}) for rate, sets in sweep.items()}
        best = max(scores, key=lambda rate: (scores[rate], -rate))
        tests = cells(finished, "test", name)
        assert [(cell["learning_rate"], cell["seed"]) for cell in tests] == [(best, 0), (best, 1)]
        for part in ("new", "old"):
            assert not sweep[best][part].keys() & tests[0]["test"][part].keys()
    assert not list(finished.rglob("*.safetensors")), "kept weights are removed when their test is done"


def test_a_test_with_kept_weights_is_that_of_a_model_trained_again(finished, config, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    [file] = folder.glob("cells/sdft/test-*-seed0.json")
    kept = json.loads(file.read_text())["test"]
    file.unlink()
    assert main(["compare", config, *OPTIONS, "--train.output_dir", str(folder)]) == 0
    assert json.loads(file.read_text())["test"] == kept


def test_rates_are_chosen_by_the_mean_over_validation_seeds(finished, config, tmp_path):
    """A rate that was lucky with seed 0 is not chosen."""
    folder, command = shutil.copytree(finished, tmp_path / "copy"), ["compare", config, *OPTIONS, "--methods", "sdft"]
    right = {(1e-3, 0): 1.0, (1e-2, 0): 0.5, (1e-3, 1): 0.0, (1e-2, 1): 1.0}
    for (rate, seed), share in right.items():
        cell = cells(finished, "validation", "sdft")[0] | {"learning_rate": rate, "seed": seed}
        for scores in cell["validation"].values():
            scores |= {item: float(i < share * len(scores)) for i, item in enumerate(scores)}
        (folder / f"cells/sdft/validation-lr{rate:g}-seed{seed}.json").write_text(json.dumps(cell))
    for seeds, best in ((1, 1e-3), (2, 1e-2)):
        assert main([*command, "--validation_seeds", str(seeds), "--train.output_dir", str(folder)]) == 0
        assert table(folder)["methods"]["sdft"]["learning_rate"] == best
        tested = {cell["seed"] for cell in cells(folder, "test", "sdft") if cell["learning_rate"] == best}
        assert tested == {0, 1}, "the test is of the rate that was chosen"
    assert "means over 2 seeds" in (folder / "compare.md").read_text()


@pytest.mark.slow
def test_every_rate_is_run_with_each_validation_seed(finished, config, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = {file: file.stat().st_mtime_ns for file in folder.glob("cells/sdft/validation-*.json")}
    command = ["compare", config, *OPTIONS, "--methods", "sdft", "--validation_seeds", "2"]
    assert main([*command, "--train.output_dir", str(folder)]) == 0
    assert len(before) == 2 and {file: file.stat().st_mtime_ns for file in before} == before, "seed 0 is not run again"
    sweep = {(cell["learning_rate"], cell["seed"]): cell["validation"] for cell in cells(folder, "validation", "sdft")}
    assert set(sweep) == {(rate, seed) for rate in (1e-3, 1e-2) for seed in (0, 1)}
    for rate, found in table(folder)["validation"]["sdft"].items():
        for name, value in found.items():
            assert value == pytest.approx(np.mean([mean(sweep[float(rate), seed][name]) for seed in (0, 1)]))
    assert not list(folder.rglob("*.safetensors")), "kept weights are removed when all tests are done"


def test_seeds_that_change_nothing_are_not_run(finished):
    """Greedy answers of an untrained model: in context too, where no seed draws what it is shown."""
    assert [len(cells(finished, "test", name)) for name in ("base", "icl", "sft+no_retain", "sdft")] == [1, 1, 2, 2]
    results = table(finished)
    assert results["methods"]["icl"]["seeds"] == [0] and results["methods"]["icl"]["new"]["over_seeds"]["low"] is None
    [mine], theirs = cells(finished, "test", "icl"), cells(finished, "test", "sdft")
    pairs = [(score, np.mean([cell["test"]["new"][i] for cell in theirs])) for i, score in mine["test"]["new"].items()]
    paired = results["methods"]["icl"]["new"]["paired"]
    assert (paired["better"], paired["worse"]) == (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))


@pytest.mark.slow
def test_seeds_that_draw_the_demonstrations_are_run(tmp_path):
    settings = {
        "model": "builtin:tiny-qwen3-vl",
        "data": {
            "path": "builtin:novel-objects",
            "options": {"n_types": 2, "n_unlabelled": 1, "n_test": 3, "n_retain": 1, "n_old": 1},
            "cache": str(tmp_path / "data"),
        },
        "demonstrations": {"n_types": 2},
        "eval": {"max_examples": 6},
        "train": {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "max_completion_length": 6},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = ["compare", str(tmp_path / "config.yaml"), "--methods", "icl", "--train.output_dir", str(tmp_path / "run")]
    for seeds in (1, 2):  # the second run adds to the first
        assert main([*command, "--seeds", str(seeds)]) == 0
        assert [len(cells(tmp_path / "run", "test", name)) for name in ("base", "icl")] == [1, seeds]


# ---- stopped, resumed, failed ----


@pytest.mark.slow
def test_a_killed_comparison_ends_in_the_same_table(finished, config, tmp_path):
    command = ["compare", config, *OPTIONS, "--train.output_dir", str(tmp_path)]
    process = multiprocessing.get_context("fork").Process(target=main, args=(command,))  # a fork need not import again
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cells/sdft/validation-*.json")) and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (tmp_path / "compare.json").exists()
    done = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/*/*.json")}
    assert len(done) >= 6
    assert main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in done} == done, "finished cells are not run again"
    assert table(tmp_path) == table(finished)


def test_a_cell_that_fails_says_why_and_the_others_go_on(config, tmp_path, monkeypatch, capsys):
    train = SDFTTrainer.train

    def fails_at_the_high_rate(self: SDFTTrainer, *args: Any) -> Any:
        if self.method.name == "sft" and self.args.learning_rate > 5e-3:
            raise RuntimeError("out of memory")
        return train(self, *args)

    monkeypatch.setattr(SDFTTrainer, "train", fails_at_the_high_rate)
    command = ["compare", config, *OPTIONS, "--methods", "sft", "--seeds", "1", "--train.output_dir", str(tmp_path)]
    assert main(command) == 0
    results = table(tmp_path)
    assert results["failed"] == {"sft, validation, learning rate 0.01, seed 0": "RuntimeError: out of memory"}
    assert results["methods"]["sft"]["learning_rate"] == 0.001
    assert "Failed: sft, validation, learning rate 0.01" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(command) == 0
    assert table(tmp_path)["failed"] == {}, "the next run tries again"


def test_a_row_that_one_method_cannot_learn_from_is_named_before_any_cell(config, tmp_path, capsys):
    rows = [{"prompt": "x1?", "golden_response": "x"}, {"id": "long", "prompt": "x2?", "golden_response": "x1x2x3x4x5"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["compare", config, *OPTIONS, "--methods", "sdft,sft", "--data", str(tmp_path / "train.jsonl")]
    assert main([*command, "--train.output_dir", str(tmp_path / "run")]) == 2
    assert "method 'sft': The expert's answer of 'long' has" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("run/cells/*/*.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "sft_techer"), "no method 'sft_techer'. Did you mean 'sft_teacher'"),
        (("--lr_sweep", "[fast]"), "write 1e-5,3e-5,1e-4"),
        (("--lr_sweep", "[0]"), "learning rates above 0"),
        (("--seeds", "0"), "at least one seed"),
        (("--validation_seeds", "0"), "one validation seed"),
        (("--eval.max_examples", "2"), "at least 3 rows"),
    ],
)
def test_bad_input_is_one_message(config, tmp_path, capsys, options, message):
    assert main(["compare", config, "--train.output_dir", str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*lr*.json"))


def test_cells_of_other_settings_are_refused(finished, config, capsys):
    assert main(["compare", config, *OPTIONS, "--train.output_dir", str(finished), "--train.max_steps", "7"]) == 2
    assert "train.max_steps 6, not 7" in capsys.readouterr().err


def test_cells_of_a_version_with_other_settings_had_their_defaults(finished, config, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    settings = json.loads((folder / "cells" / "settings.json").read_text())
    del settings["train.retain_ratio"]
    settings["train.confidence"] = "none"  # which later versions lack
    (folder / "cells" / "settings.json").write_text(json.dumps(settings))
    assert main(["compare", config, *OPTIONS, "--train.output_dir", str(folder)]) == 0
    assert table(folder) == table(finished)


def test_preview_shows_the_answer_that_is_learnt(config, tmp_path, capsys):
    assert main(["preview", config, "--method", "sft", "--train.output_dir", str(tmp_path)]) == 0
    assert "answer (2 tokens)\nx<|im_end|>" in capsys.readouterr().out


def test_a_step_of_a_method_that_learns_from_stored_answers_is_measured(config, tmp_path, capsys):
    command = ["preview", config, "--measure", "--train.output_dir", str(tmp_path / "run")]
    for method in ("sft_teacher", "offline"):
        assert main([*command, "--method", method]) == 0
        assert "s a step" in capsys.readouterr().out
    assert not (tmp_path / "run" / "answers.jsonl").exists(), "a preview leaves nothing that a run could take for its own"
    assert main([*command, "--method", "icl"]) == 2
    assert "'icl' trains nothing" in capsys.readouterr().err


def test_train_takes_a_method_and_measures_it(config, tmp_path, capsys):
    assert main(["train", config, "--method", "sft", "--train.output_dir", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"] == "sft"
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "taught with sft" in card and "cross-entropy on the expert's answers" in card
    assert main(["train", config, "--method", "icl", "--train.output_dir", str(tmp_path / "icl")]) == 2
    assert "'icl' trains nothing" in capsys.readouterr().err
    assert main(["train", config, "--method", "cpt", "--train.output_dir", str(tmp_path / "cpt")]) == 2
    assert "needs training rows with a privileged_context" in capsys.readouterr().err


def test_the_papers_medical_rows_are_compared(tmp_path):
    """Held-out training rows have a response to show and no right answer: nothing can be chosen by them."""
    trained = [{"Question": f"What helps {i}?", "Complex_CoT": "Hm.", "Response": f"Rest {i}."} for i in range(12)]
    tested = [{"Open-ended Verifiable Question": f"What {i}?", "Ground-True Answer": f"Rest {i}"} for i in range(6)]
    for name, rows in (("train", trained), ("test", tested)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["compare", "--model", save_tiny_text_model(tmp_path / "llama"), "--adapter", "medical", "--seeds", "1"]
    command += ["--data", str(tmp_path / "train.jsonl"), "--data.test", str(tmp_path / "test.jsonl"), "--methods", "icl"]
    command += [
        "--train.max_completion_length",
        "4",
        "--train.use_cpu",
        "true",
        "--train.output_dir",
        str(tmp_path / "run"),
    ]
    assert main(command) == 0
    assert "a fixed third of each set" in table(tmp_path / "run")["plan"]["validation"]


# ---- its parts ----


def test_validation_rows_are_a_fixed_third_or_the_datas_own():
    sets = {name: [Example(f"{name}{i}", [], reference="r") for i in range(9)] for name in ("new", "old", "validation")}
    validation, test, how = split_sets({name: sets[name] for name in ("new", "old")})
    for name in ("new", "old"):
        ids = [{example.id for example in part[name]} for part in (validation, test)]
        assert [len(part) for part in ids] == [3, 6] and not ids[0] & ids[1]
    assert (
        split_sets({name: sets[name] for name in ("new", "old")})[0] == validation and "a fixed third of each set;" in how
    )
    validation, test, how = split_sets(sets)
    assert validation["new"] == sets["validation"] and test["new"] == sets["new"] and len(validation["old"]) == 3
    assert "the set validation" in how and set(test) == {"new", "old"}
    with pytest.raises(UserError, match="at least 3 rows"):
        split_sets({"new": sets["new"][:2]})


def test_rows_of_the_new_task_are_no_prior_skills(finished, tmp_path):
    accuracy = {"new": 0.5, "old": 0.75, "ood": 0.0}
    assert selection_score(accuracy) == 0.625 and selection_score({"new": 0.5, "ood": 0.0}) == 0.5
    tested = [cell | {"test": {**cell["test"], "ood": {"a": 0.0}}} for cell in cells(finished, "test", "sdft")]
    comparison = Comparison(table(finished)["plan"], chosen={"sdft": 0.001}, tests={"sdft": tested})
    comparison.validation = {"sdft": {0.001: {"new": 0.5, "ood": 0.0}}}
    results = write_tables(comparison, SimpleNamespace(model="m", settings={"data": {"path": "d"}}), tmp_path)
    prior = results["methods"]["sdft"]["prior"]["over_seeds"]["mean"]
    assert prior == pytest.approx(np.mean([mean(cell["test"]["old"]) for cell in tested]))
    assert not (tmp_path / "compare.png").exists(), "nothing is known of prior skills on validation rows"


@pytest.mark.parametrize("seeds", [1, 10])
def test_more_seeds_of_the_same_answers_are_no_more_evidence(finished, tmp_path, seeds):
    """Three of 20 items differ, always the same ones: 2 of 8 draws of their signs are as far from 0."""
    rest = {"seconds": 0.0, "flops": 0.0, "learning_rate": 0.001}
    right = {"new": {str(i): float(i < 13) for i in range(20)}}
    base = [
        {**rest, "method": "base", "seed": 0, "seeded": False, "test": {"new": {str(i): float(i < 10) for i in range(20)}}}
    ]
    tests = {"base": base, "sdft": [{**rest, "method": "sdft", "seed": seed, "test": right} for seed in range(seeds)]}
    comparison = Comparison(table(finished)["plan"], chosen=dict.fromkeys(tests, 0.001), tests=tests)
    results = write_tables(comparison, SimpleNamespace(model="m", settings={"data": {"path": "d"}}), tmp_path)
    assert results["methods"]["base"]["new"]["paired"] == {"better": 0, "worse": 3, "p": pytest.approx(0.25)}
