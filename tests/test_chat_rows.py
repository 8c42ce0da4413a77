"""Rows of messages with images: images stay where they stand, and what no view would show is refused with its line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.image_files import error, fill, lines, names
from text_sdft.core import TeacherContext
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.demos.retention import retain_in_context

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def row(content: Any, n_images: int = 1, answer: Any = "dax", start: int = 0, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [f"{start + i}.png" for i in range(n_images)], **more}


def read(root: Path, *rows: dict[str, Any]) -> DemoSet:
    fill(root, {"": 8})
    lines(root / "rows.jsonl", *rows)
    return DemoSet.load(root / "rows.jsonl")


def asked(demos: DemoSet) -> list[Any]:
    """The student's parts: texts, and the names of images."""
    [example] = ImageAdapter(demos).examples(demos.labelled[:1])
    [message] = example.messages
    return [part["text"] if part["type"] == "text" else Path(part["image"]).name for part in message["content"]]


@pytest.mark.parametrize(
    ("content", "n_images", "expected"),
    [
        ("What is this?", 2, ["0.png", "1.png", "What is this?"]),
        ("<image>\nWhat is this?", 1, ["0.png", "What is this?"]),
        ("<image> <image>\nSame?", 2, ["0.png", "1.png", "Same?"]),
        ("Reference: <image> Candidate: <image> Same?", 2, ["Reference: ", "0.png", " Candidate: ", "1.png", " Same?"]),
        ("What is this?\n<image>", 1, ["What is this?\n", "0.png"]),
        (
            [text("First:"), IMAGE, text("Second:"), IMAGE, text("Same?")],
            2,
            ["First:", "0.png", "Second:", "1.png", "Same?"],
        ),
        ([IMAGE, text("What"), text("is this?")], 1, ["0.png", "What is this?"]),
        ([IMAGE, text("What does the tag <image> stand for?")], 1, ["0.png", "What does the tag <image> stand for?"]),
        ([text("Is <image> one?")], 1, ["Is ", "0.png", " one?"]),
        ("<image>", 1, ["0.png", "What is this?"]),
    ],
)
def test_images_stay_where_they_stand_in_a_question(tmp_path, content, n_images, expected):
    assert asked(read(tmp_path, row(content, n_images))) == expected


@pytest.mark.parametrize(
    ("content", "n_images", "counts"),
    [
        ("<image><image>Same?", 1, "2 places of images"),
        ("<image>Same?", 2, "1 places of images"),
        ("<image>In XML, what does the tag <image> stand for?", 1, "2 places of images"),
        ([IMAGE, text("a"), IMAGE], 1, "2 places of images"),
        ([IMAGE, text("a")], 3, "1 places of images"),
    ],
)
def test_another_number_of_places_than_images_is_an_error_with_its_line(tmp_path, content, n_images, counts):
    fill(tmp_path, {"": 8})
    lines(tmp_path / "rows.jsonl", row("a", start=5), row(content, n_images))
    message = error(tmp_path / "rows.jsonl")
    assert "rows.jsonl, line 2: " in message and counts in message and f'for {n_images} "images"' in message


def test_an_answer_keeps_its_words(tmp_path):
    demos = read(tmp_path, row("What tag?", answer="  the tag <image>\n"), row("b", start=1))
    assert demos.labelled[0].answer == "the tag <image>"


def test_queries_with_images_among_words_are_asked_in_context_too(tmp_path):
    words = "Reference: <image> Candidate: <image> Same?"
    demos = retain_in_context(read(tmp_path, row(words, 2, "yes"), row(words, 2, "no", start=2)), 0.5)
    assert {query.question for query in demos.retain} == {"Reference: Candidate: Same?"}


CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
USER = {"role": "user", "content": "<image>What is this?"}
ANSWER = {"role": "assistant", "content": "dax"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "assistant", "content": "Hello."}, USER, ANSWER], "turns of assistant, user, assistant"),
        ([USER, ANSWER, {"role": "user", "content": "Sure?"}, ANSWER], "turns of user, assistant, user, assistant"),
        ([USER, {"role": "tool", "content": "a heart"}, ANSWER], "turns of user, tool, assistant"),
        ([USER, {**ANSWER, "tool_calls": [CALL]}], "'tool_calls' of message 2 (assistant)"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, ANSWER], "'tool_calls' of message 2"),
        ([USER, {**ANSWER, "function_call": CALL}], "'function_call' of message 2 (assistant)"),
        ([USER, ANSWER, ANSWER], "turns of user, assistant, assistant"),
        ([ANSWER], "turns of assistant"),
        ([USER, {"role": "assistant", "content": [IMAGE, text("dax")]}], "the assistant's turn holds an image"),
        ([{"role": "user", "content": [{**IMAGE, "image": "0.png"}, text("a")]}, ANSWER], "names none itself"),
        ([USER, {"role": "assistant", "content": None}], "Message 2 (assistant) has something else"),
    ],
)
def test_turns_that_no_view_would_show_are_refused(tmp_path, messages, expected):
    fill(tmp_path, {"": 2})
    lines(tmp_path / "rows.jsonl", {"messages": messages, "images": ["0.png"]})
    message = error(tmp_path / "rows.jsonl")
    assert "rows.jsonl, line 1: " in message and expected in message


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tools": [CALL]}, "'tools' would be shown to neither student nor teacher"),
        ({"spilt": "test"}, "'spilt' is unknown. Did you mean 'split'?"),
    ],
)
def test_columns_that_would_be_dropped_are_refused(tmp_path, more, expected):
    fill(tmp_path, {"": 2})
    lines(tmp_path / "rows.jsonl", row("a", **more))
    assert expected in error(tmp_path / "rows.jsonl")
    lines(tmp_path / "rows.jsonl", row("a", tools=None, image_id=7, source="x"))
    assert names(DemoSet.load(tmp_path / "rows.jsonl").labelled) == ["line 1"]


def test_turns_of_another_name_are_to_be_renamed(tmp_path):
    fill(tmp_path, {"": 1})
    lines(tmp_path / "rows.jsonl", {"conversations": [USER, ANSWER], "images": ["0.png"]})
    assert "It has 'conversations': rename that." in error(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("template", ["turns", "quoted"])
def test_the_teacher_sees_demonstrations_with_their_images_in_place(tmp_path, template):
    words = "Reference: <image> Candidate: <image> Same?"
    demos = read(tmp_path, row(words, 2, "yes"), row(words, 2, "no", start=2), row(words, 2, "no", start=4))
    adapter = ImageAdapter(demos, selection="fixed", n_types=2, shots=2, template=template)
    messages = adapter.teacher_messages(adapter.examples(demos.labelled)[0], TeacherContext())
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    for image, following in itertools.pairwise(parts):
        if image["type"] == "image":
            first = int(Path(image["image"]).stem) % 2 == 0
            assert following["text"].startswith(" Candidate: " if first else " Same?")
    shown = [Path(part["image"]).name for part in parts if part["type"] == "image"]
    assert shown[-2:] == ["0.png", "1.png"] and sorted(shown) == [f"{i}.png" for i in range(6)]
