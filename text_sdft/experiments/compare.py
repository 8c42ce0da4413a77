"""Several methods with the same budget: trained at every learning rate, the rate chosen on validation rows, tested once.

What is done is kept, one file a cell (`compare_cells`), so that a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text_sdft.core import UserError
from text_sdft.core.files import claimed, disk_errors_explained, read_json, write_json
from text_sdft.experiments.compare_cells import NEW, CellRunner, Comparison, Sets
from text_sdft.experiments.compare_table import write_tables
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.run import eval_sets, row_digests
from text_sdft.experiments.scores import with_reference
from text_sdft.experiments.settings import first_change, flattened, other_content
from text_sdft.methods.table import Method, Unsupported, find_method

VALIDATION = "validation"
#: Settings that a comparison chooses itself, or that change no number.
CHOSEN = {"method", "eval.batch_size", "eval.teacher"} | {
    f"train.{name}" for name in ("output_dir", "learning_rate", "seed", "disable_tqdm", "logging_steps", "save_steps")
}


def compare(
    experiment: Experiment, methods: Sequence[str], seeds: int, rates: Sequence[float], validation_seeds: int = 1
) -> dict[str, Any]:
    """Run what is missing and write ``compare.md``, ``compare.json`` and ``compare.png`` into the run's folder.

    Args:
        methods: names from `METHODS`, with variants; ``base`` is always measured too.
        seeds: runs of each method at its chosen rate, seeds 0 … seeds - 1.
        rates: the grid of learning rates, the same for every method.
        validation_seeds: by how many seeds' runs the rate is chosen, seeds 0 … validation_seeds - 1.

    Returns what ``compare.json`` holds. Raises `UserError` for an unknown method, a row that a method cannot learn from,
    and where there is nothing to measure or the folder holds a comparison with other settings.
    """
    if experiment.args.world_size > 1:
        raise UserError("compare runs in one process: start it without `accelerate launch`.")
    if not (1 <= min(seeds, validation_seeds) <= max(seeds, validation_seeds) <= 1_000):
        raise UserError("compare needs at least one seed and one validation seed, and at most 1,000 of each.")
    if not rates or not all(0 < rate < 1e38 for rate in rates):
        raise UserError("compare needs learning rates above 0.")
    chosen = {method.name: method for method in map(find_method, ("base", *methods))}
    with claimed(experiment.folder), disk_errors_explained(experiment.folder):
        return _compare(experiment, chosen, seeds, rates, validation_seeds)


def _compare(
    experiment: Experiment, chosen: dict[str, Method], seeds: int, rates: Sequence[float], validation_seeds: int
) -> dict[str, Any]:
    cells = experiment.folder / "cells"
    _check_same(cells / "settings.json", experiment)
    validation, test, how = split_sets(eval_sets(experiment))
    plan = {"methods": list(chosen), "seeds": seeds, "validation_seeds": validation_seeds}
    plan |= {"learning_rates": sorted(set(rates)), "steps": _steps(experiment), "validation": how}
    comparison = Comparison(plan)
    runner = CellRunner(experiment, comparison, cells, validation, test)
    for name, method in list(chosen.items()):
        try:
            runner.check(method)
        except Unsupported as error:
            del chosen[name]
            comparison.skipped[name] = str(error)
            runner.console.print(f"Left out: {error}", highlight=False, markup=False, soft_wrap=True)
    for method in chosen.values():
        runner.run(method)
    return write_tables(comparison, experiment, experiment.folder)


def split_sets(sets: Sets) -> tuple[Sets, Sets, str]:
    """Validation rows and test rows of each set, and a sentence on where they come from.

    The set "validation" stands for "new" where the data has one with references. Of all others a third, always the same, is
    held out of the test for choosing the learning rate.

    Raises `UserError` where there are too few rows of "new" to measure on.
    """
    measured = {name: with_reference(examples) for name, examples in sets.items()}
    own = measured.pop(VALIDATION, [])
    validation, test = {}, {}
    for name, known in measured.items():
        held = set(random.Random(0).sample(range(len(known)), len(known) // 3)) if name != NEW or not own else set()
        validation[name] = [example for i, example in enumerate(known) if i in held]
        test[name] = [example for i, example in enumerate(known) if i not in held]
    if own:
        validation[NEW] = own
    if not validation.get(NEW) or not test.get(NEW):
        raise UserError(
            "compare measures on the set 'new', a third of which chooses learning rates: it needs at least 3 rows with a "
            "reference. Add some."
        )
    counts = "; ".join(f"{name}: {len(validation[name])} and {len(test[name])}" for name in test)
    origin = "a fixed third of each set" if not own else "the set validation, and on a fixed third of each set but new"
    how = (
        f"Learning rates were chosen on {origin}; the test has the other rows (rows to choose by and tested on: {counts})."
    )
    return {k: v for k, v in validation.items() if v}, {k: v for k, v in test.items() if v}, how


def _steps(experiment: Experiment) -> int:
    """Optimiser steps of every method: ``max_steps``, or what SDFT takes for its epochs over all queries."""
    args = experiment.args
    if args.max_steps > 0:
        return args.max_steps
    queries = sum(not example.retain for example in experiment.adapter.examples(experiment.splits.train))
    batches = math.ceil(queries / args.per_device_train_batch_size)
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def _check_same(file: Path, experiment: Experiment) -> None:
    """Cells of other settings must not get into this table. Raises `UserError` naming the setting."""
    settings = {**experiment.settings, "rows": list(experiment.splits.report)}
    flat = {key: value for key, value in flattened(settings).items() if key not in CHOSEN}
    begun = any(path != file for path in file.parent.rglob("*.json"))  # without a cell anything may begin
    stored, digests = (begun and read_json(file, dict)) or dict(flat), row_digests(experiment)
    changed = other_content(stored.pop("digests", {}), digests)
    if changed := first_change(stored, flat, flattened(experiment.defaults)) or changed:
        raise UserError(
            f"{file.parent} holds cells of a comparison with {changed}: name another folder with --train.output_dir, or "
            "delete that one."
        )
    write_json(file, {**flat, "digests": digests})
