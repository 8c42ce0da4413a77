"""The eight commands and what may follow each of them, as one table."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jsonargparse import SUPPRESS, ActionFail

Arguments = dict[str, dict[str, Any]]


class Command(NamedTuple):
    """What a command does, what follows its name, its own arguments as ``add_argument`` takes them, and what becomes of an
    experiment's settings: its help lists them, or it takes them without, or there are none."""

    summary: str
    usage: str
    arguments: Arguments
    settings: Literal["listed", "taken", "none"] = "listed"


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


def _value(text: str, default: Any = None, kind: Any = str, **further: Any) -> dict[str, Any]:
    return {"help": text, "default": default, "type": kind, **further}


EXPERIMENT: Arguments = {
    "--model": _value("A hub name, a folder, or builtin:tiny-qwen3-vl. Needed."),
    "--adapter": _value("image, text, or one that another package registers.", "image"),
    "--method": _value("sdft, or what it is compared with: sft, dft, sft_teacher, offline, …", "sdft"),
    "--print_config": _flag("Print the settings as config.yaml would hold them, and stop."),
}
CONFIG: Arguments = {
    "file": {"nargs": "?", "metavar": "CONFIG.yaml", "help": "A file with the settings below; options win over it."},
    "--config": _value("The same, where it does not stand first."),
    **EXPERIMENT,
}
RESUME = _flag("Go on where it was stopped.")

COMMANDS = {
    "init": Command(
        "write a commented config for a folder of images and a model",
        "FOLDER [--model NAME]",
        {
            "folder": {"metavar": "FOLDER", "help": "Images: train/<type>/*, optional test, unlabelled, retain, old."},
            "--model": _value("A hub name or a folder.", "builtin:tiny-qwen3-vl"),
        },
        "none",
    ),
    "probe": Command(
        "find out beforehand whether the model can teach itself from these demonstrations",
        "[CONFIG.yaml] [--key value …] [--sweep]",
        {**CONFIG, "--sweep": _flag("Also measure other choices of demonstrations.")},
    ),
    "preview": Command(
        "show the prompts, token counts and memory of a run, without training",
        "[CONFIG.yaml] [--key value …] [--measure]",
        {**CONFIG, "--measure": _flag("Also run a few micro-batches, and say what a step takes.")},
    ),
    "train": Command(
        "measure, train, measure again; everything lands in the run's folder",
        "[CONFIG.yaml] [--key value …] [--resume] [--force]",
        {**CONFIG, "--resume": RESUME, "--force": _flag("Train without asking a short probe first.")},
    ),
    "eval": Command(
        "measure a finished run's model again",
        "RUN [--samples N] [--skills TASK,…] [--key value …]",
        {
            "run": {"nargs": "?", "metavar": "RUN", "help": "The run's folder."},
            "--samples": _value("Also sample so many answers to each row of the set new, for pass@k.", kind=int),
            "--skills": _value(
                "Also measure prior skills before and after training, by lm-evaluation-harness: 'paper' for the paper's "
                "six, names of its tasks, or YAML files of local ones (configs/skills/)."
            ),
            **EXPERIMENT,
        },
        "taken",
    ),
    "report": Command(
        "one HTML page about runs, comparisons and sequences",
        "RUN … [--out report.html]",
        {
            "runs": {"nargs": "+", "metavar": "RUN", "help": "Folders of runs, comparisons and sequences."},
            "--out": _value("The page. Unset: report.html in the run's folder; of several runs here.", nargs="?", const=""),
        },
        "none",
    ),
    "sequence": Command(
        "learn tasks one after the other, and measure all of them after each",
        "SEQUENCE.yaml [--key value …] [--retain_earlier N] [--joint] [--resume]",
        {
            "file": {"nargs": "?", "metavar": "SEQUENCE.yaml", "help": "`tasks`, and settings that all of them share."},
            "--retain_earlier": _value("Queries of each earlier task that become retention prompts.", kind=Any),
            "--joint": _flag("Also train on all tasks at once: an upper bound."),
            "--resume": RESUME,
            **EXPERIMENT,
        },
    ),
    "compare": Command(
        "run several methods with the same budget and write one table",
        "[CONFIG.yaml] [--key value …] [--methods NAME,…] [--seeds N] [--lr_sweep [RATE,…]]",
        {
            **CONFIG,
            "--methods": _value("Names, separated by commas.", "base,icl,sft,dft,sft_teacher,sdft"),
            "--seeds": _value("Runs of each method at its chosen learning rate.", 3, int),
            "--validation_seeds": _value("By so many seeds' runs the learning rate is chosen.", 1, int),
            "--lr_sweep": _value(
                "Learning rates of every method, 1e-5,3e-5,1e-4; alone: a third, one and three times the config's.",
                nargs="?",
                const="around",
            ),
            "--resume": {
                "action": ActionFail("`compare` goes on by itself: give the same command again, without %(option)s."),
                "nargs": 0,
                "help": SUPPRESS,
            },
        },
    ),
}

#: What a command's help says of settings.
NOTES = {
    "listed": "\n\nEvery field of transformers.TrainingArguments works as --train.FIELD; the common ones are listed.",
    "taken": "\n\nSettings are the run's. Options change them, also others that `vlm-sdft train --help` lists.",
    "none": "",
}
EXAMPLES = """\
examples:
  vlm-sdft train configs/quickstart.yaml
  vlm-sdft train configs/quickstart.yaml --train.learning_rate 1e-3 --train.output_dir runs/faster
  vlm-sdft probe configs/quickstart.yaml
  vlm-sdft init my_objects --model Qwen/Qwen3-VL-8B-Instruct > my_objects.yaml
  vlm-sdft train --model Qwen/Qwen3-VL-8B-Instruct --data my_objects --train.output_dir runs/my_objects
  vlm-sdft train my_objects.yaml --resume
  vlm-sdft eval runs/my_objects
  vlm-sdft report runs/my_objects runs/faster --out report.html
  vlm-sdft compare configs/quickstart.yaml --methods sft,sft_teacher,sdft --seeds 3 --lr_sweep

`vlm-sdft COMMAND --help` lists a command's settings."""
