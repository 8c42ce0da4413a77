"""What sampling costs: `python benchmarks/rollout.py`.

Eight completions: of two queries, or of eight that begin alike. *Shared* is the package's sampler, which reads what prompts
have in common once; *plain* the same without that; *vLLM* where it is installed (docs/benchmarks.md). All sides give the
same greedy tokens before anything is timed. Sides alternate, seeded samples; the table shows medians and ranges of ratios.

On a GPU: `python benchmarks/rollout.py --device cuda --model Qwen/Qwen2.5-0.5B-Instruct` (bf16).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from step_cost import device_name, quantiles
from step_sides import Clock, load

from text_sdft.core import ModelInputs, Rollout, RowInputs, TransformersSampler
from text_sdft.fast.vllm_sampler import VLLMSampler

ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: a Qwen2 of 10 M parameters with random weights.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 512, 2048], help="Tokens of two queries.")
    parser.add_argument("--common", type=int, nargs="+", default=[32, 512], help="Tokens that eight queries begin with.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 32], help="Tokens of a completion.")
    parser.add_argument("--repeats", type=int, default=7, help="Alternations.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rollout.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    model, _ = load(args)
    model.eval().generation_config.eos_token_id = None  # every completion has its full length
    model.config.eos_token_id = None
    cells = []
    head = "| queries | common tokens | own tokens | completion | shared, s | plain ÷ shared | vLLM, s | shared ÷ vLLM |"
    print(head + "\n" + "|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for tokens in args.tokens:
            vllm = VLLMSampler(tokens, processor=None, folder=Path(folder), cache_bytes=2**29) if INSTALLED else None
            for queries, common, own in [(2, 0, n) for n in args.prompts] + [(ROWS, n, 32) for n in args.common]:
                cells.append(measure(model, queries, common, own, tokens, vllm, args))
                print(row(cells[-1]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"device": device_name(args.device), "cells": cells}, indent=1) + "\n")


INSTALLED = importlib.util.find_spec("vllm") is not None


def measure(
    model: Any, queries: int, common: int, own: int, tokens: int, vllm: VLLMSampler | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each side, and ratios to the shared one."""
    sampler = TransformersSampler(tokens)

    def plain(inputs: ModelInputs, seeds: list[int] | None) -> Rollout:
        with patch("text_sdft.core.sampling.common_tokens_read_once", lambda model, inputs: nullcontext()):
            return sampler.sample(model, inputs, seeds)

    sides: dict[str, Callable[[ModelInputs, list[int] | None], Rollout]] = {
        "shared": lambda inputs, seeds: sampler.sample(model, inputs, seeds),
        "plain": plain,
    }
    if vllm is not None:
        sides["vLLM"] = lambda inputs, seeds: vllm.sample(model, inputs, seeds)
    drawn = [side(prompts(model, queries, common, own, 0), None).ids for side in sides.values()]
    if args.device == "cpu" and any([i.tolist() for i in ids] != [i.tolist() for i in drawn[0]] for ids in drawn):
        raise SystemExit("The sides gave different greedy tokens, so there is nothing to compare.")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    clock, order = Clock(args.device), list(sides)
    for repeat in range(1, args.repeats + 1):
        order = order[1:] + order[:1]
        for number, name in enumerate(order):
            inputs = prompts(
                model, queries, common, own, 10 * repeat + number
            )  # new ones: an engine keeps what it has read
            started = clock.now()
            sides[name](inputs, list(range(len(inputs))))
            seconds[name].append(clock.now() - started)
    return {
        "queries": queries,
        "common": common,
        "own": own,
        "tokens": tokens,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {
            name: quantiles([b / a for a, b in zip(seconds["shared"], values, strict=True)])
            for name, values in seconds.items()
        },
    }


def prompts(model: Any, queries: int, common: int, own: int, seed: int) -> ModelInputs:
    """Random ids, each query as often as it has completions."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(10, model.config.vocab_size, (1, common), generator=generator).expand(queries, -1)
    ids = torch.cat([shared, torch.randint(10, model.config.vocab_size, (queries, own), generator=generator)], dim=1)
    return ModelInputs([RowInputs({"input_ids": ids[i * queries // ROWS]}) for i in range(ROWS)], 0)


def row(cell: dict[str, Any]) -> str:
    seconds, ratio = cell["seconds"], cell["ratio"]
    cells = [*(str(cell[name]) for name in ("queries", "common", "own", "tokens")), f"{seconds['shared']:.2f}"]
    cells.append("{1:.2f} ({0:.2f}–{2:.2f})".format(*ratio["plain"]))
    if "vLLM" in seconds:
        cells += [f"{seconds['vLLM']:.2f}", "{1:.1f} ({2:.1f}–{0:.1f})".format(*(1 / value for value in ratio["vLLM"]))]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
