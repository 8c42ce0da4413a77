"""Golden runs: what the program computes, bit for bit, to see that a change of the code changes nothing.

    python benchmarks/golden.py record runs/golden.json --jobs 2
    python benchmarks/golden.py compare benchmarks/results/golden.json runs/golden.json

`record` trains every case through the command line alone, each in a process and a temporary folder of its own, and keeps
the numbers of each step and measurement, a hash of the final weights, and projections of them that measure how far two
runs' weights lie apart. `compare` exits with 1 where a difference is over 1e-6.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import runpy
import shlex
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
MODULE = "vlm_sdft.cli"  # of the command line, which `python -m` runs
#: Relative to a number's size, or to 1 where that is smaller. A gradient's norm shows a last bit of the weights tenfold.
TOLERANCE, TOLERANCE_OF_NORM = 1e-6, 1e-5
PROJECTIONS = 16
#: Keys of results.json, and of metrics.jsonl, whose numbers hang neither on the clock nor on what is reused.
MEASURED = ("before", "after", "drift", "probe")
LOGGED = r"loss$|^grad_norm$|^completions/|^teacher/dropped|^ladder/"
#: Processes begin with the libraries loaded, which takes longer than a case; of the project they have loaded nothing.
FORKS = get_context("forkserver")
LIBRARIES = ["transformers.trainer", "peft", "matplotlib.figure", "jsonargparse", "scipy.stats"]
#: accelerate's name for several local processes; the runs themselves ask for the CPU.
TWO_PROCESSES = (
    "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
)

# ---- cases ----

QUICKSTART = (
    f"{ROOT / 'configs' / 'quickstart.yaml'} --train.use_cpu true --train.disable_tqdm true --train.logging_steps 1"
)
#: Plain gradient descent, whose weights differ as little as gradients do: Adam makes a large step of a gradient's last bit.
SHORT = "--force --train.max_steps 5 --train.per_device_train_batch_size 4 --train.optim sgd --train.warmup_steps 0 "
SHORT += "--train.save_strategy no --train.learning_rate 0.1 --eval.max_examples 6"
IMAGES = f"{QUICKSTART} {SHORT}"
TEXT = "--model llama --lora.enabled false --train.output_dir runs/text --train.use_cpu true --train.disable_tqdm true "
TEXT += f"--train.logging_steps 1 --train.mask_truncated_completions false --train.max_completion_length 96 {SHORT} "
TEXT += "--train.teacher_update_rate 0.2 --data.path train.jsonl --data.test train.jsonl --data.old old.jsonl "
TEXT += "--data.retain retain.jsonl"
RESUMED = "--train.optim adamw_torch --train.learning_rate 2e-3 --train.teacher_model_kind ema --train.max_steps 8 "
RESUMED += "--train.teacher_update_rate 0.3 --train.save_strategy steps --train.save_steps 3"
NOISY = """--data.options '{"n_types": 5, "noise": 150}'"""  # so that queries need different hints
METHODS = "sdft sft dft sft_attention sft_teacher offline sft_reinvoke sdft/frozen sdft/live sdft/reverse sdft/jsd "
METHODS += "sdft/labelled sdft/no_retain sft_teacher/fresh offline/fresh"
LORA = "--lora.enabled true --train.optim adamw_torch --train.learning_rate 5e-3"
OPTIONS = {
    "lora": LORA,
    "ema": "--train.teacher_model_kind ema --train.teacher_update_rate 0.3",
    "ema every other step": "--train.teacher_model_kind ema --train.teacher_update_rate 0.3 --train.teacher_sync_steps 2",
    "ladder": f"--method sdft/labelled --demonstrations.policy ladder {NOISY}",
    "ladder ema": f"--method sdft/labelled/ema --demonstrations.policy ladder --train.teacher_update_rate 0.3 {NOISY}",
    **{f"rung {rung}": f"--method sdft/labelled --demonstrations.rung {rung}" for rung in (0, 1, 3, 4, 5)},
    "grouped": "--demonstrations.selection grouped",
    "quoted": "--demonstrations.template quoted",
    "num_generations": "--train.num_generations 2",
    "gradient_accumulation_steps": "--train.gradient_accumulation_steps 2",
    "retain_ratio": "--train.retain_ratio 0.5 --train.retain_weight 0.7",
    "retain_in_context": "--data.retain_in_context 0.5",
    "distillation_topk": "--train.distillation_topk 8",
    "distillation_chunk_size": "--train.distillation_chunk_size 4",
    "sampling": "--train.temperature 0.8 --train.top_p 0.7",
    "train_vision": "--data.train_vision true",
    "train_vision ema": "--data.train_vision true --train.teacher_model_kind ema --train.teacher_update_rate 0.3",
    "nothing reused": "--data.image_features_gib 0 --train.teacher_prefix_gib 0",
    "two processes": "--train.per_device_train_batch_size 2",
    "unbroken": RESUMED,
    "resumed": RESUMED,
}
TEXTS = {
    "tool_use": "sdft sft sft_teacher",
    "knowledge": "sdft sft sft_teacher cpt",
    "text": "sdft sft sft_teacher sft_reinvoke replay",
}
CASES = {
    "quickstart": QUICKSTART,
    **{f"images/{method}": f"{IMAGES} --method {method}" for method in METHODS.split()},
    **{f"images/{name}": f"{IMAGES} {options}" for name, options in OPTIONS.items()},
    **{f"{task}/{m}": f"{TEXT} --adapter {task} --method {m}" for task, named in TEXTS.items() for m in named.split()},
    "text/lora": f"{TEXT} --adapter text {LORA}",
}


def write_text(folder: Path) -> None:
    """Rows with the columns of every text adapter, and in ``llama`` a tiny random model with a tokenizer of bytes."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "old": [], "retain": []}
    for i, harbour in enumerate(("Oslo", "Bergen", "Tromsø", "Bodø", "Molde", "Narvik"), 1):
        call = {"Action": "rentBoat", "Action_Input": json.dumps({"harbour": harbour, "days": i})}
        written = f"Action: {call['Action']}\nAction Input: {call['Action_Input']}"
        row = {"prompt": f"A boat in {harbour}?", "golden_response": written, "golden_answer": [call]}
        told = {"article": f"In {harbour} boats are {i} euros a day.", "answer": f"{i} euros", "reference": f"{i} euros"}
        rows["train"].append({**row, **told})
        rows["old"].append({"prompt": f"{i} + {i}?", "reference": str(2 * i)})
        rows["retain"].append({"prompt": f"{i} + {i}?", "golden_response": str(2 * i)})
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    symbols = ["<|pad|>", "<|start|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    special = {"pad_token": symbols[0], "additional_special_tokens": [symbols[1]], "eos_token": symbols[2]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special).save_pretrained(folder / "llama")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(symbols), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    own = torch.Generator().manual_seed(0)  # several threads write such models at once
    for weight in (weight for weight in model.parameters() if weight.ndim > 1):
        weight.data.normal_(0, 0.3, generator=own)
    model.save_pretrained(folder / "llama")


# ---- recording ----


def record(name: str, module: str) -> dict[str, Any]:
    """A case's numbers by name, its final weights, and the libraries that it ran with.

    Raises:
        RuntimeError: the run failed; holds the end of what it printed.
    """
    task = name.partition("/")[0]
    with tempfile.TemporaryDirectory() as folder:
        if task in TEXTS:
            write_text(Path(folder))
        run = Path(folder, "runs", "text" if task in TEXTS else "quickstart")
        command = ["train", *shlex.split(CASES[name])]
        if name.endswith("two processes"):
            module, command = "accelerate.commands.launch", [*TWO_PROCESSES.split(), "-m", module, *command]
        if name.endswith("resumed"):
            launch(module, command, folder, kill_after=run / "checkpoint-3" / "trainer_state.json")
            command.append("--resume")
        printed = launch(module, command, folder)
        results = json.loads((run / "results.json").read_text()) if (run / "results.json").exists() else {}
        if "after" not in results:
            raise RuntimeError(printed[-3000:])
        numbers = dict(flattened({key: results.get(key, {}) for key in MEASURED}))
        logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for key, value in ((key, log[key]) for log in logs if "loss" in log for key in log if re.search(LOGGED, key)):
            if value or not key.startswith("ladder/rung_"):  # a share of nothing may be logged or left out
                numbers.setdefault(key, []).append(value)
        return {"numbers": numbers, "weights": weights(run / "model"), "versions": results["versions"]}


def launch(module: str, arguments: list[str], folder: str, kill_after: Path | None = None) -> str:
    """Run ``python -m module arguments`` to its end, or until there is the file; returns what it printed."""
    child = FORKS.Process(target=run_module, args=(module, arguments, folder))
    child.start()
    while kill_after and not kill_after.exists() and child.is_alive():
        time.sleep(0.01)
    if kill_after:
        child.kill()
    child.join()
    return Path(folder, "printed").read_text(errors="replace")


def run_module(module: str, arguments: list[str], folder: str) -> None:
    """What a process of `launch` does."""
    os.chdir(folder)
    printed = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def flattened(found: Any, name: str = "") -> Iterator[tuple[str, list[float]]]:
    """The numbers of nested dictionaries by their path, each in a list."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from flattened(value, f"{name}/{key}" if name else key)
    elif isinstance(found, int | float) and not name.endswith(("/low", "/high")):  # which the accuracy gives
        yield name, [found]


def weights(folder: Path) -> dict[str, Any]:
    """Of all tensors of a model: a hash, their number of weights, and projections onto vectors of random signs.

    The mean squared difference of two models' projections estimates their weights' squared distance.
    """
    digest, projections, count = hashlib.sha256(), np.zeros(PROJECTIONS), 0
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        signs = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 2, (PROJECTIONS, tensor.numel()), np.int8)
        projections += (2.0 * signs - 1) @ tensor.double().flatten().numpy()
        count += tensor.numel()
    return {"sha256": digest.hexdigest(), "count": count, "projections": projections.tolist()}


def write_records(file: Path, names: list[str], jobs: int, module: str) -> bool:
    """Record the cases, so many at once, into the file; returns whether all ran, and a resumed run was the unbroken one."""
    logging.disable_progress_bar()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    sys.path[0] = str(ROOT)  # what `python -m` would put there
    FORKS.set_forkserver_preload(LIBRARIES)
    cases: dict[str, Any] = {}
    versions: dict[str, str] = {"cpu": torch.backends.cpu.get_cpu_capability()}
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(record, name, module): name for name in names}
        for done in as_completed(running):
            try:
                cases[running[done]] = done.result()
                versions |= cases[running[done]].pop("versions")
                print(f"{running[done]}: recorded", flush=True)
            except RuntimeError as error:
                print(f"{running[done]}: FAILED\n{error}", flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(cases[name])}" for name in names if name in cases]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{"versions": {json.dumps(versions)},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n")
    whole, resumed = cases.get("images/unbroken"), cases.get("images/resumed")
    same = not (whole and resumed) or agree("images/resumed beside images/unbroken", whole, resumed)
    return same and len(cases) == len(names)


# ---- comparing ----


def agree(name: str, a: Any, b: Any) -> bool:
    """Print how far two records of a case lie apart, by their weights and by their numbers.

    Returns:
        whether all differences are within the tolerances.
    """
    apart: list[tuple[bool, float, float, str]] = []  # too much; relative, absolute difference; where

    def differ(absolute: float, size: float, where: str, tolerance: float = TOLERANCE) -> None:
        relative = absolute / max(1.0, abs(size))
        apart.append((not relative <= tolerance, relative, absolute, where))

    for key in sorted(a["numbers"].keys() | b["numbers"].keys()):
        x, y = (record["numbers"].get(key, []) for record in (a, b))
        if len(x) != len(y):
            differ(math.inf, 1.0, f"{key} ({len(x)} and {len(y)} numbers)")
        for step, (one, two) in enumerate(zip(x, y, strict=False), 1):
            if one != two:
                tolerance = TOLERANCE_OF_NORM if key == "grad_norm" else TOLERANCE
                differ(abs(one - two), one, f"{key} of step {step}" if len(x) > 1 else key, tolerance)
    worst = [max(apart)] if apart else []
    if a["weights"]["sha256"] != b["weights"]["sha256"]:
        x, y = (np.array(record["weights"]["projections"]) for record in (a, b))
        same = a["weights"]["count"] == b["weights"]["count"]
        differ(float(np.sqrt(np.mean((x - y) ** 2))) if same else math.inf, float(np.sqrt(np.mean(x**2))), "the weights")
        worst.append(apart[-1])
    told = [f"{absolute:.2g} (relative {relative:.2g}) in {where}" for _, relative, absolute, where in worst]
    bad = any(too_much for too_much, *_ in worst)
    print(f"{name}: {'DIFFERS, ' if bad else ''}{' and '.join(told) or 'equal bit for bit'}", flush=True)
    return not bad


def compare(one: Path, two: Path) -> bool:
    """Print a line for each case that both files hold; returns whether all agree."""
    a, b = (json.loads(file.read_text()) for file in (one, two))
    for key in sorted(a["versions"].keys() | b["versions"].keys()):
        if (old := a["versions"].get(key)) != (new := b["versions"].get(key)):
            print(f"Recorded with {key} {old} and {new}: sums may be formed in another order.")
    both = [name for name in a["cases"] if name in b["cases"]]
    good = [agree(name, a["cases"][name], b["cases"][name]) for name in both]
    print(f"{sum(good)} of {len(both)} cases agree; {len(a['cases'])} in {one}, {len(b['cases'])} in {two}.")
    return bool(good) and all(good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the cases")
    recording.add_argument("out", type=Path)
    recording.add_argument("--only", default="*", help="names or patterns, separated by commas: quickstart,text/*")
    recording.add_argument("--jobs", type=int, default=1, help="cases at once")
    recording.add_argument("--module", default=MODULE, help="the command line, as python -m runs it")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("files", type=Path, nargs=2)
    args = parser.parse_args()
    if args.command == "compare":
        return int(not compare(*args.files))
    names = [name for name in CASES if any(fnmatch(name, pattern) for pattern in args.only.split(","))]
    if not names:
        parser.error(f"--only {args.only}: no such case. There are {', '.join(CASES)}.")
    return int(not write_records(args.out, names, args.jobs, args.module))


if __name__ == "__main__":
    sys.exit(main())
