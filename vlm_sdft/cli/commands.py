"""What each command does: wires an experiment to the function that runs it, and prints what comes back.

Each takes a call and returns its exit code, or None for 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from text_sdft.core.errors import UserError
from vlm_sdft.cli.parsing import Call, config_of, load_experiment, read_call, read_config
from vlm_sdft.cli.writing import check_writable

if TYPE_CHECKING:
    from text_sdft.experiments.config import Experiment


def train(call: Call) -> int:
    experiment, values = _experiment(call)
    from text_sdft.experiments.run import NotWorthTraining, run_training
    from vlm_sdft.cli.tables import print_results

    try:
        results = run_training(experiment, values.resume, values.force)
    except NotWorthTraining as found:
        if _is_main_process():
            print(f"{found}\n`vlm-sdft probe` measures more; --force trains all the same.", file=sys.stderr)
        return 3
    if _is_main_process():
        print_results(results, experiment.folder, values.adapter)
    return 0


def preview(call: Call) -> None:
    experiment, values = _experiment(call)
    from text_sdft.experiments.preview import preview
    from vlm_sdft.cli.tables import print_preview

    print_preview(preview(experiment, values.measure))


def probe(call: Call) -> int:
    experiment, values = _experiment(call)
    from text_sdft.experiments.folder import write_json
    from text_sdft.experiments.probe import probe
    from text_sdft.experiments.run import make_trainer
    from vlm_sdft.cli.tables import print_probe

    experiment.method = "sdft"  # the question is whether there is a teacher, whatever is trained in the end
    numbers = probe(make_trainer(experiment), experiment, sweep=values.sweep)
    numbers["settings"] = experiment.settings
    file = experiment.folder / "probe.json"
    write_json(file, numbers)
    print_probe(numbers, file)
    return 0 if numbers["verdict"]["train"] else 3


def evaluate(call: Call) -> None:
    run, samples = call.given.get("run"), call.given.get("samples")
    if run is None:
        raise UserError(
            "eval takes a run's folder first: vlm-sdft eval RUN [--samples N] [--skills TASK,…] [--key value …]."
        )
    if samples is not None and not 1 <= samples <= 10_000:
        raise UserError(f"--samples {samples}: give the number of answers to each row, 1 … 10,000, such as 16.")
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run's folder (it has no config.yaml). Give what --train.output_dir named.")
    _say(f"Reading {folder} …")
    from text_sdft.experiments.folder import read_results

    stored = read_results(folder)
    call.argv.extend(["--train.output_dir", str(folder)])
    experiment, values = load_experiment(call, read_config(folder / "config.yaml"))
    from text_sdft.experiments.run import run_evaluation
    from vlm_sdft.cli.tables import print_further, print_results

    skills = [name for name in call.given.get("skills", "").split(",") if name]
    measured = run_evaluation(experiment, folder, samples or 0, skills)
    after = (stored or {}).get("after", {})
    print_results({"before": after, "after": measured}, folder, values.adapter, ("stored", "measured now"))
    print_further(folder, pass_at_k=bool(samples), skills=bool(skills))


def predict(call: Call) -> None:
    run, out, prompt = Path(call.given["run"]), call.given["out"], call.given["prompt"]
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt is empty: give a question.")
    if out is not None:
        check_writable(Path(out).parent, "out")
    _say(f"Loading {run} …")
    from text_sdft.core.files import write_json_lines
    from text_sdft.experiments.usage import load_trained, predict
    from vlm_sdft.cli.tables import print_answers
    from vlm_sdft.demos.readers import image_files

    given = [Path(name) for name in call.given["images"]]
    images = [image for path in given for image in (image_files(path) if path.is_dir() else [path])]
    trained, labelled = load_trained(run), None
    if call.given["explain"]:
        if run.is_dir() and not (run / "config.yaml").is_file():
            raise UserError(f"--explain shows labelled images, which {run} does not name: give the run's folder.")
        labelled = load_experiment(read_call(["eval", str(run)]), read_config(run / "config.yaml"))[0].adapter
    records = list(predict(trained, images, prompt, labelled))
    print_answers(records)
    if out is not None:
        write_json_lines(Path(out), records)
        print(f"Wrote {out}.")


def export(call: Call) -> None:
    run, out = Path(call.given["run"]), Path(call.given["out"])
    check_writable(out, "out")
    _say(f"Loading {run} …")
    from text_sdft.experiments.usage import export, export_difference
    from vlm_sdft.cli.tables import print_export

    export(run, out)
    print_export(out, export_difference(run, out) if call.given["check"] else None)


def report(call: Call) -> None:
    folders, out = [Path(run) for run in call.given["runs"]], call.given["out"]
    if out is not None and (not out or Path(out).is_dir()):
        raise UserError("--out needs a file's name, such as report.html.")
    from text_sdft.experiments.report import write_report

    file = Path(out) if out else folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    write_report(folders, file)
    print(f"Wrote {file}.")


def sequence(call: Call) -> None:
    file = call.given.get("file")
    if "help" in call.given:
        load_experiment(call, {})
    if file is None:
        raise UserError("sequence takes the sequence's YAML first: vlm-sdft sequence SEQUENCE.yaml [--key value …].")
    _say(f"Reading {file} …")
    from vlm_sdft.cli.sequences import read_sequence

    call.argv.remove(file)
    tasks, folder, joint, retain_earlier = read_sequence(Path(file), call.argv, call.given.get("joint", False))
    for task in tasks:
        _say(*task.splits.report)
    from text_sdft.experiments.sequence import run_sequence
    from vlm_sdft.cli.tables import print_sequence

    print_sequence(run_sequence(tasks, folder, call.given.get("resume", False), joint, retain_earlier), folder)


def init(call: Call) -> None:
    from vlm_sdft.cli.init import init_config

    print(init_config(call.given["folder"], call.given["model"]), end="")


def compare(call: Call) -> None:
    experiment, values = _experiment(call)
    from text_sdft.experiments.compare import compare
    from text_sdft.experiments.compare_table import markdown

    rates = _rates(values.lr_sweep, experiment.args.learning_rate)
    methods = [name for name in values.methods.split(",") if name.strip()]
    try:
        results = compare(experiment, methods, values.seeds, rates, values.validation_seeds)
    except KeyboardInterrupt as error:
        raise UserError("Stopped. The same command goes on: cells that are finished are not run again.") from error
    print(markdown(results, plotted=False))
    print(f"Everything is in {experiment.folder}/ (compare.md, compare.json, compare.png; finished cells in cells/).")


RUN: dict[str, Callable[[Call], int | None]] = {
    "init": init,
    "probe": probe,
    "preview": preview,
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "predict": predict,
    "export": export,
    "report": report,
    "sequence": sequence,
}


def _experiment(call: Call) -> tuple[Experiment, Namespace]:
    """The experiment and all values of a call. What is read is said before anything that takes time is loaded."""
    config = config_of(call)
    path = {**config.get("data", {}), **call.given.get("data", {})}.get("path")
    if path and call.given.keys().isdisjoint(("help", "print_config")):
        _say(f"Reading {path} …")
    experiment, values = load_experiment(call, config)
    _say(*experiment.splits.report)
    return experiment, values


def _rates(given: str | None, own: float) -> list[float]:
    """``1e-5,3e-5``, in brackets or not, as numbers; ``around``: a third, one and three times a config's own rate."""
    if given in (None, "around"):
        return [own / 3, own, 3 * own] if given else [own]
    try:
        return [float(part) for part in given.strip("[] ").split(",")]
    except ValueError:
        raise UserError(f"--lr_sweep {given}: write 1e-5,3e-5,1e-4 without spaces, or nothing after it.") from None


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _say(*sentences: str) -> None:
    """Print them at once, in one process of several."""
    for sentence in sentences if _is_main_process() else ():
        print(sentence, flush=True)
