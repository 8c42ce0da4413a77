"""Answers of models that think aloud: what they say after their thoughts is the answer, for every scorer."""

from __future__ import annotations

import pytest

from tests.task_rows import ADAPTERS, ROWS, medical_test, science_test
from text_sdft import TextAdapter
from text_sdft.answers import is_right, without_reasoning


def test_the_answer_is_what_stands_after_the_thoughts():
    for answer, said in (
        ("<think>Is it 5? No.</think>\n\n7", "7"),
        ("Is it 5? No.</think>\n7", "7"),  # the chat template itself opened the thoughts
        ("<think>\n\n</think>\n\n7", "7"),  # switched off
        ("<think>Is it 7", ""),  # cut by the length limit
        (" 7 ", "7"),
        ("", ""),
    ):
        assert without_reasoning(answer) == said


@pytest.mark.parametrize("task", ADAPTERS)
def test_a_task_scores_what_is_said_after_the_thoughts(task):
    adapter = ADAPTERS[task]()
    tested = {"medical": medical_test, "science": science_test}.get(task, lambda: ROWS[task](""))()
    example = next(e for e in adapter.examples(tested) if e.reference is not None)
    right = adapter.answer_only(example)
    wrong = next(a for e in adapter.examples(tested) if adapter.score(example, a := adapter.answer_only(e)) == 0)
    assert adapter.score(example, f"<think>{wrong}? 17 of them.</think>\n\n{right}") == 1.0
    assert adapter.score(example, f"<think>{right}</think>\n\n{wrong}") == 0.0
    assert adapter.score(example, f"<think>It is {right}") == 0.0


def test_plain_rows_and_names_of_objects_too():
    adapter = TextAdapter()
    example = adapter.examples([{"prompt": "2 + 2?", "reference": "4"}])[0]
    assert adapter.score(example, "<think>2 + 2 = 5?</think>\n\n4") == 1.0
    assert adapter.score(example, "<think>4</think>\n\n5") == 0.0
    assert is_right("<think>A wug? No.</think>\n\nA dax.", "dax") and not is_right("<think>dax", "dax")


def test_a_scorer_of_ones_own_reads_the_whole_answer():
    adapter = TextAdapter(scorer=lambda example, answer: float("<think>" in answer))
    example = adapter.examples([{"prompt": "2 + 2?", "reference": "4"}])[0]
    assert adapter.score(example, "<think>2 + 2</think>4") == 1.0
