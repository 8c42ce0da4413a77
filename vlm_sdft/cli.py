"""The command `vlm-sdft`: parses, wires, prints. Exit codes: 0 good, 2 the user's mistake (one message), 1 ours;
`probe` exits 3 where its verdict is not to train.

Heavy imports wait until a command runs, so that ``vlm-sdft --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from text_sdft.experiments.config import Experiment

HELP = """\
usage: vlm-sdft COMMAND [CONFIG.yaml] [--key value …]

Teach a vision-language (or text) model from demonstrations, without forgetting: self-distillation fine-tuning (SDFT).

commands:
  init      write a commented config for a folder of images and a model
  probe     find out beforehand whether the model can teach itself from these demonstrations
  preview   show the prompts, token counts and memory of a run, without training
  train     measure, train, measure again; everything lands in the run's folder
  eval      measure a finished run's model again

examples:
  vlm-sdft train configs/quickstart.yaml
  vlm-sdft train configs/quickstart.yaml --train.learning_rate 1e-3 --train.output_dir runs/faster
  vlm-sdft probe configs/quickstart.yaml
  vlm-sdft init my_objects --model Qwen/Qwen3-VL-8B-Instruct > my_objects.yaml
  vlm-sdft train --model Qwen/Qwen3-VL-8B-Instruct --data my_objects --train.output_dir runs/my_objects
  vlm-sdft train my_objects.yaml --resume
  vlm-sdft eval runs/my_objects

`vlm-sdft COMMAND --help` lists a command's settings.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "init": _init,
        "probe": _probe,
        "preview": _preview,
        "train": _train,
        "eval": _eval,
    }
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] not in commands:
        print(f"vlm-sdft: there is no command '{args[0]}'. Commands: {', '.join(commands)}.", file=sys.stderr)
        return 2
    from text_sdft.core import UserError

    _quiet_libraries()
    try:
        return commands[args[0]](args[1:]) or 0
    except SystemExit as done:  # --help and --print_config of the parser
        return int(done.code or 0)
    except UserError as error:
        print(f"vlm-sdft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-sdft: stopped.", file=sys.stderr)
        return 2


# ---- commands ----


def _train(argv: list[str]) -> None:
    from text_sdft.experiments.run import run_training
    from vlm_sdft.tables import print_results

    resume = "--resume" in argv
    experiment = _experiment("train", [arg for arg in argv if arg != "--resume"])
    _print_report(experiment)
    results = run_training(experiment, resume)
    if int(os.environ.get("RANK", "0")) == 0:
        print_results(results, Path(str(experiment.args.output_dir)))


def _preview(argv: list[str]) -> None:
    from text_sdft.experiments.preview import preview
    from vlm_sdft.tables import print_preview

    experiment = _experiment("preview", argv)
    _print_report(experiment)
    print_preview(preview(experiment))


def _probe(argv: list[str]) -> int:
    import json

    from text_sdft.experiments.probe import probe
    from vlm_sdft.tables import print_probe

    experiment = _experiment("probe", argv)
    _print_report(experiment)
    numbers = probe(experiment)
    file = Path(str(experiment.args.output_dir)) / "probe.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print_probe(numbers, file)
    return 0 if numbers["verdict"]["train"] else 3


def _eval(argv: list[str]) -> None:
    import json

    from text_sdft.core import UserError
    from text_sdft.experiments.run import run_evaluation
    from vlm_sdft.tables import print_results

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vlm-sdft eval RUN [--key value …]\n\nMeasures the final model of the run's folder RUN again.")
        return
    folder = Path(argv[0])
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run's folder (it has no config.yaml). Give what --train.output_dir named.")
    experiment = _experiment("eval", [str(folder / "config.yaml"), *argv[1:], "--train.output_dir", str(folder)])
    measured = run_evaluation(experiment, folder)
    file = folder / "results.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    print_results({"before": stored.get("after", {}), "after": measured}, folder, ("stored", "measured now"))


def _init(argv: list[str]) -> None:
    from text_sdft.core import UserError
    from vlm_sdft.init import init_config

    if not argv or argv[0] in ("-h", "--help"):
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


# ---- from arguments to an experiment ----


def _experiment(command: str, argv: list[str]) -> Experiment:
    """The experiment that a config file and options describe. Raises `UserError` naming the key at fault."""
    import torch
    from jsonargparse import ArgumentError
    from transformers import set_seed

    from text_sdft.core import UserError, adapter_class, lora
    from text_sdft.experiments.config import Experiment, LoRASettings
    from vlm_sdft.init import run_name

    argv = _expanded(argv)
    given = _given(argv)
    adapter_name = str(given.get("adapter") or "image")
    adapter_type = adapter_class(adapter_name)
    defaults = {**adapter_type.train_defaults}
    model = given.get("model", "")
    enabled = given["lora"].get("enabled")
    if LoRASettings(enabled=enabled).resolve(str(model)) is not None and "learning_rate" not in defaults:
        defaults |= lora()
    defaults["output_dir"] = f"runs/{run_name(str(given['data'].get('path', 'run')))}"
    parser = _parser(command, adapter_type, defaults)
    if "-h" in argv or "--help" in argv:
        _hide_uncommon(parser)
        parser.print_help()
        raise SystemExit(0)
    try:
        namespace = parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(_with_nearest_key(str(error), [action.dest for action in parser._actions])) from error
    try:
        values = parser.instantiate(namespace)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    set_seed(values.train.seed)
    if values.model.startswith("builtin:") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # so small a model that several threads only wait for each other
    with values.train.main_process_first(desc="reading the data"):  # builtin data is drawn once
        adapter, splits = adapter_type.from_config(values.data, values.demonstrations)
    return Experiment(
        model=values.model,
        adapter=adapter,
        splits=splits,
        args=values.train,
        peft_config=values.lora.resolve(values.model),
        eval=values.eval,
        settings=_settings(parser, namespace, adapter_name),
    )


def _parser(command: str, adapter_type: Any, train_defaults: dict[str, Any]) -> ArgumentParser:
    from dataclasses import fields
    from typing import get_type_hints

    from jsonargparse import ArgumentParser

    from text_sdft.core import SDFTConfig
    from text_sdft.experiments.config import EvalSettings, LoRASettings

    hints = get_type_hints(adapter_type.from_config)
    parser = ArgumentParser(
        prog=f"vlm-sdft {command}",
        usage=f"vlm-sdft {command} [CONFIG.yaml] [--key value …]" + (" [--resume]" if command == "train" else ""),
        description="Settings come from CONFIG.yaml, then from the options, which have the same names. "
        + "Every field of transformers.TrainingArguments works as --train.FIELD; the common ones are listed.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="A YAML file with these keys (may also stand alone: CONFIG.yaml)."
    )
    parser.add_argument("--model", type=str, required=True, help="A hub name, a folder, or builtin:tiny-qwen3-vl.")
    parser.add_argument("--adapter", type=str, default="image", help="image, text, or one that another package registers.")
    parser.add_class_arguments(hints["data"], "data")
    parser.add_class_arguments(hints["demonstrations"], "demonstrations")
    parser.add_class_arguments(LoRASettings, "lora")
    parser.add_class_arguments(EvalSettings, "eval")
    parser.add_class_arguments(SDFTConfig, "train")
    parser.set_defaults({f"train.{name}": value for name, value in train_defaults.items()})
    helps = {
        f"{section}.{f.name}": f.metadata["help"]
        for section, kind in {**hints, "lora": LoRASettings, "eval": EvalSettings, "train": SDFTConfig}.items()
        if section != "return"
        for f in fields(kind)
        if "help" in f.metadata
    }
    for action in parser._actions:
        action.help = helps.get(action.dest, action.help)
        if isinstance(action.help, str):
            action.help = action.help.replace("%", "%%")
    return parser


def _uncommon(key: str) -> bool:
    """Whether a key is one of the many of `transformers.TrainingArguments` that few need."""
    from dataclasses import fields

    from transformers import TrainingArguments

    section, _, name = key.partition(".")
    return section == "train" and name in {f.name for f in fields(TrainingArguments)} - COMMON


def _hide_uncommon(parser: ArgumentParser) -> None:
    """Off the help; done last, since the parser also leaves what is hidden out of what it dumps."""
    from jsonargparse import SUPPRESS

    for action in parser._actions:
        if _uncommon(action.dest):
            action.help = SUPPRESS


SECTIONS = ("data", "demonstrations", "lora", "eval", "train")
#: Fields of `transformers.TrainingArguments` that ``--help`` lists.
COMMON = {
    "output_dir", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "eval_strategy", "eval_steps", "seed",
    "bf16", "gradient_checkpointing", "optim", "warmup_steps", "lr_scheduler_type", "report_to", "push_to_hub",
    "hub_model_id", "use_cpu",
}  # fmt: skip


def _expanded(argv: list[str]) -> list[str]:
    """`CONFIG.yaml` → `--config CONFIG.yaml`, put first: options override it; `--data X` → `--data.path X`."""
    out = [("--data.path" + arg[6:]) if arg == "--data" or arg.startswith("--data=") else arg for arg in argv]
    if out and not out[0].startswith("-"):
        return ["--config", *out]
    for i, arg in enumerate(out):
        if arg.startswith("--config="):
            return ["--config", arg[9:], *out[:i], *out[i + 1 :]]
        if arg == "--config" and i + 1 < len(out):
            return [*out[i : i + 2], *out[:i], *out[i + 2 :]]
    return out


def _given(argv: list[str]) -> dict[str, Any]:
    """What config file and options say, before they are checked: enough to know the adapter and its parser."""
    import yaml

    from text_sdft.core import UserError

    given: dict[str, Any] = {}
    if argv[:1] == ["--config"] and len(argv) > 1:
        file = Path(argv[1])
        if not file.is_file():
            raise UserError(f"There is no config file {file}. `vlm-sdft init FOLDER` prints one for a folder of images.")
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not valid YAML: {error}") from error
        if not isinstance(given, dict):
            raise UserError(f"{file}: needs keys such as model, data and train at its top.")
        if isinstance(given.get("data"), str):
            raise UserError(f"{file}: write `data: {{path: {given['data']}}}`.")
        for section in SECTIONS:
            if not isinstance(given.get(section, {}), dict):
                raise UserError(f"{file}: '{section}' has no keys below it: put some there, or leave it out.")
    for section in ("data", "lora"):
        given.setdefault(section, {})
    for i, option in enumerate(argv):
        name, equals, inline = option.partition("=")
        value = inline if equals else "".join(argv[i + 1 : i + 2])
        if name in ("--model", "--adapter"):
            given[name[2:]] = value
        elif name == "--data.path":
            given["data"]["path"] = value
        elif name == "--lora.enabled":
            given["lora"]["enabled"] = {"true": True, "false": False}.get(value.lower())
    return given


def _with_nearest_key(message: str, known: Sequence[str]) -> str:
    """The parser's complaint about an unknown key, with the known key that is nearest to it."""
    import difflib
    import re

    nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    found = re.search(r"unrecognized arguments: --([^\s=]+)|Option '([\w.]+)' is not accepted", message)
    if nested is None and found is None:
        return message
    key = ".".join(nested.groups()) if nested else next(group for group in found.groups() if group)  # type: ignore[union-attr]
    near = difflib.get_close_matches(key, known, n=1)
    # A key that stands below another section, or lacks it: compare the last parts alone.
    near = near or [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"Unknown key '{key}'." + (f" Did you mean '{near[0]}'?" if near else " `--help` lists the keys.")


def _settings(parser: ArgumentParser, namespace: Namespace, adapter: str) -> dict[str, Any]:
    """The resolved settings, for ``config.yaml``: what the parser reads again. Uncommon and empty defaults are left out."""
    import yaml

    chosen = yaml.safe_load(parser.dump(namespace, skip_unset=False))
    usual = yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False, skip_validation=True))
    settings: dict[str, Any] = {"model": chosen["model"], "adapter": adapter}
    for section in SECTIONS:
        settings[section] = {
            name: value
            for name, value in (chosen.get(section) or {}).items()  # a section without fields is left out of a dump
            if value != (usual.get(section) or {}).get(name) or not (value is None or _uncommon(f"{section}.{name}"))
        }
    return settings


def _print_report(experiment: Experiment) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        for sentence in experiment.splits.report:
            print(sentence)


def _quiet_libraries() -> None:
    """Warnings that a user of this command can do nothing about stay off the terminal."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving weights; training has its own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


if __name__ == "__main__":
    sys.exit(main())
