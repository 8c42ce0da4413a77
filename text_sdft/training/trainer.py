"""`SDFTTrainer`: self-distillation fine-tuning (arXiv 2601.19897, alg. 1) on transformers' `Trainer`.

`compute_loss` is one training step, top to bottom: sample from the student, let the teacher score the same ids in its own
view, let the student score them, compare. Checkpoints, resuming, several processes, logging and callbacks are
transformers'; what is overridden here are its hooks.

Shapes: B rows of a micro-batch · N scored tokens · H hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, align_special_tokens
from transformers.utils import logging

from text_sdft.core.adapter import ModalityAdapter, bound_adapter, with_unique_ids
from text_sdft.core.confidence import Reading, completion_weights
from text_sdft.core.config import SDFTConfig
from text_sdft.core.data import Example, Model, TeacherContext
from text_sdft.core.divergence import Head, divergence
from text_sdft.core.errors import UserError
from text_sdft.core.evaluation import answer
from text_sdft.core.inputs import ModelInputs
from text_sdft.core.sampling import Rollout, Sampler, draw_seed, eos_ids, evaluating
from text_sdft.core.scoring import check_logits, completion_hidden_states, frozen_head, head_of
from text_sdft.core.sharding import gathered, place_for_zero, shard
from text_sdft.core.teachers import FrozenTeacher, LiveTeacher, make_teacher
from text_sdft.core.views import encode_student, encode_teacher, read_views
from text_sdft.fast.prefix import PrefixStore
from text_sdft.fast.vllm_sampler import OWN_SAMPLERS, make_sampler
from text_sdft.training.callbacks import MetricsWriter, TeacherUpdate, append_jsonl
from text_sdft.training.checkpoints import CheckpointedTrainer
from text_sdft.training.checks import check_adapter, checked_args, checked_evals, checked_rows
from text_sdft.training.metrics import StepMetrics
from text_sdft.training.modeling import load_model, loss_summary, prepare_model, prompt_limit, training_summary

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Side:
    """Rows of a micro-batch that share a teacher, and the view in which it reads them (None: no teacher reads them)."""

    rows: slice
    teacher: LiveTeacher | None
    view: ModelInputs | None
    weight: float


class SDFTTrainer(CheckpointedTrainer):
    """Trains a model on-policy from demonstrations; it is its own teacher.

    Args:
        model: a name or folder, or a loaded module (a `PeftModel` too).
        args: settings; None takes the defaults.
        adapter: the modality: makes prompts of rows.
        train_dataset: rows or examples: queries with or without a known reference, and retention prompts
            (``Example.retain``), which are drawn beside the queries.
        eval_dataset: rows or examples, or a dict of several such sets; ``evaluate()`` reports ``eval_accuracy``.
        processing_class: tokenizer or processor; None loads the model's own.
        peft_config: trains a LoRA adapter instead of all weights; frozen modules are excluded from it.
        sampler: makes the completions; None: the one that ``args.sampler`` names.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
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
        train_dataset: Iterable[Any] | None = None,
        eval_dataset: Iterable[Any] | dict[str, Iterable[Any]] | None = None,
        processing_class: Any | None = None,
        peft_config: PeftConfig | None = None,
        sampler: Sampler | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = checked_args(args, model)
        check_adapter(adapter)
        train_dataset = checked_rows(train_dataset)
        module: Model = load_model(str(model), adapter, args, peft_config) if isinstance(model, str | PathLike) else model
        self.adapter = adapter = bound_adapter(adapter, module, processing_class)
        module = prepare_model(module, adapter, peft_config, args.seed)
        head_of(module, args.temperature)  # refuses an output layer that the divergence cannot take
        self.prompt_limit = prompt_limit(module, args)
        examples = with_unique_ids(adapter.examples(train_dataset)) if train_dataset is not None else []
        self.queries = [example for example in examples if not example.retain]
        self.retained = [example for example in examples if example.retain]
        super().__init__(
            model=module,
            args=args,
            data_collator=lambda batch: {"examples": batch},
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
        same = args.teacher_model_kind == "base" or not self.retained
        self.start_teacher = self.teacher if same else FrozenTeacher(module)
        self.add_callback(TeacherUpdate(self.teacher))
        self.prefixes = PrefixStore(int(args.teacher_prefix_gib * 2**30))
        if isinstance(self.processing_class, PreTrainedTokenizerBase | ProcessorMixin):
            # `Trainer.train` does this too; but what is measured before it must end at the same tokens.
            align_special_tokens(module, self.processing_class)
        self._prompts_checked = False
        self.metrics = StepMetrics()
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
            inputs: ``{"examples": queries}``.
            return_outputs: give the completions (`Rollout`: the queries', then retention prompts') beside the loss.
            num_items_in_batch: rollouts of all micro-batches and processes of this step.
        """
        args, module, step = self.args, self.module, self.state.global_step
        queries = [(example, g) for example in inputs["examples"] for g in range(args.num_generations)]
        retained = self._draw_retained(inputs["examples"])
        examples = [example for example, _ in queries] + [example for example, _ in retained]
        seeds = [draw_seed(args.seed, step, example.id, g) for example, g in queries] + [seed for _, seed in retained]

        # 1. The student answers: y ~ π_θ(· | x).
        student_inputs = encode_student(self.adapter, examples, self.prompt_limit)
        with self.accelerator.autocast():
            student_inputs = student_inputs.encoded_once()  # images: sampling uses the values, 3. the graph
        rollout = self.complete(student_inputs, examples, seeds)

        # 2. The teacher scores the same ids with its demonstrations in context; for a retention prompt the model as it
        #    was at the start scores them in the student's own view.
        n, dropped = len(queries), 0
        teacher_inputs = None
        if self.query_teacher is not None:
            contexts = self.contexts(examples[:n], seeds[:n])
            teacher_inputs, dropped = encode_teacher(self.adapter, examples[:n], contexts, self.prompt_limit)
        sides = [_Side(slice(0, n), self.query_teacher, teacher_inputs, weight=1.0)]
        if retained:
            view = student_inputs.select(range(n, len(examples)))
            # All together weigh `retain_weight` against the queries' 1.
            weight = args.retain_weight * args.num_generations / args.retain_ratio
            sides.append(_Side(slice(n, len(examples)), self.start_teacher, view, weight))
        teacher_states = [self._read_as_teacher(side, rollout) for side in sides]
        scored = self.scored_tokens(examples, rollout)
        trust = self._trust(examples[:n], seeds[:n], rollout, teacher_states[0], scored[:n]) + [1.0] * len(retained)

        # 3. The student scores them in its own view, with gradient.
        student_NH = completion_hidden_states(model, module, student_inputs, rollout.ids)
        student_rows = student_NH.split([len(ids) for ids in rollout.ids])
        head = head_of(module, args.temperature)

        # 4. Token divergence, mean over a completion's scored tokens, then over completions.
        total = num_items_in_batch if num_items_in_batch is not None else len(queries) * self.accelerator.num_processes
        # fp16: the divergence rounds its gradient in the forward, so what the scaler will multiply it by comes before.
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale() / float(total)
        dtype = torch.promote_types(student_NH.dtype, torch.float32)
        loss = student_NH.new_zeros((), dtype=dtype)
        losses_B: list[float] = []
        for side, teacher in zip(sides, teacher_states, strict=True):
            keep_N = torch.cat(scored[side.rows]).to(student_NH.device)
            counts = [int(mask.sum()) for mask in scored[side.rows]]
            weights = [
                torch.full((count,), scale * side.weight * sure / count, dtype=dtype)
                for count, sure in zip(counts, trust[side.rows], strict=True)
                if count
            ]
            weight_N = torch.cat(weights or [torch.zeros(0, dtype=dtype)]).to(student_NH.device)
            ids_N, sampler_logp_N = (
                torch.cat(values[side.rows]).to(student_NH.device)[keep_N] for values in (rollout.ids, rollout.logps)
            )
            states_NH = torch.cat(student_rows[side.rows])[keep_N]
            if teacher is None:
                side_loss, loss_N = self.likelihood_loss(states_NH, head, ids_N, weight_N)
            else:
                side_loss, loss_N = divergence(
                    states_NH,
                    teacher[0][keep_N],
                    head,
                    teacher[1],
                    args.divergence_settings,
                    ids_N,
                    weight_N,
                    sampler_logp_N,
                )
            loss = loss + side_loss
            losses_B += [float(row.mean()) if len(row) else 0.0 for row in loss_N.split(counts)]

        self.metrics.record(self.adapter, step, examples, rollout, losses_B, dropped)
        # Data parallelism averages gradients over processes; the total already counts all of them.
        loss = loss * self.accelerator.num_processes / total / scale
        return (loss, rollout) if return_outputs else loss

    # What the methods that SDFT is compared with do otherwise (`text_sdft.methods.table`).

    @property
    def query_teacher(self) -> LiveTeacher | None:
        """Who reads the queries' completions with demonstrations in context; None: their likelihood is the loss."""
        return self.teacher

    @property
    def shows_context(self) -> bool:
        """Whether the queries' teacher prompts are read at all, to score completions or to answer."""
        return True

    def complete(self, inputs: ModelInputs, examples: list[Example], seeds: list[int]) -> Rollout:
        """The completions that a step learns from: the student's own.

        Args:
            inputs: the student's view of the examples: queries first, then retention prompts.
            seeds: one an example.
        """
        with gathered(self.module):
            return self.sampler.sample(self.module, inputs, seeds)

    def contexts(self, queries: list[Example], seeds: list[int]) -> list[TeacherContext]:
        """The teacher's context for each query."""
        return [TeacherContext(seed) for seed in seeds]

    def scored_tokens(self, examples: list[Example], rollout: Rollout) -> list[Tensor]:
        """B masks [T_b]: the completion tokens that count; a completion without any weighs nothing."""
        skip, every = self.args.loss_tokens_to_skip, not self.args.masks_truncated
        ended = zip(rollout.ids, rollout.finished, strict=True)
        return [(torch.arange(len(ids)) >= skip) & (finished or every) for ids, finished in ended]

    def likelihood_loss(self, student_NH: Tensor, head: Head, ids_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the tokens' losses, and each one's (no gradient), where there is no `query_teacher`."""
        raise NotImplementedError("a trainer without a teacher for its queries defines their loss")

    def _read_as_teacher(self, side: _Side, rollout: Rollout) -> Reading | None:
        """The teacher's hidden states [N, H] at a side's completions, and its output layer."""
        if side.teacher is None or side.view is None:
            return None
        # `autocast` inside `applied`: what it keeps of the weights that it casts must go before they are swapped back.
        with torch.no_grad(), side.teacher.applied(), self.accelerator.autocast(), evaluating(self.module):
            ids = rollout.ids[side.rows]
            owner, version = next((name, t.version) for name, t in self.teachers().items() if t is side.teacher)
            view = side.view.under(owner, version, side.teacher.fleeting)
            teacher_NH = self.prefixes.completion_hidden_states(self.module, view, ids, owner, version)
            return teacher_NH, frozen_head(self.module, self.args.temperature)

    def _trust(
        self, queries: list[Example], seeds: list[int], rollout: Rollout, teacher: Reading | None, scored: list[Tensor]
    ) -> list[float]:
        """The weight of each query's completion by the teacher's confidence (`text_sdft.core.confidence`)."""
        if self.args.confidence == "none" or teacher is None:
            return [1.0] * len(queries)

        def again() -> Reading | None:  # the same demonstrations in another order, or another draw of them
            contexts = self.contexts(queries, [draw_seed(seed, "again") for seed in seeds])
            view, _ = encode_teacher(self.adapter, queries, contexts, self.prompt_limit)
            return self._read_as_teacher(_Side(slice(0, len(queries)), self.query_teacher, view, weight=1.0), rollout)

        weights = completion_weights(teacher, again, scored, self.args.confidence, self.args.divergence_settings)
        self.metrics.add_confidence(weights)
        return weights

    def _draw_retained(self, queries: list[Example]) -> list[tuple[Example, int]]:
        """At most one retention prompt a query, and the seed of its completion.

        Both are keyed by the query, so that no split of the batch changes them.
        """
        drawn = []
        for query in queries if self.retained else []:
            seed = draw_seed(self.args.seed, self.state.global_step, "retain", query.id)
            rng = random.Random(seed)
            if rng.random() < self.args.retain_ratio:
                drawn.append((rng.choice(self.retained), seed))
        return drawn

    # ---- hooks of transformers' Trainer ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`, after every prompt has been read once.

        Raises:
            UserError: there is nothing to train on, a prompt is too long or an image cannot be read.
        """
        self.check_prompts()
        return super().train(*args, **kwargs)

    def check_prompts(self) -> None:
        """Read and encode each training prompt in the views that are used, so that errors come before training."""
        if self._prompts_checked:
            return
        if not self.queries:
            raise UserError("There are no training queries (retention prompts alone teach nothing).")
        if self.args.masks_truncated and isinstance(self.sampler, OWN_SAMPLERS) and not eos_ids(self.module):
            raise UserError(
                "The model names no end token, so every completion is cut by the length limit, and cut ones are left out: "
                "nothing would be learnt. Set generation_config.eos_token_id, or mask_truncated_completions to false."
            )
        contexts = [TeacherContext(draw_seed(self.args.seed, 0, example.id, 0)) for example in self.queries]
        shown = contexts if self.shows_context else None
        with gathered(self.module), evaluating(self.module):  # retrieval may embed images with the model
            check_logits(self.module, encode_student(self.adapter, self.queries[:1], self.prompt_limit))
            dropped, alike = read_views(self.adapter, self.queries, shown, self.prompt_limit)
            for example in self.retained:
                encode_student(self.adapter, [example], self.prompt_limit)
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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in `transformers.Trainer`; rows become examples."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self.adapter.examples(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in `transformers.Trainer`; rows become examples."""
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
            self.metrics.add_reused(*self.prefixes.take_counts())
            logs = {**logs, **self.metrics.take(self.accelerator, self.args.device)}
            if self.is_world_process_zero():
                append_jsonl(Path(str(self.args.output_dir)) / "samples.jsonl", self.metrics.samples)
        super().log(logs, start_time)
