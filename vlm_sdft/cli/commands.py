"""What each command does: wires an experiment to the function that runs it, and prints what comes back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_sdft.cli.parsing import read_comparison, read_experiment, taken

if TYPE_CHECKING:
    from text_sdft.experiments.config import Experiment


def train_command(argv: list[str]) -> int:
    from text_sdft.experiments.run import NotWorthTraining, run_training
    from vlm_sdft.cli.tables import print_results

    resume, force = "--resume" in argv, "--force" in argv
    experiment = read_experiment("train", [arg for arg in argv if arg not in ("--resume", "--force")])
    _print_report(experiment)
    main_process = int(os.environ.get("RANK", "0")) == 0
    try:
        results = run_training(experiment, resume, force)
    except NotWorthTraining as found:
        if main_process:
            print(f"{found}\n`vlm-sdft probe` measures more; --force trains all the same.", file=sys.stderr)
        return 3
    if main_process:
        print_results(results, Path(str(experiment.args.output_dir)), experiment.settings["adapter"])
    return 0


def preview_command(argv: list[str]) -> None:
    from text_sdft.experiments.preview import preview
    from vlm_sdft.cli.tables import print_preview

    measure = "--measure" in argv
    experiment = read_experiment("preview", [arg for arg in argv if arg != "--measure"])
    _print_report(experiment)
    print_preview(preview(experiment, measure))


def probe_command(argv: list[str]) -> int:
    from text_sdft.experiments.probe import probe
    from text_sdft.experiments.run import make_trainer, write_json
    from vlm_sdft.cli.tables import print_probe

    experiment = read_experiment("probe", [arg for arg in argv if arg != "--sweep"])
    experiment.method = "sdft"  # the question is whether there is a teacher, whatever is trained in the end
    _print_report(experiment)
    numbers = probe(make_trainer(experiment), experiment, sweep="--sweep" in argv)
    numbers["settings"] = experiment.settings
    file = Path(str(experiment.args.output_dir)) / "probe.json"
    write_json(file, numbers)
    print_probe(numbers, file)
    return 0 if numbers["verdict"]["train"] else 3


def eval_command(argv: list[str]) -> None:
    import json

    from text_sdft.core import UserError
    from text_sdft.experiments.run import run_evaluation
    from vlm_sdft.cli.tables import print_further, print_results

    if _asks_for_help(argv):
        print(
            "usage: vlm-sdft eval RUN [--samples N] [--skills TASK,…] [--key value …]\n\n"
            "Measures the final model of the run's folder RUN again. --samples N also samples N answers to each row of\n"
            "the set new, for pass@k. --skills measures prior skills before and after training, by lm-evaluation-harness:\n"
            "'paper' for the paper's six, names of its tasks, or YAML files of local ones (configs/skills/).\n"
            "Keys are those of train."
        )
        return
    samples, argv = taken(argv, "--samples")
    skills, argv = taken(argv, "--skills")
    if samples is not None and not (samples.isdigit() and int(samples)):
        raise UserError(f"--samples {samples}: give the number of answers to each row, such as 16.")
    if not argv or argv[0].startswith("-"):
        raise UserError(
            "eval takes a run's folder first: vlm-sdft eval RUN [--samples N] [--skills TASK,…] [--key value …]."
        )
    folder = Path(argv[0])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run's folder (it has no config.yaml). Give what --train.output_dir named.")
    experiment = read_experiment("eval", [str(folder / "config.yaml"), *argv[1:], "--train.output_dir", str(folder)])
    measured = run_evaluation(experiment, folder, int(samples or 0), [name for name in (skills or "").split(",") if name])
    file = folder / "results.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results = {"before": stored.get("after", {}), "after": measured}
    print_results(results, folder, experiment.settings["adapter"], ("stored", "measured now"))
    print_further(folder, pass_at_k=bool(samples), skills=bool(skills))


def report_command(argv: list[str]) -> None:
    from text_sdft.core import UserError
    from text_sdft.experiments.report import write_report

    if _asks_for_help(argv):
        print(
            "usage: vlm-sdft report RUN … [--out report.html]\n\n"
            "One HTML page about the runs in these folders (and comparisons, and sequences). Without --out: report.html\n"
            "in the run's folder, or here for several runs."
        )
        return
    folders, out = [], None
    parts = iter(part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--out=") else [arg]))
    for part in parts:
        if part == "--out":
            out = next(parts, "")
            if not out or Path(out).is_dir():
                raise UserError("--out needs a file's name, such as report.html.")
        elif part.startswith("-"):
            raise UserError(f"report takes folders and --out FILE.html; it got: {part}")
        else:
            folders.append(Path(part))
    if not folders:
        raise UserError("report needs at least one run's folder.")
    file = Path(out) if out else folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    write_report(folders, file)
    print(f"Wrote {file}.")


def sequence_command(argv: list[str]) -> None:
    from text_sdft.core import UserError
    from text_sdft.experiments.sequence import run_sequence
    from vlm_sdft.cli.sequences import read_sequence
    from vlm_sdft.cli.tables import print_sequence

    if _asks_for_help(argv):
        print(
            "usage: vlm-sdft sequence SEQUENCE.yaml [--key value …] [--retain_earlier N] [--joint] [--resume]\n\n"
            "Learns tasks one after the other and measures all of them after each. Options are those of train, for every\n"
            "task; --method sft or replay takes another method; --retain_earlier N keeps N queries of each earlier task\n"
            "(without labels) among the retention prompts; --joint also trains on all tasks at once: an upper bound."
        )
        return
    options = [arg for arg in argv if arg not in ("--joint", "--resume")]
    if not options or options[0].startswith("-"):
        raise UserError("sequence takes the sequence's YAML first: vlm-sdft sequence SEQUENCE.yaml [--key value …].")
    tasks, folder, joint, retain_earlier = read_sequence(Path(options[0]), options[1:], "--joint" in argv)
    for task in tasks:
        _print_report(task)
    print_sequence(run_sequence(tasks, folder, "--resume" in argv, joint, retain_earlier), folder)


def init_command(argv: list[str]) -> None:
    from text_sdft.core import UserError
    from vlm_sdft.cli.init import init_config

    if _asks_for_help(argv):
        print(
            "usage: vlm-sdft init FOLDER [--model NAME]\n\n"
            "Reads a folder of images (train/<type>/*, optional test, unlabelled, retain, old) and prints a commented\n"
            "config for it:  vlm-sdft init my_objects --model Qwen/Qwen3-VL-8B-Instruct > my_objects.yaml"
        )
        return
    folder, *options = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--model=") else [arg])]
    if folder.startswith("-") or (options and (len(options) != 2 or options[0] != "--model")):
        raise UserError(f"init takes a folder and --model NAME; it got: {' '.join(argv)}")
    print(init_config(folder, options[1] if options else "builtin:tiny-qwen3-vl"), end="")


def compare_command(argv: list[str]) -> None:
    from text_sdft.core import UserError
    from text_sdft.experiments.compare import compare
    from text_sdft.experiments.compare_table import markdown

    if "--resume" in argv:
        raise UserError("`compare` goes on by itself where it was stopped: the same command again, without --resume.")
    experiment, chosen = read_comparison(argv)
    _print_report(experiment)
    try:
        results = compare(experiment, **chosen)
    except KeyboardInterrupt as error:
        raise UserError("Stopped. The same command goes on: cells that are finished are not run again.") from error
    folder = Path(str(experiment.args.output_dir))
    print(markdown(results, plotted=False))
    print(f"Everything is in {folder}/ (compare.md, compare.json, compare.png; finished cells in cells/).")


def _asks_for_help(argv: list[str]) -> bool:
    return not argv or "-h" in argv or "--help" in argv


def _print_report(experiment: Experiment) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        for sentence in experiment.splits.report:
            print(sentence)


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "init": init_command,
    "probe": probe_command,
    "preview": preview_command,
    "train": train_command,
    "eval": eval_command,
    "compare": compare_command,
    "report": report_command,
    "sequence": sequence_command,
}
