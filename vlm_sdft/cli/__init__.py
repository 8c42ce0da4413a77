"""The command `vlm-sdft`: finds what was called and reports mistakes.

Exit codes: 0 good, 2 the user's mistake (one message), 1 ours; `probe` exits 3 where its verdict is not to train, and
`train` where its short probe says so.

Heavy imports wait until a command runs, so that help and mistakes are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

OUT_OF_MEMORY = """\
The GPU's memory is full. Halve train.per_device_train_batch_size and double train.gradient_accumulation_steps, or set
train.activation_checkpointing true; where that was in measuring, lower eval.batch_size. With these --resume goes on from
the last checkpoint. In a new run, data.max_pixels, demonstrations.n_types and demonstrations.shots can be lowered too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    from text_sdft.core import UserError
    from vlm_sdft.cli.commands import RUN
    from vlm_sdft.cli.parsing import read_call

    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8, nor the terminal
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        call = read_call(sys.argv[1:] if argv is None else argv)
        return RUN[call.command](call) or 0
    except SystemExit as done:  # help, the version or the settings were printed
        return int(done.code or 0)
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "stopped."
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        message = f"{OUT_OF_MEMORY}\n({error})"
    print(f"vlm-sdft: {message}", file=sys.stderr, flush=True)
    return 2
