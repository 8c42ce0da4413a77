"""Each method's loss against a direct formula, and that the starting teacher's answers are stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel

from tests.expert_toy import ExpertToy, gradients, log_probabilities, prompt_of, rows, step_of, trainer_of
from tests.tiny_text import tiny_text_model
from tests.toy import EOS, VOCABULARY, toy_args, toy_model
from text_sdft import TextAdapter
from text_sdft.core import Answer, Group, Reader, Step, TeacherContext, TransformersSampler, UserError
from text_sdft.core.groups import contexts_of
from text_sdft.methods.distillation import retention
from text_sdft.methods.table import METHODS
from text_sdft.training import SDFTTrainer, default_lora

# ---- losses ----


@pytest.mark.parametrize("method", ["sft", "dft", "sft_attention"])
def test_supervised_losses_and_gradients_are_those_of_the_formula(tmp_path, method):
    trainer = trainer_of(method, tmp_path, rows(), distillation_chunk_size=3, temperature=0.7, num_loss_tokens_to_skip=2)
    loss, _, _ = step_of(trainer)
    loss.backward()
    ours = gradients(trainer.module)
    total = 0.0
    for row in rows():
        answer = [*row["answer"], EOS]
        logp = log_probabilities(trainer.module, row["prompt"], answer)[torch.arange(len(answer)), answer]
        weights = logp.detach().exp() if method == "dft" else torch.ones_like(logp)
        total = total - (weights * logp).mean() / 4
    total.backward()
    theirs = gradients(trainer.module)
    torch.testing.assert_close(loss, total)
    assert ours.keys() == theirs.keys() and len(ours) == (8 if method == "sft_attention" else 20)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)  # tokens' weights are fp32


def test_offline_is_the_divergence_to_the_teacher_on_its_own_answers(tmp_path):
    trainer = trainer_of("offline", tmp_path, rows(2, 2), temperature=0.8)
    trainer.store_answers()
    start = toy_model(dtype=torch.float64)
    with torch.no_grad():
        for p in trainer.module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    loss, rollout, examples = step_of(trainer)
    total = 0.0
    for example, ids in zip(examples, rollout.ids, strict=True):
        answer = trainer.answers[example.id]
        assert answer.ids.tolist() == ids.tolist()
        context = TeacherContext(answer.seed)
        temperature = 0.8
        p = log_probabilities(trainer.module, prompt_of(example, trainer), ids.tolist())
        q = log_probabilities(start, prompt_of(example, trainer, context), ids.tolist())
        p, q = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
        total = total + (q.exp() * (q - p)).sum(-1).mean() / 4
    torch.testing.assert_close(loss, total)


def test_retention_beside_sft_is_the_divergence_to_the_start(tmp_path):
    trainer = trainer_of("sft", tmp_path, rows(4, retained=3), retain_weight=0.5)
    start = toy_model(dtype=torch.float64)
    with torch.no_grad():
        for p in trainer.module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    loss, rollout, examples = step_of(trainer)
    assert [example.retain for example in examples] == [False] * 4 + [True] * 4
    total = 0.0
    for example, ids in zip(examples, rollout.ids, strict=True):
        p = log_probabilities(trainer.module, prompt_of(example, trainer), ids.tolist())
        if example.retain:
            q = log_probabilities(start, prompt_of(example, trainer), ids.tolist())
            total = total + 0.5 * (q.exp() * (q - p)).sum(-1).mean() / 4
        else:
            total = total - p[torch.arange(len(ids)), ids].mean() / 4
    torch.testing.assert_close(loss, total)


def test_without_retention_prompts_none_are_drawn(tmp_path):
    for trainer in (
        trainer_of("sft/no_retain", tmp_path, rows(4, retained=3)),
        trainer_of("sft", tmp_path, rows(4, retained=3), retain_ratio=0.0),
    ):
        _, _, examples = step_of(trainer)
        assert len(examples) == 4 and not any(example.retain for example in examples)


def test_replay_learns_old_rows_with_their_experts_answers(tmp_path):
    trainer = trainer_of("replay", tmp_path, rows(4, retained=3, old=True))
    loss, rollout, examples = step_of(trainer)
    assert [example.id[0] for example in examples] == ["q"] * 4 + ["r"] * 4
    total = 0.0
    for example, ids in zip(examples, rollout.ids, strict=True):
        assert ids.tolist() == [*example.meta["answer"], EOS]
        p = log_probabilities(trainer.module, prompt_of(example, trainer), ids.tolist())
        total = total - p[torch.arange(len(ids)), ids].mean() / 4
    torch.testing.assert_close(loss, total)


def test_reinvoke_distils_the_start_on_retention_prompts_in_the_second_half(tmp_path):
    trainer = trainer_of("sft_reinvoke", tmp_path, rows(4, retained=3))
    trainer.state.max_steps = 4
    for trainer.state.global_step in (0, 1):
        _, _, examples = step_of(trainer)
        assert [example.id[0] for example in examples] == ["q"] * 4
    start = toy_model(dtype=torch.float64)
    with torch.no_grad():
        for p in trainer.module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    for trainer.state.global_step in (2, 3):
        loss, rollout, examples = step_of(trainer)
        assert [example.id[0] for example in examples] == ["r"] * 4
        total = 0.0
        for example, ids in zip(examples, rollout.ids, strict=True):
            p = log_probabilities(trainer.module, prompt_of(example, trainer), ids.tolist())
            q = log_probabilities(start, prompt_of(example, trainer), ids.tolist())
            total = total + (q.exp() * (q - p)).sum(-1).mean() / 4
        torch.testing.assert_close(loss, total)


def test_continued_pretraining_is_the_models_own_loss_on_the_raw_text(tmp_path):
    model, tokenizer = tiny_text_model()
    text = "The storm made landfall near Ostrava. It was the ninth of the year."
    data = [{"prompt": f"Question {i}?", "privileged_context": text} for i in range(3)] + [{"prompt": "Nothing known?"}]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    for length, parts in ((len(ids[0]) - 1, 1), (20, 4)):
        args = toy_args(tmp_path, max_completion_length=length)
        trainer = SDFTTrainer(
            model, args, adapter=TextAdapter(), method="cpt", train_dataset=data, processing_class=tokenizer
        )
        trainer.check_prompts()
        assert len(trainer.queries) == parts, "one text, once, whatever the number of its questions"
        learnt = torch.cat([trainer.answers[query.id].ids for query in trainer.queries])
        assert learnt.tolist() == ids[0, 1:].tolist()
        if parts == 1:
            loss, _, _ = step_of(trainer)
            torch.testing.assert_close(loss, model(ids, labels=ids).loss)


# ---- training ----


def test_the_starting_teacher_answers_once_and_its_answers_are_stored(tmp_path):
    trainer = trainer_of("sft_teacher", tmp_path, rows(3, 3), model=toy_model(), max_steps=3)
    trainer.train()
    stored = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [record["id"] for record in stored] == [f"q{i}" for i in range(6)]
    start, sampler = toy_model(), TransformersSampler(6)
    for record, query in zip(stored, trainer.queries, strict=True):
        context = TeacherContext(record["seed"])
        inputs = trainer.adapter.encode([trainer.adapter.teacher_messages(query, context)])
        assert sampler.sample(start, inputs, [record["seed"]]).ids[0].tolist() == record["ids"]
        assert trainer.answers[query.id].ids.tolist() == record["ids"]
    moved = sampler.sample(trainer.module, inputs, [record["seed"]]).ids[0].tolist()
    assert moved != record["ids"], "the model has moved: answers sampled now would be others"


@pytest.mark.parametrize("method", ["sft_teacher/fresh", "offline/fresh"])
def test_fresh_answers_are_the_starting_teachers_in_the_context_of_the_step(tmp_path, method):
    trainer = trainer_of(method, tmp_path, rows(3, 1, retained=2), model=toy_model(), max_steps=3)
    drawn: list[list[Group]] = []
    groups = trainer.method.groups

    def watched(step: Step) -> list[Group]:
        drawn.append(groups(step))
        return drawn[-1]

    trainer.method = replace(trainer.method, groups=watched)
    trainer.train()
    start, sampler = toy_model(), TransformersSampler(6)
    answers: dict[str, set[tuple[int, ...]]] = {}
    for queries, retained in drawn:
        assert retained.answers is None, "retention prompts are answered by the student"
        for query, seed, answer in zip(queries.examples, queries.seeds, queries.answers, strict=True):
            inputs = trainer.adapter.encode([trainer.adapter.teacher_messages(query, TeacherContext(seed))])
            assert sampler.sample(start, inputs, [seed]).ids[0].tolist() == answer.ids.tolist()
            answers.setdefault(query.id, set()).add(tuple(answer.ids.tolist()))
    assert len(drawn) == 3 and max(map(len, answers.values())) > 1, "other answers in other steps"
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_micro_batch_of_cut_answers_reaches_every_weight(tmp_path):
    """Data parallelism waits for the gradient of each one, the output layer's too."""
    model = toy_model(tied=False)
    trainer = trainer_of("sft_teacher", tmp_path, rows(2), model=model, mask_truncated_completions=True)
    trainer.answers = {query.id: Answer(torch.tensor([3, 4]), finished=False) for query in trainer.queries}
    loss, _, _ = step_of(trainer)
    loss.backward()
    assert float(loss) == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.module.parameters())


def test_a_resumed_run_reads_the_stored_answers(tmp_path):
    trainer = trainer_of("sft_teacher", tmp_path, rows(3, 3))
    trainer.store_answers()
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    changed = [json.dumps({**json.loads(line), "ids": [3, EOS]}) for line in lines]
    (tmp_path / "answers.jsonl").write_text("\n".join(changed))
    trainer.store_answers(resume=True)
    assert {tuple(answer.ids.tolist()) for answer in trainer.answers.values()} == {(3, EOS)}
    trainer.store_answers()
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == lines


def test_stored_answers_may_hold_line_separators(tmp_path):
    trainer = trainer_of("sft_teacher", tmp_path, rows(2, 2))
    answers = [
        {"id": q.id, "answer": "x\u2028y\u0085", "ids": [5, EOS], "finished": True, "seed": 0} for q in trainer.queries
    ]
    text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    (tmp_path / "answers.jsonl").write_text(text, "utf-8")
    trainer.store_answers(resume=True)
    assert set(trainer.answers) == {query.id for query in trainer.queries}


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.trains and name not in ("cpt", "sdft")]
)
def test_every_method_trains_in_the_same_loop(tmp_path, method):
    trainer = trainer_of(method, tmp_path, rows(4, 2, 3, old=True), model=toy_model(), max_steps=2)
    before = {name: p.clone() for name, p in trainer.module.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    moved = {name for name, p in trainer.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if method != "sft_attention" or "self_attn" in name}
    assert trainer.tokens["student"] > 0


@pytest.mark.parametrize(
    ("method", "reads"), [("sft", False), ("sft_reinvoke", False), ("sft_teacher", True), ("sft_teacher/fresh", True)]
)
def test_teacher_prompts_are_checked_before_training_where_a_teacher_reads_or_answers_them(tmp_path, method, reads, caplog):
    data = rows(4, retained=2)
    data[0]["context"] = [[5] * 90, [6] * 90]
    trainer_of(method, tmp_path, data).check_prompts()
    assert ("1 demonstrations left out" in caplog.text) == reads
    data[2]["context"] = [[5] * 130]
    trainer = trainer_of(method, tmp_path, data)
    if reads:
        with pytest.raises(UserError, match="prompt of 'q2' has"):
            trainer.check_prompts()
    else:
        trainer.check_prompts()


@pytest.mark.parametrize("method", ["base", "icl"])
def test_what_trains_nothing_says_so(tmp_path, method):
    with pytest.raises(UserError, match="trains nothing"):
        trainer_of(method, tmp_path, rows()).train()


def test_attention_alone_is_what_a_lora_adapter_goes_on(tmp_path):
    trainer = SDFTTrainer(
        toy_model(), toy_args(tmp_path), adapter=ExpertToy(), method="sft_attention", train_dataset=rows(),
        peft_config=default_lora(),
    )  # fmt: skip
    trained = {name for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert len(trained) == 16 and all("self_attn" in name and "lora_" in name for name in trained)


def test_attention_alone_of_layers_that_transpose_their_weights(tmp_path):
    """GPT-2's projections are `Conv1D`s, which LoRA takes as it takes linear layers."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, eos_token_id=EOS))
    trainer = SDFTTrainer(
        model, toy_args(tmp_path), adapter=ExpertToy(), method="sft_attention", train_dataset=rows(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True),
    )  # fmt: skip
    trained = {name for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert len(trained) == 8 and all(".attn.c_" in name and "lora_" in name for name in trained)


def test_full_batches_give_every_method_as_many_prompts(tmp_path):
    for labelled, unlabelled in ((3, 0), (3, 4)):
        trainer = SDFTTrainer(
            toy_model(), toy_args(tmp_path, max_steps=5), adapter=ExpertToy(), train_dataset=rows(labelled, unlabelled),
            full_batches=True,
        )  # fmt: skip
        batches = [[example.id for example in batch["examples"]] for batch in trainer.get_train_dataloader()]
        assert [len(batch) for batch in batches] == [4] * 5
        seen = [name for batch in batches for name in batch]
        n = labelled + unlabelled
        for start in range(0, len(seen) - n + 1, n):
            assert len(set(seen[start : start + n])) == n, "every row once a round"


# ---- a method of one's own ----


def test_a_new_method_is_one_function(tmp_path):
    """Labels where there are labels, the teacher for the other queries: two groups of one step."""

    def labels_and_teacher(step: Step) -> list[Group]:
        """The expert's answers are learnt where there are some; the teacher reads the student's to all other queries."""
        labelled = [query for query in step.examples if step.adapter.expert_answer(query) is not None]
        others, seeds = step.rollouts([query for query in step.examples if query not in labelled])
        answers = [Answer(torch.tensor([*query.meta["answer"], EOS])) for query in labelled]
        taught = Group(others, seeds, reader=Reader(step.teacher, contexts_of(seeds)))
        return [Group(*step.rollouts(labelled), "labels", answers), taught, *retention(step)]

    args = toy_args(tmp_path, max_steps=2, distillation_is_clip=None, logging_steps=1)
    data = rows(2, 2, retained=2)
    trainer = SDFTTrainer(toy_model(), args, adapter=ExpertToy(), method=labels_and_teacher, train_dataset=data)
    parts = {}
    for name in ("sft", "sdft"):
        args = toy_args(tmp_path / name, distillation_is_clip=None, num_loss_tokens_to_skip=0)
        alone = SDFTTrainer(toy_model(), args, adapter=ExpertToy(), method=f"{name}/no_retain", train_dataset=data)
        queries = trainer.queries[:2] if name == "sft" else trainer.queries[2:]
        parts[name] = float(step_of(alone, queries)[0])
    without = trainer.step(trainer.queries, retained=[])
    mine = float(trainer.compute_loss(trainer.model, {"examples": without.examples, "retained": []}))
    assert mine == pytest.approx((parts["sft"] + parts["sdft"]) / 2, rel=1e-5)
    trainer.train()
    assert trainer.state.global_step == 2 and {"labels/loss", "distillation/loss", "retain/loss"} <= set(
        trainer.state.log_history[0]
    )
