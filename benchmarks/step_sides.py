"""The steps that `step_cost.py` compares: ours, TRL's, one written plainly, its bare arithmetic, supervised fine-tuning.

Shapes: B rows · T longest completion · S longest rest of a prompt with its completion · N scored tokens · H hidden size ·
V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import text_sdft.core.losses
from text_sdft import SDFTConfig, SDFTTrainer, TextAdapter
from text_sdft.core.divergence import DivergenceSettings, divergence
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.scoring import head_of

TEMPLATE = "{{% for m in messages %}}<|{role}|>{content}<|end|>{{% endfor %}}<|assistant|>".format(
    role="{{ m['role'] }}", content="{{ m['content'] }}"
)
WORDS = [
    "storm", "landfall", "coast", "river", "bridge", "harbour", "village", "road", "field", "lamp", "window", "stone",
    "cloud", "paper", "engine", "clock",
]  # fmt: skip


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


@dataclass(frozen=True)
class Cell:
    """One setting: words of a demonstration common to all rows, completions a query and their tokens, the teacher."""

    words: int
    generations: int
    completion: int
    teacher: str = "base"


class Ours(SDFTTrainer):
    """The trainer, with its parts timed."""

    clock: Clock

    def rollouts(self, *args: Any) -> Any:
        with self.clock.part("sampling"):
            rollouts = super().rollouts(*args)
        self.rollout = rollouts[0]
        return rollouts


def timed(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part):
            return function(*args, **kwargs)

    return run


def our_trainer(args: Any, cell: Cell, model: Any, tokenizer: Any, rows: list[Any]) -> tuple[Ours, Clock]:
    config = SDFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, learning_rate=1e-6,
        num_generations=cell.generations, max_completion_length=cell.completion, num_loss_tokens_to_skip=0,
        mask_truncated_completions=False, teacher_model_kind=cell.teacher, use_cpu=args.device == "cpu",
        bf16=args.device == "cuda", report_to=[], max_steps=1000, warmup_steps=0, lr_scheduler_type="constant",
    )  # fmt: skip
    adapter = TextAdapter(teacher_prompt_template="context")
    trainer = Ours(model, config, adapter=adapter, train_dataset=rows, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.clock = clock = Clock(args.device)
    trainer.reader.completion_hidden_states = timed(clock, "teacher", trainer.reader.completion_hidden_states)
    text_sdft.core.losses.divergence = timed(clock, "divergence", divergence)
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


def our_step(trainer: Ours, step: int) -> float:
    trainer.state.global_step = step
    trainer.model.train()
    loss = trainer.training_step(trainer.model, {"examples": trainer.queries})
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.teacher.update()
    return float(loss)


def trl_trainer(
    args: Any, cell: Cell, model: Any, tokenizer: Any, rows: list[Any], completions: Callable[[], list[Any]]
) -> Any:
    from trl.experimental.sdft import SDFTConfig as TRLConfig
    from trl.experimental.sdft import SDFTTrainer as TRLTrainer

    class Theirs(TRLTrainer):
        def _generate(self, prompt_ids: list[list[int]]) -> Any:
            super()._generate(prompt_ids)  # at its own cost
            return prompt_ids, [ids.tolist() for ids in completions()]

    config = TRLConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=args.rows, gradient_accumulation_steps=1, learning_rate=1e-6,
        num_generations=cell.generations, max_completion_length=cell.completion, max_prompt_length=None,
        teacher_model_kind="base", distillation_mode="full_logits", distillation_alpha=0.0, distillation_is_clip=None,
        num_loss_tokens_to_skip=0, teacher_prompt_template="{privileged_context}\n\n{prompt}", report_to=[],
        use_cpu=args.device == "cpu", bf16=args.device == "cuda", gradient_checkpointing=False, max_steps=1000,
        lr_scheduler_type="constant", temperature=1.0, top_p=1.0, top_k=0,
    )  # fmt: skip
    data = Dataset.from_list([conversational(row) for row in rows])
    trainer = Theirs(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model_wrapped = trainer.model  # type: ignore[assignment]
    return trainer


def trl_step(trainer: Any, rows: list[Any], generations: int) -> float:
    trainer.model.train()
    batch = [conversational(row) for row in rows for _ in range(generations)]
    loss = trainer.training_step(trainer.model, batch, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return float(loss)


class Plain:
    """The same step without a trainer, given our completions: as one would write it first, and as bare arithmetic."""

    def __init__(self, args: Any, cell: Cell, start: Any, ours: Ours) -> None:
        self.args, self.cell, self.ours = args, cell, ours
        self.model, self.teacher = copy.deepcopy(start), copy.deepcopy(start).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), 1e-6)
        adapter = ours.adapter
        examples = [example for example in ours.queries for _ in range(cell.generations)]
        contexts = ours.contexts(examples, [0] * len(examples))
        self.student = adapter.encode([adapter.student_messages(example) for example in examples])
        self.shown = adapter.encode([adapter.teacher_messages(e, c) for e, c in zip(examples, contexts, strict=True)])
        with self.autocast(), torch.no_grad():
            self.rests, self.cache = self._read_prefix()

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.args.device == "cuda")

    def plain(self) -> float:
        """`generate`, whole logits of both views, autograd."""
        self._generate()
        completions = self.ours.rollout.ids
        T = max(map(len, completions))
        keep_BT = torch.stack([torch.arange(T) < len(c) for c in completions]).to(self.model.device)
        logp = []
        with self.autocast():
            for model, view, learns in ((self.teacher, self.shown, False), (self.model, self.student, True)):
                with torch.set_grad_enabled(learns):
                    logits_BTV = model(**view.batch(completions, model.device)).logits[:, -T - 1 : -1]
                    logp.append(logits_BTV.float().log_softmax(-1))
        loss_BT = kl_div(logp[1], logp[0], log_target=True, reduction="none").sum(-1)
        return self._learn(((loss_BT * keep_BT).sum(-1) / keep_BT.sum(-1)).mean())

    def bare(self) -> float:
        """Sampling, the teacher on what follows the prefix that it has read, the student forward and back: no more.

        Each is the model's own call on tensors that lie ready, with the divergence from hidden states.
        """
        self._generate()
        completions = self.ours.rollout.ids
        with self.autocast():
            with torch.no_grad():
                batch = self.rests.batch(completions, self.model.device, padding_side="right")
                prefix = self.cache.get_seq_length()
                batch["position_ids"] += prefix
                mask_BS = batch["attention_mask"]
                batch["attention_mask"] = torch.cat([mask_BS.new_ones(len(mask_BS), prefix), mask_BS], dim=1)
                teacher_BSH = self.teacher.model(**batch, past_key_values=self.cache).last_hidden_state
                self.cache.crop(prefix - self.cache.get_seq_length())
            batch = self.student.batch(completions, self.model.device, padding_side="right")
            student_BSH = self.model.model(**batch, use_cache=False).last_hidden_state
            student_NH, teacher_NH = (
                torch.cat(
                    [
                        states_SH[n - 1 : n - 1 + len(c)]
                        for states_SH, n, c in zip(states, view.lengths, completions, strict=True)
                    ]
                )
                for states, view in ((student_BSH, self.student), (teacher_BSH, self.rests))
            )
            weight_N = torch.cat([torch.full((len(c),), 1 / len(c) / len(completions)) for c in completions])
            loss, _ = divergence(
                student_NH, teacher_NH, head_of(self.model, 1.0), head_of(self.teacher, 1.0), DivergenceSettings(),
                torch.cat(completions).to(self.model.device), weight_N.to(self.model.device),
            )  # fmt: skip
        return self._learn(loss)

    def sft(self) -> float:
        """Supervised fine-tuning on rows of the same lengths: transformers' own loss. Not the same loss as the others'."""
        completions = self.ours.rollout.ids
        batch = self.student.batch(completions, self.model.device, padding_side="right")
        labels_BL = torch.full_like(batch["input_ids"], -100)
        for b, (n, c) in enumerate(zip(self.student.lengths, completions, strict=True)):
            labels_BL[b, n : n + len(c)] = c.to(labels_BL)
        with self.autocast():
            loss = self.model(**batch, labels=labels_BL).loss
        return self._learn(loss)

    def _generate(self) -> None:
        start = self.student.batch(device=self.model.device)
        self.model.eval()
        self.model.generate(
            input_ids=start["input_ids"], attention_mask=start["attention_mask"], do_sample=True, top_k=0,
            max_new_tokens=self.cell.completion, pad_token_id=self.student.pad_token_id,
        )  # fmt: skip
        self.model.train()

    def _learn(self, loss: Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())

    def _read_prefix(self) -> tuple[ModelInputs, DynamicCache]:
        """What follows the tokens that all teacher prompts begin with, and those tokens' keys and values for each row."""
        rows = [row.tokens["input_ids"].tolist() for row in self.shown.rows]
        columns = enumerate(zip(*rows, strict=False))
        length = next((i for i, column in columns if len(set(column)) > 1), min(map(len, rows)) - 1)
        cache = DynamicCache(config=self.teacher.config)
        ids = torch.tensor([rows[0][:length]] * len(rows), device=self.teacher.device)
        self.teacher.model(input_ids=ids, past_key_values=cache)
        rests = [RowInputs({"input_ids": row.tokens["input_ids"][length:]}) for row in self.shown.rows]
        return replace(self.shown, rows=rests), cache


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
