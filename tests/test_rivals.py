"""The cheap rivals' formulas, each against a direct one, and as rows of `vlm-sdft compare`.

Shapes: R queries · L labelled images · D embedding width · C classes.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor
from torch.nn.functional import normalize

from vlm_sdft.cli import main
from vlm_sdft.demos.rivals import PROBE_DECAY, linear_probe, tip_adapter

R, L, D, C = 7, 12, 5, 4


def embeddings() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    queries_RD, labelled_LD, texts_CD = (
        normalize(torch.randn(n, D, generator=g, dtype=torch.float64), dim=-1) for n in (R, L, C)
    )
    return queries_RD, labelled_LD, texts_CD, torch.arange(L) % C


@pytest.mark.parametrize("named", [True, False])
def test_tip_adapter_is_its_papers_formula(named):
    """Image by image and class by class: affinity exp(-β (1 - cosine)), α = 1, β = 5.5, cosines with names times 100."""
    queries_RD, labelled_LD, texts_CD, index_L = embeddings()
    scores_RC = tip_adapter(queries_RD, labelled_LD, index_L, texts_CD if named else None)
    for r in range(R):
        for c in range(C):
            votes = [
                math.exp(-5.5 * (1 - sum(float(a) * float(b) for a, b in zip(queries_RD[r], labelled_LD[i], strict=True))))
                for i in range(L)
                if int(index_L[i]) == c
            ]
            zero_shot = 100 * float(queries_RD[r] @ texts_CD[c]) if named else 0.0
            assert float(scores_RC[r, c]) == pytest.approx(sum(votes) + zero_shot, abs=1e-9)


def test_the_linear_probe_is_at_scipys_optimum():
    queries_RD, labelled_LD, _, index_L = embeddings()
    rows, classes = labelled_LD.numpy(), index_L.numpy()

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[: C * D].reshape(C, D), flat[C * D :]
        logits = rows @ weight.T + bias
        return float((logsumexp(logits, axis=1) - logits[range(L), classes]).mean() + PROBE_DECAY / 2 * (weight**2).sum())

    best = minimize(loss, np.zeros(C * D + C), method="BFGS", options={"gtol": 1e-7})
    weight_CD, bias_C = linear_probe(labelled_LD, index_L)
    ours = loss(np.concatenate([weight_CD.numpy().ravel(), bias_C.numpy()]))
    assert ours <= best.fun + 1e-8
    probabilities = (queries_RD @ weight_CD.T + bias_C).softmax(-1)
    theirs = queries_RD.numpy() @ best.x[: C * D].reshape(C, D).T + best.x[C * D :]
    np.testing.assert_allclose(probabilities, np.exp(theirs - logsumexp(theirs, axis=1, keepdims=True)), atol=1e-3)


def test_the_linear_probe_within_no_grad_and_in_fp32():
    _, labelled_LD, _, index_L = embeddings()
    with torch.no_grad():
        weight_CD, _ = linear_probe(labelled_LD.float(), index_L)
    torch.testing.assert_close(weight_CD, linear_probe(labelled_LD, index_L)[0].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compare_has_a_row_for_each_rival(tmp_path):
    options = {"n_types": 2, "n_unlabelled": 1, "n_test": 6, "n_retain": 1, "n_old": 2}
    folder = tmp_path / "run"
    argv = ["--model", "builtin:tiny-qwen3-vl", "--data", "builtin:novel-objects", "--data.options", json.dumps(options)]
    argv += ["--data.cache", str(tmp_path / "data"), "--methods", "rivals", "--seeds", "2", "--train.use_cpu", "true"]
    argv += ["--train.output_dir", str(folder)]
    assert main(["compare", *argv]) == 0
    results = json.loads((folder / "compare.json").read_text())
    rows = {name: row for name, row in results["methods"].items() if name != "base"}
    assert set(rows) == {
        f"{name} (own features)"
        for name in ("nearest demonstration", "nearest labelled image", "linear probe", "Tip-Adapter without names")
    }
    for row in rows.values():
        assert row["new"]["over_seeds"]["mean"] > 0.9 and "prior" not in row and row["seeds"] == [0, 1]
        assert row["new"]["change"] == pytest.approx(row["new"]["over_seeds"]["mean"])
    assert "open_clip weights" in results["skipped"]["zero-shot by name"]
    text = (folder / "compare.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| linear probe (own features)"))
    assert line.count("–") >= 5 and "**Tip-Adapter with names** was left out" in text
    assert main(["compare", *argv]) == 0 and json.loads((folder / "compare.json").read_text()) == results


def test_data_without_rivals_is_left_out_with_a_word(tmp_path):
    from tests.tiny_text import save_tiny_text_model

    for name, rows in (
        ("train", [{"prompt": "a?", "golden_response": "a"}]),
        ("test", [{"prompt": "b?", "reference": "b"}] * 3),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [
        "--model",
        save_tiny_text_model(tmp_path / "model"),
        "--adapter",
        "text",
        "--data",
        str(tmp_path / "train.jsonl"),
    ]
    argv += ["--data.test", str(tmp_path / "test.jsonl"), "--methods", "rivals", "--seeds", "1", "--lora.enabled", "false"]
    argv += ["--train.output_dir", str(tmp_path / "run"), "--train.use_cpu", "true", "--train.max_completion_length", "4"]
    assert main(["compare", *argv]) == 0
    results = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert list(results["methods"]) == ["base"] and "none for this kind of data" in results["skipped"]["rivals"]
