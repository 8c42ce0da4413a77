"""How a step grows with completions, shared prefixes and processes: `python benchmarks/scaling.py`.

A Qwen2 of 10 M parameters with random weights (or `--model`, `--device cuda`), eight completions a step, frozen teacher,
all weights trained. Seconds are medians; the last column says how much of the teacher's prompts was read again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from step_cost import WORDS, load

from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter

ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: a small Qwen2 with random weights.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--prefixes", type=int, nargs="+", default=[0, 512, 4096])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if args.worker:
        cell = measure(args, args.completions[0], args.prefixes[0])
        if int(os.environ.get("RANK", "0")) == 0:
            args.worker.write_text(json.dumps(cell))
        return
    settings = [(64, prefix, 1) for prefix in args.prefixes]
    settings += [(length, 0, 1) for length in args.completions if length != 64]
    settings += [(64, 512, n) for n in args.processes if n > 1]
    cells = []
    print("| completion | common prefix | processes | step, s | of it prompts read again |\n|---|---|---|---|---|")
    for length, prefix, processes in settings:
        cells.append(launch(args, length, prefix, processes))
        c = cells[-1]
        share = f"{100 * (1 - c['reused']):.0f} %"
        print(f"| {length} | {prefix} | {processes} | {c['seconds']:.2f} | {share} |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(cells, indent=1) + "\n")


def launch(args: argparse.Namespace, length: int, prefix: int, processes: int) -> dict[str, Any]:
    """One setting in processes of its own, so that each starts with nothing kept."""
    file = Path(tempfile.mkdtemp()) / "cell.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    command += ["--worker", str(file), "--completions", str(length), "--prefixes", str(prefix), "--device", args.device]
    command += ["--repeats", str(args.repeats), *(["--model", args.model] if args.model else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {"completion": length, "prefix": prefix, "processes": processes, **json.loads(file.read_text())}


def measure(args: argparse.Namespace, length: int, prefix: int) -> dict[str, Any]:
    """Median seconds of a step after the first, and the share of teacher prompts' tokens that was not read again."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    model, tokenizer = load(args)
    model.generation_config.eos_token_id = None  # every completion has the whole length
    context = " ".join(WORDS[i % len(WORDS)] for i in range(prefix))
    rows = [{"id": str(i), "prompt": f"Question {i}: {WORDS[i % 8]}?", "privileged_context": context} for i in range(ROWS)]
    config = SDFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=ROWS // processes, gradient_accumulation_steps=1,
        max_steps=args.repeats + 1, max_completion_length=length, mask_truncated_completions=False,
        teacher_model_kind="base", learning_rate=1e-6, use_cpu=args.device == "cpu", bf16=args.device == "cuda",
        save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    adapter = TextAdapter(teacher_prompt_template="context")
    trainer = SDFTTrainer(model, config, adapter=adapter, train_dataset=rows, processing_class=tokenizer)
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *a: Any, **kw: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    reused = [entry["teacher/reused_tokens"] for entry in trainer.state.log_history if "teacher/reused_tokens" in entry]
    return {
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(ends)),
        "reused": reused[-1] if reused else 0.0,
    }


if __name__ == "__main__":
    main()
