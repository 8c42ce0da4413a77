"""Rows, views, splits and configs of the text tasks."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import datasets
import pytest
import yaml

from tests.task_rows import ADAPTERS, ROWS, knowledge, medical, medical_test, science, science_test, tool_use
from tests.tiers import further
from tests.tiny_text import save_tiny_text_model, tiny_text_model
from text_sdft import Example, TeacherContext, UserError
from text_sdft.columns import file_examples
from text_sdft.config import KnowledgeData, KnowledgeDemonstrations, MedicalData, TaskData, TaskDemonstrations
from text_sdft.core import ConfigurableAdapter, adapter_class
from text_sdft.tasks.knowledge import KnowledgeAdapter
from text_sdft.testing import PROMISES, check_adapter
from vlm_sdft.cli import main

ROOT = Path(__file__).parent.parent
EVERY = pytest.mark.parametrize("task", ADAPTERS)


def save(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def text(conversation: list) -> str:
    return json.dumps(conversation, ensure_ascii=False)


def sections(task: str, **data):
    """The data and demonstrations sections of a task, with the defaults of the YAML."""
    kinds = {"knowledge": KnowledgeData, "medical": MedicalData}
    return kinds.get(task, TaskData)(**data), (KnowledgeDemonstrations if task == "knowledge" else TaskDemonstrations)()


# ---- the two views ----


@EVERY
def test_the_student_never_sees_what_only_the_teacher_sees(task):
    """Whatever stands in the privileged columns: it is in the teacher's prompt, and changes nothing in the student's."""
    rng = random.Random(0)
    adapter = ADAPTERS[task]()
    plain = [adapter.student_messages(e) for e in adapter.examples(ROWS[task](""))]
    for _ in range(20):
        mark = "".join(rng.choices("ABCDEFGHIJ🙂é{}<>", k=rng.randint(8, 40)))
        examples = adapter.examples(ROWS[task](mark))
        assert [adapter.student_messages(e) for e in examples] == plain
        for example in examples:
            assert text([mark])[1:-1] not in text(adapter.student_messages(example))
            assert mark in text([m["content"] for m in adapter.teacher_messages(example, TeacherContext())]).replace(
                '\\"', '"'
            )


@EVERY
@pytest.mark.parametrize("sees", ["demonstration", "text_and_answer", "text", "answer", "nothing", "wrong"])
def test_the_reference_is_never_in_the_students_prompt(task, sees):
    """A reference of one's own making, under every choice of what the teacher sees."""
    if sees in ("text_and_answer", "text") and task != "knowledge":
        return
    column = {"science": "answer", "medical": "Ground-True Answer", "knowledge": "answer"}.get(task)
    rows = [dict(row) for row in ROWS[task]("")]
    for i, row in enumerate(rows):
        if column is None:
            row["golden_answer"] = [{"Action": f"secret{i}", "Action_Input": "{}"}]
        else:
            row[column] = "ZQ"[i % 2] if task == "science" else f"secret {i}"
    adapter = ADAPTERS[task](teacher_sees=sees)
    adapter._others = adapter.examples(rows)
    for example in adapter.examples(rows):
        assert example.reference is not None and ("secret" in example.reference or example.reference in "ZQ")
        said = text(adapter.student_messages(example))
        assert "secret" not in said and "Z" not in said and "Q" not in said.replace("Question", "")
        teacher = text(adapter.teacher_messages(example, TeacherContext(seed=1)))
        assert said[1:-1] in teacher or example.messages[-1]["content"] in json.loads(teacher)[-1]["content"]


@pytest.mark.parametrize(
    ("task", "sees", "shown", "hidden"),
    [
        ("tool_use", "answer", "Action: rentBoat", "I follow"),
        ("science", "answer", "<answer>C</answer>", "SECRET"),
        ("science", "nothing", "Which salt, 2?", "answer>C"),
        ("medical", "answer", "Rest, SECRET 2.", "comes to mind"),
        ("knowledge", "text_and_answer", "Guide SECRET: fee 2 is 3 per year", "~"),
        ("knowledge", "text", "Guide SECRET", "The right answer is"),
        ("knowledge", "answer", "The right answer is: 3 per year", "SECRET"),
        ("knowledge", "nothing", "What is fee number 2?", "SECRET"),
    ],
)
def test_what_the_teacher_sees(task, sees, shown, hidden):
    adapter = ADAPTERS[task](teacher_sees=sees)
    example = adapter.examples(ROWS[task]("SECRET"))[2]
    said = adapter.teacher_messages(example, TeacherContext())[-1]["content"]
    assert shown in said and hidden not in said


@EVERY
def test_a_wrong_demonstration_is_another_rows(task, tmp_path):
    rows = ROWS[task]("")
    data, shown = sections(task, path=save(tmp_path / "rows.jsonl", rows), holdout=0.0)
    adapter, splits = ADAPTERS[task].from_config(data, shown)
    for example in splits.train:
        own = example.demonstrations[0].messages[-1]["content"]
        for seed in range(5):
            wrong = adapter.demonstrations(example, TeacherContext(seed, control="wrong"))[0].messages
            assert wrong[-1]["content"] != own
            assert wrong[-1]["content"] in {e.demonstrations[0].messages[-1]["content"] for e in splits.train}
        if task == "knowledge":
            said = adapter.teacher_messages(example, TeacherContext(0, control="wrong"))[-1]["content"]
            assert str(example.privileged_context) not in said and "Guide" in said
    if task == "knowledge":
        adapter.teacher_sees = "text"
        said = adapter.teacher_messages(splits.train[0], TeacherContext(0, control="wrong"))[-1]["content"]
        assert "Guide" in said and str(splits.train[0].privileged_context) not in said and "The right answer" not in said
        adapter.teacher_sees = "answer"
        said = adapter.teacher_messages(splits.train[0], TeacherContext(0, control="wrong"))[-1]["content"]
        assert "Guide" not in said and "The right answer" in said
    lonely = ADAPTERS[task]()
    with pytest.raises(UserError, match="give more training rows"):
        lonely.demonstrations(lonely.examples(rows)[0], TeacherContext(control="wrong"))


def test_a_test_row_without_a_demonstration_shows_its_answer():
    adapter = ADAPTERS["science"]()
    example = adapter.examples(science_test())[1]
    assert "<answer>B</answer>" in adapter.teacher_messages(example, TeacherContext())[-1]["content"]


def test_a_limit_of_no_demonstrations_shows_none():
    adapter = ADAPTERS["tool_use"]()
    example = adapter.examples(tool_use())[0]
    assert adapter.teacher_messages(example, TeacherContext(max_demonstrations=0)) == adapter.student_messages(example)


@EVERY
def test_every_adapter_keeps_the_promises(task):
    model, tokenizer = tiny_text_model()
    adapter = ADAPTERS[task](system_prompt="Be brief.").bind(model, tokenizer)
    rows = adapter.examples(ROWS[task]("")[:3])
    adapter._others = rows
    kept = [*rows, Example("kept", [{"role": "user", "content": "How are you?"}], retain=True)]
    # One demonstration a row: no limit can shorten it. Medical training rows have no right answer to be scored by.
    unseen = {"media_reach_the_model", "fewer_demonstrations_shorten_the_prompt"}
    unseen |= {"scores_are_shares"} if task == "medical" else set()
    assert check_adapter(adapter, model, kept) == [
        (promise.__doc__ or "").splitlines()[0] for promise in PROMISES if promise.__name__ not in unseen
    ]


# ---- rows ----


@EVERY
def test_it_is_registered(task):
    assert adapter_class(task) is ADAPTERS[task]
    assert isinstance(ADAPTERS[task](), ConfigurableAdapter)


def test_the_papers_layouts_load_from_every_kind_of_file(tmp_path):
    """JSONL, Parquet, and the folder that `datasets` saves (the authors' form), where structs are filled up with None."""
    for task, rows in (("tool_use", tool_use()), ("science", science()), ("science", science_test())):
        folder = tmp_path / f"{task}{len(list(tmp_path.iterdir()))}"
        table = datasets.Dataset.from_list(rows)
        table.save_to_disk(str(folder))
        table.to_parquet(f"{folder}.parquet")
        for path in (str(folder), f"{folder}.parquet", save(tmp_path / "rows.jsonl", rows)):
            adapter = ADAPTERS[task]()
            examples = file_examples(path, adapter.examples)
            assert len(examples) == len(rows)
            assert all(adapter.score(e, adapter.answer_only(e)) == 1.0 for e in examples)


BAD = [
    (
        "tool_use",
        tool_use()[0],
        {"golden_answer": [{"Action": "t", "Action_Input": "{'a': 1}"}]},
        "'golden_answer' has an 'Action_Input' that is not JSON",
    ),
    ("tool_use", tool_use()[0], {"golden_answer": [{"Action": "t", "Action_Input": "[1]"}]}, "that is not a JSON object"),
    ("tool_use", tool_use()[0], {"golden_answer": [{"Action_Input": "{}"}]}, "must be a list of"),
    ("tool_use", tool_use()[0], {"golden_answer": "t()"}, "must be a list of"),
    (
        "tool_use",
        tool_use()[0],
        {"golden_answer": [{"Action": "t", "Accepted": '{"a": true}'}]},
        "whose values are not lists",
    ),
    ("tool_use", tool_use()[0], {"golden_answer": []}, "'golden_answer' is missing or empty"),
    ("tool_use", tool_use()[0], {"golden_response": [1]}, "'golden_response' must be a string"),
    ("tool_use", tool_use()[0], {"prompt": ""}, "'prompt' is missing or empty"),
    ("tool_use", tool_use()[0], {"golden_response": None}, "nothing to show the teacher"),
    ("science", science()[0], {"output_text": "It is B."}, "no letter as the right answer"),
    ("science", science()[0], {"output_text": "<answer>both</answer>"}, r"found 'both'"),
    ("science", science()[0], {"output_text": None}, "'output_text' is missing"),
    ("science", science()[0], {"messages": [{"role": "assistant", "content": "B"}]}, "must end in a user turn"),
    ("science", science_test()[0], {}, "nothing to show the teacher"),
    ("medical", medical()[0], {"Response": None}, "neither a 'Response'"),
    ("medical", medical()[0], {"Question": None}, "'Question or Open-ended"),
    ("medical", medical_test()[0], {}, "nothing to show the teacher"),
    ("knowledge", knowledge()[0], {"article": None}, "'article' is missing"),
    ("knowledge", knowledge()[0], {"answer": ""}, "'answer' is missing"),
    ("knowledge", knowledge()[0], {"article": " \n"}, "'article' is missing or empty"),
    ("medical", medical()[0], {"Response": " "}, "neither a 'Response'"),
    ("science", science()[0], {"output_text": " "}, "'output_text' is missing or empty"),
]


@pytest.mark.parametrize(("task", "row", "change", "message"), BAD)
def test_bad_rows_are_named_with_their_file(task, row, change, message, tmp_path):
    path = save(tmp_path / "rows.jsonl", [{**row, **change}])
    data, shown = sections(task, path=path, holdout=0.0)
    with pytest.raises(UserError, match=message) as error:
        ADAPTERS[task].from_config(data, shown)
    assert path in str(error.value) and "ow 0" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_that_is_no_mapping_is_named():
    with pytest.raises(UserError, match="Row 1 is a str"):
        ADAPTERS["science"]().examples([science()[0], "B"])


# ---- splits ----


@EVERY
def test_the_splits(task, tmp_path):
    rows = ROWS[task]("")
    data, shown = sections(
        task,
        path=save(tmp_path / "rows.jsonl", rows),
        test=save(tmp_path / "test.jsonl", medical_test()[:2] if task == "medical" else rows[:2]),
        holdout=0.3,
        old=save(tmp_path / "old.jsonl", [{"prompt": "What is the capital of France?", "reference": "Paris"}]),
        retain=save(tmp_path / "retain.jsonl", [{"prompt": "Hi"}, {"prompt": "Bye"}]),
        system_prompt="Be brief.",
    )
    adapter, splits = ADAPTERS[task].from_config(data, shown)
    again = ADAPTERS[task].from_config(data, shown)[1]
    ids = [e.id for e in splits.train if not e.retain]
    held = [e.id for e in splits.evals["validation"]]
    assert len(held) == round(0.3 * len(rows)) and len(ids) + len(held) == len(rows) and not set(ids) & set(held)
    assert held == [e.id for e in again.evals["validation"]]
    assert len(splits.evals["new"]) == 2 and sum(e.retain for e in splits.train) == 2
    assert any("measure 'validation'" in line for line in splits.report)
    examples = adapter.examples(splits.train)
    assert all(
        e.messages[0]["role"] == "system" and len([m for m in e.messages if m["role"] == "system"]) == 1 for e in examples
    )
    assert adapter.examples(examples) == examples
    retained = next(e for e in examples if e.retain)
    assert adapter.teacher_messages(retained, TeacherContext()) == adapter.student_messages(retained)
    old = adapter.examples(splits.evals["old"])[0]
    assert adapter.score(old, "It is Paris.") == 1.0 and adapter.score(old, "Parisian") == 0.0
    assert adapter.teacher_messages(old, TeacherContext()) == adapter.student_messages(old)


def test_validation_comes_from_its_file_where_there_is_one(tmp_path):
    path = save(tmp_path / "rows.jsonl", science())
    given = TaskData(path, validation=save(tmp_path / "validation.jsonl", science_test()[:3]))
    splits = ADAPTERS["science"].from_config(given, TaskDemonstrations())[1]
    assert (len(splits.train), len(splits.evals["validation"])) == (4, 3)
    with pytest.raises(UserError, match=r"data.holdout 0.9 leaves nothing of 4 training rows"):
        ADAPTERS["science"].from_config(TaskData(path, holdout=0.9), TaskDemonstrations())


def test_a_judge_that_cannot_be_reached_stops_before_training(tmp_path):
    data = MedicalData(save(tmp_path / "rows.jsonl", medical()), judge_url="http://127.0.0.1:9/v1", judge_model="m")
    with pytest.raises(UserError, match="cannot be used"):
        ADAPTERS["medical"].from_config(data, TaskDemonstrations())
    data.judge_model = ""
    with pytest.raises(UserError, match=r"needs data\.judge_model"):
        ADAPTERS["medical"].from_config(data, TaskDemonstrations())


# ---- configs ----

CONFIGS = sorted([*(ROOT / "configs" / "paper").glob("*.yaml"), *(ROOT / "configs" / "smollm2").glob("*.yaml")])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    tests = {"science": science_test(), "medical": medical_test()}
    for task, make in ROWS.items():
        save(folder / f"{task}.jsonl", make(""))
        save(folder / f"{task}_test.jsonl", tests.get(task, make("")))
    return folder, save_tiny_text_model(folder / "tiny")


@pytest.mark.parametrize(
    "config",
    [CONFIGS[0], *further(*CONFIGS[1:])],
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_configs_preview_with_a_small_model_and_local_rows(config, tiny, capsys, monkeypatch):
    folder, model = tiny
    monkeypatch.chdir(folder)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    args = [str(config), *small(settings, model)]
    assert main(["preview", *args]) == 0
    printed = capsys.readouterr().out
    assert "tokens)" in printed and "rows to measure 'new'" in printed
    text = config.read_text(encoding="utf-8")
    assert config.parent.name != "paper" or (
        "Grid of the paper" in text and "never published" in text and text.count("(*)") >= 5
    )


@pytest.mark.slow
def test_the_commands_of_the_docs_run(tiny, monkeypatch, capsys):
    """With a small model and local rows in place of a user's; one training step."""
    folder, model = tiny
    monkeypatch.chdir(folder)
    lines = re.findall(r"^    vlm-sdft (.*)$", (ROOT / "docs" / "text-tasks.md").read_text(encoding="utf-8"), re.M)
    assert len(lines) >= 4
    for number, line in enumerate(lines):
        command, config, *rest = shlex.split(line)
        settings = yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))
        args = [command, str(ROOT / config), *rest, *small(settings, model), "--train.output_dir", f"docs{number}"]
        if command == "train":
            args += ["--train.max_steps", "1", "--train.disable_tqdm", "true", "--eval.max_examples", "2", "--force"]
        assert main(args) in ((0, 3) if command == "probe" else (0,)), line


def small(settings: dict, model: str) -> list[str]:
    """Options that put a small model and local rows in place of a config's."""
    task = settings["adapter"]
    args = ["--model", model, "--data", f"{task}.jsonl", "--data.test", f"{task}_test.jsonl", "--train.bf16", "false"]
    args += [
        "--train.max_prompt_length",
        "1500",
        "--train.max_completion_length",
        "8",
        "--train.activation_checkpointing",
        "false",
    ]
    absent = [key for key in ("validation", "ood", "old", "retain") if key in settings["data"]]
    return args + [part for key in absent for part in (f"--data.{key}", "null")]


def test_training_runs_end_to_end(tiny, monkeypatch):
    folder, model = tiny
    monkeypatch.chdir(folder)
    args = ["--model", model, "--data", "knowledge.jsonl", "--data.test", "knowledge_test.jsonl", "--lora.enabled", "false"]
    args += [
        "--adapter",
        "knowledge",
        "--data.ood",
        "knowledge_test.jsonl",
        "--train.max_steps",
        "1",
        "--train.use_cpu",
        "true",
    ]
    args += [
        "--train.per_device_train_batch_size",
        "2",
        "--train.gradient_accumulation_steps",
        "1",
        "--train.disable_tqdm",
        "true",
    ]
    args += ["--train.max_completion_length", "8", "--train.output_dir", "run", "--data.holdout", "0.25"]
    assert main(["train", *args]) == 3  # a random model is no teacher
    assert main(["train", *args, "--force"]) == 0
    results = json.loads((folder / "run" / "results.json").read_text())
    assert {"new", "ood", "validation", "teacher"} <= results["after"].keys()
    assert main(["eval", "run"]) == 0
    assert json.loads((folder / "run" / "eval.json").read_text())["ood"] == results["after"]["ood"]


def test_rungs_of_the_ladder_show_nothing_the_context_and_the_answer_alone():
    rows = [{"prompt": "What is the fee?", "article": "The fee is $3.", "answer": "$3"}]
    adapter = KnowledgeAdapter(teacher_sees="text")
    example = adapter.examples(rows)[0]
    shown = {rung: str(adapter.teacher_messages(example, TeacherContext(0, rung=rung))) for rung in adapter.rungs(example)}
    assert "The fee is" not in shown[0] and "$3" not in shown[0]
    assert "The fee is $3." in shown[2]
    assert "$3" in shown[5] and "The fee is" not in shown[5]
