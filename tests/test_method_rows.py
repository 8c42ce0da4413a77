"""Which rows a method takes, which answers it learns from, and what it says where the data cannot support it."""

from __future__ import annotations

import pytest

from tests.expert_toy import ExpertToy, rows, step_of, trainer_of
from tests.tiny_text import tiny_text_model
from tests.toy import toy_args, toy_model
from text_sdft import TextAdapter
from text_sdft.core import UserError
from text_sdft.methods.table import Unsupported, find_method
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.zoo import resolve_data


def test_sft_leaves_unlabelled_rows_out_and_never_learns_the_reference(tmp_path):
    trainer = trainer_of("sft", tmp_path, rows(4, 3))
    assert [query.id for query in trainer.queries] == ["q0", "q1", "q2", "q3"]
    assert all(query.reference == "5" for query in trainer.queries)
    assert not any(5 in answer.ids.tolist() for answer in trainer.answers.values())
    with pytest.raises(Unsupported, match="'sft' needs training rows with an expert's answer"):
        trainer_of("sft", tmp_path, rows(0, 3))


@pytest.mark.parametrize("method", ["sdft", "sft_teacher", "offline"])
def test_teachers_methods_take_unlabelled_rows_unless_told_otherwise(tmp_path, method):
    assert len(trainer_of(method, tmp_path, rows(4, 3)).queries) == 7
    assert len(trainer_of(f"{method}/labelled", tmp_path, rows(4, 3)).queries) == 4


@pytest.mark.parametrize(
    ("method", "missing"),
    [("cpt", "privileged_context"), ("sft_reinvoke", "retention prompts"), ("replay", "retention rows with an expert's")],
)
def test_what_the_data_cannot_support_is_one_clear_error(tmp_path, method, missing):
    with pytest.raises(Unsupported, match=missing):
        trainer_of(method, tmp_path, rows(4))


def test_a_variant_says_in_the_summary_how_it_differs():
    fresh = find_method("sft_teacher/fresh").summary
    assert fresh.startswith(find_method("sft_teacher").summary) and "Here with answers that are sampled anew" in fresh


def test_what_learns_from_retention_prompts_needs_them():
    with pytest.raises(UserError, match="'sft_reinvoke' learns from retention prompts"):
        find_method("sft_reinvoke/no_retain")


def test_unknown_methods_and_variants_name_the_nearest():
    with pytest.raises(UserError, match=r"no method 'sft_techer'. Did you mean 'sft_teacher'"):
        find_method("sft_techer")
    with pytest.raises(UserError, match=r"no variant 'noretain'. Did you mean 'no_retain'"):
        find_method("sft/noretain")
    for name in ("sft/reverse", "offline/ema", "base/jsd"):
        with pytest.raises(UserError, match="has no divergence, or no teacher at every step"):
            find_method(name)
    with pytest.raises(UserError, match="only sft_teacher and offline learn from answers of the teacher"):
        find_method("sdft/fresh")
    assert find_method("sdft/no_retain/labelled").name == "sdft/labelled/no_retain"


def test_an_experts_answer_longer_than_the_limit_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"'q1' has 4 tokens, but max_completion_length is 3"):
        trainer_of("sft", tmp_path, rows(), max_completion_length=3)


def test_text_rows_expert_is_the_golden_response_ended_as_the_template_ends_it(tmp_path):
    model, tokenizer = tiny_text_model()
    data = [
        {"prompt": "A?", "golden_response": "yes", "reference": "no"},
        {"prompt": "B?", "demonstrations": [{"prompt": "C?", "answer": "other"}], "reference": "no"},
        {"prompt": "D?", "privileged_context": "context", "reference": "no"},
    ]
    trainer = SDFTTrainer(
        model, toy_args(tmp_path), adapter=TextAdapter(system_prompt="Be brief."), method="sft", train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    assert [query.id for query in trainer.queries] == ["row 0"]
    assert tokenizer.decode(trainer.answers["row 0"].ids) == "yes<|im_end|>"


@pytest.mark.parametrize(
    ("variant", "alpha", "kind"),
    [
        ("sdft/reverse", 1.0, "ema"),
        ("sdft/jsd/frozen", 0.5, "base"),
        ("sdft/live", 0.3, "live"),
        ("offline/forward", 0.0, "base"),
    ],
)
def test_variants_stand_for_settings(tmp_path, variant, alpha, kind):
    args = toy_args(tmp_path, distillation_alpha=0.3, teacher_model_kind="ema")
    trainer = SDFTTrainer(toy_model(), args, adapter=ExpertToy(), method=variant, train_dataset=rows())
    assert (trainer.args.divergence_settings.alpha, trainer.args.teacher_model_kind) == (alpha, kind)
    assert (args.distillation_alpha, args.teacher_model_kind) == (0.3, "ema"), "the caller's settings are left alone"


def test_an_images_expert_is_its_label(tmp_path):
    """Rows of the test have labels too; they are never an expert's answers."""
    folder = resolve_data("builtin:novel-objects", tmp_path, n_types=2, n_unlabelled=2, n_test=1, n_retain=1, n_old=1)
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos)
    everything = adapter.examples([*demos.train, *demos.test, *demos.old])
    args = toy_args(tmp_path, max_completion_length=16)
    trainer = SDFTTrainer("builtin:tiny-qwen3-vl", args, adapter=adapter, method="sft", train_dataset=everything)
    assert sorted(query.id for query in trainer.queries) == sorted(row.id for row in demos.labelled)
    tokenizer = trainer.adapter.processing_class.tokenizer
    for query in trainer.queries:
        ids = trainer.answers[query.id].ids
        assert trainer.adapter.decode(ids) == query.meta["row"].answer and ids[-1] == tokenizer.eos_token_id
    step_of(trainer)[0].backward()
