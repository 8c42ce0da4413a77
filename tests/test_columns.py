"""Rows to examples: what each column means, and one clear message for each mistake."""

from __future__ import annotations

import json

import datasets
import pytest

from text_sdft.columns import load_rows, to_example, to_examples
from text_sdft.core import Example, UserError

QUESTION = {"role": "user", "content": "What is 2 + 2?"}
IMAGE = {"type": "image", "image": "a.png"}
ROW = {"prompt": "What is 2 + 2?", "reference": "four"}


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_plain_row():
    example = to_example(ROW, 7)
    assert (example.id, example.messages, example.reference, example.retain) == ("row 7", [QUESTION], "four", False)
    assert not example.demonstrations and example.privileged_context is None


def test_messages_and_system_prompt():
    own = [{"role": "system", "content": "Be kind."}, QUESTION]
    assert to_example({"prompt": own}, 0).messages == own
    assert to_example({"prompt": own}, 0, "Be brief.").messages == own
    assert to_example(ROW, 0, "Be brief.").messages == [{"role": "system", "content": "Be brief."}, QUESTION]


def test_both_forms_of_a_demonstration():
    example = to_example({**ROW, "demonstrations": [{"prompt": "1 + 1?", "answer": "two"}, turns("1 + 2?", "three")]}, 0)
    assert [d.messages for d in example.demonstrations] == [turns("1 + 1?", "two"), turns("1 + 2?", "three")]


@pytest.mark.parametrize("golden", ["It is four.", ["It is four."]])
def test_a_golden_response_answers_the_rows_own_prompt(golden):
    example = to_example({**ROW, "golden_response": golden}, 0)
    assert [d.messages for d in example.demonstrations] == [turns("What is 2 + 2?", "It is four.")]


def test_texts_in_parts_are_joined():
    """A text model's chat template would print a list as Python writes it."""

    def parts(*texts):
        return [{"type": "text", "text": text} for text in texts]

    row = {
        "prompt": [{"role": "user", "content": parts("What is ", "2 + 2?")}],
        "demonstrations": [turns(parts("1 + 1?"), parts("two"))],
        "privileged_context": [{"role": "user", "content": parts("Count.")}],
    }
    example = to_example(row, 0)
    assert example.messages == [QUESTION]
    assert example.demonstrations[0].messages == turns("1 + 1?", "two")
    assert example.privileged_context == [{"role": "user", "content": "Count."}]


def test_other_columns():
    example = to_example({**ROW, "id": 12, "retain": 1, "privileged_context": "Count.", "reference": 4}, 0)
    assert (example.id, example.retain, example.privileged_context, example.reference) == ("12", True, "Count.", "4")


def test_columns_that_are_null_count_as_absent():
    """As Parquet and JSON files have them where rows differ."""
    row = {**ROW, "demonstrations": None, "golden_response": None, "images": None, "retain": None, "id": None}
    assert to_example(row, 3) == to_example(ROW, 3)


def test_a_ready_example_passes_through():
    ready = Example("a", [QUESTION])
    assert to_examples([ready]) == [ready]


def test_foreign_columns_are_ignored():
    assert to_example({**ROW, "difficulty": 3, "source": "web"}, 0) == to_example(ROW, 0)


def test_mistakes_are_named_by_row():
    for row, message in (
        ({}, "Row 5: 'prompt' is missing or empty"),
        ({"prompt": "  "}, "Row 5: 'prompt'"),
        ({"prompt": []}, "Row 5: 'prompt' is missing or empty"),
        ({"prompt": 3}, "Row 5: 'prompt' is a int"),
        ({"prompt": turns("a", "b")}, "ends in a turn of 'assistant'"),
        ({**ROW, "teacher_prompt": turns("a", "b")}, "'teacher_prompt' ends in a turn of 'assistant'"),
        ({**ROW, "priviledged_context": "x"}, "did you mean 'privileged_context'"),
        ({**ROW, "demonstration": []}, "did you mean 'demonstrations'"),
        ({**ROW, "images": ["a.png"]}, "adapter: image"),
        ({**ROW, "image": "a.png"}, "adapter: image"),
        ({**ROW, "demonstrations": ["two"]}, "a demonstration needs"),
        ({**ROW, "demonstrations": [{"prompt": "1 + 1?"}]}, "a demonstration needs"),
        ("What is 2 + 2?", "Row 5 is a str"),
        ({"prompt": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "x"}]}]}, "adapter: image"),
        ({**ROW, "demonstrations": [turns([IMAGE], "two")]}, "'demonstrations' has an image"),
        ({**ROW, "privileged_context": [{"role": "user", "content": [IMAGE]}]}, "'privileged_context' has an image"),
        ({"prompt": [{"role": "user", "content": [3]}]}, "'prompt' has a message whose content"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "'prompt' has a message whose content"),
        ({"prompt": [{"role": "user", "content": " "}]}, "'prompt' is missing or empty"),
        ({**ROW, "reference": ["four", "4"]}, "'reference' is a list"),
        ({**ROW, "golden_response": ""}, "'golden_response' is empty"),
    ):
        with pytest.raises(UserError) as raised:
            to_example(row, 5)
        assert message in str(raised.value) and "ow 5" in str(raised.value)


def test_an_id_that_stands_twice():
    with pytest.raises(UserError, match="Two rows have the id 'a'"):
        to_examples([{**ROW, "id": "a"}, {**ROW, "id": "a"}])


# ---- files ----


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_each_kind_of_file(tmp_path, kind):
    rows = [ROW, {"prompt": "And 3 + 3?", "reference": "six"}]
    table, file = datasets.Dataset.from_list(rows), tmp_path / f"rows.{kind}"
    if kind == "csv":
        table.to_csv(file)
    elif kind == "parquet":
        table.to_parquet(file)
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(str(file)) == rows


def test_a_missing_file_names_a_near_one(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW))
    with pytest.raises(UserError, match=r"trian\.jsonl does not exist\. Did you mean .*train\.jsonl"):
        load_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match=r"rows\.csv does not exist\.$"):
        load_rows(str(tmp_path / "nowhere" / "rows.csv"))


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read as json"):
        load_rows(str(file))


def written(file, text):
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_values_of_json_stand_as_they_were_written(tmp_path):
    """Dates stay texts, whole numbers whole, and a rare separator within a text ends no line."""
    given = ["2024-05-03", 1, 2.5, "00501", "a\u2028b"]
    lines = [json.dumps({"prompt": "a", "reference": value}, ensure_ascii=False) for value in given]
    for name, text in {"rows.jsonl": "\n\n".join(lines), "rows.json": f"[{','.join(lines)}]"}.items():
        examples = to_examples(load_rows(written(tmp_path / name, text)))
        assert [e.reference for e in examples] == ["2024-05-03", "1", "2.5", "00501", "a\u2028b"]
    dated = written(tmp_path / "dated.jsonl", '{"prompt": "a", "golden_response": "2024-05-03"}')
    assert to_examples(load_rows(dated))[0].demonstrations[0].messages[-1]["content"] == "2024-05-03"


def test_cells_of_csv_are_texts_and_empty_ones_are_absent(tmp_path):
    """Words that other readers take for missing values are answers; so are numbers, with all their digits."""
    given = ["00501", "1.50", "None", "NA", "null", '"two\nlines"', ""]
    file = written(tmp_path / "rows.csv", "prompt,reference\n" + "".join(f"a,{value}\n" for value in given))
    references = [e.reference for e in to_examples(load_rows(file))]
    assert references == ["00501", "1.50", "None", "NA", "null", "two\nlines", None]
    file = written(tmp_path / "golden.csv", f"prompt,golden_response,retain\na,42,\nb,{'long ' * 40_000},1\nc,,True\n")
    examples = to_examples(load_rows(file))
    assert examples[0].demonstrations[0].messages[-1]["content"] == "42"
    assert [e.retain for e in examples] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "text"), [("r.jsonl", '{"prompt": "é"}'), ("r.json", '[{"prompt": "é"}]'), ("r.csv", "prompt\né")]
)
def test_a_byte_order_mark_does_no_harm(tmp_path, name, text):
    assert load_rows(written(tmp_path / name, "\ufeff" + text)) == [{"prompt": "é"}]


def test_a_broken_file_is_named_with_its_line(tmp_path):
    for name, text, message in (
        ("r.jsonl", '{"prompt": "a"}\n{"prompt": b}\n', "r.jsonl cannot be read as json: line 2"),
        ("r.jsonl", '{"prompt": "a"}\n3\n', "line 2 is a int"),
        ("r.json", '[{"prompt": "a"},\n{"prompt": }]', "r.json cannot be read as json: line 2"),
        ("r.json", '[{"prompt": "a"}, "b"]', "row 1 is a str"),
        ("r.csv", 'prompt,reference\n"a\nb",c\nWhen, and where?,d\n', "line 4: 3 cells for 2 columns"),
        ("r.csv", "prompt,reference\na\n", "line 2: 1 cells for 2 columns"),
        ("r.csv", 'prompt,reference\na,b\n"c,d\ne,f\n', "r.csv cannot be read as csv: the row from line 3 on"),
        ("r.csv", "prompt,reference\n", "r.csv holds no rows"),
    ):
        with pytest.raises(UserError) as raised:
            load_rows(written(tmp_path / name, text))
        assert message in str(raised.value)


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "r.csv").write_bytes("prompt\né\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"r\.csv cannot be read: .*Save it as UTF-8"):
        load_rows(str(tmp_path / "r.csv"))


def test_what_is_no_file_and_no_data_set(tmp_path):
    with pytest.raises(UserError, match="neither a file"):
        load_rows(str(tmp_path / "nothing"))


def test_a_column_of_another_form_is_named_with_its_row():
    for wrong in (
        {"retain": "maybe"},
        {"retain": "none"},
        {"privileged_context": 3},
        {"privileged_context": ["a"]},
        {"demonstrations": 3},
        {"demonstrations": [[1, 2]]},
        {"demonstrations": [{"prompt": 1, "answer": "b"}]},
        {"demonstrations": [[{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]]},
        {"golden_response": 3},
        {"golden_response": [3]},
        {"prompt": [{"role": "user", "content": None}]},
    ):
        with pytest.raises(UserError, match="Row 4"):
            to_example({"prompt": "a", **wrong}, 4)


def test_words_for_retain():
    flags = ["true", "False", "", None, True, False, 1]
    assert [to_example({"prompt": "a", "retain": f}, 0).retain for f in flags] == [
        True,
        False,
        False,
        False,
        True,
        False,
        True,
    ]


# ---- what no view would show ----

TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [TOOL]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ROW, "tools": [TOOL]}, "Row 5 has 'tools', which neither student nor teacher would be shown"),
        (
            {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]},
            "Row 5 has 'messages' and no 'prompt': its turns",
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "Row 5 has 'conversations' and no 'prompt'"),
        ({"instruction": "a", "output": "b"}, "Row 5 has 'instruction' and no 'prompt': rename it"),
        (
            {"prompt": [{"role": "user", "content": "a"}, CALL, {"role": "user", "content": "b"}]},
            "message 2 (assistant) has no",
        ),
        ({"prompt": [{"role": "user", "content": "a"}, CALL, {"role": "user", "content": "b"}]}, "tool calls go into its"),
        ({"prompt": [{"content": "a"}]}, "message 1 (without role) has another form"),
        ({**ROW, "golden_response": "  \n"}, "'golden_response' is empty"),
        ({**ROW, "golden_response": ["four", " "]}, "'golden_response' is empty"),
        ({**ROW, "demonstrations": [{"prompt": "a", "answer": " "}]}, "a demonstration needs 'prompt' and 'answer'"),
        ({"prompt": " \n"}, "'prompt' is missing or empty"),
    ],
)
def test_what_neither_view_would_show_is_refused(row, expected):
    with pytest.raises(UserError) as raised:
        to_example(row, 5)
    assert expected in str(raised.value)


def test_white_space_is_no_content():
    example = to_example({**ROW, "tools": None, "privileged_context": " \n", "reference": " "}, 0)
    assert example.privileged_context is None and example.reference is None
