"""`SDFTTrainer`: self-distillation fine-tuning (arXiv 2601.19897, alg. 1) and its rivals on transformers' `Trainer`.

`compute_loss` is one training step, top to bottom: the method makes groups of rows, the student answers, teachers read the
same ids in their own views, the student reads them with gradient, the groups' losses are summed. Checkpoints, resuming,
several processes, logging and callbacks are transformers'; what is overridden here are its hooks.

Shapes: B rows of a micro-batch · N tokens of its completions · H hidden size.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftConfig
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, align_special_tokens
from transformers.utils import logging

from text_sdft.core import Example, ModalityAdapter, Model, Rollout, Sampler, SDFTConfig, TeacherContext, UserError, answer
from text_sdft.core.adapter import bound_adapter, with_unique_ids
from text_sdft.core.files import append_json_lines, read_json_lines, write_json_lines
from text_sdft.core.groups import Answer, Group, Step, contexts_of
from text_sdft.core.inputs import ModelInputs
from text_sdft.core.losses import Reading, answers_loss
from text_sdft.core.sampling import draw_seed, eos_ids, evaluating
from text_sdft.core.scoring import check_logits, completion_hidden_states, frozen_head, head_of
from text_sdft.core.sharding import gathered
from text_sdft.core.teachers import FrozenTeacher, LiveTeacher, make_teacher
from text_sdft.core.views import checked_views, encode_student, encode_teacher
from text_sdft.fast.prefix import PrefixStore
from text_sdft.fast.vllm_sampler import OWN_SAMPLERS, make_sampler
from text_sdft.methods.answers import ANSWERS, ANSWERS_FILE, answer_records, answers_by_id, expert_answers
from text_sdft.methods.hints import Hints, contexts_asked
from text_sdft.methods.plain_text import windows
from text_sdft.methods.table import Method, method_of
from text_sdft.training.callbacks import MetricsWriter, TeacherUpdate
from text_sdft.training.checkpoints import CheckpointedTrainer, checkpoints, damage, diverged, newest_checkpoint
from text_sdft.training.checks import (
    check_engines,
    check_optimiser,
    checked_adapter,
    checked_args,
    checked_evals,
    checked_rows,
)
from text_sdft.training.metrics import StepMetrics
from text_sdft.training.modeling import load_model, loss_summary, prepare_model, prompt_limit, training_summary
from text_sdft.training.placement import place_for_zero, shard

logger = logging.get_logger(__name__)


class SDFTTrainer(CheckpointedTrainer):
    """Trains a model on-policy from demonstrations; it is its own teacher.

    Args:
        model: a name or folder, or a loaded module (a `PeftModel` too).
        args: settings; None takes the defaults.
        adapter: the modality: makes prompts of rows.
        method: a name from `text_sdft.methods.table` with variants, or a function from a step to its groups.
        train_dataset: rows or examples: queries with or without a known reference, and retention prompts
            (``Example.retain``), which are drawn beside the queries.
        eval_dataset: rows or examples, or a dict of several such sets; ``evaluate()`` reports ``eval_accuracy``.
        processing_class: tokenizer or processor; None loads the model's own.
        peft_config: trains a LoRA adapter instead of all weights; frozen modules are excluded from it.
        sampler: makes the completions; None: the one that ``args.sampler`` names.
        full_batches: every optimiser step sees a full batch, across the ends of epochs too, so that methods with fewer rows
            take as many prompts (with ``max_steps``). Else the last batch of an epoch may be smaller.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        Unsupported: the data has nothing that this method could learn from.
        UserError: the data, the model or a setting cannot work; says what to do.
    """

    args: SDFTConfig
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the queries of the whole optimiser step

    def __init__(
        self,
        model: str | PathLike[str] | Model,
        args: SDFTConfig | None = None,
        *,
        adapter: ModalityAdapter,
        method: str | Method | Callable[[Step], list[Group]] = "sdft",
        train_dataset: Iterable[Any] | None = None,
        eval_dataset: Iterable[Any] | dict[str, Iterable[Any]] | None = None,
        processing_class: Any | None = None,
        peft_config: PeftConfig | None = None,
        sampler: Sampler | None = None,
        full_batches: bool = False,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.method = method_of(method)
        args = self.method.configured(checked_args(args, model))
        if train_dataset is not None and optimizers == (None, None):
            check_optimiser(args)
        check_engines(args)
        adapter = checked_adapter(adapter)
        examples = with_unique_ids(adapter.examples(checked_rows(train_dataset))) if train_dataset is not None else []
        # Without rows the model is only measured.
        self.queries, self.retained = self.method.rows(adapter, examples) if examples else ([], [])
        module: Model = load_model(str(model), adapter, args, peft_config) if isinstance(model, str | PathLike) else model
        if self.method.trainable is not None:
            peft_config = self.method.trainable(module, adapter.frozen_modules(module), peft_config)
        self.adapter = adapter = bound_adapter(adapter, module, processing_class)
        module = prepare_model(module, adapter, peft_config, args.seed)
        head_of(module, args.temperature)  # refuses an output layer that the divergence cannot take
        self.prompt_limit = prompt_limit(module, args)
        self.answers: dict[str, Answer] = {}  # given ones, by their query's id
        if self.method.answers == "expert":
            answered = [*self.queries, *(self.retained if self.method.retention == "answered" else ())]
            self.answers = expert_answers(module, adapter, answered, args.max_completion_length)
        elif self.method.answers == "context" and self.queries:
            parts = windows(adapter.processing_class, self.queries, args.max_completion_length)
            self.queries = [query for query, _ in parts]
            self.answers = {query.id: answer for query, answer in parts}
        super().__init__(
            model=module,
            args=args,
            data_collator=as_inputs,
            train_dataset=self.queries,  # type: ignore[arg-type]  # a list is a map-style dataset
            eval_dataset=checked_evals(args, adapter, eval_dataset),
            processing_class=adapter.processing_class,
            callbacks=[*(callbacks or []), MetricsWriter()],
            optimizers=optimizers,
        )
        self.sampler = sampler or make_sampler(args, adapter.processing_class, self.accelerator.autocast)
        if self.is_fsdp_enabled:
            shard(self, adapter.frozen_modules(module))
        elif self.is_deepspeed_enabled:
            place_for_zero(self)
        # After the model has been moved or sharded: a teacher's copies lie beside the tensors they stand for.
        self.teacher = make_teacher(args.teacher_model_kind, module, args.teacher_update_rate, args.teacher_sync_steps)
        own_start = args.teacher_model_kind != "base" and self.retained and self.method.retention != "answered"
        self.start_teacher = FrozenTeacher(module, "start") if own_start else self.teacher
        self.add_callback(TeacherUpdate(self.teacher))
        self.reader = PrefixStore(int(args.teacher_prefix_gib * 2**30))
        self.hints = self._hints()
        if isinstance(self.processing_class, PreTrainedTokenizerBase | ProcessorMixin):
            # `Trainer.train` does this too; but what is measured before it must end at the same tokens.
            align_special_tokens(module, self.processing_class)
        self._full_batches, self._prompts_checked = full_batches, False
        self.metrics = StepMetrics()
        self.tokens: Counter[str] = Counter()  # what this process has sampled and read so far: see `training_flops`
        logger.warning_once(f"{training_summary(module, adapter.frozen_modules(module))} {loss_summary(args)}")

    @property
    def module(self) -> Model:
        """The model itself, out of whatever wraps it."""
        return self.accelerator.unwrap_model(self.model)

    # ---- one training step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch: its share of the mean over all queries of the optimiser step.

        Args:
            model: the wrapped student.
            inputs: arguments of `step`.
            return_outputs: give the completions (`Rollout`: group by group) beside the loss.
            num_items_in_batch: rollouts of all micro-batches and processes of this step.
        """
        args, module, step = self.args, self.module, self.step(**inputs)
        assert self.method.groups is not None
        groups = self.method.groups(step)
        examples = [example for group in groups for example in group.examples]

        # 1. The student answers: y ~ π_θ(· | x).
        student_inputs = encode_student(self.adapter, examples, self.prompt_limit)
        with self.accelerator.autocast():
            student_inputs = student_inputs.encoded_once()  # images: sampling uses the values, 3. the graph
        rollouts = self.rollouts(groups, student_inputs)
        ids = [ids for rollout in rollouts for ids in rollout.ids]

        # 2. Teachers read the same ids: the queries' with demonstrations in context, the start in the student's own view.
        readings, dropped = self._readings(groups, student_inputs, rollouts)

        # 3. The student reads them in its own view, with gradient.
        student_NH = completion_hidden_states(model, module, student_inputs, ids)
        states = student_NH.split([sum(map(len, rollout.ids)) for rollout in rollouts])

        # 4. Each group's loss: a mean over completions, of means over their scored tokens.
        total = num_items_in_batch
        if total is None:
            total = len(step.examples) * args.num_generations * self.accelerator.num_processes
        # fp16: the divergence rounds its gradient in the forward, so what the scaler will multiply it by comes before.
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale() / float(total)
        head, losses = head_of(module, args.temperature), []
        loss = student_NH.new_zeros((), dtype=torch.promote_types(student_NH.dtype, torch.float32))
        for group, rollout, states_NH, reading in zip(groups, rollouts, states, readings, strict=True):
            masks, weight = self._scored_tokens(group, rollout), scale * group.weight
            group_loss, losses_B = answers_loss(
                states_NH, head, reading, rollout, masks, weight, args.divergence_settings, group.loss
            )
            loss = loss + group_loss
            losses.append(losses_B)

        self._count(groups, student_inputs, rollouts)
        self.metrics.record(self.adapter, step.number, groups, rollouts, losses, dropped)
        # A token that is left out counts too: a broken model ends no answer, and where cut ones are left out its loss is 0.
        if not bool(torch.isfinite(loss) & torch.isfinite(student_NH.detach()).all()):
            raise diverged(f"The loss of step {step.number + 1} is not finite", args.learning_rate)
        # Data parallelism averages gradients over processes; the total already counts all of them.
        loss = loss * self.accelerator.num_processes / total / scale
        return (loss, Rollout.joined(rollouts)) if return_outputs else loss

    def step(self, examples: Sequence[Example], retained: Sequence[Example] | None = None) -> Step:
        """What the method makes groups of: queries, and the retention rows (default: all) that may be drawn beside them."""
        return Step(
            examples,
            self.state.global_step,
            self.state.max_steps,
            self.args,
            self.adapter,
            self.teacher,
            self.start_teacher,
            self.retained if retained is None else retained,
            self.given_answers,
            self.teacher_answers,
            self.metrics.add,
            **({} if self.hints is None else {"choose": self.hints}),
        )

    def rollouts(self, groups: Sequence[Group], inputs: ModelInputs) -> list[Rollout]:
        """Each group's answers: given ones, and all others sampled now, in one batch of the student's ``inputs``."""
        own = [group.answers is None for group in groups for _ in group.examples]
        seeds = [seed for group in groups if group.answers is None for seed in group.seeds]
        sampled = Rollout([], [], [])
        if seeds:
            prompts = inputs.select([i for i, is_own in enumerate(own) if is_own])
            with gathered(self.module):
                sampled = self.sampler.sample(self.module, prompts, seeds)
        parts, start = [], 0
        for group in groups:
            if group.answers is None:
                parts.append(sampled.select(slice(start, start := start + len(group.examples))))
            else:
                ids = [given.ids for given in group.answers]
                logps = [torch.zeros(len(row)) for row in ids]
                parts.append(Rollout(ids, logps, [given.finished for given in group.answers]))
        return parts

    def _readings(
        self, groups: Sequence[Group], student: ModelInputs, rollouts: Sequence[Rollout]
    ) -> tuple[list[Reading | None], int]:
        """What each group's reader makes of its answers (None: it has none), and how many demonstrations did not fit."""
        readings: list[Reading | None] = []
        start = dropped = 0
        for group, rollout in zip(groups, rollouts, strict=True):
            view = student.select(range(start, start := start + len(group.examples)))
            if group.reader is None:
                readings.append(None)
                continue
            teacher = group.reader.teacher
            if group.reader.contexts is not None:
                view, left_out = encode_teacher(self.adapter, group.examples, group.reader.contexts, self.prompt_limit)
                dropped += left_out
            self.tokens["teacher"] += sum(view.lengths) + sum(map(len, rollout.ids))
            # `autocast` inside `applied`: what it keeps of the weights that it casts must go before they are swapped back.
            with torch.no_grad(), teacher.applied(), self.accelerator.autocast(), evaluating(self.module):
                view = view.for_weights(teacher.name, teacher.version, teacher.fleeting)
                named = teacher.name, teacher.version
                teacher_NH = self.reader.completion_hidden_states(self.module, view, rollout.ids, *named)
                readings.append((teacher_NH, frozen_head(self.module, self.args.temperature)))
        return readings, dropped

    def _scored_tokens(self, group: Group, rollout: Rollout) -> list[Tensor]:
        """B masks [T_b]: the completion tokens that count; a completion without any weighs nothing."""
        skip, every = self.args.loss_tokens_to_skip, not self.args.masks_truncated
        counts = group.counts or (lambda example, ids_T: True)
        rows = zip(group.examples, rollout.ids, rollout.finished, strict=True)
        return [(torch.arange(len(ids)) >= skip) & (counts(row, ids) and (ended or every)) for row, ids, ended in rows]

    def _count(self, groups: Sequence[Group], inputs: ModelInputs, rollouts: Sequence[Rollout]) -> None:
        """Tokens that the student reads in a step, and those that it samples."""
        lengths = iter(inputs.lengths)
        for group, rollout in zip(groups, rollouts, strict=True):
            tokens = sum(next(lengths) + len(ids) for ids in rollout.ids)
            self.tokens["student"] += tokens
            self.tokens["sampled"] += tokens if group.answers is None else 0

    # ---- answers that are not the student's ----

    def given_answers(self, queries: Sequence[Example], seeds: Sequence[int]) -> list[Answer]:
        """The expert's or stored answers to these queries; or what the starting teacher answers now, with these seeds."""
        if self.method.fresh:
            return self.teacher_answers(self.start_teacher, queries, contexts_of(seeds))
        return [self.answers[query.id] for query in queries]

    def teacher_answers(
        self, teacher: LiveTeacher, queries: Sequence[Example], contexts: Sequence[TeacherContext], greedy: bool = False
    ) -> list[Answer]:
        """What a teacher answers, each query in its context; sampled with the context's seed, if not greedy."""
        seeds = [context.seed for context in contexts]
        with torch.no_grad(), teacher.applied():
            inputs, _ = encode_teacher(self.adapter, queries, contexts, self.prompt_limit)
            rollout = self.sampler.sample(self.module, inputs, None if greedy else seeds)
        self.tokens["sampled"] += sum(inputs.lengths) + sum(map(len, rollout.ids))
        return [Answer(*row) for row in zip(rollout.ids, rollout.finished, seeds, strict=True)]

    def sampled_answers(self, queries: Sequence[Example]) -> list[dict[str, Any]]:
        """One answer to each query by the model as it was at the start, shared among the processes; as records."""
        args = self.args
        mine, size = queries[args.process_index :: args.world_size], args.per_device_train_batch_size
        quiet = bool(args.disable_tqdm) or not self.is_world_process_zero()
        records: list[dict[str, Any]] = []
        for start in track(range(0, len(mine), size), "the teacher's answers", transient=True, disable=quiet):
            batch = mine[start : start + size]
            seeds = [draw_seed(args.seed, "the teacher's answer", query.id) for query in batch]
            answers = self.teacher_answers(self.start_teacher, batch, contexts_of(seeds))
            records += answer_records(self.adapter, batch, answers)
        return gather_object(records) if args.world_size > 1 else records

    def store_answers(self, resume: bool = False) -> None:
        """`sampled_answers` to all queries, kept in the run's ``answers.jsonl``; read from there by a run that goes on.

        Raises `UserError` where every answer was cut by the length limit, and cut ones do not count.
        """
        file = Path(str(self.args.output_dir)) / ANSWERS_FILE
        if not (resume and file.exists()):
            records = self.sampled_answers(self.queries)
            if self.is_world_process_zero():
                write_json_lines(file, records)
            self.accelerator.wait_for_everyone()
        self.answers = answers_by_id(read_json_lines(file, ANSWERS))
        if self.args.masks_truncated and not any(answer.finished for answer in self.answers.values()):
            raise UserError(
                f"The teacher ended none of its answers within {self.args.max_completion_length} tokens, and cut ones are "
                "left out: nothing would be learnt. Raise max_completion_length, or set mask_truncated_completions: false."
            )

    def _hints(self) -> Hints | None:
        """What chooses the contexts of queries, where the adapter's policy asks for hints that grow."""
        if self.adapter.policy != "ladder" or not self.method.trains:
            return None
        if self.method.answers != "student":
            logger.warning_once(
                f"demonstrations.policy ladder changes nothing for the method '{self.method.name}': only sdft has hints "
                "that grow. A teacher, where it has one, is shown what demonstrations.rung says."
            )
            return None
        if self.is_fsdp_enabled:  # the teacher reads together on all processes, and they need other rungs
            raise UserError("demonstrations.policy: ladder does not work under FSDP; use policy: fixed.")
        return Hints()

    # ---- hooks of transformers' Trainer ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        """As `transformers.Trainer.train`, after every prompt has been read once and answers that are kept were given.

        Raises `UserError` where there is nothing to train, a prompt is too long or an image cannot be read.
        """
        if not self.method.trains:
            raise UserError(f"The method '{self.method.name}' trains nothing; `vlm-sdft compare` measures it.")
        self.check_prompts()
        if resume_from_checkpoint is True:
            folder = Path(str(self.args.output_dir))
            resume_from_checkpoint = str(newest_checkpoint(folder) or next(iter(checkpoints(folder)), folder))
        if resume_from_checkpoint and (why := damage(Path(resume_from_checkpoint))):
            raise UserError(f"Cannot resume from {resume_from_checkpoint}: {why}.")
        if self.method.stores_answers:
            self.store_answers(resume=bool(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def check_prompts(self) -> None:
        """Read and encode each training prompt in the views that are used, so that errors come before training."""
        if self._prompts_checked:
            return
        args, adapter = self.args, self.adapter
        if not self.queries:
            raise UserError("There are no training queries (retention prompts alone teach nothing).")
        if args.masks_truncated and isinstance(self.sampler, OWN_SAMPLERS) and not eos_ids(self.module):
            raise UserError(
                "The model names no end token, so every completion is cut by the length limit, and cut ones are left out: "
                "nothing would be learnt. Set generation_config.eos_token_id, or mask_truncated_completions to false."
            )
        shown = None
        if self.method.shows_context:
            shown = contexts_of([draw_seed(args.seed, 0, query.id, 0) for query in self.queries])
        with gathered(self.module), evaluating(self.module):  # retrieval may embed images with the model
            check_logits(self.module, encode_student(adapter, self.queries[:1], self.prompt_limit))
            dropped, alike = checked_views(adapter, self.queries, shown, self.prompt_limit)
            for example in self.retained:
                encode_student(adapter, [example], self.prompt_limit)
        for query in self.queries if self.hints is not None else ():  # rationales (rung 4) are written before training
            for context in contexts_asked(adapter, query, args.seed):
                encode_teacher(adapter, [query], [context], self.prompt_limit)
        if alike:
            logger.warning(
                "For every query the teacher reads only what the student reads, so nothing is learnt: show it more."
            )
        if dropped:
            logger.warning(
                f"Teacher prompts exceed {self.prompt_limit} tokens: {dropped} demonstrations left out over "
                f"{len(self.queries)} queries. Show fewer or smaller ones, or raise max_prompt_length."
            )
        self._prompts_checked = True

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        count = sum(len(batch["examples"]) for batch in batch_samples) * self.args.num_generations
        return self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops a run that has diverged before its weights are lost (fp16's scaler skips such steps by itself)."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise diverged(f"The gradient of step {self.state.global_step + 1} is not finite", self.args.learning_rate)
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        if not self._full_batches or args.max_steps <= 0:
            return super()._get_train_sampler(train_dataset)
        prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size * args.max_steps
        return rounds(len(self.queries), prompts, args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self.adapter.examples(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return super().get_test_dataloader(self.adapter.examples(checked_rows(test_dataset)))  # type: ignore[arg-type]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the Trainer's rule needs the tokens of one forward pass, and a step here has several."""
        return 0

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Greedy answers of the student, scored by the adapter: ``eval_accuracy`` over examples with a reference."""
        scores: list[float] = []
        self.callback_handler.eval_dataloader = dataloader
        for batch in dataloader:
            examples = batch["examples"]
            answers = answer(self.module, self.adapter, self.sampler, examples, self.prompt_limit)
            given = [self.adapter.score(example, text) for example, text in zip(examples, answers, strict=True)]
            # NaN marks an example without a reference; `gather_for_metrics` needs equal shapes on all processes.
            mine = torch.tensor([float("nan") if score is None else score for score in given], device=self.args.device)
            scores += self.accelerator.gather_for_metrics(mine).tolist()
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        known = [score for score in scores if score == score]
        metrics = {f"{metric_key_prefix}_accuracy": sum(known) / len(known)} if known else {}
        return EvalLoopOutput(predictions=np.array(scores), label_ids=None, metrics=metrics, num_samples=len(scores))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's own metrics to a training log, and writes the newest completions to ``samples.jsonl``."""
        if "loss" in logs:
            self.metrics.add_sum("teacher/reused_tokens", *self.reader.take_counts())
            logs = {**logs, **self.metrics.means(self.accelerator)}
            if self.is_world_process_zero():
                append_json_lines(Path(str(self.args.output_dir)) / "samples.jsonl", self.metrics.samples)
        super().log(logs, start_time)


def as_inputs(batch: list[Example]) -> dict[str, Any]:
    """A batch of the data loader as `compute_loss` takes it (a function by name: workers may have to import it)."""
    return {"examples": batch}


def rounds(rows: int, count: int, seed: int) -> list[int]:
    """``count`` indices: every row once a round, each round in an order of its own."""
    indices: list[int] = []
    for start in range(0, count, rows):
        order = list(range(rows))
        random.Random(draw_seed(seed, "round", start)).shuffle(order)
        indices += order[: count - start]
    return indices
