"""Hints that grow: the lowest rung at which the teacher solves a query, none where the student needs none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiers import further
from tests.toy import EOS, ToyAdapter, toy_args, toy_model
from text_sdft.core import Example, TeacherContext, answer
from text_sdft.experiments.report import plots
from text_sdft.experiments.report.reading import Run
from text_sdft.experiments.run import make_trainer
from text_sdft.methods.distillation import sdft
from text_sdft.training import SDFTTrainer
from vlm_sdft.cli import main
from vlm_sdft.cli.parsing import read_experiment


class Rungs(ToyAdapter):
    """Rung r shows r tokens of 7 before the query; queries with a reference have the rungs 0, 1, 2, 3 and 5."""

    policy = "ladder"

    def __init__(self) -> None:
        self.asked = 0

    def rungs(self, example: Example) -> tuple[int, ...]:
        return () if example.retain else (0, 1, 2, 3, 5) if example.reference is not None else (0, 2)

    def teacher_messages(self, example: Example, context: TeacherContext) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"role": "user", "content": [7] * (2 if context.rung is None else context.rung)}, *example.messages]


def rows() -> list[dict[str, Any]]:
    prompts = [[3, 9], [11, 4, 5], [20, 8], [15, 30], [2, 33, 6], [17, 18]]
    return [{"id": f"q{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]


def trainer(folder: Path, **settings: Any) -> SDFTTrainer:
    """The reference of q0 … q4 is what the model answers at the rungs 0, 1, 2, 3, 5; that of q5 nobody knows."""
    model, adapter = toy_model(), Rungs()
    made = SDFTTrainer(
        model, toy_args(folder, teacher_model_kind="base", **settings), adapter=adapter, train_dataset=rows()
    )
    for i, rung in enumerate((0, 1, 2, 3, 5)):
        text = answer(model, adapter, made.sampler, [made.queries[i]], 99, [TeacherContext(rung=rung)])[0]
        made.queries[i] = replace(made.queries[i], reference=text)
    made.train_dataset = made.queries
    adapter.asked = 0
    return made


def rungs_of(made: SDFTTrainer, queries: list[Example]) -> dict[str, int]:
    return made.hints.rungs(made.step(queries), queries)


def lowest(made: SDFTTrainer, query: Example) -> int:
    """By asking the teacher at one rung after the other."""
    for rung in (0, 1, 2, 3, 5):
        given = answer(made.module, made.adapter, made.sampler, [query], 99, [TeacherContext(rung=rung)])[0]
        if given == query.reference:
            return rung
    raise AssertionError


def test_the_lowest_rung_that_solves_it(tmp_path):
    made = trainer(tmp_path)
    rungs = rungs_of(made, made.queries)
    assert rungs == {query.id: lowest(made, query) for query in made.queries[:5]}
    assert len(set(rungs.values())) >= 4, "the queries tell rungs apart"
    [group] = sdft(made.step(made.queries))
    assert [c.rung for c in group.reader.contexts] == [*rungs.values(), None]
    assert [c.seed for c in group.reader.contexts] == list(group.seeds)


def test_a_query_that_no_rung_solves_is_shown_the_most(tmp_path):
    made = trainer(tmp_path)
    made.queries[2] = replace(made.queries[2], reference="never")
    assert rungs_of(made, made.queries)["q2"] == 5


def test_rungs_are_kept_while_the_teacher_stays(tmp_path):
    made = trainer(tmp_path)
    first, asked = rungs_of(made, made.queries), made.adapter.asked
    read = made.tokens["sampled"]
    assert read >= sum(len(query.messages[-1]["content"]) + 1 for query in made.queries[:5]), "its answers cost something"
    assert (
        rungs_of(made, made.queries[::-1]) == first and made.adapter.asked == asked > 0 and made.tokens["sampled"] == read
    )
    made.teacher.version += 1
    rungs_of(made, made.queries)
    assert made.adapter.asked == 2 * asked


def test_what_the_student_solves_weighs_nothing(tmp_path):
    made = trainer(tmp_path)
    ids = [torch.tensor([9, 9, EOS]) for _ in made.queries]
    ids[3] = torch.tensor([*(int(word) for word in str(made.queries[3].reference).split()), EOS])
    [group] = sdft(made.step(made.queries))
    counted = [group.counts(query, row) for query, row in zip(made.queries, ids, strict=True)]
    assert counted == [False, True, True, False, True, True], "q0 at rung 0, q3 answered right; q5 stays"


def test_a_run_trains_and_logs_its_rungs(tmp_path):
    made = trainer(tmp_path, max_steps=3, per_device_train_batch_size=6)
    before = [p.clone() for p in made.module.parameters()]
    made.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, made.module.parameters(), strict=True))
    logs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logs = [log for log in logs if "ladder/mean_rung" in log]
    assert len(logs) == 3
    for log in logs:
        shares = {int(name[-1]): share for name, share in log.items() if name.startswith("ladder/rung_")}
        assert sum(shares.values()) == pytest.approx(1) and shares[0] >= 0.2 - 1e-6
        assert log["ladder/mean_rung"] == pytest.approx(sum(rung * share for rung, share in shares.items()), abs=1e-5)


def test_a_step_in_which_nothing_is_left_to_learn_moves_nothing(tmp_path):
    made = trainer(tmp_path, max_steps=1, weight_decay=0.0)
    made.train_dataset = [made.queries[0]]
    before = [p.clone() for p in made.module.parameters()]
    made.train()
    assert all(torch.equal(a, b) for a, b in zip(before, made.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "grows"),
    [
        ("sdft", True),
        ("sft", False),
        *further(("sdft/reverse", True), ("sdft/no_retain/live", True), ("offline", False)),
    ],
)
def test_every_variant_of_sdft_has_it(tmp_path, caplog, method, grows):
    """(Other methods' teachers answer once, or there is none: they say so.)"""
    options = json.dumps({"n_types": 2, "n_unlabelled": 1, "n_test": 2, "n_retain": 1, "n_old": 1})
    args = ["--model", "builtin:tiny-qwen3-vl", "--data", "builtin:novel-objects", "--data.options", options]
    args += ["--data.cache", str(tmp_path), "--demonstrations.policy", "ladder", "--method", method]
    args += ["--train.output_dir", str(tmp_path), "--train.use_cpu", "true", "--train.max_steps", "1"]
    made = make_trainer(read_experiment("train", [*args, "--train.logging_steps", "1", "--train.disable_tqdm", "true"]))
    made.train()
    assert made.method.name == method and ("ladder/mean_rung" in (tmp_path / "metrics.jsonl").read_text()) == grows
    assert (f"demonstrations.policy ladder changes nothing for the method '{method}'" in caplog.text) == (not grows)


@pytest.mark.slow
def test_the_config_chooses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = json.dumps({"n_types": 2, "n_unlabelled": 1, "n_test": 2, "n_retain": 1, "n_old": 1})
    args = ["train", "--model", "builtin:tiny-qwen3-vl", "--data", "builtin:novel-objects", "--data.options", options]
    args += ["--demonstrations.policy", "ladder", "--demonstrations.n_types", "2", "--train.output_dir", "runs/x"]
    assert main([*args, "--train.max_steps", "2", "--train.logging_steps", "1", "--train.disable_tqdm", "true"]) == 0
    logs = [json.loads(line) for line in Path("runs/x/metrics.jsonl").read_text().splitlines()]
    first, last = [log for log in logs if "ladder/mean_rung" in log]
    assert first["ladder/mean_rung"] > 0
    report = Path("runs/x/report.html").read_text()
    (words,) = re.findall(r'aria-label="Growing hints\. ([^"]*)"', report)
    ends = (f"{log['ladder/mean_rung']:.3g} at step {log['step']}" for log in (first, last))
    assert words == f"mean rung: {', '.join(ends)}."


def test_the_report_draws_the_mean_rung_where_hints_grew():
    logs = [{"step": 5 * i, "ladder/mean_rung": rung} for i, rung in enumerate((2.7, 2.0, 1.0), start=1)]
    assert "mean rung: 2.7 at step 5, 1 at step 15." in str(plots.ladder_history(Run("x", {}, logs, [], None)))
    assert plots.ladder_history(Run("x", {}, [{"step": 1, "loss": 1.0}], [], None)) is None
