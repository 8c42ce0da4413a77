"""Tasks one after the other: each starts from the model that the one before it left, and all are measured after each.

task-1/ … task-K/   runs' folders
joint/              a run on all tasks at once, where it was asked for
sequence.json       what was measured, and the settings of each task
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from text_sdft.core import Example, Model, UserError
from text_sdft.core.files import claimed, disk_errors_explained, read_json, write_json
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.run import eval_sets, is_finished, measuring_trainer, row_digests, run_training, trained_model
from text_sdft.experiments.scores import evaluate, of_prior_skills
from text_sdft.experiments.settings import Settings, first_change, other_content, resumable
from text_sdft.experiments.shapes import SEQUENCE
from text_sdft.methods.table import find_method
from text_sdft.training.modeling import load_model

Row = dict[str, Any]


def run_sequence(
    tasks: Sequence[Experiment],
    folder: Path,
    resume: bool = False,
    joint: Experiment | None = None,
    retain_earlier: int = 0,
) -> dict[str, Any]:
    """Train task after task; what is finished is not run again.

    Retention prompts of a task are those of its own data, and ``retain_earlier`` queries of each earlier task; the model as
    it was when the task began reads them. The method ``replay`` shows earlier tasks' labelled queries with their labels.

    Args:
        tasks: at least two; each one's ``args.output_dir`` is its run's folder. The first one's sets of prior
            skills are what the model knew before, and are measured after every task.
        folder: of ``sequence.json``.
        joint: all tasks' data at once: an upper bound, trained and measured after the sequence.
        retain_earlier: so many queries of each earlier task, drawn by the seed, are retention prompts of those after it,
            without answers or demonstrations.

    Returns:
        What ``sequence.json`` holds: ``method``, ``tasks`` (names), ``before``, ``after`` (one a task) and ``joint``
        ({"new": accuracy on each task, "old": {set: accuracy}}), ``n`` (likewise: examples), ``summary`` (see `summary`),
        ``retain_earlier``, ``settings``.

    Raises:
        UserError: a task without anything to measure, another sequence in this folder, or as `run_training`.
    """
    if len(tasks) < 2:
        raise UserError("A sequence needs at least two tasks.")
    if type(retain_earlier) is not int or retain_earlier < 0:  # a YAML's, as it stands there
        raise UserError(f"retain_earlier is {retain_earlier!r}: give how many queries of each earlier task to keep, or 0.")
    if tasks[0].args.world_size > 1:
        raise UserError("sequence runs in one process: start it without `accelerate launch`.")
    with claimed(folder), disk_errors_explained(folder):
        return _run_sequence(tasks, folder, _stored_sequence(folder, tasks, resume, retain_earlier), joint)


def _run_sequence(
    tasks: Sequence[Experiment], folder: Path, found: dict[str, Any], joint: Experiment | None
) -> dict[str, Any]:
    retain_earlier = found.get("retain_earlier", 0)
    model: Model | None = None
    if "before" not in found:
        first = tasks[0]
        model = load_model(first.model, first.adapter, first.args, first.peft_config)
        found["before"], found["n"] = measure(model, tasks)
        write_json(folder / "sequence.json", found)
    for k, task in enumerate(tasks):
        if not is_finished(task):
            if model is None and k > 0:
                model = trained_model(task, tasks[k - 1].folder / "model")
            _train(replace(_with_earlier(task, tasks[:k], retain_earlier), start=model))
        model = None
        if k == len(found["after"]):
            model = _reload(task)
            found["after"].append(measure(model, tasks)[0])
            write_json(folder / "sequence.json", found)
    model = None
    if joint is not None and found["joint"] is None:
        _train(joint)
        found["joint"] = measure(_reload(joint), tasks)[0]
    found["summary"] = summary(
        [row["new"] for row in found["after"]], found["before"]["new"], found["joint"] and found["joint"]["new"]
    )
    write_json(folder / "sequence.json", found)
    return found


def measure(model: Model, tasks: Sequence[Experiment]) -> tuple[Row, Row]:
    """Accuracy on each task's set "new" and on the first task's sets of prior skills, with each task's own adapter.

    Returns:
        {"new": [accuracy of each task], "old": {set: accuracy}}, and the same of numbers of examples.
    """
    accuracy: Row = {"new": [], "old": {}}
    n: Row = {"new": [], "old": {}}
    for k, task in enumerate(tasks):
        trainer, sets = measuring_trainer(model, task), eval_sets(task)
        wanted = ("new", *(of_prior_skills(sets) if k == 0 else ()))
        measured = {name: examples for name, examples in sets.items() if name in wanted}
        scores, _ = evaluate(trainer, measured, False, task.eval.batch_size, f"task {k + 1}")
        if "new" not in scores:
            raise UserError(f"Task {k + 1} has nothing to measure: {task.test_rows_remedy}.")
        for values, key in ((accuracy, "accuracy"), (n, "n")):
            values["new"].append(scores["new"][key])
            values["old"] |= {name: score[key] for name, score in scores.items() if name != "new"}
    return accuracy, n


def summary(
    after: Sequence[Sequence[float]], before: Sequence[float], joint: Sequence[float] | None = None
) -> dict[str, float]:
    """What one number can say of a sequence.

    Args:
        after: R[i][j], accuracy on task j after task i was learnt; K × K.
        before: accuracy on each task before any training.
        joint: accuracy on each task of a model trained on all at once.

    Returns:
        ``mean_final``: ACC = 1/K Σ_j R[K,j] (Lopez-Paz and Ranzato 2017, eq. 2).
        ``backward_transfer``: BWT = 1/(K-1) Σ_{j<K} (R[K,j] - R[j,j]) (eq. 3 there); below 0: earlier tasks got worse.
        ``forgetting``: F = 1/(K-1) Σ_{j<K} (max_{i<K} R[i,j] - R[K,j]) (Chaudhry et al. 2018, eq. 3): from each task's
        best to its end.
        ``forward_transfer``: FWT = 1/(K-1) Σ_{j>1} (R[j-1,j] - b[j]) (Lopez-Paz and Ranzato 2017, eq. 4), with b the model
        before training, which is not a random one here: what the tasks before a task did for it.
        With ``joint`` also ``joint`` (its mean) and, above 0, ``share_of_joint`` (mean_final / joint).
    """
    last, final = len(after) - 1, after[-1]
    found = {
        "mean_final": sum(final) / len(after),
        "backward_transfer": sum(final[j] - after[j][j] for j in range(last)) / last,
        "forgetting": sum(max(row[j] for row in after[:last]) - final[j] for j in range(last)) / last,
        "forward_transfer": sum(after[j - 1][j] - before[j] for j in range(1, last + 1)) / last,
    }
    if joint is not None:
        mean = sum(joint) / len(joint)
        found |= {"joint": mean} | ({"share_of_joint": found["mean_final"] / mean} if mean else {})
    return found


def _train(task: Experiment) -> None:
    """Train a task from its beginning, or from its newest checkpoint."""
    run_training(task, resume=(task.folder / "results.json").exists())
    gc.collect()  # trainers are full of cycles: the model's memory is wanted back


def _reload(task: Experiment) -> Model:
    """A finished task's model, as the next one would find it in another process, once nobody holds the one before."""
    gc.collect()
    return trained_model(task, task.folder / "model")


def _with_earlier(task: Experiment, earlier: Sequence[Experiment], count: int) -> Experiment:
    """The task with what comes back of the tasks before it among its retention rows.

    With the method ``replay`` their labelled rows (the first task is plain SFT); else ``count`` queries of each.
    """
    replayed = find_method(task.method).retention == "answered"
    if replayed and not earlier:
        return replace(task, method="sft")
    back = []
    for before in earlier:
        name = before.folder.name
        queries = [example for example in before.adapter.examples(before.splits.train) if not example.retain]
        if replayed:
            kept = [example for example in queries if before.adapter.expert_answer(example) is not None]
        else:
            drawn = random.Random(f"{task.args.seed}/{name}").sample(queries, min(count, len(queries)))
            # Nothing is left that tells the answer: only the query comes back.
            kept = [Example(example.id, example.messages) for example in drawn]
        back += [replace(example, id=f"{name}/{example.id}", retain=True) for example in kept]
    own = task.adapter.examples(task.splits.train)
    if replayed:
        own = [example for example in own if not example.retain]
    return replace(task, splits=replace(task.splits, train=[*own, *back]))


def _stored_sequence(folder: Path, tasks: Sequence[Experiment], resume: bool, retain_earlier: int) -> dict[str, Any]:
    """What was measured so far. Raises `UserError` where the folder holds a sequence that this call does not go on with."""
    found, settings = (
        read_json(folder / "sequence.json", {**SEQUENCE, "settings": list, "n": dict}),
        [task.settings for task in tasks],
    )
    digests = {f"{key} (task {k})": mark for k, task in enumerate(tasks, 1) for key, mark in row_digests(task).items()}
    if found is None:
        names = [task.folder.name for task in tasks]
        kept = {"retain_earlier": retain_earlier, "settings": settings, "digests": digests}
        return {"method": tasks[0].method, "tasks": names, "after": [], "joint": None, **kept}
    if not resume:
        raise UserError(
            f"{folder} holds a sequence already. --resume continues it; --train.output_dir runs/OTHER starts a new one."
        )
    before = _resumable(found["settings"], found.get("retain_earlier", 0))
    defaults = _resumable([task.defaults for task in tasks], 0)
    changed = first_change(before, _resumable(settings, retain_earlier), defaults)
    if changed := changed or other_content(found.get("digests", {}), digests):
        raise UserError(
            f"{folder} holds a sequence with other tasks or settings ({changed}): --resume needs the same ones; "
            "--train.output_dir runs/OTHER starts a new one."
        )
    return found


def _resumable(settings: Sequence[Settings], retain_earlier: int) -> Settings:
    """What must stay as it is when the sequence goes on."""
    kept: Settings = {"retain_earlier": retain_earlier, "tasks": len(settings)}
    for k, task in enumerate(settings, start=1):
        kept |= {f"task-{k}: {key}": value for key, value in resumable(task).items()}
    return kept
