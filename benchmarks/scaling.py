"""How a step grows with completions, shared prefixes and processes: `python benchmarks/scaling.py`.

A Qwen2 of 10 M parameters with random weights (or `--model`, `--device cuda`), eight completions a step and process, frozen
teacher, all weights trained, one thread a process. Seconds are medians; the last column says how much of the teacher's
prompts was read again. Several processes are launched in turns with one; the ratio is that of completions a second.
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
from step_cost import WORDS, load, quantiles

from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter

ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: a small Qwen2 with random weights.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--prefixes", type=int, nargs="+", default=[0, 512, 4096])
    parser.add_argument("--processes", type=int, nargs="*", default=[2], help="Beside one.")
    parser.add_argument("--repeats", type=int, default=3, help="Steps after the first, of a launch.")
    parser.add_argument("--turns", type=int, default=5, help="Launches of several processes, and of one beside each.")
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
    cells = []
    print("| completion | common prefix | processes | step, s | of it prompts read again |\n|---|---|---|---|---|")
    settings = [(64, prefix) for prefix in args.prefixes] + [(n, 0) for n in args.completions if n != 64]
    for length, prefix in settings:
        cells.append(launch(args, length, prefix, 1))
        print(line(cells[-1]), flush=True)
    for processes in args.processes:
        turns = [[launch(args, 64, 512, n) for n in (1, processes)] for _ in range(args.turns)]
        cell = sorted((several for _, several in turns), key=lambda cell: cell["seconds"])[len(turns) // 2]
        cell["throughput"] = [processes * one["seconds"] / several["seconds"] for one, several in turns]
        cells.append(cell)
        low, middle, high = quantiles(cell["throughput"])
        print(f"{line(cell)} {middle:.2f} ({low:.2f}–{high:.2f}) × the completions a second of one process", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(cells, indent=1) + "\n")


def line(cell: dict[str, Any]) -> str:
    numbers = f"{cell['seconds']:.2f} | {100 * (1 - cell['reused']):.0f} %"
    return f"| {cell['completion']} | {cell['prefix']} | {cell['processes']} | {numbers} |"


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
    rows = [
        {"id": str(i), "prompt": f"Question {i}: {WORDS[i % 8]}?", "privileged_context": context}
        for i in range(ROWS * processes)
    ]
    config = SDFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=ROWS, gradient_accumulation_steps=1,
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
