"""One training step is the paper's, and nothing about batching, padding, order or resuming changes it."""

from __future__ import annotations

import copy
import json
import resource
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import TrainerCallback

from tests.tiers import further
from tests.toy import VOCABULARY, ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft.core import TeacherContext, UserError
from text_sdft.core.sampling import draw_seed
from text_sdft.methods.distillation import retention
from text_sdft.training import SDFTTrainer
from text_sdft.training.checkpoints import newest_checkpoint

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=True)


class LabelledToy(ToyAdapter):
    """Queries have an expert's answer."""

    def expert_answer(self, example):
        return "5 6"

    def encode_answer(self, answer):
        return torch.tensor([int(word) for word in answer.split()])


def make(tmp_path, rows=None, model=None, peft_config=None, callbacks=None, eval_dataset=None, **changes):
    return SDFTTrainer(
        model or toy_model(),
        toy_args(tmp_path / "run", **changes),
        adapter=ToyAdapter(),
        train_dataset=toy_rows() if rows is None else rows,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
        callbacks=callbacks,
    )


def loss_and_gradients(trainer, examples, total=None):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {"examples": examples}, num_items_in_batch=total or len(examples))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.detach(), gradients


def test_the_step_equals_a_plain_one_written_from_the_paper(tmp_path):
    """Unpadded forwards row by row, full logits, autograd: the same loss and gradients."""
    trainer = make(tmp_path, toy_rows(6, retained=3), retain_weight=0.5, num_loss_tokens_to_skip=1)
    for p in trainer.teacher._parameters.values():  # a teacher that differs from the student
        p.data += 0.05 * torch.randn_like(p)
    ours, gradients = loss_and_gradients(trainer, trainer.queries)

    model, adapter, start = trainer.model, trainer.adapter, toy_model()
    teacher = copy.deepcopy(start)
    total = torch.zeros(())
    queries = [(example, draw_seed(42, 0, example.id, 0), teacher, 1.0) for example in trainer.queries]
    [retained] = retention(trainer.step(trainer.queries))
    queries += [(example, seed, start, 0.5) for example, seed in zip(retained.examples, retained.seeds, strict=True)]
    assert len(retained.examples) == 6
    for example, seed, its_teacher, weight in queries:
        prompt = adapter.encode([adapter.student_messages(example)])
        context = prompt if example.retain else adapter.encode([adapter.teacher_messages(example, TeacherContext(seed))])
        ids = trainer.sampler.sample(model, prompt, [seed]).ids[0]
        assert 1 <= len(ids) <= 6

        def logps(module, view, ids=ids):
            whole = torch.cat([view.rows[0].tokens["input_ids"], ids])[None]
            return module(whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)

        with torch.no_grad():
            q = logps(its_teacher, context)
        p = logps(model, prompt)
        kl = (q.exp() * (q - p)).sum(-1)[1:]
        total = total + weight * (kl.mean() if len(kl) else 0.0) / len(trainer.queries)
    total.backward()

    torch.testing.assert_close(ours, total.detach(), rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-5)


def test_eight_rows_equal_four_times_two_and_any_order(tmp_path):
    trainer = make(tmp_path, toy_rows(8, retained=4))
    with torch.no_grad():  # a student that has moved: retention prompts count
        for p in trainer.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    whole, gradients = loss_and_gradients(trainer, trainer.queries)
    assert sum(s["loss"] for s in trainer.metrics.samples if s["retain"]) > 0.01
    parts = [trainer.queries[i : i + 2] for i in range(0, 8, 2)]
    for split in (parts, parts[::-1], [trainer.queries[::-1]]):
        results = [loss_and_gradients(trainer, part, total=8) for part in split]
        torch.testing.assert_close(sum(loss for loss, _ in results), whole, rtol=0, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(sum(g[name] for _, g in results), gradient, rtol=1e-4, atol=1e-5)


def test_accumulation_gives_the_same_weights(tmp_path):
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = make(
            tmp_path, toy_rows(8), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        runs.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=0, atol=1e-5)


def test_the_last_smaller_batch_weighs_its_rows_alike(tmp_path):
    """6 rows as 4 + 2: one step's loss is the mean over the six, not the mean of two means."""
    trainer = make(tmp_path, toy_rows(6), gradient_accumulation_steps=2, max_steps=1)
    expected, _ = loss_and_gradients(trainer, trainer.queries)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_truncated_completions_are_left_out_where_asked(tmp_path):
    trainer = make(tmp_path, mask_truncated_completions=True, max_completion_length=1)
    _, gradients = loss_and_gradients(trainer, trainer.queries)
    finished = [r for r in trainer.metrics.samples if r["completion"] == ""]  # only the end-of-sequence token
    assert len(finished) < 8
    assert sum(r["loss"] > 0 for r in trainer.metrics.samples) == len(finished)
    assert all(g.isfinite().all() for g in gradients.values())


def test_a_retention_prompt_of_an_unmoved_student_costs_nothing(tmp_path):
    rows = toy_rows(4, retained=4)
    trainer = make(tmp_path, rows)
    loss_and_gradients(trainer, trainer.queries)
    losses = [r["loss"] for r in trainer.metrics.samples if r["retain"]]
    assert len(losses) == 4 and max(losses) < 1e-6


def test_retention_keeps_the_student_near_its_start(tmp_path):
    """KL to the starting model on the retained prompts stays lower with the weight than without."""
    rows = toy_rows(8, retained=8)
    kls = {}
    for weight in (0.0, 4.0):
        trainer = make(tmp_path / str(weight), rows, retain_weight=weight, max_steps=30, learning_rate=1e-3)
        trainer.train()
        start = toy_model()
        total = 0.0
        for example in trainer.retained:
            batch = trainer.adapter.encode([example.messages]).batch()
            with torch.no_grad():
                q, p = (m(**batch).logits[0, -1].log_softmax(-1) for m in (start, trainer.model))
            total += (q.exp() * (q - p)).sum().item()
        kls[weight] = total
    assert kls[4.0] < 0.5 * kls[0.0]


class Blow(TrainerCallback):
    """From the given step on the rate is absurd: of a run that was good until then."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == self.step:
            for group in optimizer.param_groups:
                group["lr"] = 1e30


DIVERGED = [
    ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}, None, "sdft", 1),
    ({}, None, "sft", 9),
    *further(
        ({"mask_truncated_completions": True}, LORA, "sdft", 1),
        ({"mask_truncated_completions": True}, LORA, "sdft", 9),
        ({"max_grad_norm": 0.0}, None, "sdft", 9),
        ({}, None, "sft", 1),
    ),
]


@pytest.mark.parametrize(("settings", "peft_config", "method", "saves"), DIVERGED)
def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path, settings, peft_config, method, saves):
    """At the first loss, gradient or weight that is not finite, at whichever is looked at first."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": saves, "save_total_limit": 1, **settings}
    trainer = SDFTTrainer(
        toy_model(), toy_args(tmp_path / "run", **settings), adapter=LabelledToy(), method=method, callbacks=[Blow(2)],
        train_dataset=toy_rows(8), peft_config=peft_config,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"(loss|gradient|weights) (of|after) step [34] .*not finite.*has diverged"):
        trainer.train()
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == (["checkpoint-2"] if saves == 1 else [])
    with pytest.raises(UserError, match="diverged"):
        trainer.save_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_fewer_retention_prompts_than_queries(tmp_path, ratio):
    trainer = make(tmp_path, toy_rows(64, retained=4), retain_ratio=ratio)
    drawn = [example for group in retention(trainer.step(trainer.queries)) for example in group.examples]
    assert abs(len(drawn) - 64 * ratio) <= 14  # three standard deviations of a binomial
    loss, _ = loss_and_gradients(trainer, trainer.queries)
    assert loss.isfinite()


def test_several_completions_of_a_query_differ_and_weigh_alike(tmp_path):
    trainer = make(tmp_path, num_generations=3)
    loss, _ = loss_and_gradients(trainer, trainer.queries[:2], total=6)
    samples = trainer.metrics.samples
    assert [s["id"] for s in samples] == ["q0"] * 3 + ["q1"] * 3
    assert len({s["completion"] for s in samples}) > 2
    assert loss.item() == pytest.approx(sum(s["loss"] for s in samples) / 6, abs=1e-5)


def test_importance_weights_are_not_inert(tmp_path):
    """A sampler that reports other probabilities than the trainer's changes the loss by the clipped ratio."""
    trainer = make(tmp_path)
    plain, _ = loss_and_gradients(trainer, trainer.queries)
    sample = trainer.sampler.sample

    class Other:
        def sample(self, *args):
            rollout = sample(*args)
            return type(rollout)(rollout.ids, [x + self.shift for x in rollout.logps], rollout.finished)

    trainer.sampler = other = Other()
    for shift, ratio in ((0.5, 0.60653), (-0.5, 1.64872), (-3.0, 2.0)):
        other.shift = shift
        weighted, _ = loss_and_gradients(trainer, trainer.queries)
        assert weighted.item() == pytest.approx(plain.item() * ratio, rel=1e-4)


class StopAt(TrainerCallback):
    """A kill after a checkpoint: training ends, the process too."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


@pytest.mark.parametrize("accumulated", [1, *further(2)])
def test_a_run_that_had_done_its_steps_takes_none_more(tmp_path, accumulated):
    """(Killed after its last checkpoint, in mid-epoch.)"""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": accumulated}
    whole = make(tmp_path, toy_rows(16), **settings)
    whole.train()
    resumed = make(tmp_path, toy_rows(16), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_that_goes_on_between_two_logs_logs_as_if_it_had_not_stopped(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    make(tmp_path / "whole", **settings).train()
    make(tmp_path / "parts", callbacks=[StopAt(2)], **settings).train()
    make(tmp_path / "parts", **settings).train(resume_from_checkpoint=True)
    whole, parts = ((tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts"))
    assert [line for line in parts if '"loss"' in line] == [line for line in whole if '"loss"' in line]


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "optimizer.pt": cut,
    "model.safetensors": cut,
    "scheduler.pt": lambda file: file.unlink(),
    "rng_state.pth": lambda file: file.unlink(),
    "teacher.safetensors": lambda file: file.write_bytes(b"x" * file.stat().st_size),
    "trainer_state.json": lambda file: file.write_text(file.read_text().replace('"global_step": 4', '"global_step": "4"')),
}


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    make(tmp_path, **settings).train()
    for name, damage in DAMAGES.items():
        run = shutil.copytree(tmp_path / "run", tmp_path / name)
        damage(run / "checkpoint-4" / name)
        caplog.clear()
        assert newest_checkpoint(run) == run / "checkpoint-3"
        assert "checkpoint-4 is passed over" in caplog.text and name in caplog.text
    (run / "checkpoint-3" / "files.json").unlink()  # which an older version did not write
    assert newest_checkpoint(run) == run / "checkpoint-3"
    (run / "checkpoint-3" / "scheduler.pt").unlink()
    assert newest_checkpoint(run) == run / "checkpoint-2" and "it has no scheduler" in caplog.text
    with pytest.raises(UserError, match=r"Cannot resume from .*checkpoint-4.*trainer_state.json"):
        make(tmp_path, **settings).train(resume_from_checkpoint=str(run / "checkpoint-4"))


RESUMED = [(None, "ema"), (LORA, "base"), *further((None, "base"), (None, "live"), (LORA, "ema"), (LORA, "live"))]


@pytest.mark.parametrize(("peft_config", "kind"), RESUMED)
def test_resuming_gives_the_same_run_bit_for_bit(tmp_path, kind, peft_config):
    rows = toy_rows(8, retained=3)

    def trainer(name, callbacks=None):
        return make(
            tmp_path / name, rows, peft_config=peft_config, callbacks=callbacks, teacher_model_kind=kind,
            max_steps=6, save_strategy="steps", save_steps=3, warmup_steps=1,
        )  # fmt: skip

    whole = trainer("whole")
    whole.train()
    trainer("parts", [StopAt(3)]).train()
    resumed = trainer("parts")
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == 6
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    for owner, teacher in whole.teachers().items():
        other = resumed.teachers()[owner].state_dict()
        assert teacher.state_dict().keys() == other.keys()
        assert all(torch.equal(t, other[n]) for n, t in teacher.state_dict().items())
    states = [t.optimizer.state_dict()["state"] for t in (whole, resumed)]
    assert all(torch.equal(states[0][k][n], states[1][k][n]) for k in states[0] for n in states[0][k])
    lines = [
        [json.loads(line) for line in (tmp_path / name / "run" / "samples.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]


def test_resuming_with_another_teacher_is_refused(tmp_path):
    make(tmp_path, teacher_model_kind="live", max_steps=2, save_strategy="steps", save_steps=1).train()
    with pytest.raises(UserError, match="teacher_model_kind"):
        make(tmp_path, teacher_model_kind="ema", max_steps=3).train(resume_from_checkpoint=True)


class FullDisk(TrainerCallback):
    """From the given step on the system refuses to write files beyond 50 kB: no room for this checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path):
    try:
        with pytest.raises(UserError, match=r"checkpoint-3 could not be written .*--resume"):
            make(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, callbacks=[FullDisk()]).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    resumed = make(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_training_moves_the_student_to_its_teacher(tmp_path):
    rows = [{**row, "context": row["context"][:1]} for row in toy_rows(8)]  # one order only: nothing to average over
    settings = {"max_steps": 200, "per_device_train_batch_size": 8, "max_completion_length": 2}
    trainer = make(tmp_path, rows, teacher_model_kind="base", learning_rate=5e-3, **settings)
    trainer.train()
    losses = [log["distillation/loss"] for log in trainer.state.log_history if "distillation/loss" in log]
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


def test_metrics_are_those_the_field_knows(tmp_path):
    trainer = make(tmp_path, toy_rows(8, retained=2), eval_dataset=toy_rows(5, seed=1))
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["step"] == 1
    assert {
        "loss", "learning_rate", "grad_norm", "distillation/loss", "retain/loss", "completions/mean_length",
        "completions/clipped_ratio",
    } <= set(logged[0])  # fmt: skip


def test_a_prompt_too_long_is_an_error_before_training(tmp_path):
    rows = toy_rows(4)
    rows[2]["prompt"] = [3] * 200
    trainer = make(tmp_path, rows)
    with pytest.raises(UserError, match=r"'q2' has 200 tokens; the limit is 122"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_demonstrations_that_do_not_fit_are_left_out_whole(tmp_path):
    rows = [{"id": "q", "prompt": [3] * 4, "context": [[5] * 10, [6] * 10, [7] * 10]}]
    trainer = make(tmp_path, rows, max_prompt_length=26)
    loss_and_gradients(trainer, trainer.queries)
    assert trainer.metrics.sums["teacher/dropped_demonstrations"][0] == 1.0
    short = make(tmp_path, rows, max_prompt_length=13)
    with pytest.raises(UserError, match=r"'q'.*cannot be shortened"):
        short.train()


def test_no_queries_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no training queries"):
        make(tmp_path, toy_rows(0, retained=3)).train()


def test_a_model_that_cannot_end_is_refused_where_cut_completions_do_not_count(tmp_path):
    """Without an end token every completion is cut: nothing would be left to learn from, and the loss would read 0."""
    model = toy_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match=r"no end token.*mask_truncated_completions"):
        make(tmp_path, model=model, max_completion_length=20).train()
    make(tmp_path, model=model, max_completion_length=20, mask_truncated_completions=False).train()


def test_virtual_tokens_are_refused(tmp_path):
    """peft puts them before the padding, so that a row's result would hang on its batch."""
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    for given in ({"peft_config": config}, {"model": get_peft_model(toy_model(), config)}):
        with pytest.raises(UserError, match=r"PROMPT_TUNING.*LoRA"):
            make(tmp_path, **given)


def test_several_gpus_of_one_process_are_not_used(tmp_path):
    """`nn.DataParallel`, which transformers takes by itself, would cut packed images at any patch."""
    args = toy_args(tmp_path)
    args._n_gpu = 2
    trainer = SDFTTrainer(toy_model(), args, adapter=ToyAdapter(), train_dataset=toy_rows())
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 4


def test_evaluate_and_predict_take_rows_too(tmp_path):
    trainer = make(tmp_path)
    rows = toy_rows(5, seed=1)
    expected = trainer.evaluate(trainer.adapter.examples(rows))["eval_accuracy"]
    assert trainer.evaluate(rows)["eval_accuracy"] == expected
    assert trainer.evaluate({"new": rows})["eval_new_accuracy"] == expected
    assert trainer.predict(rows).metrics["test_accuracy"] == expected


def test_lora_on_the_output_layer_is_refused(tmp_path):
    with pytest.raises(UserError, match="lm_head"):
        make(tmp_path, model=toy_model(tied=False), peft_config=LoraConfig(target_modules=["lm_head", "q_proj"]))


def test_the_model_in_memory_is_the_teacher_not_the_one_on_disk(tmp_path):
    """A model changed in memory before training starts gets itself as its teacher."""
    model = toy_model()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    trainer = make(tmp_path, model=model, teacher_model_kind="base")
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer.train()
    with trainer.teacher.applied():
        assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    assert not all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    assert trainer.model.config.vocab_size == VOCABULARY


def test_the_best_checkpoint_by_accuracy_comes_back(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = make(tmp_path, eval_dataset=toy_rows(6, seed=1), load_best_model_at_end=True, **settings)
    trainer.train()
    accuracies = [log["eval_accuracy"] for log in trainer.state.log_history if "eval_accuracy" in log]
    assert len(accuracies) == 3 and trainer.state.best_metric == max(accuracies)
    assert trainer.evaluate()["eval_accuracy"] == max(accuracies)


@pytest.mark.parametrize("bf16", [True, False])
def test_completions_come_in_the_precision_of_training_before_it_too(tmp_path, bf16):
    trainer = make(tmp_path, bf16=bf16)
    prompts = trainer.adapter.encode([trainer.adapter.student_messages(e) for e in trainer.queries[:4]])
    before = trainer.sampler.sample(trainer.module, prompts, [1, 2, 3, 4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for row, ids, logps in zip(prompts.rows, before.ids, before.logps, strict=True):
            prompt = row.tokens["input_ids"]
            z = trainer.module(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1].float()
            torch.testing.assert_close(logps, z.log_softmax(-1).gather(-1, ids[:, None])[:, 0], rtol=0, atol=2e-2)
    trainer.args.learning_rate = 0.0
    trainer.train()
    after = trainer.sampler.sample(trainer.module, prompts, [1, 2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(before.logps, after.logps, strict=True))
