"""What one training step costs, beside TRL's SDFT trainer and a plain step: `python benchmarks/step_cost.py`.

Same model, same prompts, same completions (TRL samples its own, at its own cost, and is then given ours), all weights
trained, frozen teacher; demonstrations stand first and are common to the batch. Before anything is timed, the three must
give the same loss. Sides alternate; the table shows medians and the range of ratios.

On a GPU: `python benchmarks/step_cost.py --device cuda --model Qwen/Qwen2.5-0.5B-Instruct` (bf16).

Shapes: B rows · T longest completion · V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter

TEMPLATE = "{{% for m in messages %}}<|{role}|>{content}<|end|>{{% endfor %}}<|assistant|>".format(
    role="{{ m['role'] }}", content="{{ m['content'] }}"
)
PARTS = ("sampling", "teacher", "student", "backward", "optimiser", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A hub name or folder; unset: a Qwen2 of 10 M parameters with random weights.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="Completions a step.")
    parser.add_argument("--completion", type=int, default=32, help="Tokens of each completion.")
    parser.add_argument("--repeats", type=int, default=7, help="Alternations.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = load(args)
    results = []
    for words, generations in itertools.product((32, 512), (1, 4)):
        results.append(cell(args, model, tokenizer, words, generations))
        print(table(results), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"device": device_name(args.device), "cells": results}, indent=1) + "\n")


@dataclass
class Clock:
    """Seconds by part, of the step that runs."""

    device: str
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        yield
        self.parts[name] += self.now() - started

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Ours(SDFTTrainer):
    """The trainer, with its parts timed."""

    clock: Clock

    def complete(self, *args: Any) -> Any:
        with self.clock.part("sampling"):
            self.rollout = super().complete(*args)
        return self.rollout


def cell(args: argparse.Namespace, start: Any, tokenizer: Any, words: int, generations: int) -> dict[str, Any]:
    """One setting: a demonstration of so many words, common to all rows, and so many completions a query."""
    demonstration = " ".join(f"{word}" for word in itertools.islice(itertools.cycle(WORDS), words))
    n = args.rows // generations
    rows = [
        {"id": str(i), "prompt": f"Question {i}: {WORDS[i % 8]}?", "privileged_context": demonstration} for i in range(n)
    ]
    ours, clock = our_trainer(args, copy.deepcopy(start), tokenizer, rows, generations)
    sides: dict[str, Callable[[int], float]] = {"ours": lambda step: our_step(ours, clock, step)}
    theirs = trl_trainer(args, copy.deepcopy(start), tokenizer, rows, generations, lambda: ours.rollout.ids)
    sides["TRL"] = lambda step: trl_step(theirs, rows, generations)
    plain = copy.deepcopy(start)
    plain_teacher = copy.deepcopy(start).requires_grad_(False)
    optimiser = torch.optim.AdamW(plain.parameters(), 1e-6)
    sides["plain"] = lambda step: plain_step(plain, plain_teacher, optimiser, ours, rows, generations, args)

    losses = {name: side(0) for name, side in sides.items()}
    spread = max(losses.values()) - min(losses.values())
    tolerance = 2e-5 if args.device == "cpu" else 2e-2
    if not spread < tolerance * max(1.0, abs(losses["plain"])):
        raise SystemExit(f"The sides computed different losses, so there is nothing to compare: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for step in range(1, args.repeats + 1):
        for name in itertools.chain(list(sides)[step % 3 :], list(sides)[: step % 3]):
            # Ours samples what the others are given, so it runs once more, untimed, where it would come later.
            clock.parts.clear()
            started = clock.now()
            sides[name](step)
            seconds[name].append(clock.now() - started)
            if name == "ours":
                total = seconds[name][-1]
                for part in PARTS[:-1]:
                    parts[part].append(clock.parts[part] / total)
                parts["rest"].append(1 - sum(clock.parts.values()) / total)
    teacher = teacher_seconds(ours, theirs, clock, args.repeats)
    gc.collect()
    return {
        "words": words,
        "generations": generations,
        "loss": losses,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {
            name: quantiles([b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)])
            for name in ("TRL", "plain")
        },
        "teacher_ratio": teacher,
        "parts": {name: statistics.median(values) for name, values in parts.items()},
    }


# ---- the three sides ----


def our_trainer(args: Any, model: Any, tokenizer: Any, rows: list[Any], generations: int) -> tuple[Ours, Clock]:
    config = SDFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, learning_rate=1e-6,
        num_generations=generations, max_completion_length=args.completion, num_loss_tokens_to_skip=0,
        mask_truncated_completions=False, teacher_model_kind="base", use_cpu=args.device == "cpu",
        bf16=args.device == "cuda", report_to=[], max_steps=1000, warmup_steps=0, lr_scheduler_type="constant",
    )  # fmt: skip
    adapter = TextAdapter(teacher_prompt_template="context")
    trainer = Ours(model, config, adapter=adapter, train_dataset=rows, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.clock = clock = Clock(args.device)
    trainer.prefixes.completion_hidden_states = timed(clock, "teacher", trainer.prefixes.completion_hidden_states)
    trainer.accelerator.backward = timed(clock, "backward", trainer.accelerator.backward)
    trainer.optimizer.step = timed(clock, "optimiser", trainer.optimizer.step)
    module = trainer.module
    own = module.forward

    def forward(*a: Any, **kw: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*a, **kw)
        with clock.part("student"):
            return own(*a, **kw)

    module.forward = forward
    return trainer, clock


def our_step(trainer: Ours, clock: Clock, step: int) -> float:
    trainer.state.global_step = step
    trainer.model.train()
    loss = trainer.training_step(trainer.model, {"examples": trainer.queries})
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return float(loss)


def trl_trainer(
    args: Any, model: Any, tokenizer: Any, rows: list[Any], generations: int, completions: Callable[[], list[Any]]
) -> Any:
    from trl.experimental.sdft import SDFTConfig as TRLConfig
    from trl.experimental.sdft import SDFTTrainer as TRLTrainer

    class Theirs(TRLTrainer):
        def _generate(self, prompt_ids: list[list[int]]) -> Any:
            super()._generate(prompt_ids)  # at its own cost
            return prompt_ids, [ids.tolist() for ids in completions()]

    config = TRLConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=args.rows, gradient_accumulation_steps=1, learning_rate=1e-6,
        num_generations=generations, max_completion_length=args.completion, max_prompt_length=None,
        teacher_model_kind="base", distillation_mode="full_logits", distillation_alpha=0.0, distillation_is_clip=None,
        num_loss_tokens_to_skip=0, teacher_prompt_template="{privileged_context}\n\n{prompt}", report_to=[],
        use_cpu=args.device == "cpu", bf16=args.device == "cuda", gradient_checkpointing=False, max_steps=1000,
        lr_scheduler_type="constant", temperature=1.0, top_p=1.0, top_k=0,
    )  # fmt: skip
    data = Dataset.from_list([conversational(row) for row in rows])
    trainer = Theirs(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model_wrapped = trainer.model
    return trainer


def trl_step(trainer: Any, rows: list[Any], generations: int) -> float:
    trainer.model.train()
    batch = [conversational(row) for row in rows for _ in range(generations)]
    loss = trainer.training_step(trainer.model, batch, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return float(loss)


def plain_step(model: Any, teacher: Any, optimiser: Any, ours: Ours, rows: list[Any], generations: int, args: Any) -> float:
    """The step as one would write it first: `generate`, whole logits of both views, autograd; given our completions."""
    adapter = ours.adapter
    examples = [example for example in ours.queries for _ in range(generations)]
    student = adapter.encode([adapter.student_messages(example) for example in examples])
    contexts = ours.contexts(examples, [0] * len(examples))
    shown = adapter.encode([adapter.teacher_messages(e, c) for e, c in zip(examples, contexts, strict=True)])
    model.eval()
    start = student.batch(device=model.device)
    model.generate(
        input_ids=start["input_ids"], attention_mask=start["attention_mask"], do_sample=True, top_k=0,
        max_new_tokens=args.completion, pad_token_id=student.pad_token_id,
    )  # fmt: skip
    model.train()
    completions = ours.rollout.ids
    T = max(map(len, completions))
    keep_BT = torch.stack([torch.arange(T) < len(c) for c in completions]).to(model.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=args.device == "cuda"):
        with torch.no_grad():
            teacher_BTV = teacher(**shown.batch(completions, model.device)).logits[:, -T - 1 : -1].float().log_softmax(-1)
        student_BTV = model(**student.batch(completions, model.device)).logits[:, -T - 1 : -1].float().log_softmax(-1)
    loss_BT = kl_div(student_BTV, teacher_BTV, log_target=True, reduction="none").sum(-1)
    loss = ((loss_BT * keep_BT).sum(-1) / keep_BT.sum(-1)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def teacher_seconds(ours: Ours, theirs: Any, clock: Clock, repeats: int) -> list[float]:
    """TRL's teacher forward against ours, alternating: [low, median, high] of the ratio."""
    batch = theirs._prepare_training_batch(list(_repeated(theirs)))
    examples = [e for e in ours.queries for _ in range(ours.args.num_generations)]
    ids = batch["teacher_input_ids"], batch["teacher_attention_mask"], batch["completion_ids"].size(1)
    seconds = defaultdict(list)
    for step in range(repeats):
        clock.parts.clear()
        ours.state.global_step = step
        with torch.no_grad():
            ours.compute_loss(ours.model, {"examples": ours.queries})
        seconds["ours"].append(clock.parts["teacher"])
        started = clock.now()
        with torch.no_grad(), theirs._get_teacher_context_for_self_distillation():
            theirs._forward_logits(theirs.teacher_model, *ids)
        seconds["TRL"].append(clock.now() - started)
    assert len(examples) == len(batch["completion_ids"])
    return quantiles([b / a for a, b in zip(seconds["ours"], seconds["TRL"], strict=True)])


def _repeated(theirs: Any) -> Iterator[dict[str, Any]]:
    for row in theirs.train_dataset:
        for _ in range(theirs.num_generations):
            yield dict(row)


# ---- the rest ----

WORDS = [
    "storm", "landfall", "coast", "river", "bridge", "harbour", "village", "road", "field", "lamp", "window", "stone",
    "cloud", "paper", "engine", "clock",
]  # fmt: skip


def conversational(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": row["prompt"]}], "privileged_context": row["privileged_context"]}


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    name = args.model or random_model()  # TRL loads its teacher from a path
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return model.to(args.device), AutoTokenizer.from_pretrained(name)


def random_model() -> str:
    """A folder with a Qwen2 of 10 M parameters and a tokenizer of whole words."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base.train_from_iterator([" ".join(WORDS)] * 2, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"], chat_template=TEMPLATE,
    )  # fmt: skip
    config = Qwen2Config(
        vocab_size=16384, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part):
            return function(*args, **kwargs)

    return run


def quantiles(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| demonstration | completions a query | ours, s | TRL ÷ ours | plain ÷ ours | teacher: TRL ÷ ours | "
        + " | ".join(PARTS) + " |",
        "|---" * (6 + len(PARTS)) + "|",
    ]  # fmt: skip
    for r in results:
        ratio = {name: "{1:.2f} ({0:.2f}–{2:.2f})".format(*r["ratio"][name]) for name in r["ratio"]}
        lines.append(
            f"| {r['words']} words | {r['generations']} | {r['seconds']['ours']:.2f} | {ratio['TRL']} | {ratio['plain']} | "
            + "{1:.1f} ({0:.1f}–{2:.1f})".format(*r["teacher_ratio"])
            + "".join(f" | {100 * r['parts'][part]:.0f} %" for part in PARTS) + " |"
        )  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
