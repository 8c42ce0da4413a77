"""Answers are compared normalised and whole."""

from text_sdft.answers import is_right, normalised


def test_right():
    for answer, reference in (
        ("dog", "dog"),
        (" A dog. ", "dog"),
        ("The  Dog!", "dog"),
        ("“dax ru”", "Dax Ru"),
        ("ﬁg", "fig"),
        ("**dog**", "a dog"),
    ):
        assert is_right(answer, reference), answer


def test_wrong():
    for answer, reference in (
        ("not a dog", "dog"),
        ("dogs", "dog"),
        ("dog cat", "dog"),
        ("", "dog"),
        ("a", "dog"),
        ("hot dog", "dog"),
        ("dax", "dax ru"),
    ):
        assert not is_right(answer, reference), answer


def test_synonyms_and_edge_cases():
    assert is_right("hound", "dog", ["Hound"])
    assert normalised("A", name=True) == "a"
    assert normalised("theory", name=True) == "theory"
