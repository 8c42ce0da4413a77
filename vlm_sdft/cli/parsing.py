"""From arguments to an experiment: a YAML file, options of the same names over it, typed by the adapter's own sections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from text_sdft.experiments.config import Experiment


def read_experiment(command: str, argv: list[str]) -> Experiment:
    """The experiment that a config file and options describe. Raises `UserError` naming the key at fault."""
    return _read(command, argv)[0]


def read_comparison(argv: list[str]) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and what is compared on it: the other arguments of `compare`. Raises `UserError`."""
    experiment, values = _read("compare", argv)
    rates = [experiment.args.learning_rate]
    if values.lr_sweep is not None:
        rates = _rates(values.lr_sweep, rates[0])
    methods = [name for name in values.methods.split(",") if name.strip()]
    seeds = {"seeds": values.seeds, "validation_seeds": values.validation_seeds}
    return experiment, {"methods": methods, "rates": rates, **seeds}


def _rates(given: str, own: float) -> list[float]:
    """``1e-5,3e-5``, in brackets or not, as numbers; ``around``: a third, one and three times the config's own rate."""
    from text_sdft.core import UserError

    if given == "around":
        return [own / 3, own, 3 * own]
    try:
        return [float(part) for part in given.strip("[] ").split(",")]
    except ValueError:
        raise UserError(f"--lr_sweep {given}: write 1e-5,3e-5,1e-4 without spaces, or nothing after it.") from None


def _read(command: str, argv: list[str]) -> tuple[Experiment, Namespace]:
    import torch
    from jsonargparse import ArgumentError
    from transformers import set_seed

    from text_sdft.core import UserError, adapter_class, lora
    from text_sdft.experiments.config import Experiment, LoRASettings
    from text_sdft.methods.table import find_method
    from vlm_sdft.cli.init import run_name

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
    old, new = (namespace.train[f"{name}_checkpointing"] for name in ("gradient", "activation"))
    if None not in (old, new) and old != new:  # transformers would take the new name's
        raise UserError("train.gradient_checkpointing is the old name of train.activation_checkpointing: give one of them.")
    try:
        values = parser.instantiate(namespace)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    find_method(values.method)
    set_seed(values.train.seed)
    if values.model.startswith("builtin:") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # so small a model that several threads only wait for each other
    with values.train.main_process_first(desc="reading the data"):  # builtin data is drawn once
        adapter, splits = adapter_type.from_config(values.data, values.demonstrations)
    settings, defaults = _settings(parser, namespace, adapter_name)
    experiment = Experiment(
        model=values.model,
        method=values.method,
        adapter=adapter,
        splits=splits,
        args=values.train,
        peft_config=values.lora.resolve(values.model),
        eval=values.eval,
        settings=settings,
        defaults=defaults,
    )
    return experiment, values


def _parser(command: str, adapter_type: Any, train_defaults: dict[str, Any]) -> ArgumentParser:
    from dataclasses import fields
    from typing import get_type_hints

    from jsonargparse import ArgumentParser

    from text_sdft.core import SDFTConfig
    from text_sdft.experiments.config import EvalSettings, LoRASettings

    hints = get_type_hints(adapter_type.from_config)
    parser = ArgumentParser(
        prog=f"vlm-sdft {command}",
        usage=f"vlm-sdft {command} [CONFIG.yaml] [--key value …]"
        + {"train": " [--resume] [--force]", "probe": " [--sweep]", "preview": " [--measure]"}.get(command, ""),
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
    parser.add_argument(
        "--method", type=str, default="sdft", help="sdft, or what it is compared with: sft, dft, sft_teacher, offline, …"
    )
    if command == "compare":
        parser.add_argument(
            "--methods", type=str, default="base,icl,sft,dft,sft_teacher,sdft", help="Names, separated by commas."
        )
        parser.add_argument("--seeds", type=int, default=3, help="Runs of each method at its chosen learning rate.")
        parser.add_argument(
            "--validation_seeds", type=int, default=1, help="By so many seeds' runs the learning rate is chosen."
        )
        parser.add_argument(
            "--lr_sweep", type=str, nargs="?", const="around", default=None,
            help="Learning rates of every method, 1e-5,3e-5,1e-4; alone: a third, one and three times the config's.",
        )  # fmt: skip
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
    "bf16", "activation_checkpointing", "optim", "warmup_steps", "lr_scheduler_type", "report_to", "push_to_hub",
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
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
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
        return message if "<class 'list'>" not in message else f'{message}\nA list is written so: \'["one", "two"]\'.'
    key = ".".join(nested.groups()) if nested else next(group for group in found.groups() if group)  # type: ignore[union-attr]
    near = difflib.get_close_matches(key, known, n=1)
    # A key that stands below another section, or lacks it: compare the last parts alone.
    near = near or [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"Unknown key '{key}'." + (f" Did you mean '{near[0]}'?" if near else " `--help` lists the keys.")


def _settings(parser: ArgumentParser, namespace: Namespace, adapter: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved settings, for ``config.yaml``: what the parser reads again. Uncommon and empty defaults are left out.

    Returns:
        them, and all defaults.
    """
    import yaml

    chosen = yaml.safe_load(parser.dump(namespace, skip_unset=False))
    usual = yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False, skip_validation=True))
    settings: dict[str, Any] = {"model": chosen["model"], "adapter": adapter, "method": chosen["method"]}
    for section in SECTIONS:
        settings[section] = {
            name: value
            for name, value in (chosen.get(section) or {}).items()  # a section without fields is left out of a dump
            if value != (usual.get(section) or {}).get(name) or not (value is None or _uncommon(f"{section}.{name}"))
        }
    return settings, {name: usual.get(name) or {} for name in SECTIONS} | {"method": usual["method"]}


def taken(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option of the command's own, and the other arguments."""
    argv = list(argv)
    for i, arg in enumerate(argv):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2], argv[:i] + argv[i + 1 :]
        if arg == option and i + 1 < len(argv):
            return argv[i + 1], argv[:i] + argv[i + 2 :]
    return None, argv
