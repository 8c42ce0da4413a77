"""Several methods with the same budget: trained at every learning rate, the rate chosen on validation rows, tested once.

What is done is kept, one JSON a cell, so that a comparison that was stopped goes on where it was:

    cells/METHOD/validation-lr1e-05-seed0.json   every rate, seed 0: scores on validation rows
    cells/METHOD/test-lr1e-05-seed3.json         the chosen rate, every seed: scores on test rows
"""

from __future__ import annotations

import copy
import gc
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from text_sdft.core import Conversation, Example, UserError
from text_sdft.experiments.compare_table import seeded, write_tables
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.costs import training_flops
from text_sdft.experiments.drift import Start, drift, general, remember
from text_sdft.experiments.method_trainer import MethodTrainer
from text_sdft.experiments.methods import Method, Unsupported, find_method, rows_for
from text_sdft.experiments.run import eval_sets, make_trainer, write_json
from text_sdft.experiments.scores import contexts_for, evaluate

Sets = dict[str, list[Example]]
#: The set that is learnt; all others are prior skills.
NEW, VALIDATION = "new", "validation"
#: Seeds that are looked at, where fewer are run: a later run may add some.
SEEDS = 10
#: Settings that a comparison chooses itself, or that change no number.
FREE = {"method", "eval.batch_size", "eval.teacher"} | {
    f"train.{name}" for name in ("output_dir", "learning_rate", "seed", "disable_tqdm", "logging_steps", "save_steps")
}


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        plan: methods, rates, seeds, steps, and how validation rows came about.
        validation: method -> rate -> {set: accuracy}, seed 0.
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


def compare(experiment: Experiment, methods: Sequence[str], seeds: int, rates: Sequence[float]) -> dict[str, Any]:
    """Run what is missing and write ``compare.md``, ``compare.json`` and ``compare.png`` into the run's folder.

    Args:
        methods: names from `METHODS`, with variants; ``base`` is always measured too.
        seeds: runs of each method at its chosen rate, seeds 0 … seeds - 1.
        rates: the grid of learning rates, the same for every method.

    Returns:
        What ``compare.json`` holds.

    Raises:
        UserError: an unknown method, nothing to measure, a row that a method cannot learn from, or the folder holds a
            comparison with other settings.
    """
    if experiment.args.world_size > 1:
        raise UserError("compare runs in one process: start it without `accelerate launch`.")
    if seeds < 1 or not rates or min(rates) <= 0:
        raise UserError("compare needs at least one seed, and learning rates above 0.")
    chosen = list(dict.fromkeys(find_method(name).name for name in ("base", *methods)))
    folder = Path(str(experiment.args.output_dir))
    _check_same(folder / "cells" / "settings.json", {**experiment.settings, "rows": list(experiment.splits.report)})
    validation, test, how = split_sets(eval_sets(experiment))
    queries = [example for example in experiment.adapter.examples(experiment.splits.train) if not example.retain]
    plan = {
        "methods": chosen,
        "seeds": seeds,
        "learning_rates": sorted(set(rates)),
        "steps": _steps(experiment, len(queries)),
    }
    comparison = Comparison({**plan, "validation": how})
    runner = _Runner(experiment, comparison, folder / "cells", validation, test)
    for name in chosen:
        runner.check(find_method(name))
    for name in chosen:
        runner.run(find_method(name))
    return write_tables(comparison, experiment, folder)


def split_sets(sets: Sets) -> tuple[Sets, Sets, str]:
    """Validation rows and test rows of each set, and a sentence on where they come from.

    The set "validation" stands for "new" where the data has it. Of all others a third, always the same one, is held out of
    the test for choosing the learning rate.

    Raises:
        UserError: there are too few rows of "new" to measure on.
    """
    own = sets.get(VALIDATION)
    validation, test = {}, {}
    for name, examples in sets.items():
        known = [example for example in examples if example.reference is not None]
        if name == VALIDATION:
            continue
        held = set(random.Random(0).sample(range(len(known)), len(known) // 3)) if name != NEW or own is None else set()
        validation[name] = [example for i, example in enumerate(known) if i in held]
        test[name] = [example for i, example in enumerate(known) if i not in held]
    if own is not None:
        validation[NEW] = list(own)
    if not validation.get(NEW) or not test.get(NEW):
        raise UserError(
            "compare measures on the set 'new', a third of which chooses learning rates: it needs at least 3 rows with a "
            "reference (data.test, or test/<type>/*)."
        )
    counts = "; ".join(f"{name}: {len(validation[name])} and {len(test[name])}" for name in test)
    origin = "a fixed third of each set" if own is None else "the set validation, and on a fixed third of each set but new"
    how = (
        f"Learning rates were chosen on {origin}; the test has the other rows (rows to choose by and tested on: {counts})."
    )
    return {k: v for k, v in validation.items() if v}, {k: v for k, v in test.items() if v}, how


def selection_score(accuracy: dict[str, float]) -> float:
    """What the learning rate is chosen by: the mean of the new task and the mean of the prior skills."""
    prior = [value for name, value in accuracy.items() if name != NEW]
    return (accuracy[NEW] + sum(prior) / len(prior)) / 2 if prior else accuracy[NEW]


@dataclass
class _Runner:
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
        cells = [self._file(method, "validation", rate, 0) for rate in self.comparison.plan["learning_rates"]]
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
            rows_for(method, self.experiment.adapter, self.experiment.adapter.examples(self.experiment.splits.train))
        except Unsupported as error:
            found.skipped[method.name] = str(error)
            self.console.print(f"Left out: {error}", highlight=False, soft_wrap=True)
            return
        if method.name == "rivals":
            self._run_rivals(method)
            return
        rates = plan["learning_rates"] if method.trains else [0.0]
        accuracies = found.validation[method.name] = {}
        for rate in rates:
            cell = self._cell(method, "validation", rate, 0, self._validate)
            if cell is not None:
                accuracies[rate] = {name: _mean(scores.values()) for name, scores in cell["validation"].items()}
        if not accuracies:
            return
        chosen = max(accuracies, key=lambda rate: (selection_score(accuracies[rate]), -rate))
        found.chosen[method.name] = chosen
        first = self._cell(method, "test", chosen, 0, self._test)
        others = range(1, plan["seeds"]) if first is None or seeded(first) else ()
        cells = [first, *(self._cell(method, "test", chosen, seed, self._test) for seed in others)]
        found.tests[method.name] = [cell for cell in cells if cell is not None]
        self._weights(method, chosen).unlink(missing_ok=True)

    def _run_rivals(self, method: Method) -> None:
        """One cell a seed (of the demonstrations' draw) with every rival in it; each becomes a row of its own."""
        adapter: Any = self.experiment.adapter
        if not hasattr(adapter, "rivals"):
            self.comparison.skipped[method.name] = "there are none for this kind of data."
            return
        cells = [self._cell(method, "test", 0.0, seed, self._rivals) for seed in range(self.comparison.plan["seeds"])]
        for cell in [cell for cell in cells if cell is not None]:
            for name, scores in cell["test"].items():
                row = {**cell, "method": name, "test": {NEW: scores}}
                self.comparison.tests.setdefault(name, []).append(row)
                self.comparison.chosen[name] = 0.0
        if hasattr(adapter, "rivals_left_out"):
            self.comparison.skipped |= adapter.rivals_left_out()

    def _rivals(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        trainer = self._trainer(method, rate, seed)
        adapter, examples = cast(Any, trainer.adapter), self.test[NEW]
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
        others = self.comparison.validation[method.name]
        best = max(map(selection_score, others.values()), default=-math.inf)
        if method.trains and selection_score({name: _mean(items.values()) for name, items in scores.items()}) > best:
            for other in others:
                self._weights(method, other).unlink(missing_ok=True)
            file = self._weights(method, rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(_trainable(trainer), file)  # so that the test of seed 0 need not train again
        return {"validation": scores, **cost}

    def _test(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
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
        moved = {"drift": drift(trainer, self._start)} if self._start is not None else {}
        scores = self._scores(trainer, method, self.test)
        return {"test": scores, "seeded": self._seeded(trainer, method), **moved, **cost}

    def _seeded(self, trainer: MethodTrainer, method: Method) -> bool:
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

    def _trained(self, method: Method, rate: float, seed: int) -> tuple[MethodTrainer, dict[str, float]]:
        trainer = self._trainer(method, rate, seed)
        shutil.rmtree(str(trainer.args.output_dir), ignore_errors=True)  # of a cell that was stopped
        started = time.monotonic()
        if method.trains:
            trainer.train()
        return trainer, {"seconds": time.monotonic() - started, "flops": training_flops(trainer)}

    def _trainer(self, method: Method, rate: float, seed: int) -> MethodTrainer:
        set_seed(seed)  # a LoRA adapter's start
        args = copy.copy(self.experiment.args)
        args.seed, args.max_steps = seed, self.comparison.plan["steps"]
        args.learning_rate = rate or args.learning_rate
        args.save_strategy, args.eval_strategy, args.load_best_model_at_end = SaveStrategy.NO, IntervalStrategy.NO, False
        args.output_dir = str(self._file(method, "training", rate, seed).with_suffix(""))
        trainer = make_trainer(replace(self.experiment, method=method.name, args=args), full_batches=True)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _scores(self, trainer: MethodTrainer, method: Method, sets: Sets) -> dict[str, dict[str, float]]:
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


def _trainable(trainer: MethodTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in trainer.module.named_parameters() if p.requires_grad}


def _steps(experiment: Experiment, queries: int) -> int:
    """Optimiser steps of every method: ``max_steps``, or what SDFT takes for its epochs over all queries."""
    args = experiment.args
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(queries / args.per_device_train_batch_size)
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def _check_same(file: Path, settings: dict[str, Any]) -> None:
    """Cells of other settings must not get into this table. Raises `UserError` naming the setting."""
    sections = {section: part if isinstance(part, dict) else {"": part} for section, part in settings.items()}
    flat = {f"{section}.{key}".rstrip("."): value for section, part in sections.items() for key, value in part.items()}
    flat = {key: value for key, value in flat.items() if key not in FREE}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in sorted(before.keys() | flat.keys()):
            if before.get(key) != flat.get(key):
                raise UserError(
                    f"{file.parent} holds cells of a comparison with {key} {before.get(key)}, not {flat.get(key)}: name "
                    "another folder with --train.output_dir, or delete that one."
                )
    write_json(file, flat)


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
