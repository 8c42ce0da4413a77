"""The trainer used as one uses transformers' own: what is given wrongly is refused at once, by its name."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import HfArgumentParser, LlamaForCausalLM, TrainerCallback, TrainingArguments

from tests.tiny_text import tiny_text_model
from tests.toy import ToyAdapter, toy_args, toy_model, toy_rows
from text_sdft import TextAdapter
from text_sdft.core import ModelInputs, RowInputs, SDFTConfig, UserError
from text_sdft.training import SDFTTrainer
from text_sdft.training.trainer import logger


def make(tmp_path, *, model=None, rows=None, adapter=None, **given):
    """A trainer of the toy; names of the trainer's own arguments are those, all others are settings."""
    own = {name: given.pop(name) for name in ("peft_config", "callbacks", "eval_dataset") if name in given}
    return SDFTTrainer(
        toy_model() if model is None else model,
        toy_args(tmp_path / "run", **given),
        adapter=adapter or ToyAdapter(),
        train_dataset=toy_rows() if rows is None else rows,
        **own,
    )


def test_a_model_may_be_given_as_a_path(tmp_path):
    toy_model().save_pretrained(tmp_path / "model")
    make(tmp_path, model=tmp_path / "model").train()


def test_settings_of_another_trainer_are_refused(tmp_path):
    with pytest.raises(UserError, match="args is a TrainingArguments: give an SDFTConfig"):
        SDFTTrainer(toy_model(), TrainingArguments(str(tmp_path)), adapter=ToyAdapter(), train_dataset=toy_rows())


@pytest.mark.parametrize(("adapter", "remedy"), [(TextAdapter, r"TextAdapter\("), ("text", r"adapter_class\('text'\)")])
def test_an_adapter_is_an_object(tmp_path, adapter, remedy):
    with pytest.raises(UserError, match=remedy):
        make(tmp_path, adapter=adapter)


@pytest.mark.parametrize("name", ["score", "decode", "demonstrations", "teacher_messages"])
def test_an_adapter_without_a_method_is_refused_before_training(tmp_path, monkeypatch, name):
    """(`score` and `decode` would be asked for at the first log, `demonstrations` where a prompt is too long.)"""
    monkeypatch.delattr(ToyAdapter, name)
    with pytest.raises(UserError, match=f"ToyAdapter lacks {name}"):
        make(tmp_path)


@pytest.mark.parametrize("where", ["train", "eval", "predict"])
def test_splits_and_files_are_not_rows(tmp_path, where):
    rows = [{"prompt": "Hello?", "privileged_context": "Be kind."}]
    splits = DatasetDict(new=Dataset.from_list(rows))
    for given, complaint in ((splits, "a DatasetDict of new"), ("a.jsonl", "the string 'a.jsonl'")):
        with pytest.raises(UserError, match=f"Rows are given as {complaint}: give"):
            model, tokenizer = tiny_text_model()
            trainer = SDFTTrainer(
                model,
                toy_args(tmp_path),
                adapter=TextAdapter(),
                processing_class=tokenizer,
                train_dataset=given if where == "train" else rows,
                eval_dataset={"new": given} if where == "eval" else None,
            )
            trainer.predict(given)


def test_several_sets_to_measure_may_be_splits(tmp_path):
    splits = DatasetDict(new=Dataset.from_list(toy_rows(3)), old=Dataset.from_list(toy_rows(2)))
    assert {"eval_new_accuracy", "eval_old_accuracy"} <= set(make(tmp_path, eval_dataset=splits).evaluate())


@pytest.mark.parametrize("named", [["vision_tower"], "model.layers.0"])
def test_modules_to_freeze_that_are_not_there_are_refused(tmp_path, monkeypatch, named):
    """(What was to stay would be trained; a string's letters would freeze whatever has such a name.)"""
    monkeypatch.setattr(ToyAdapter, "frozen_modules", lambda self, model: named)
    with pytest.raises(UserError, match=r"ToyAdapter\.frozen_modules .*no such module"):
        make(tmp_path)


LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.mark.parametrize("peft_config", [None, LORA])
def test_the_folder_of_a_peft_adapter_is_not_a_model(tmp_path, peft_config):
    """transformers loads it untrainable, and a new adapter would take its place without a word."""
    toy_model().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LORA).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"peft adapter.*is_trainable=True.*merge_and_unload"):
        make(tmp_path, model=str(tmp_path / "adapter"), peft_config=peft_config)


def test_a_peft_adapter_loaded_to_be_read_is_refused_with_the_remedy(tmp_path):
    get_peft_model(toy_model(), LORA).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="is_trainable=True"):
        make(tmp_path, model=PeftModel.from_pretrained(toy_model(), tmp_path / "adapter"))
    make(tmp_path, model=PeftModel.from_pretrained(toy_model(), tmp_path / "adapter", is_trainable=True)).train()


@pytest.mark.parametrize(("dtype", "peft_config"), [("bfloat16", None), ("float32", None), ("bfloat16", LORA)])
def test_weights_too_coarse_for_small_updates_are_pointed_out(tmp_path, caplog, dtype, peft_config):
    """(From_pretrained takes a checkpoint's own dtype, mostly bfloat16; peft keeps its weights in float32.)"""
    logger.warning_once.cache_clear()
    make(tmp_path, model=toy_model(dtype=getattr(torch, dtype)), peft_config=peft_config)
    coarse = dtype == "bfloat16" and peft_config is None
    assert ("bfloat16: small updates are rounded away" in caplog.text) == coarse


def test_the_seed_is_that_of_the_adapter_too(tmp_path):
    """Whatever was drawn before: the same seed gives the same run."""
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    starts = []
    for drawn, seed in ((1, 5), (2, 5), (1, 6)):
        model = toy_model()
        torch.manual_seed(drawn)
        trained = make(tmp_path, model=model, peft_config=config, seed=seed).model
        starts.append(torch.cat([p.flatten() for n, p in trained.named_parameters() if "lora_A" in n]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


MEASURED = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize("changes", [{"save_strategy": "best"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_whatever_asks_for_a_metric_takes_the_accuracy(tmp_path, changes):
    trainer = make(tmp_path, eval_dataset=toy_rows(3), **MEASURED, **changes)
    trainer.train()
    assert trainer.state.best_metric is not None
    if "lr_scheduler_type" in changes:  # torch's own default would lower the rate while the accuracy rises
        assert trainer.lr_scheduler.mode == "max"


def test_there_is_no_loss_to_choose_the_best_checkpoint_by(tmp_path):
    for name in ["loss", "eval_loss"]:
        with pytest.raises(ValueError, match=f"metric_for_best_model '{name}': .*accuracy"):
            toy_args(tmp_path, metric_for_best_model=name)


def test_the_best_checkpoint_needs_an_accuracy_that_is_measured(tmp_path):
    """(At the first evaluation transformers would find that there is none.)"""
    settings = {**MEASURED, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    sets = {"new": toy_rows(3), "old": toy_rows(2)}
    with pytest.raises(UserError, match=r"metric_for_best_model.* new_accuracy, old_accuracy"):
        make(tmp_path, eval_dataset=sets, **settings)
    make(tmp_path, eval_dataset=sets, metric_for_best_model="old_accuracy", **settings).train()
    with pytest.raises(UserError, match="no row of eval_dataset has a reference"):
        make(tmp_path, eval_dataset=toy_rows(0, retained=2), **settings)


def test_callbacks_are_told_of_each_batch_that_is_measured(tmp_path):
    """The progress bar of transformers is one of them."""
    batches = []

    class Told(TrainerCallback):
        def on_prediction_step(self, args, state, control, eval_dataloader=None, **_):
            batches.append(len(eval_dataloader))

    trainer = make(tmp_path, callbacks=[Told()], per_device_eval_batch_size=2)
    trainer.evaluate(toy_rows(5))
    trainer.predict(toy_rows(3))
    assert batches == [3, 3, 3, 2, 2]


def test_a_run_does_not_go_on_from_a_checkpoint_of_the_model_alone(tmp_path):
    make(tmp_path, save_only_model=True, save_strategy="steps", save_steps=1).train()
    with pytest.raises(UserError, match=r"Cannot resume from .*checkpoint-\d.*save_only_model"):
        make(tmp_path, max_steps=3).train(resume_from_checkpoint=True)


def test_batches_by_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train_sampling_strategy 'group_by_length'"):
        toy_args(tmp_path, train_sampling_strategy="group_by_length")


def test_a_setting_of_another_kind_is_refused_by_its_name(tmp_path):
    for name, value, remedy in (
        ("learning_rate", "1e-4", "1.0e-4"),  # a YAML's 1e-4 is a string
        ("temperature", None, "number"),
        ("num_generations", 1.5, "whole number"),
        ("max_completion_length", 2.5, "whole number"),
        ("model_init_kwargs", "float32", "mapping"),
    ):
        with pytest.raises(ValueError, match=f"{name} {value!r}: .*{remedy}"):
            toy_args(tmp_path, **{name: value})


def test_settings_come_from_a_command_line_too(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--model_init_kwargs", '{"dtype": "float32"}', "--distillation_topk", "5"]
    (args,) = HfArgumentParser(SDFTConfig).parse_args_into_dataclasses(argv)
    assert args.model_init_kwargs == {"dtype": "float32"} and args.distillation_topk == 5
    assert SDFTConfig(**{f.name: args.to_dict()[f.name] for f in fields(args) if f.init}).to_dict() == args.to_dict()


class Other(ToyAdapter):
    """Encodes in another form than is asked for."""

    def __init__(self, form):
        self.form = form

    def encode(self, conversations):
        return self.form(super().encode(conversations).rows)


def rows_of(ids_of):
    return lambda rows: ModelInputs([RowInputs({"input_ids": ids_of(row.tokens["input_ids"])}) for row in rows], 0)


def test_rows_encoded_in_another_form_are_refused(tmp_path):
    for form, seen in (
        (rows_of(lambda ids_L: ids_L[None]), r"input_ids \[1, 4\]"),
        (rows_of(lambda ids_L: ids_L.tolist()), "input_ids list"),
        (rows_of(lambda ids_L: ids_L.float()), r"input_ids float32 \[4\]"),
        (lambda rows: {"input_ids": rows}, "Other.encode gives a dict"),
        (lambda rows: ModelInputs([*rows, *rows], 0), "Other.encode gives 2 rows for 1"),
    ):
        with pytest.raises(UserError, match=seen):
            make(tmp_path, adapter=Other(form)).train()


def test_two_rows_of_one_id_are_refused(tmp_path):
    """Their completions, and the draws of their demonstrations, would be the same."""
    rows = toy_rows(3, retained=1)
    rows[3]["id"] = rows[1]["id"]
    with pytest.raises(UserError, match="Two rows have the id 'q1'"):
        make(tmp_path, rows=rows)


def test_settings_of_a_models_loading_are_refused_where_it_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"model_init_kwargs .*float32.* loaded already"):
        make(tmp_path, model_init_kwargs={"dtype": "float32"})


def test_a_step_gives_its_completions_where_outputs_are_asked_for(tmp_path):
    trainer = make(tmp_path, rows=toy_rows(4))
    loss, rollout = trainer.compute_loss(trainer.model, {"examples": trainer.queries}, return_outputs=True)
    assert torch.equal(loss, trainer.compute_loss(trainer.model, {"examples": trainer.queries}))
    assert len(rollout.ids) == 4
