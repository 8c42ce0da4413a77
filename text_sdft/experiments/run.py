"""A training run: measured before, trained, measured after, all of it in one folder that is written as it goes.

config.yaml  metrics.jsonl  samples.jsonl  checkpoint-N/  model/  results.json  report.html

Each file is written beside and renamed. Once ``results.json`` has ``after``, what is missing beside it is made of it.
"""

from __future__ import annotations

import copy
import gc
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from text_sdft.core import Example, Model, SDFTConfig, UserError
from text_sdft.core.files import append_json_lines, claimed, disk_errors_explained, write_json, write_text
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.drift import drift, start_reading
from text_sdft.experiments.folder import read_metrics, read_results, read_samples, rewind
from text_sdft.experiments.pages import filled
from text_sdft.experiments.pass_at_k import measure_pass_at_k
from text_sdft.experiments.probe import short_probe
from text_sdft.experiments.scores import evaluate, sample
from text_sdft.experiments.settings import QUERIES, content_digest, first_change, other_content, resumable
from text_sdft.experiments.skills import prior_skills
from text_sdft.experiments.usage import write_usage
from text_sdft.experiments.verdict import Verdict
from text_sdft.methods.table import find_method
from text_sdft.training import SDFTTrainer
from text_sdft.training.checkpoints import checkpoint_step, checkpoints, newest_checkpoint
from text_sdft.training.modeling import load_model, training_summary

logger = logging.get_logger(__name__)
LIBRARIES = ("vlm-sdft", "torch", "transformers", "peft", "accelerate", "datasets")
Results = dict[str, Any]


class NotWorthTraining(Exception):
    """The short probe before training found that this model cannot teach itself from these demonstrations."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(" ".join([verdict.reason, *verdict.notes]))


def run_training(experiment: Experiment, resume: bool = False, force: bool = True) -> Results:
    """Train, measuring before and after.

    Args:
        resume: continue the run in ``args.output_dir`` from its newest complete checkpoint.
        force: train without asking a short probe first (a resumed run does not ask again).

    Returns:
        What ``results.json`` holds: ``before`` and ``after`` ({set: {accuracy, n, low, high}}), ``drift`` (``before`` and
        ``after``, see `drift`; where prior skills are measured), ``probe`` (the verdict of the short probe, where it was
        asked), ``trained``, ``rows`` (how many of each use) and ``digests`` of what they hold, ``processes``, ``seconds``
        and ``tokens`` of training (of this process, where a run was resumed: from the step ``resumed_at``), ``settings``,
        ``versions``, ``pushed`` (its name on the hub).

    Raises:
        UserError: the folder holds another run, or something in the data, model or settings cannot work.
        NotWorthTraining: the short probe's verdict is not to train; nothing was written.
    """
    check_trains(experiment)
    with claimed(experiment.folder, experiment.args.process_index == 0), disk_errors_explained(experiment.folder):
        results = _stored_results(experiment, resume)
        if "after" not in results:
            results = _train_and_measure(experiment, results, force or resume)
        if experiment.args.process_index == 0:
            _finish(experiment, results)
    return results


def _train_and_measure(experiment: Experiment, results: Results, force: bool) -> Results:
    folder, settings = experiment.folder, experiment.eval
    trainer = make_trainer(experiment)
    verdict = short_probe(trainer, experiment) if not force and experiment.method == "sdft" else None
    if verdict is not None and verdict.decision == "do not train":
        raise NotWorthTraining(verdict)
    sets, main = eval_sets(experiment), trainer.is_world_process_zero()
    checkpoint = newest_checkpoint(folder) if results else None
    trainer.accelerator.wait_for_everyone()  # each process has read the folder
    if main:
        if not results:  # whatever is here is of a run that took no step
            for name in ("results.json", "metrics.jsonl", "samples.jsonl"):
                (folder / name).unlink(missing_ok=True)
        rewind(folder, checkpoint)
        write_text(folder / "config.yaml", yaml.safe_dump(experiment.settings, sort_keys=False, allow_unicode=True))
    trainer.check_prompts()
    if "before" not in results:
        before, records = evaluate(trainer, sets, settings.teacher, settings.batch_size, "before")
        results = _first_results(experiment, trainer, before, verdict)
        if main:
            append_json_lines(folder / "samples.jsonl", records)
            write_json(folder / "results.json", results)
    start = start_reading(trainer, sets, settings.batch_size)
    if start is not None:
        results.setdefault("drift", {"before": drift(trainer, start)})
    if checkpoint is not None:
        results["resumed_at"] = checkpoint_step(checkpoint)
    results["seconds"] += _seconds_of_training(trainer, folder, checkpoint)
    results["tokens"] = dict(trainer.tokens)
    _save_model(trainer, folder / "model")  # before what may fail, such as a judge that is asked over a network
    results["after"], records = evaluate(trainer, sets, settings.teacher, settings.batch_size, "after")
    if start is not None:
        results["drift"]["after"] = drift(trainer, start)
    if main:
        append_json_lines(folder / "samples.jsonl", records)
        write_json(folder / "results.json", results)
    if experiment.args.world_size > 1:  # the group of a single process is vLLM's, which ends it itself
        trainer.accelerator.end_training()
    return results


def _save_model(trainer: SDFTTrainer, folder: Path) -> None:
    """Write the final model beside and rename it."""
    part = folder.with_name(f"{folder.name}.part")
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)


def is_finished(experiment: Experiment) -> bool:
    """Whether the run's folder has all that it promises."""
    results = read_results(experiment.folder) or {}
    pushed = not experiment.args.push_to_hub or "pushed" in results
    return "after" in results and _has_report(experiment.folder) and pushed


def _has_report(folder: Path) -> bool:
    page = folder / "report.html"
    return page.exists() and page.stat().st_mtime >= (folder / "results.json").stat().st_mtime


def _finish(experiment: Experiment, results: Results) -> None:
    """Make what a finished run's folder lacks: the model's card, the report, and the push to the hub."""
    folder, card, page = experiment.folder, experiment.folder / "model" / "README.md", experiment.folder / "report.html"
    summary = find_method(experiment.method).summary
    if card.parent.is_dir():
        facts = write_usage(experiment)
        text = filled("model_card.md", experiment=experiment, results=results, summary=summary, **facts)
        if not card.exists() or card.read_bytes() != text.encode("utf-8", "backslashreplace"):
            write_text(card, text)
    if not _has_report(folder):
        from text_sdft.experiments.report import write_report  # loads matplotlib

        write_report([folder], page)
    if experiment.args.push_to_hub and "pushed" not in results:
        results["pushed"] = _push(experiment.args, folder / "model")
        write_json(folder / "results.json", results)
        page.touch()  # it says all that these results do


def run_evaluation(experiment: Experiment, folder: Path, samples: int = 0, skills: Sequence[str] = ()) -> Results:
    """Measure a finished run's model again; also written to ``eval.json``.

    Args:
        samples: answers sampled to each row of the set ``new``, whose pass@k goes to ``pass_at_k.json``; 0: none.
        skills: tasks of `prior_skills`, measured of the starting model and of the run's; written to ``skills.json``.

    Returns:
        What ``eval.json`` holds: {set: {accuracy, n, low, high}}.

    Raises:
        UserError: the run has no final model, or as `measure_pass_at_k` and `prior_skills`.
    """
    model_folder = folder / "model"
    if not model_folder.is_dir():
        raise UserError(
            f"{model_folder} does not exist: the run has not finished. `vlm-sdft train … --resume` finishes it."
        )
    trainer = measuring_trainer(trained_model(experiment, model_folder), experiment)
    settings, sets = experiment.eval, eval_sets(experiment)
    if samples:
        found, records = measure_pass_at_k(
            trainer, sets.get("new", []), samples, settings.batch_size, experiment.test_rows_remedy
        )
        write_json(folder / "pass_at_k.json", {"pass_at_k": found, "answers": records})
    scores, _ = evaluate(trainer, sets, settings.teacher, settings.batch_size, "eval")
    write_json(folder / "eval.json", scores)
    if skills:
        after = prior_skills(trainer, skills, settings.batch_size, settings.max_examples)
        del trainer
        gc.collect()  # trainers are full of cycles: the model's memory is wanted for the start
        # In the precision in which the run began: a base that carries LoRA keeps its own.
        start = load_model(experiment.model, experiment.adapter, experiment.args, experiment.peft_config)
        before = prior_skills(measuring_trainer(start, experiment), skills, settings.batch_size, settings.max_examples)
        write_json(folder / "skills.json", {"before": before, "after": after})
    return scores


def check_trains(experiment: Experiment) -> None:
    """Raise `UserError` where the experiment's method trains nothing."""
    if not find_method(experiment.method).trains:
        raise UserError(f"The method '{experiment.method}' trains nothing; `vlm-sdft compare` measures it.")


def make_trainer(experiment: Experiment, full_batches: bool = False) -> SDFTTrainer:
    """The trainer of an experiment's method; with ``eval_strategy: steps`` it logs ``eval_SET_accuracy`` of each set.

    Raises `UserError` where there is no set to measure then, or as `SDFTTrainer`.
    """
    args, sets = _local(experiment.args), eval_sets(experiment)
    if args.eval_strategy != IntervalStrategy.NO and not sets:
        raise UserError(
            f"train.eval_strategy {IntervalStrategy(args.eval_strategy).value} measures while training, and the data has "
            f"no set to measure: {experiment.test_rows_remedy}, or set train.eval_strategy no."
        )
    if args.metric_for_best_model == "accuracy":
        args.metric_for_best_model = "new_accuracy"
    model: str | Model = experiment.model
    if experiment.start is not None:
        model, args.model_init_kwargs = experiment.start, None  # which were of use when it was loaded
    return SDFTTrainer(
        model,
        args,
        adapter=experiment.adapter,
        method=experiment.method,
        full_batches=full_batches,
        train_dataset=experiment.splits.train,
        eval_dataset=sets or None,
        peft_config=None if isinstance(model, PeftModel) else experiment.peft_config,
    )


def trained_model(experiment: Experiment, folder: Path) -> Model:
    """The final model of a run's ``model/`` (a LoRA adapter is put on the experiment's model), ready to train on."""
    if (folder / "adapter_config.json").exists():
        base = load_model(experiment.model, experiment.adapter, experiment.args, experiment.peft_config)
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    return load_model(str(folder), experiment.adapter, experiment.args, None)


def eval_sets(experiment: Experiment) -> dict[str, list[Example]]:
    """What is measured, by name; of each set at most ``eval.max_examples``."""
    limit = experiment.eval.max_examples
    sets = experiment.splits.evals.items()
    return {name: sample(experiment.adapter.examples(rows), limit) for name, rows in sets if len(rows)}


def measuring_trainer(model: Model, experiment: Experiment) -> SDFTTrainer:
    """A trainer that only measures a loaded model: nothing is done beside it, no teacher's weights are kept."""
    args = _local(experiment.args)
    args.eval_strategy, args.save_strategy, args.load_best_model_at_end = IntervalStrategy.NO, SaveStrategy.NO, False
    args.teacher_model_kind, args.model_init_kwargs = "live", None
    return SDFTTrainer(model, args, adapter=experiment.adapter)


def _stored_results(experiment: Experiment, resume: bool) -> Results:
    """Results so far; none of a run that took no step, which may be begun anew.

    Raises `UserError` where a new run would write into an old one's folder, or go on from another.
    """
    folder = experiment.folder
    results = read_results(folder)
    began = bool(checkpoints(folder) or read_metrics(folder)) or "after" in (results or {})
    if not began and (folder / "config.yaml").exists():
        if not resume or results is None or _change(experiment, results):
            logger.warning(f"{folder} holds a run that took no step: it is begun anew.")
            return {}
    elif not resume:
        if results is not None or began:
            raise UserError(
                f"{folder} holds a run already. --resume continues it; --train.output_dir runs/OTHER starts a new one."
            )
        return {}
    if results is None:
        raise UserError(f"{folder} holds no run to resume: leave --resume out, or check --train.output_dir.")
    read_samples(folder)  # what is damaged is named before the model is loaded
    if changed := _change(experiment, results):
        raise UserError(f"{folder} holds a run with {changed}; --train.output_dir runs/OTHER starts a new run.")
    return results


def _change(experiment: Experiment, results: Results) -> str | None:
    """What is other than when the run began, and what to set; None where nothing is."""
    args = experiment.args
    before = resumable(results["settings"], results.get("processes", args.world_size))
    now, defaults, rows = resumable(experiment.settings, args.world_size), resumable(experiment.defaults), _rows(experiment)
    if changed := first_change(before | results.get("rows", rows), now | rows, defaults):
        queries, here = before.get(QUERIES, 0), args.per_device_train_batch_size * args.world_size
        fits = QUERIES in changed and queries % here == 0
        return f"{changed}: --resume needs " + (
            f"--train.gradient_accumulation_steps {queries // here} here" if fits else "the old value"
        )
    if changed := other_content(results.get("digests", {}), row_digests(experiment)):
        return f"{changed}: --resume needs the old rows"
    return None


def _first_results(
    experiment: Experiment, trainer: SDFTTrainer, before: dict[str, dict[str, float]], verdict: Verdict | None
) -> Results:
    """What ``results.json`` holds before training."""
    return {
        "before": before,
        **({"probe": asdict(verdict)} if verdict is not None else {}),
        "trained": training_summary(trainer.module, experiment.adapter.frozen_modules(trainer.module)),
        "rows": _rows(experiment),
        "digests": row_digests(experiment),
        "processes": experiment.args.world_size,
        "seconds": 0.0,
        "tokens": {},
        "settings": experiment.settings,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def _rows(experiment: Experiment) -> dict[str, int]:
    """How many rows of each use the data has: a run that goes on needs the same ones."""
    sets = {"train": experiment.splits.train, **experiment.splits.evals}
    return {f"rows of {name}": len(rows) for name, rows in sets.items()}


def row_digests(experiment: Experiment) -> dict[str, str]:
    """What the rows of each use hold, see `content_digest`."""
    sets = {"train": experiment.splits.train, **experiment.splits.evals}
    return {f"content of {name}": content_digest(experiment.adapter.examples(rows)) for name, rows in sets.items()}


def _seconds_of_training(trainer: SDFTTrainer, folder: Path, checkpoint: Path | None) -> float:
    """Train, from a checkpoint where there is one. Raises `UserError` where a user stops it, and says how it goes on."""
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt as error:
        last = newest_checkpoint(folder)
        where = f"goes on from {last}" if last else "trains from the start: there is no checkpoint yet (train.save_steps)"
        raise UserError(f"Stopped. The same command with --resume {where}.") from error
    return time.monotonic() - started


def _local(args: SDFTConfig) -> SDFTConfig:
    """The settings without the Trainer's own pushes, which upload the run's folder, samples and all."""
    local = copy.copy(args)
    local.push_to_hub = False
    return local


def _push(args: SDFTConfig, folder: Path) -> str:
    """``model/`` with its card to the hub, and nothing else of the run; gives its name there. Raises `UserError`."""
    from huggingface_hub import HfApi

    api = HfApi(token=args.hub_token)
    try:
        name = args.hub_model_id or Path(str(args.output_dir)).name
        repo = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo, folder_path=folder, revision=args.hub_revision, commit_message="Trained with vlm-sdft"
        )
    except Exception as error:
        raise UserError(
            f"The model is in {folder}, but could not be pushed to the hub: {error} The same command with --resume makes "
            "up for it."
        ) from error
    return repo
