"""Pass@k against all draws of k answers."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.tiny_text import tiny_text_model
from text_sdft import TextAdapter
from text_sdft.core import Example, SDFTConfig
from text_sdft.experiments.pass_at_k import mean_pass_at_k, measure_pass_at_k, pass_at_k
from text_sdft.training import SDFTTrainer


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_it_is_the_share_of_draws_with_a_right_answer(n):
    for right in range(n + 1):
        answers = [i < right for i in range(n)]
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(answers, k)]
            assert pass_at_k(n, right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_it_stays_exact_for_many_answers():
    assert pass_at_k(1000, 1, 128) == pytest.approx(0.128, abs=1e-12)
    assert pass_at_k(128, 0, 128) == 0.0 and pass_at_k(128, 1, 128) == 1.0


def test_the_mean_counts_questions_alike():
    assert mean_pass_at_k([[1.0, 0.0], [0.0, 0.0, 0.5]], 1) == pytest.approx(0.25)


@pytest.mark.parametrize("counts", [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="needs 0 <= right <= n"):
        pass_at_k(*counts)


def test_sampled_answers_are_counted_one_by_one():
    model, tokenizer = tiny_text_model()
    args = SDFTConfig("runs/x", use_cpu=True, max_completion_length=1, report_to=[])
    trainer = SDFTTrainer(model, args, adapter=FirstLetter(), processing_class=tokenizer)
    examples = [Example(id=str(i), messages=[{"role": "user", "content": f"{i}?"}], reference="l") for i in range(3)]
    found, records = measure_pass_at_k(trainer, examples, samples=6, batch_size=5)
    assert list(found) == [1, 2, 4, 6]
    assert [len(set(record["answers"])) > 1 for record in records] == [True] * 3, "answers are drawn, not repeated"
    for k, value in found.items():
        draws = [any(draw) for record in records for draw in combinations(record["scores"], k)]
        assert value == pytest.approx(sum(draws) / len(draws))
    assert 0 < found[1] < found[6]


class FirstLetter(TextAdapter):
    """Right is an answer that begins with a letter below the reference."""

    def score(self, example: Example, answer: str) -> float | None:
        return None if example.reference is None else float(answer[:1] < example.reference)
