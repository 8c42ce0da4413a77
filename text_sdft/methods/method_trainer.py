"""`MethodTrainer`: every method of `text_sdft.methods.table` through the hooks of `SDFTTrainer`.

Optimiser, schedule, batches, seeds, checkpoints and retention prompts are SDFT's own, so that methods differ in what they
learn from the queries and in nothing else.

Shapes: T tokens of a completion · N scored tokens · H hidden size.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Sampler as IndexSampler

from text_sdft.core import (
    Example,
    Head,
    LiveTeacher,
    ModalityAdapter,
    Model,
    ModelInputs,
    Rollout,
    SDFTConfig,
    TeacherContext,
    UserError,
)
from text_sdft.core.losses import likelihood_loss
from text_sdft.core.sampling import draw_seed
from text_sdft.core.views import encode_teacher
from text_sdft.methods.plain_text import PlainTextAdapter, windows
from text_sdft.methods.table import Method, expert_answer, find_method, rows_for
from text_sdft.methods.weights import attention_only
from text_sdft.methods.written import written
from text_sdft.training import SDFTTrainer
from text_sdft.training.modeling import load_model

ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """A completion that is given, and not the student's own.

    Attributes:
        ids: its tokens [T], end token included.
        finished: whether it was ended, and not cut by the length limit.
        seed: of the teacher's context, where the teacher sampled it.
    """

    ids: Tensor
    finished: bool = True
    seed: int = 0


class MethodTrainer(SDFTTrainer):
    """`SDFTTrainer` for any method.

    Args:
        method: a name from `METHODS`, with variants.
        full_batches: every optimiser step sees a full batch, across the ends of epochs too, so that methods with fewer rows
            take as many prompts (with ``max_steps``). Else the last batch of an epoch may be smaller.
        others: as in `SDFTTrainer`.

    Raises:
        Unsupported: the data has nothing that this method could learn from.
        UserError: an expert's answer is longer than ``max_completion_length``, or as `SDFTTrainer`.
    """

    def __init__(
        self,
        model: str | Model,
        args: SDFTConfig | None = None,
        *,
        adapter: ModalityAdapter,
        method: str | Method = "sdft",
        train_dataset: Iterable[Any] | None = None,
        peft_config: Any | None = None,
        full_batches: bool = False,
        **others: Any,
    ) -> None:
        self.method = method if isinstance(method, Method) else find_method(method)
        args = _settings(self.method, args if args is not None else SDFTConfig())
        examples = adapter.examples(train_dataset) if train_dataset is not None else []
        # Without rows the model is only measured.
        queries, retained, self._old = rows_for(self.method, adapter, examples) if examples else ([], [], [])
        if self.method.attention_only:
            if isinstance(model, str):
                model = load_model(model, adapter, args, peft_config)
                args = copy.copy(args)
                args.model_init_kwargs = None  # they have been used
            peft_config = attention_only(model, adapter.frozen_modules(model), peft_config)
        if self.method.completions == "context":
            adapter = PlainTextAdapter(adapter)
        self._full_batches = full_batches
        self.tokens: Counter[str] = Counter()  # what this process has read so far, by use: see `training_flops`
        super().__init__(
            model, args, adapter=adapter, train_dataset=[*queries, *retained], peft_config=peft_config, **others
        )
        self.answers: dict[str, Answer] = {}
        if self.method.completions == "expert":
            self.answers = {example.id: self._expert(example) for example in [*queries, *self._old]}
        elif self.method.completions == "context":
            parts = windows(self.adapter.processing_class, queries, args.max_completion_length)
            self.queries = self.train_dataset = [query for query, _ in parts]
            self.answers = {query.id: Answer(ids) for query, ids in parts}

    # ---- what a step learns from ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As `SDFTTrainer.compute_loss`, with what the method puts beside the queries, or in their place."""
        queries = inputs["examples"]
        if num_items_in_batch is None:
            num_items_in_batch = len(queries) * self.args.num_generations * self.accelerator.num_processes
        if self.method.replay:
            queries = [*queries, *(replace(self._draw(query, self._old), retain=False) for query in queries)]
        elif self._reinvoking:
            queries = [self._draw(query, self.retained) for query in queries]
        return super().compute_loss(model, {"examples": queries}, return_outputs, num_items_in_batch)

    @property
    def query_teacher(self) -> LiveTeacher | None:
        """The teacher for divergences, the model at the start for the re-invocation, nobody for likelihoods."""
        if self.method.loss == "divergence":
            return self.teacher
        return self.start_teacher if self._reinvoking else None

    @property
    def shows_context(self) -> bool:
        """To a teacher that reads the queries' completions or answers them; the re-invocation reads retention prompts."""
        return self.method.loss == "divergence" or self.method.completions == "teacher"

    def complete(self, inputs: ModelInputs, examples: list[Example], seeds: list[int]) -> Rollout:
        """Given answers for the queries where the method has them; all other completions are the student's own."""
        given = self.method.completions != "student" and not self._reinvoking
        n = sum(not example.retain for example in examples) if given else 0
        if self.method.fresh:
            with self.start_teacher.applied():
                answers = self._teacher_answers(examples[:n], [TeacherContext(seed) for seed in seeds[:n]])
        else:
            answers = [self.answers[example.id] for example in examples[:n]]
        ids, finished = [answer.ids for answer in answers], [answer.finished for answer in answers]
        logps = [torch.zeros(len(answer.ids)) for answer in answers]
        if n < len(examples):
            own = super().complete(inputs.select(range(n, len(examples))), examples[n:], seeds[n:])
            ids, logps, finished = ids + own.ids, logps + own.logps, finished + own.finished
        self._count(inputs, examples, ids, given=n)
        return Rollout(ids, logps, finished)

    def contexts(self, queries: list[Example], seeds: list[int]) -> list[TeacherContext]:
        """For an answer of the teacher: the context in which it gave it."""
        if self.method.completions == "teacher" and not self.method.fresh:
            seeds = [self.answers[query.id].seed for query in queries]
        return super().contexts(queries, seeds)

    def likelihood_loss(self, student_NH: Tensor, head: Head, ids_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
        """See `text_sdft.core.losses`."""
        settings, dynamic = self.args.divergence_settings, self.method.loss == "dynamic"
        return likelihood_loss(student_NH, head, ids_N, weight_N, settings, dynamic)

    def _draw_retained(self, queries: list[Example]) -> list[tuple[Example, int]]:
        return [] if self.method.reinvoke else super()._draw_retained(queries)

    def _draw(self, query: Example, rows: Sequence[Example]) -> Example:
        """One of the rows, keyed by step and query as retention prompts are."""
        return random.Random(draw_seed(self.args.seed, self.state.global_step, "beside", query.id)).choice(rows)

    @property
    def _reinvoking(self) -> bool:
        return self.method.reinvoke and self.state.global_step >= self.state.max_steps // 2

    def _count(self, inputs: ModelInputs, examples: list[Example], ids: list[Tensor], given: int) -> None:
        """Tokens that the student reads in a step, and those that it samples."""
        lengths = [prompt + len(completion) for prompt, completion in zip(inputs.lengths, ids, strict=True)]
        self.tokens["student"] += sum(lengths)
        self.tokens["sampled"] += sum(lengths[given:])
        taught = 0 if self.query_teacher is None else sum(not example.retain for example in examples)
        readings = 2 if self.args.confidence == "agreement" else 1
        self.tokens["teacher_prompts"] += readings * taught
        self.tokens["teacher"] += readings * sum(len(completion) for completion in ids[:taught])
        self.tokens["teacher"] += sum(n for n, example in zip(lengths, examples, strict=True) if example.retain)

    # ---- stored answers ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        """As `SDFTTrainer.train`, after the teacher has given its answers where the method stores them.

        Raises:
            UserError: the method trains nothing, or as `SDFTTrainer.train`.
        """
        if not self.method.trains:
            raise UserError(f"The method '{self.method.name}' trains nothing; `vlm-sdft compare` measures it.")
        self.check_prompts()
        if self.method.completions == "teacher" and not self.method.fresh:
            self.store_answers(resume=bool(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def store_answers(self, resume: bool = False) -> None:
        """One answer to each query, sampled by the teacher as it was at the start; kept in the run's ``answers.jsonl``.

        Args:
            resume: read those of the run that goes on.

        Raises:
            UserError: every answer was cut by the length limit, and cut ones do not count.
        """
        file = Path(str(self.args.output_dir)) / ANSWERS_FILE
        if not (resume and file.exists()):
            records = self._sampled_answers(self.queries)
            if self.is_world_process_zero():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
            self.accelerator.wait_for_everyone()
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        self.answers = _answers(records)
        if self.args.masks_truncated and not any(answer.finished for answer in self.answers.values()):
            raise UserError(
                f"The teacher ended none of its answers within {self.args.max_completion_length} tokens, and cut ones are "
                "left out: nothing would be learnt. Raise max_completion_length, or set mask_truncated_completions: false."
            )

    def answer_some(self, queries: Sequence[Example]) -> None:
        """Where the method stores the teacher's answers: those to these queries, for steps that are only measured."""
        if self.method.completions == "teacher" and not self.method.fresh:
            self.answers |= _answers(self._sampled_answers(queries))

    def _sampled_answers(self, queries: Sequence[Example]) -> list[dict[str, Any]]:
        mine = queries[self.args.process_index :: self.args.world_size]
        size = self.args.per_device_train_batch_size
        records: list[dict[str, Any]] = []
        quiet = bool(self.args.disable_tqdm) or not self.is_world_process_zero()
        with self.start_teacher.applied():
            for start in track(range(0, len(mine), size), "the teacher's answers", transient=True, disable=quiet):
                batch = list(mine[start : start + size])
                drawn = [TeacherContext(draw_seed(self.args.seed, "the teacher's answer", query.id)) for query in batch]
                for query, answer in zip(batch, self._teacher_answers(batch, drawn), strict=True):
                    told = {"answer": self.adapter.decode(answer.ids), "ids": answer.ids.tolist()}
                    records.append({"id": query.id, **told, "finished": answer.finished, "seed": answer.seed})
        return gather_object(records) if self.args.world_size > 1 else records

    def _teacher_answers(
        self, queries: list[Example], contexts: list[TeacherContext], greedy: bool = False
    ) -> list[Answer]:
        """By the model as it is now, each in its context; sampled with its seed, if not greedy."""
        seeds = [context.seed for context in contexts]
        inputs, _ = encode_teacher(self.adapter, queries, contexts, self.prompt_limit)
        rollout = self.sampler.sample(self.module, inputs, None if greedy else seeds)
        self.tokens["sampled"] += sum(inputs.lengths) + sum(len(ids) for ids in rollout.ids)
        return [Answer(*answer) for answer in zip(rollout.ids, rollout.finished, seeds, strict=True)]

    def _expert(self, example: Example) -> Answer:
        text = expert_answer(self.adapter, example)
        assert text is not None  # `rows_for` took only such rows
        ids = written(self.module, self.adapter, example, text)
        if len(ids) > self.args.max_completion_length:
            raise UserError(
                f"The expert's answer of '{example.id}' has {len(ids)} tokens, but max_completion_length is "
                f"{self.args.max_completion_length}. Raise it, or leave the row out."
            )
        return Answer(ids)

    # ---- hooks of transformers' Trainer ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        if not self._full_batches or args.max_steps <= 0:
            return super()._get_train_sampler(train_dataset)
        prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size * args.max_steps
        return _Rounds(len(self.queries), prompts, args.seed)


class _Rounds(IndexSampler[int]):
    """``count`` indices: every row once a round, each round in an order of its own."""

    def __init__(self, rows: int, count: int, seed: int) -> None:
        self.rows, self.count, self.seed = rows, count, seed

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.count, self.rows):
            order = list(range(self.rows))
            random.Random(draw_seed(self.seed, "round", start)).shuffle(order)
            yield from order[: self.count - start]

    def __len__(self) -> int:
        return self.count


def _answers(records: Sequence[dict[str, Any]]) -> dict[str, Answer]:
    """Stored answers by their query's id."""
    return {r["id"]: Answer(torch.tensor(r["ids"]), r["finished"], r["seed"]) for r in records}


def _settings(method: Method, args: SDFTConfig) -> SDFTConfig:
    """The method's settings: the config's, but for its variants and for what suits only the student's own completions.

    Given answers are learnt from their first token on, one a query, unweighted; the teacher that samples answers is the
    starting model, and where none reads the queries no copy of its weights is kept.
    """
    changes = dict(method.settings)
    if method.completions not in ("student", "none"):
        changes |= {"num_loss_tokens_to_skip": 0, "num_generations": 1, "distillation_is_clip": None, "confidence": "none"}
        changes["teacher_model_kind"] = "base" if method.completions == "teacher" else "live"
    args = copy.copy(args)
    for name, value in changes.items():
        setattr(args, name, value)
    return args
