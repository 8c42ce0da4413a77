"""Answers are compared normalised and whole."""

import pytest

from text_sdft.answers import is_right, normalised


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("dog", "dog"),
        (" A dog. ", "dog"),
        ("The  Dog!", "dog"),
        ("“dax ru”", "Dax Ru"),
        ("ﬁg", "fig"),
        ("**dog**", "a dog"),
    ],
)
def test_right(answer, reference):
    assert is_right(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("not a dog", "dog"),
        ("dogs", "dog"),
        ("dog cat", "dog"),
        ("", "dog"),
        ("a", "dog"),
        ("hot dog", "dog"),
        ("dax", "dax ru"),
    ],
)
def test_wrong(answer, reference):
    assert not is_right(answer, reference)


def test_synonyms_and_edge_cases():
    assert is_right("hound", "dog", ["Hound"])
    assert normalised("A", name=True) == "a"
    assert normalised("theory", name=True) == "theory"
