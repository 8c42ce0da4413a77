"""Demonstrations: the query is never among them, classes are balanced, and the same seed gives the same list."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from text_sdft.core import UserError
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.demos.selection import DemonstrationSelector
from vlm_sdft.demos.sets import ImageRow

TYPES, EACH = 6, 4


def rows():
    return [
        ImageRow(f"t{t}/{i}", (f"t{t}/{i}".encode(),), "What is this?", f"word{t}", f"t{t}", "train")
        for t in range(TYPES)
        for i in range(EACH)
    ]


def embeddings():
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(TYPES).repeat_interleave(EACH, 0)
    return normalize(centres + 0.2 * torch.randn(TYPES * EACH, TYPES, generator=g), dim=-1)


def selector(selection="retrieved", n_types=3, shots=2):
    return DemonstrationSelector(rows(), embeddings(), selection=selection, n_types=n_types, shots=shots)


@pytest.mark.parametrize("selection", ["retrieved", "grouped", "random", "fixed"])
def test_never_the_query_itself_nor_a_copy(selection):
    chooser, vectors = selector(selection, n_types=TYPES, shots=EACH), embeddings()
    for seed, (index, row) in itertools.product(range(5), enumerate(rows())):
        shown = chooser.select(row, vectors[index], seed, include_type=row.type)
        assert row.id not in {s.id for s in shown} and len(shown) == TYPES * EACH - 1
        copy = ImageRow("elsewhere", row.images, "?", None, None, "test")
        assert row.id not in {s.id for s in chooser.select(copy, vectors[index], seed)}


def test_a_picture_that_all_rows_hold_makes_none_a_copy():
    shared = [replace(row, images=(b"a chart", *row.images)) for row in rows()]
    chooser = DemonstrationSelector(shared, embeddings(), selection="fixed", n_types=TYPES, shots=EACH)
    assert len(chooser.select(shared[0], None, 0)) == TYPES * EACH - 1
    alone = replace(shared[0], id="elsewhere", images=shared[0].images[1:])
    assert shared[0].id not in {row.id for row in chooser.select(alone, None, 0)}, "the picture that tells it is there"


@pytest.mark.parametrize("selection", ["retrieved", "grouped", "random", "fixed"])
def test_balanced_and_the_own_type_included(selection):
    chooser, vectors = selector(selection), embeddings()
    for index, row in enumerate(rows()):
        shown = chooser.select(row, vectors[index], seed=index, include_type=row.type)
        counts = Counter(s.type for s in shown)
        assert len(counts) == 3 and set(counts.values()) == {2} and row.type in counts


def test_retrieval_finds_the_nearest_types():
    chooser = selector(n_types=1, shots=2)
    query = ImageRow("q", (b"q",), "?", None, None, "test")
    for t in range(TYPES):
        vector = torch.eye(TYPES)[t]
        assert {s.type for s in chooser.select(query, vector, 0)} == {f"t{t}"}


def test_the_label_of_an_unlabelled_query_changes_nothing():
    chooser = selector()
    vector = torch.eye(TYPES)[2]
    known = ImageRow("q", (b"q",), "?", "word5", "t5", "test")
    unknown = ImageRow("q", (b"q",), "?", None, None, "unlabelled")
    assert chooser.select(known, vector, 3) == chooser.select(unknown, vector, 3)


@pytest.mark.parametrize("selection", ["retrieved", "random", "fixed"])
def test_seeds(selection):
    chooser, vector = selector(selection), torch.eye(TYPES)[0]
    query = ImageRow("q", (b"q",), "?", None, None, "test")
    torch.manual_seed(1)
    first = chooser.select(query, vector, 5)
    torch.manual_seed(2)
    assert chooser.select(query, vector, 5) == first
    orders = {tuple(s.id for s in chooser.select(query, vector, seed)) for seed in range(20)}
    assert len(orders) > 10
    contents = {frozenset(order) for order in orders}
    assert (len(contents) == 1) == (selection != "random")


def test_a_cut_keeps_the_best_of_each_type():
    chooser, vectors, row = selector(n_types=3, shots=2), embeddings(), rows()[0]
    for limit in (1, 2, 3, 5):
        shown = chooser.select(row, vectors[0], 0, max_demonstrations=limit, include_type="t0")
        assert len(shown) == limit and "t0" in {s.type for s in shown}
        assert len({s.type for s in shown}) == min(limit, 3)


def test_a_type_with_one_image_has_none_left_for_its_own_query():
    only = [row for row in rows() if row.type != "t0"] + rows()[:1]
    chooser = DemonstrationSelector(only, None, selection="random", n_types=3, shots=2)
    assert "t0" not in {s.type for s in chooser.select(rows()[0], None, 0, include_type="t0")}


@pytest.mark.parametrize("wrong", [{"selection": "best"}, {"n_types": 0}, {"shots": 0}])
def test_wrong_settings(wrong):
    settings = {"selection": "random", "n_types": 2, "shots": 2, **wrong}
    with pytest.raises(UserError):
        DemonstrationSelector(rows(), None, **settings)
    with pytest.raises(UserError, match="no labelled images"):
        ImageAdapter(DemoSet())


def test_queries_that_lie_close_share_one_block():
    """One block for each type at most, in one order whatever the seed, with the type nearest to the query in it."""
    chooser, g = selector("grouped"), torch.Generator().manual_seed(1)
    blocks = set()
    for t in range(TYPES):
        for i in range(5):
            query = ImageRow(f"q{t}{i}", (f"q{t}{i}".encode(),), "?", None, None, "unlabelled")
            vector = normalize(torch.eye(TYPES)[t] + 0.05 * torch.randn(TYPES, generator=g), dim=-1)
            shown = chooser.select(query, vector, seed=i)
            assert f"t{t}" in {s.type for s in shown} and len(shown) == 6
            blocks.add(tuple(s.id for s in shown))
    assert len(blocks) == TYPES
