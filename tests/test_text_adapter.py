"""The text adapter: which template each row gets, ids through the chat template, scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny_text import save_tiny_text_model, tiny_text_model
from tests.toy import toy_args
from text_sdft import Example, SDFTTrainer, TeacherContext, TextAdapter, UserError
from text_sdft.config import TextData, TextDemonstrations
from text_sdft.core import ConfigurableAdapter, adapter_class
from text_sdft.core.sampling import eos_ids

SHOWN = [{"prompt": f"{i} + 1?", "answer": f"answer {i}"} for i in range(3)]
ROW = {"prompt": "What is 2 + 2?", "demonstrations": SHOWN, "reference": "Four  words"}


def bound(**settings):
    return TextAdapter(**settings).bind(*tiny_text_model())


def teacher(adapter, row, **context):
    return adapter.teacher_messages(adapter.examples([row])[0], TeacherContext(**context))


def read(adapter, conversation):
    return adapter.processing_class.decode(adapter.encode([conversation]).rows[0].tokens["input_ids"])


def test_it_is_the_registered_text_adapter():
    assert adapter_class("text") is TextAdapter
    assert isinstance(TextAdapter(), ConfigurableAdapter)


def test_each_row_gets_the_template_that_suits_it():
    adapter = TextAdapter()
    assert [m["role"] for m in teacher(adapter, ROW)] == ["user", "assistant"] * 3 + ["user"]
    context = teacher(adapter, {"prompt": "Who?", "privileged_context": "Bob did it."})
    assert context == [{"role": "user", "content": "Bob did it.\n\nWho?"}]
    golden = teacher(adapter, {"prompt": "Who?", "golden_response": "Bob."})
    assert golden[-1]["content"].startswith("Who?\n\nThis is an example for a response to the question:\nBob.")
    assert teacher(adapter, {"prompt": "Who?"}) == [{"role": "user", "content": "Who?"}]


def test_a_given_template_is_used_for_every_row():
    adapter = TextAdapter(teacher_prompt_template="Hints: {answers}. {question}")
    assert teacher(adapter, {"prompt": "Who?", "golden_response": "Bob"})[-1]["content"] == "Hints: Bob. Who?"
    with pytest.raises(UserError, match=r"lacks \{question\}"):
        TextAdapter(teacher_prompt_template="quotd")


def test_a_template_without_a_place_for_answers_leaves_the_known_answer_to_the_papers():
    """(The probe asks for rung 5 of each row with a reference.)"""
    row = {"prompt": "q?", "privileged_context": "document", "reference": "right"}
    for template in ("context", "{privileged_context}\n{question}"):
        adapter = TextAdapter(teacher_prompt_template=template)
        [example] = adapter.examples([row])
        [turn] = adapter.teacher_messages(example, TeacherContext(rung=5))
        assert "right" in turn["content"] and "document" not in turn["content"]
        [turn] = adapter.teacher_messages(example, TeacherContext())
        assert "document" in turn["content"] and "right" not in turn["content"]


def test_an_experts_answer_beside_other_questions_is_not_mixed_with_theirs():
    adapter = TextAdapter()
    row = {"prompt": "q?", "golden_response": "gold", "demonstrations": [{"prompt": "p1?", "answer": "a1"}]}
    [example] = adapter.examples([row])
    question, answer, last = adapter.teacher_messages(example, TeacherContext())
    assert (question["content"], answer["content"]) == ("p1?", "a1")
    assert "gold" in last["content"] and "a1" not in last["content"]
    [last] = adapter.teacher_messages(example, TeacherContext(max_demonstrations=1))
    assert "gold" in last["content"]


def test_the_system_prompt_stands_before_a_whole_teacher_prompt_too():
    adapter = TextAdapter(system_prompt="Be brief.")
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "help q?"}]
    first, second = adapter.examples(
        [{"prompt": "q?", "teacher_prompt": "help q?"}, {"prompt": "q?", "teacher_prompt": own}]
    )
    system = {"role": "system", "content": "Be brief."}
    assert adapter.student_messages(first)[0] == adapter.teacher_messages(first, TeacherContext())[0] == system
    assert adapter.teacher_messages(second, TeacherContext()) == own


def test_a_whole_teacher_prompt_replaces_the_template_and_shows_no_demonstrations():
    adapter = TextAdapter()
    row = {**ROW, "teacher_prompt": "Bob did it. Who?"}
    assert teacher(adapter, row) == [{"role": "user", "content": "Bob did it. Who?"}]
    assert adapter.demonstrations(adapter.examples([row])[0], TeacherContext()) == []


def test_a_retention_prompt_has_one_view():
    adapter = TextAdapter(system_prompt="Be brief.")
    example = adapter.examples([{**ROW, "retain": True, "privileged_context": "x"}])[0]
    assert adapter.teacher_messages(example, TeacherContext()) == adapter.student_messages(example)
    assert adapter.demonstrations(example, TeacherContext()) == []


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, [0, 1, 2]), (5, [0, 1, 2]), (3, [0, 1, 2]), (2, [1, 2]), (1, [2]), (0, [])]
)
def test_a_limit_keeps_the_demonstrations_nearest_the_query(limit, kept):
    adapter = TextAdapter()
    example = adapter.examples([ROW])[0]
    shown = adapter.demonstrations(example, TeacherContext(max_demonstrations=limit))
    assert [d.messages[-1]["content"] for d in shown] == [f"answer {i}" for i in kept]
    answers = [m["content"] for m in teacher(adapter, ROW, max_demonstrations=limit) if m["role"] == "assistant"]
    assert answers == [f"answer {i}" for i in kept]


# ---- tokens ----


def test_ids_come_from_the_chat_template_with_the_generation_prompt():
    adapter = bound(system_prompt="Be brief.")
    example = adapter.examples([ROW])[0]
    assert read(adapter, adapter.student_messages(example)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_both_views_get_the_same_thinking_switch():
    for thinking, ending in ((None, "assistant\n"), (True, "assistant\n"), (False, "<think></think>")):
        adapter = bound(enable_thinking=thinking)
        example = adapter.examples([ROW])[0]
        for view in (adapter.student_messages(example), adapter.teacher_messages(example, TeacherContext())):
            assert read(adapter, view).endswith(ending)


def test_a_tokenizer_without_a_chat_template_reads_plain_text(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_text_model(tmp_path))
    tokenizer.chat_template = None
    adapter = TextAdapter().bind(tiny_text_model()[0], tokenizer)
    assert read(adapter, adapter.student_messages(adapter.examples([ROW])[0])) == "What is 2 + 2?\n\n"


def test_texts_in_parts_are_read_as_texts():
    """Templates of text models print a list as Python writes it."""
    adapter = bound()
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    ready = Example("a", [{"role": "user", "content": parts}])
    assert "user\nWhat is this?<|im_end|>" in read(adapter, adapter.student_messages(ready))
    for kind, complaint in (("image", "has an image"), ("audio", "neither text nor")):
        with pytest.raises(UserError, match=complaint):
            adapter.encode([[{"role": "user", "content": [*parts, {"type": kind}]}]])


def test_a_conversation_that_the_chat_template_refuses_is_named(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_text_model(tmp_path))
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    adapter = TextAdapter(system_prompt="Be brief.").bind(tiny_text_model()[0], tokenizer)
    with pytest.raises(UserError, match=r"turns of system, user: System role not supported.*system_prompt"):
        adapter.encode([adapter.student_messages(adapter.examples([ROW])[0])])


def test_bind_loads_the_models_own_tokenizer(tmp_path):
    adapter = TextAdapter()
    adapter = adapter.bind(adapter.load_model(save_tiny_text_model(tmp_path)))
    assert adapter.decode(torch.tensor(adapter.processing_class("é 2")["input_ids"])) == "é 2"


def test_models_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(UserError, match="could not be loaded as a causal language model"):
        TextAdapter().load_model(str(tmp_path))
    model = tiny_text_model()[0]
    model.config.name_or_path = str(tmp_path)
    with pytest.raises(UserError, match="Pass processing_class"):
        TextAdapter().bind(model)


def test_padding_falls_back_on_the_end_token(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_text_model(tmp_path))
    tokenizer.pad_token = None
    adapter = TextAdapter().bind(tiny_text_model()[0], tokenizer)
    assert adapter.encode([[{"role": "user", "content": "Hi"}]]).pad_token_id == tokenizer.eos_token_id


# ---- scores ----


def test_scores():
    example = TextAdapter().examples([ROW])[0]
    assert TextAdapter().score(example, "  four\nWORDS ") == 1.0
    assert TextAdapter().score(example, "four") == 0.0
    assert TextAdapter(scorer=lambda e, a: len(a) / 10).score(example, "abc") == pytest.approx(0.3)
    assert TextAdapter(scorer=lambda e, a: 1.0).score(TextAdapter().examples([{"prompt": "?"}])[0], "abc") is None


# ---- data and training ----


def test_the_yaml_sections_give_the_splits(tmp_path):
    files = {}
    for name, rows in {"train": [ROW, ROW], "test": [ROW], "old": [ROW], "keep": [{"prompt": "Hi"}]}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TextData(str(files["train"]), str(files["test"]), str(files["old"]), str(files["keep"]), "Be brief.")
    adapter, splits = TextAdapter.from_config(data, TextDemonstrations("quoted", enable_thinking=False))
    examples = adapter.examples(splits.train)
    assert [e.retain for e in examples] == [False, False, True]
    assert {name: len(rows) for name, rows in splits.evals.items()} == {"new": 1, "old": 1}
    assert "2 training rows, 1 retention prompts" in splits.report[0]
    assert examples[0].messages[0]["content"] == "Be brief."
    assert "Examples of how an expert answered" in adapter.teacher_messages(examples[0], TeacherContext())[-1]["content"]


def test_it_trains(tmp_path):
    model, tokenizer = tiny_text_model()
    before = model.model.embed_tokens.weight.detach().clone()
    rows = [ROW, {"prompt": "Who?", "privileged_context": "Bob."}, {"prompt": "Hi", "retain": True}]
    trainer = SDFTTrainer(model, toy_args(tmp_path), adapter=TextAdapter(), train_dataset=rows, processing_class=tokenizer)
    assert trainer.train().training_loss > 0
    assert not torch.equal(before, trainer.model.model.embed_tokens.weight)


def test_completions_end_alike_before_training_and_after_it(tmp_path):
    """The Trainer adds the tokenizer's end token to the model's when it starts to train: too late for what is measured."""
    model, tokenizer = tiny_text_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = 5
    rows = [{"prompt": "hi", "privileged_context": "say ho"}]
    trainer = SDFTTrainer(model, toy_args(tmp_path), adapter=TextAdapter(), train_dataset=rows, processing_class=tokenizer)
    before = eos_ids(model)
    assert before == {5, tokenizer.eos_token_id}
    trainer.train()
    assert eos_ids(model) == before


def save_with_own_code(folder):
    """A model whose configuration, architecture and tokenizer come as Python files beside it."""
    save_tiny_text_model(folder)
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n\n"
    code += "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n"
    code += "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    (folder / "modeling_own.py").write_text(code)
    code = "from transformers import PreTrainedTokenizerFast\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "tokenization_own.py").write_text(code)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    for name, changes in (
        ("config.json", {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}},
        ),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_trust_in_a_models_own_code_reaches_its_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    save_with_own_code(folder)
    rows = [{"prompt": "hi", "privileged_context": "say ho"}]
    args = toy_args(tmp_path / "run", trust_remote_code=True, max_steps=1)
    trainer = SDFTTrainer(str(folder), args, adapter=TextAdapter(), train_dataset=rows)
    assert type(trainer.model).__name__ == "OwnForCausalLM"
    assert type(trainer.processing_class).__name__ == "OwnTokenizer"


def sections(tmp_path, **files):
    """The section ``data`` with these rows in files."""
    paths = {}
    for name, rows in files.items():
        paths[name] = str(tmp_path / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextData(**paths)


@pytest.mark.parametrize("name", ["path", "test", "old", "retain"])
def test_a_bad_row_is_named_with_its_file(tmp_path, name):
    """Each file counts its own rows."""
    files = {"path": [ROW], "test": [ROW], "old": [ROW], "retain": [{"prompt": "Hi"}]}
    data = sections(tmp_path, **{**files, name: [*files[name], {"reference": "x"}]})
    with pytest.raises(UserError, match=rf"{name}\.jsonl: Row 1: 'prompt' is missing"):
        TextAdapter.from_config(data, TextDemonstrations())


@pytest.mark.parametrize("name", ["test", "old"])
def test_rows_to_measure_need_references(tmp_path, name):
    bare = {"prompt": "Who?", "privileged_context": "Bob."}
    with pytest.raises(UserError, match=rf"{name}\.jsonl: no row has a 'reference'"):
        TextAdapter.from_config(sections(tmp_path, path=[ROW], **{name: [bare, bare]}), TextDemonstrations())
    _, splits = TextAdapter.from_config(sections(tmp_path, path=[ROW], **{name: [ROW, bare]}), TextDemonstrations())
    assert f"1 of 2 rows of {tmp_path / name}.jsonl have no 'reference' and are not scored." in splits.report


def test_training_rows_with_nothing_to_show_the_teacher_are_counted(tmp_path):
    bare = {"prompt": "Who?"}
    _, splits = TextAdapter.from_config(
        sections(tmp_path, path=[ROW, bare, {**bare, "retain": True}]), TextDemonstrations()
    )
    assert any("1 of 2 queries" in sentence and "golden_response" in sentence for sentence in splits.report)
