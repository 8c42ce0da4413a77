"""The cells of a comparison: a method trained at one rate with one seed and measured; each is kept in a file of its own.

cells/METHOD/validation-lr1e-05-seed0.json   every rate, seed 0 (or several): scores on validation rows
cells/METHOD/test-lr1e-05-seed3.json         the chosen rate, every seed: scores on test rows
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from text_sdft.core import Conversation, Example, UserError
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.drift import Start, drift, general, remember
from text_sdft.experiments.flops import training_flops
from text_sdft.experiments.run import make_trainer, write_json
from text_sdft.experiments.scores import TASK, contexts_for, evaluate
from text_sdft.methods.table import Method, Unsupported, find_method
from text_sdft.training import SDFTTrainer

Sets = dict[str, list[Example]]
#: The set that is learnt; prior skills are those outside of `TASK`.
NEW = "new"
#: Seeds that are looked at, where fewer are run: a later run may add some.
SEEDS = 10


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        plan: methods, rates, seeds, steps, and how validation rows came about.
        validation: method -> rate -> {set: accuracy}, mean over the validation seeds.
        chosen: method -> rate (0 where nothing is trained).
        tests: method -> one cell a seed: {"seed", "seeded", "test": {set: {item: score}}, "drift", "seconds", "flops"}; the
            first alone where it is not `seeded`.
        skipped, failed: method or cell -> why.
    """

    plan: dict[str, Any]
    validation: dict[str, dict[float, dict[str, float]]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    tests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def selection_score(accuracy: dict[str, float]) -> float:
    """What the learning rate is chosen by: the mean of the new task and the mean of the prior skills."""
    prior = [value for name, value in accuracy.items() if name not in TASK]
    return (accuracy[NEW] + sum(prior) / len(prior)) / 2 if prior else accuracy[NEW]


@dataclass
class CellRunner:
    """Runs the cells of one comparison that are not there yet."""

    experiment: Experiment
    comparison: Comparison
    folder: Path
    validation: Sets
    test: Sets
    console: Console = field(default_factory=Console)

    def check(self, method: Method) -> None:
        """Make a method's trainer, if it has anything to do yet: what is wrong with its rows is said before any is trained.

        Raises:
            UserError: a row cannot be trained on; names the method.
        """
        plan = self.comparison.plan
        swept = itertools.product(plan["learning_rates"], range(plan["validation_seeds"]))
        cells = [self._file(method, "validation", rate, seed) for rate, seed in swept]
        if not method.trains or all(cell.exists() for cell in cells):
            return
        try:
            self._trainer(method, 0.0, 0)
        except Unsupported:
            pass  # `run` leaves it out
        except UserError as error:
            raise UserError(f"The method '{method.name}': {error}") from error

    def run(self, method: Method) -> None:
        """All cells of a method; what fails is noted, and the next one goes on."""
        plan, found = self.comparison.plan, self.comparison
        try:
            method.rows(self.experiment.adapter, self.experiment.adapter.examples(self.experiment.splits.train))
        except Unsupported as error:
            found.skipped[method.name] = str(error)
            self.console.print(f"Left out: {error}", highlight=False, soft_wrap=True)
            return
        if method.name == "rivals":
            self._run_rivals(method)
            return
        accuracies = found.validation[method.name] = self._sweep(method)
        if not accuracies:
            return
        chosen = max(accuracies, key=lambda rate: (selection_score(accuracies[rate]), -rate))
        found.chosen[method.name] = chosen
        first = self._cell(method, "test", chosen, 0, self._test)
        others = range(1, plan["seeds"]) if first is None or seeded(first) else ()
        cells = [first, *(self._cell(method, "test", chosen, seed, self._test) for seed in others)]
        found.tests[method.name] = [cell for cell in cells if cell is not None]
        for rate in accuracies:
            self._weights(method, rate).unlink(missing_ok=True)

    def _sweep(self, method: Method) -> dict[float, dict[str, float]]:
        """Each rate's accuracies on validation rows, mean over the validation seeds; no rate of which a run failed."""
        plan = self.comparison.plan
        rates = plan["learning_rates"] if method.trains else [0.0]
        seeds = range(plan["validation_seeds"] if method.trains else 1)
        found: dict[float, list[dict[str, float]]] = {}
        for seed, rate in itertools.product(seeds, rates):
            cell = self._cell(method, "validation", rate, seed, self._validate)
            if cell is not None:
                found.setdefault(rate, []).append(_accuracies(cell))
        whole = {rate: of_seeds for rate, of_seeds in found.items() if len(of_seeds) == len(seeds)}
        return {
            rate: {name: _mean(accuracy[name] for accuracy in of_seeds) for name in of_seeds[0]}
            for rate, of_seeds in whole.items()
        }

    def _run_rivals(self, method: Method) -> None:
        """One cell a seed (of the demonstrations' draw) with every rival in it; each becomes a row of its own."""
        for seed in range(self.comparison.plan["seeds"]):
            cell = self._cell(method, "test", 0.0, seed, self._rivals)
            if cell is None:
                continue
            if not cell["test"]:
                self.comparison.skipped[method.name] = "there are none for this kind of data."
                return
            for name, scores in cell["test"].items():
                self.comparison.tests.setdefault(name, []).append({**cell, "method": name, "test": {NEW: scores}})
                self.comparison.chosen[name] = 0.0
        self.comparison.skipped |= self.experiment.adapter.rivals_left_out()

    def _rivals(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        trainer = self._trainer(method, rate, seed)
        adapter, examples = trainer.adapter, self.test[NEW]
        started = time.monotonic()
        answers = adapter.rivals(examples, contexts_for(trainer, examples))
        seconds = time.monotonic() - started
        scores = {
            name: {e.id: adapter.score(e, text) for e, text in zip(examples, texts, strict=True)}
            for name, texts in answers.items()
        }
        return {"test": scores, "seconds": seconds, "flops": 0.0}

    def _cell(
        self, method: Method, part: str, rate: float, seed: int, work: Callable[[Method, float, int], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """The stored cell, or what ``work`` returns, which is then stored; None where it failed."""
        file = self._file(method, part, rate, seed)
        name = f"{method.name}, {part}" + (f", learning rate {rate:g}" if rate else "") + f", seed {seed}"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        self.console.print(f"[{time.strftime('%H:%M:%S')}] {name} …", highlight=False, markup=False)
        try:
            cell = {"method": method.name, "learning_rate": rate, "seed": seed, **work(method, rate, seed)}
        except Exception as error:  # one cell's failure is reported in the table, and must not cost the others
            self.comparison.failed[name] = f"{type(error).__name__}: {error}"
            self.console.print(f"Failed: {name}: {type(error).__name__}: {error}", highlight=False, markup=False)
            return None
        finally:
            if torch.cuda.is_available():  # a trainer is a circle of references: its GPU memory waits for the collector
                gc.collect()
                torch.cuda.empty_cache()
        write_json(file, cell)
        scores = ", ".join(f"{key} {100 * _mean(items.values()):.1f} %" for key, items in cell[part].items())
        self.console.print(f"    {scores} ({cell['seconds']:.0f} s)", highlight=False, markup=False)
        return cell

    def _validate(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        trainer, cost = self._trained(method, rate, seed)
        scores = self._scores(trainer, method, self.validation)
        cell = {"validation": scores, **cost}
        if method.trains and seed == 0:
            self._keep_best(trainer, method, rate, selection_score(_accuracies(cell)))
        return cell

    def _keep_best(self, trainer: SDFTTrainer, method: Method, rate: float, score: float) -> None:
        """Store the weights if no other rate was better with seed 0, so that its test need not train again."""
        files = {other: self._file(method, "validation", other, 0) for other in self.comparison.plan["learning_rates"]}
        others = [json.loads(file.read_text(encoding="utf-8")) for file in files.values() if file.exists()]
        if score > max((selection_score(_accuracies(cell)) for cell in others), default=-math.inf):
            for other in files:
                self._weights(method, other).unlink(missing_ok=True)
            file = self._weights(method, rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(_trainable(trainer), file)

    def _test(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        start = self._start  # before the trainer is made, whose model would lie beside the start's
        file, sweep = self._weights(method, rate), self._file(method, "validation", rate, seed)
        if seed == 0 and method.trains and file.exists():
            trainer = self._trainer(method, rate, seed)
            stored = load_file(file)
            for name, tensor in _trainable(trainer).items():
                tensor.copy_(stored[name])
            done = json.loads(sweep.read_text(encoding="utf-8"))
            cost = {"seconds": done["seconds"], "flops": done["flops"]}
        else:
            trainer, cost = self._trained(method, rate, seed)
        moved = {"drift": drift(trainer, start)} if start is not None else {}
        scores = self._scores(trainer, method, self.test)
        return {"test": scores, "seeded": self._seeded(trainer, method), **moved, **cost}

    def _seeded(self, trainer: SDFTTrainer, method: Method) -> bool:
        """Whether seeds differ: a model that is not trained gives the same greedy answers to what is shown alike."""
        if method.trains or not _in_context(method):
            return method.trains
        examples, adapter = self.test[NEW], trainer.adapter

        def shown(seed: int) -> list[Conversation]:
            return [
                adapter.teacher_messages(e, c) for e, c in zip(examples, contexts_for(trainer, examples, seed), strict=True)
            ]

        first = shown(0)
        return any(shown(seed) != first for seed in range(1, max(self.comparison.plan["seeds"], SEEDS)))

    @cached_property
    def _start(self) -> Start | None:
        """The starting model on the prompts of prior skills that are tested; None where there are none."""
        prior = general(self.test)
        if not prior:
            return None
        return remember(self._trainer(find_method("base"), 0.0, 0), prior, self.experiment.eval.batch_size)

    def _trained(self, method: Method, rate: float, seed: int) -> tuple[SDFTTrainer, dict[str, float]]:
        trainer = self._trainer(method, rate, seed)
        shutil.rmtree(str(trainer.args.output_dir), ignore_errors=True)  # of a cell that was stopped
        started = time.monotonic()
        if method.trains:
            trainer.train()
        return trainer, {"seconds": time.monotonic() - started, "flops": training_flops(trainer)}

    def _trainer(self, method: Method, rate: float, seed: int) -> SDFTTrainer:
        args = copy.copy(self.experiment.args)
        args.seed, args.max_steps = seed, self.comparison.plan["steps"]
        args.learning_rate = rate or args.learning_rate
        args.save_strategy, args.eval_strategy, args.load_best_model_at_end = SaveStrategy.NO, IntervalStrategy.NO, False
        args.output_dir = str(self._file(method, "training", rate, seed).with_suffix(""))
        trainer = make_trainer(replace(self.experiment, method=method.name, args=args), full_batches=True)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _scores(self, trainer: SDFTTrainer, method: Method, sets: Sets) -> dict[str, dict[str, float]]:
        """Item by item; the new task with demonstrations in context for ``icl``, everything else without."""
        _, records = evaluate(trainer, sets, _in_context(method), self.experiment.eval.batch_size, method.name)
        scores: dict[str, dict[str, float]] = {name: {} for name in sets}
        for record in records:  # the teacher's answers come last, and take the place of the student's
            scores[record["set"]][record["id"]] = record["score"]
        return scores

    def _file(self, method: Method, part: str, rate: float, seed: int) -> Path:
        return self.folder / method.name.replace("/", "+") / f"{part}-lr{rate:g}-seed{seed}.json"

    def _weights(self, method: Method, rate: float) -> Path:
        return self._file(method, "validation", rate, 0).with_suffix(".safetensors")


def _accuracies(cell: dict[str, Any]) -> dict[str, float]:
    """Of a cell on validation rows, by set."""
    return {name: _mean(scores.values()) for name, scores in cell["validation"].items()}


def _in_context(method: Method) -> bool:
    return method.name.partition("/")[0] == "icl"


def _trainable(trainer: SDFTTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in trainer.module.named_parameters() if p.requires_grad}


def seeded(cell: dict[str, Any]) -> bool:
    """Whether a method's other seeds could give other answers than this cell's."""
    return cell.get("seeded", cell["method"] != "base")


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
