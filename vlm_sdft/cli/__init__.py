"""The command `vlm-sdft`: finds what was called and reports mistakes.

Exit codes: 0 good, 2 the user's mistake (one message), 1 ours; `probe` exits 3 where its verdict is not to train, and
`train` where its short probe says so.

Heavy imports wait until a command runs, so that ``vlm-sdft --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vlm_sdft.cli.commands import COMMANDS

HELP = """\
usage: vlm-sdft COMMAND [CONFIG.yaml] [--key value …]

Teach a vision-language (or text) model from demonstrations, without forgetting: self-distillation fine-tuning (SDFT).

commands:
  init      write a commented config for a folder of images and a model
  probe     find out beforehand whether the model can teach itself from these demonstrations
  preview   show the prompts, token counts and memory of a run, without training
  train     measure, train, measure again; everything lands in the run's folder
  eval      measure a finished run's model again
  report    one HTML page about runs, comparisons and sequences
  sequence  learn tasks one after the other, and measure all of them after each
  compare   run several methods with the same budget and write one table

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

`vlm-sdft COMMAND --help` lists a command's settings.
"""

OUT_OF_MEMORY = """\
The GPU's memory is full. Halve train.per_device_train_batch_size and double train.gradient_accumulation_steps, or set
train.activation_checkpointing true; where that was in measuring, lower eval.batch_size. With these --resume goes on from
the last checkpoint. In a new run, data.max_pixels, demonstrations.n_types and demonstrations.shots can be lowered too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] not in COMMANDS:
        print(f"vlm-sdft: there is no command '{args[0]}'. Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    from torch import OutOfMemoryError

    from text_sdft.core import UserError

    _quiet_libraries()
    try:
        return COMMANDS[args[0]](args[1:]) or 0
    except SystemExit as done:  # --help and --print_config of the parser
        return int(done.code or 0)
    except UserError as error:
        print(f"vlm-sdft: {error}", file=sys.stderr)
        return 2
    except OutOfMemoryError as error:
        print(f"vlm-sdft: {OUT_OF_MEMORY}\n({error})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-sdft: stopped.", file=sys.stderr)
        return 2


def _quiet_libraries() -> None:
    """Warnings that a user of this command can do nothing about stay off the terminal."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving weights; training has its own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
