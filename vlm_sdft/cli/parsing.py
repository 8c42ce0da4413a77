"""From arguments to an experiment: one parser of all commands, whose sections an adapter and the trainer define.

A command line is read twice. First a section is a mapping of anything: that is quick, and tells which command, config and
adapter are meant, and which options nobody knows. Then it has the fields of the adapter's and the trainer's dataclasses,
whose import takes seconds.
"""

from __future__ import annotations

import os
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import yaml
from jsonargparse import SUPPRESS, ActionParser, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from text_sdft.core.errors import UserError, did_you_mean, first_line
from text_sdft.core.settings import wrong_value
from text_sdft.experiments.config import EvalSettings, LoRASettings
from text_sdft.experiments.gone import GONE, gone_message, still_there
from vlm_sdft.cli.arguments import COMMANDS, EXAMPLES, NOTES, Arguments
from vlm_sdft.cli.config_files import read_yaml
from vlm_sdft.cli.init import run_name
from vlm_sdft.cli.writing import check_apart, check_writable

if TYPE_CHECKING:
    from text_sdft.core import ConfigurableAdapter
    from text_sdft.experiments.config import Experiment

Settings = dict[str, Any]
#: A section's name, and what says which keys it has: a dataclass, or `dict` where that is not known yet.
Sections = Mapping[str, type]
OPEN: Sections = {"data": dict, "demonstrations": dict, "lora": LoRASettings, "eval": EvalSettings, "train": dict}
#: Fields of `transformers.TrainingArguments` that ``--help`` lists.
COMMON = {
    "output_dir", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "eval_strategy", "eval_steps", "seed",
    "bf16", "activation_checkpointing", "optim", "warmup_steps", "lr_scheduler_type", "report_to", "push_to_hub",
    "hub_model_id", "use_cpu",
}  # fmt: skip


class Call(NamedTuple):
    """A command line, read once: the command, what follows it, and the same by name, as far as it was given."""

    command: str
    argv: list[str]
    given: Settings


def read_call(argv: Sequence[str]) -> Call:
    """What is called, and with what.

    Raises:
        UserError: there is no such command, or an option is wrong or misspelt.
        SystemExit: the version was printed, or help that takes no time.
    """
    command, *rest = argv or ["--help"]
    if command.startswith("-"):  # the help of all commands, or the version
        _parsed(_all_commands(), [command, *rest])
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise UserError(f"there is no command '{command}'.{near} Commands: {', '.join(COMMANDS)}.")
    about = COMMANDS[command]
    rest = [f"--data.path{arg[6:]}" if arg.partition("=")[0] == "--data" else arg for arg in rest]
    rest = _files_first(rest, about.arguments)
    if not rest and not about.usage.startswith("["):
        rest = ["--help"]  # which says what is missing
    sections = OPEN if about.settings != "none" else {}
    unknown = _unknown_names(_names(rest, {}), command, sections, all_known=about.settings != "listed")
    given = _parsed(_all_commands(command, unknown), [command, *rest], defaults=about.settings == "none")
    return Call(command, rest, given[command].as_dict())


def _files_first(argv: list[str], arguments: Arguments) -> list[str]:
    """Arguments with those that stand for themselves before all options, where a command takes several such."""
    if not any(about.get("nargs") in ("*", "+") for about in arguments.values()):
        return argv
    files: list[str] = []
    options: list[str] = []
    rest = iter(argv)
    for arg in rest:
        (options if arg.startswith("-") else files).append(arg)
        if arg in arguments and "action" not in arguments[arg]:
            options += [value for value in (next(rest, None),) if value is not None]
    return [*files, *options]


def config_of(call: Call) -> Settings:
    """The settings in the config that a call names. Raises `UserError` where it names two."""
    files = [file for name in ("file", "config") if (file := call.given.get(name)) is not None]
    if len(files) > 1:
        raise UserError(f"Two configs are given, {files[0]} and {files[1]}: give one.")
    return read_config(Path(files[0])) if files else {}


def read_config(file: Path) -> Settings:
    """The settings in a YAML file. Raises `UserError` where they cannot be an experiment's."""
    if not file.exists():
        raise UserError(f"There is no config file {file}. `vlm-sdft init FOLDER` prints one for a folder of images.")
    settings = read_yaml(file)
    if not isinstance(settings, dict):
        raise UserError(f"{file}: needs keys such as model, data and train at its top.")
    if isinstance(settings.get("data"), str):
        raise UserError(f"{file}: write `data: {{path: {settings['data']}}}`.")
    if "config" in settings:
        raise UserError(f"{file}: 'config' stands in no config: put that file's settings here.")
    for section in OPEN:
        if not isinstance(settings.get(section, {}), dict):
            raise UserError(f"{file}: '{section}' has no keys below it: put some there, or leave it out.")
    return settings


def merged(common: Settings, own: Settings) -> Settings:
    """Nested settings, the own ones over the common ones."""
    nested = [key for key in own if isinstance(own[key], dict) and isinstance(common.get(key), dict)]
    return {**common, **own, **{key: merged(common[key], own[key]) for key in nested}}


def read_experiment(command: str, argv: Sequence[str]) -> Experiment:
    """The experiment that a config and options describe. Raises `UserError` naming the key at fault."""
    call = read_call([command, *argv])
    return load_experiment(call, config_of(call))[0]


def load_experiment(call: Call, config: Settings) -> tuple[Experiment, Namespace]:
    """The experiment that a config describes, with a call's options over it, its data read; and all values by name.

    Raises:
        UserError: a key is unknown or missing, a value is wrong, or the data cannot be used.
        SystemExit: the help or the settings were to be printed alone.
    """
    config = still_there(config)
    parser, sections, adapter_type = _experiment_parser(call, config)
    if "help" in call.given:
        parser.print_help()
        raise SystemExit(0)
    _unknown_names(_names(call.argv, config), call.command, sections)
    values = _parsed(parser, call.argv, namespace=_parsed(parser, config, defaults=False))
    needed = ["model", *(name for name, f in _keys(sections).items() if _is_needed(f))]
    if missing := [name for name in needed if values.get(name) is None]:
        raise UserError(f"Needed: {', '.join(missing)}. Set it in a config or by --{missing[0]}.")
    old, new = (values.train[f"{name}_checkpointing"] for name in ("gradient", "activation"))
    if None not in (old, new) and old != new:  # transformers would take the new name's
        raise UserError("train.gradient_checkpointing is the old name of train.activation_checkpointing: give one of them.")
    if values.train.output_dir is None:
        values.train.output_dir = f"runs/{run_name(str(values.get('data.path', 'run')))}"
    settings, defaults = _written(parser, values, sections)
    if values.print_config:
        print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    data, demonstrations, lora, evaluation, train = _made_sections(values, sections)
    import torch
    from transformers import set_seed

    from text_sdft.core import SDFTConfig
    from text_sdft.experiments.config import Experiment
    from text_sdft.methods.table import find_method
    from text_sdft.training.checks import check_optimiser

    find_method(values.method)
    for name in ("hub_strategy", "hub_always_push"):
        if getattr(train, name) != SDFTConfig.__dataclass_fields__[name].default:
            raise UserError(f"train.{name}: the finished model is pushed once, at the end. Leave it out.")
    if call.command != "eval":
        check_optimiser(train)
    if call.command != "preview" and os.environ.get("RANK", "0") == "0":
        check_writable(Path(train.output_dir), "train.output_dir")
        check_apart(Path(train.output_dir), Path(str(data.path)), "train.output_dir")
    set_seed(train.seed)
    if values.model.startswith("builtin:") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # so small a model that several threads only wait for each other
    with train.main_process_first(desc="reading the data"):  # builtin data is drawn once
        # Which images a model takes is known before it is loaded.
        named = "model" in signature(adapter_type.from_config).parameters
        adapter, splits = adapter_type.from_config(data, demonstrations, **({"model": values.model} if named else {}))
    made = values.model, adapter, splits, train, lora.resolve(values.model), evaluation, settings, values.method
    return Experiment(*made, defaults=defaults), values


def _made_sections(values: Namespace, sections: Sections) -> list[Any]:
    """The sections as their dataclasses. Raises `UserError` naming the setting that is wrong."""
    made = []
    for section, kind in sections.items():
        try:
            made.append(kind(**vars(values.get(section, Namespace()))))
        except ImportError as error:  # of DeepSpeed, say
            why = f"needs a package: {first_line(error)} Install it, or leave the setting out."
            raise UserError(f"A setting of {section} {why}") from error
        except (ValueError, TypeError, KeyError, OSError) as error:
            named = str(error).partition(" ")[0] in {f.name for f in fields(kind)}
            told = shorten(str(error), 600, placeholder=" …")  # in one line
            raise UserError(f"{'' if named else f'A setting of {section} cannot be used: '}{told}") from error
        if wrong := "" if section == "train" else wrong_value(made[-1], f"{section}."):
            raise UserError(wrong)
    return made


# ---- parsers ----


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of descriptions."""


_PARSER: Settings = {
    "formatter_class": _Formatter, "exit_on_error": False, "allow_abbrev": False, "print_config": None
}  # fmt: skip


def _all_commands(called: str = "", unknown: Collection[str] = ()) -> ArgumentParser:
    """The parser of all commands; the called one lets unknown options pass, which are refused when all names are known."""
    parser = ArgumentParser(
        prog="vlm-sdft",
        usage="vlm-sdft COMMAND [CONFIG.yaml] [--key value …]",
        description="Teach a vision-language (or text) model from demonstrations, without forgetting (SDFT).",
        epilog=EXAMPLES,
        version=version("vlm-sdft"),
        **_PARSER,
    )
    lines = "\n".join(f"{name:<9} {about.summary}" for name, about in COMMANDS.items())
    subcommands = parser.add_subcommands(title="commands", description=lines, help=SUPPRESS)
    for name in COMMANDS:
        command = subcommands.add_subcommand(name, _command_parser(name, OPEN, {}, ()))
        for option in unknown if name == called else ():
            command.add_argument(f"--{option}", nargs="?", help=SUPPRESS)
    return parser


def _experiment_parser(call: Call, config: Settings) -> tuple[ArgumentParser, Sections, type[ConfigurableAdapter]]:
    """A command's parser with all keys, its sections, and the adapter that is meant.

    Where help is asked for, the many fields of `TrainingArguments` that few need are left out.
    """
    from transformers.utils import logging

    from text_sdft.core import SDFTConfig, adapter_class, lora

    # What a user of this command can do nothing about stays off the terminal.
    logging.disable_progress_bar()  # of loading and saving weights; training has its own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    given = merged(config, call.given)
    adapter_type = adapter_class(str(given.get("adapter", "image")))
    hints = get_type_hints(adapter_type.from_config)
    sections = {**OPEN, "data": hints["data"], "demonstrations": hints["demonstrations"], "train": SDFTConfig}
    adapts = LoRASettings(given.get("lora", {}).get("enabled")).trains_adapter(str(given.get("model", "")))
    defaults = {f"train.{k}": v for k, v in {**(lora() if adapts else {}), **adapter_type.train_defaults}.items()}
    parser = _command_parser(call.command, sections, defaults, _uncommon() if "help" in call.given else ())
    return parser, sections, adapter_type


def _command_parser(command: str, sections: Sections, defaults: Settings, left_out: Collection[str]) -> ArgumentParser:
    """The parser of a command: its options, and the keys of the sections, with these defaults in place of their own."""
    about, waits = COMMANDS[command], sections is OPEN and COMMANDS[command].settings == "listed"
    description = f"{about.summary[0].upper()}{about.summary[1:]}.{NOTES[about.settings]}"
    parser = ArgumentParser(
        usage=f"vlm-sdft {command} {about.usage}", description=description, add_help=not waits, **_PARSER
    )
    if waits:  # until the settings are known that its help lists
        parser.add_argument("-h", "--help", action="store_true")
    for option, argument in about.arguments.items():
        parser.add_argument(option, **argument)
    for section, kind in sections.items() if about.settings != "none" else ():
        if kind is dict:
            parser.add_argument(f"--{section}", type=dict, sub_configs=True, help=SUPPRESS)
            continue
        keys, hints = ArgumentParser(), get_type_hints(kind)
        for name, f in _keys({section: kind}).items():
            if name not in left_out:
                own = None if _is_needed(f) else f.default if f.default_factory is MISSING else f.default_factory()
                told = f.metadata.get("help", "").replace("%%", "%") + " Needed." * _is_needed(f)
                keys.add_argument(f"--{f.name}", type=hints[f.name], default=defaults.get(name, own), help=told)
        short = "--data PATH is short for --data.path PATH." if section == "data" else None
        parser.add_argument(f"--{section}", action=ActionParser(keys), title=section, description=short)
    return parser


def _parsed(parser: ArgumentParser, given: Sequence[str] | Settings, **options: Any) -> Namespace:
    """Arguments or nested settings, typed. Raises `UserError`."""
    try:
        return parser.parse_object(given, **options) if isinstance(given, dict) else parser.parse_args(given, **options)
    except ArgumentError as error:
        told = shorten(str(error), 600, placeholder=" …")  # in one line
        hint = ' A list is written so: \'["one", "two"]\'.' if "<class 'list'>" in told else ""
        command, _, name = told.partition("arguments are required: ")[2].partition(".")
        if name:  # what stands first: the parser's own words have it under a name that nobody has seen
            metavar = COMMANDS[command].arguments[name]["metavar"]
            error_text = f"{command} needs at least one {metavar}: vlm-sdft {command} {COMMANDS[command].usage}"
            raise UserError(error_text) from error
        raise UserError(f"{told}{hint}") from error


def _written(parser: ArgumentParser, values: Namespace, sections: Sections) -> tuple[Settings, Settings]:
    """These values for ``config.yaml``, which the parser reads again, without uncommon and empty defaults; all defaults."""
    chosen, usual = (
        yaml.safe_load(parser.dump(given, skip_unset=False, skip_validation=True))
        for given in (values, parser.get_defaults())
    )
    settings, uncommon = {key: chosen[key] for key in ("model", "adapter", "method")}, _uncommon()
    for section in sections:
        default = usual.setdefault(section, {})  # a section without fields is left out of a dump
        settings[section] = {
            name: value
            for name, value in chosen.get(section, {}).items()
            if value != default[name] or not (value is None or f"{section}.{name}" in uncommon)
        }
    return settings, {key: usual[key] for key in (*sections, "method")}


# ---- names ----


def _keys(sections: Sections) -> dict[str, Field]:
    """The keys of sections by their whole names (``train.seed``); of a `dict` nothing is known."""
    kinds = {section: kind for section, kind in sections.items() if kind is not dict}
    return {f"{section}.{f.name}": f for section, kind in kinds.items() for f in fields(kind) if f.init}


def _is_needed(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _uncommon() -> set[str]:
    """The many settings of `transformers.TrainingArguments` that few need."""
    from transformers import TrainingArguments

    return {f"train.{f.name}" for f in fields(TrainingArguments) if f.name not in COMMON}


def _names(argv: Sequence[str], config: Settings) -> list[str]:
    """The names that arguments and a config set."""
    names = [arg[2:].partition("=")[0] for arg in argv if arg.startswith("--")]
    for key, value in config.items():
        names += [f"{key}.{below}" for below in value] if key in OPEN else [str(key)]
    return [name.removesuffix("+") for name in names]  # ``types+`` adds to a list


def _unknown_names(names: Sequence[str], command: str, sections: Sections, all_known: bool = True) -> list[str]:
    """Those that are no option of the command, no key of these sections, and not below one (``data.options.seed``).

    Raises:
        UserError: there are some, and a known name is near, or all names are known.
    """
    what, dashes = ("key", "") if sections else ("option", "--")
    known = [name[2:] for name in ("--help", *COMMANDS[command].arguments) if name.startswith("--")]
    known += [*sections, *_keys(sections)]
    unknown = [name for name in names if {name, ".".join(name.split(".")[:2])}.isdisjoint(known)]
    unknown = [name for name in unknown if sections.get(name.partition(".")[0]) is not dict]
    for name in unknown:
        if name in GONE:
            raise UserError(gone_message(name))
        namesakes = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
        near = did_you_mean(dashes + name, [dashes + other for other in known])
        near = near or "".join(f" Did you mean '{other}'?" for other in namesakes[:1])
        if near or all_known:
            raise UserError(f"Unknown {what} '{dashes}{name}'.{near or ' `--help` lists them.'}")
    return unknown
