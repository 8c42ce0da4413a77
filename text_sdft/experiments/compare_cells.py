"""The cells of a comparison: a method trained at one rate with one seed and measured; each is kept in a file of its own.

cells/METHOD/validation-lr1e-05-seed0.json   every rate, seed 0 (or several): scores on validation rows
cells/METHOD/test-lr1e-05-seed3.json         the chosen rate, every seed: scores on test rows
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import shutil
import time
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
from text_sdft.core.files import is_of_the_disk, read_json, write_json
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.cost import training_flops
from text_sdft.experiments.drift import StartReading, drift, start_reading
from text_sdft.experiments.run import make_trainer
from text_sdft.experiments.scores import contexts_for, evaluate, of_prior_skills
from text_sdft.experiments.shapes import CELL
from text_sdft.experiments.stats import mean
from text_sdft.methods.table import Method, find_method
from text_sdft.training import SDFTTrainer

Sets = dict[str, list[Example]]
#: The set that is learnt.
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
            first alone where `seeds_matter` not.
        skipped, failed: method or cell -> why.
    """

    plan: dict[str, Any]
    validation: dict[str, dict[float, dict[str, float]]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    tests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def accuracies(cell: dict[str, Any]) -> dict[str, float]:
    """Of a cell on validation rows, by set."""
    return {name: mean(scores.values()) for name, scores in cell["validation"].items()}


def selection_score(accuracy: dict[str, float]) -> float:
    """What the learning rate is chosen by: the mean of the new task and the mean of the prior skills."""
    prior = of_prior_skills(accuracy)
    return (accuracy[NEW] + mean(prior.values())) / 2 if prior else accuracy[NEW]


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
        """Look at a method's rows, and make its trainer if it has anything to do yet, before any method is trained.

        Raises `Unsupported` where the data lacks what it learns from, `UserError` where a row cannot be trained on.
        """
        method.rows(self.experiment.adapter, self.experiment.adapter.examples(self.experiment.splits.train))
        plan = self.comparison.plan
        swept = itertools.product(plan["learning_rates"], range(plan["validation_seeds"]))
        if not method.trains or all(self._file(method, "validation", rate, seed).exists() for rate, seed in swept):
            return
        try:
            self._trainer(method, 0.0, 0)
        except UserError as error:
            raise UserError(f"The method '{method.name}': {error}") from error

    def run(self, method: Method) -> None:
        """All cells of a method; what fails is noted, and the next one goes on."""
        if method.name == "rivals":
            self._run_rivals(method)
            return
        found = self.comparison
        by_rate = found.validation[method.name] = self._sweep(method)
        if not by_rate:
            return
        chosen = found.chosen[method.name] = max(by_rate, key=lambda rate: (selection_score(by_rate[rate]), -rate))
        first = self._cell(method, "test", chosen, 0)
        others = range(1, found.plan["seeds"]) if first is None or seeds_matter(first) else ()
        cells = [first, *(self._cell(method, "test", chosen, seed) for seed in others)]
        found.tests[method.name] = [cell for cell in cells if cell is not None]
        for rate in by_rate:
            self._weights(method, rate).unlink(missing_ok=True)

    def _sweep(self, method: Method) -> dict[float, dict[str, float]]:
        """Each rate's accuracies on validation rows, mean over the validation seeds; no rate of which a run failed."""
        plan = self.comparison.plan
        rates = plan["learning_rates"] if method.trains else [0.0]
        seeds = range(plan["validation_seeds"] if method.trains else 1)
        cells = {(rate, seed): self._cell(method, "validation", rate, seed) for seed in seeds for rate in rates}
        found = {rate: [accuracies(cell) for seed in seeds if (cell := cells[rate, seed]) is not None] for rate in rates}
        return {
            rate: {name: mean(of_seed[name] for of_seed in of_seeds) for name in of_seeds[0]}
            for rate, of_seeds in found.items()
            if len(of_seeds) == len(seeds)
        }

    def _run_rivals(self, method: Method) -> None:
        """One cell a seed (of the demonstrations' draw) with every rival in it; each becomes a row of its own."""
        for seed in range(self.comparison.plan["seeds"]):
            cell = self._cell(method, "test", 0.0, seed)
            if cell is None:
                continue
            if not cell["test"]:
                self.comparison.skipped[method.name] = "there are none for this kind of data."
                return
            for name, scores in cell["test"].items():
                self.comparison.tests.setdefault(name, []).append({**cell, "method": name, "test": {NEW: scores}})
                self.comparison.chosen[name] = 0.0
        self.comparison.skipped |= self.experiment.adapter.rivals_left_out()

    def _cell(self, method: Method, part: str, rate: float, seed: int) -> dict[str, Any] | None:
        """The stored cell, or one that is run now, and stored; None where it failed."""
        file = self._file(method, part, rate, seed)
        name = f"{method.name}, {part}" + (f", learning rate {rate:g}" if rate else "") + f", seed {seed}"
        if (stored := read_json(file, {**CELL, part: dict})) is not None:
            return stored
        self.console.print(f"[{time.strftime('%H:%M:%S')}] {name} …", highlight=False, markup=False)
        try:
            work = self._rivals if method.name == "rivals" else self._validate if part == "validation" else self._test
            cell = {"method": method.name, "learning_rate": rate, "seed": seed, **work(method, rate, seed)}
        except Exception as error:  # one cell's failure is reported in the table, and must not cost the others
            if is_of_the_disk(error):
                raise
            self.comparison.failed[name] = f"{type(error).__name__}: {error}"
            self.console.print(f"Failed: {name}: {type(error).__name__}: {error}", highlight=False, markup=False)
            return None
        finally:
            if torch.cuda.is_available():  # a trainer is a circle of references: its GPU memory waits for the collector
                gc.collect()
                torch.cuda.empty_cache()
        write_json(file, cell)
        scores = ", ".join(f"{key} {100 * mean(items.values()):.1f} %" for key, items in cell[part].items())
        self.console.print(f"    {scores} ({cell['seconds']:.0f} s)", highlight=False, markup=False)
        return cell

    def _rivals(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        trainer, examples = self._trainer(method, rate, seed), self.test[NEW]
        started = time.monotonic()
        answers = trainer.adapter.rivals(examples, contexts_for(trainer, examples))
        seconds = time.monotonic() - started
        scores = {
            name: {e.id: trainer.adapter.score(e, text) for e, text in zip(examples, texts, strict=True)}
            for name, texts in answers.items()
        }
        return {"test": scores, "seconds": seconds, "flops": 0.0}

    def _validate(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        trainer, cost = self._trained(method, rate, seed)
        cell = {"validation": self._scores(trainer, method, self.validation), **cost}
        if method.trains and seed == 0:
            self._keep_best(trainer, method, rate, selection_score(accuracies(cell)))
        return cell

    def _keep_best(self, trainer: SDFTTrainer, method: Method, rate: float, score: float) -> None:
        """Store the weights if no other rate was better with seed 0, so that its test need not train again."""
        rates = self.comparison.plan["learning_rates"]
        cells = [read_json(self._file(method, "validation", other, 0)) for other in rates]
        if score > max((selection_score(accuracies(cell)) for cell in cells if cell), default=-math.inf):
            for other in rates:
                self._weights(method, other).unlink(missing_ok=True)
            file = self._weights(method, rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            save_file(_trainable(trainer), part)
            part.replace(file)

    def _test(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        start = self._start  # before the trainer is made, whose model would lie beside the start's
        file = self._weights(method, rate)
        if seed == 0 and method.trains and file.exists():
            trainer, stored = self._trainer(method, rate, seed), load_file(file)
            for name, tensor in _trainable(trainer).items():
                tensor.copy_(stored[name])
            validated = read_json(self._file(method, "validation", rate, seed))
            cost = {"seconds": validated["seconds"], "flops": validated["flops"]}
        else:
            trainer, cost = self._trained(method, rate, seed)
        moved = {"drift": drift(trainer, start)} if start is not None else {}
        scores = self._scores(trainer, method, self.test)
        return {"test": scores, "seeded": self._seeds_matter(trainer, method), **moved, **cost}

    def _seeds_matter(self, trainer: SDFTTrainer, method: Method) -> bool:
        """Whether seeds differ: a model that is not trained gives the same greedy answers to what is shown alike."""
        if method.trains or not _in_context(method):
            return method.trains
        examples = self.test[NEW]

        def shown(seed: int) -> list[Conversation]:
            return list(map(trainer.adapter.teacher_messages, examples, contexts_for(trainer, examples, seed)))

        first = shown(0)
        return any(shown(seed) != first for seed in range(1, max(self.comparison.plan["seeds"], SEEDS)))

    @cached_property
    def _start(self) -> StartReading | None:
        """The starting model on the prompts of prior skills that are tested; None where there are none."""
        return start_reading(self._trainer(find_method("base"), 0.0, 0), self.test, self.experiment.eval.batch_size)

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


def _in_context(method: Method) -> bool:
    return method.name.partition("/")[0] == "icl"


def _trainable(trainer: SDFTTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in trainer.module.named_parameters() if p.requires_grad}


def seeds_matter(cell: dict[str, Any]) -> bool:
    """Whether a method's other seeds could give other answers than this cell's."""
    return cell.get("seeded", cell["method"] != "base")
